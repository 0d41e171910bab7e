"""A decision that fails by a fault of ours: its caller hears that nothing was done, and everybody else is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from orchestrator.api.v1 import operator_pb2
from orchestrator.core import decide
from orchestrator.core import messages as m
from orchestrator.core.decisions import fleet, operators
from orchestrator.core.errors import RefusalCode, RefusedError, UndecidedError
from orchestrator.core.ids import TenantId
from tests.control.agents import Served, agent_of, refused, serving
from tests.control.floods import refusals, written
from tests.control.looping import Rig, rigged, settle

POISON = "hunter2"
"""The name at which the planted fault goes off; it may stand in no log and no answer."""


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in a decision."""
    honest = operators.create_tenant

    def faulty(state: Any, command: m.CreateTenant, at_ms: int) -> m.Decision:
        if command.name == POISON:
            raise KeyError(command.name)
        return honest(state, command, at_ms)

    monkeypatch.setattr(operators, "create_tenant", faulty)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


def tenant(name: str) -> m.CreateTenant:
    return m.CreateTenant(TenantId(f"ten_{name}"), name)


async def answers(rig: Rig, *commands: m.Command) -> list[object]:
    """What a batch of commands is answered."""
    return list(await asyncio.gather(*map(rig.loop.submit, commands), return_exceptions=True))


async def test_fault_in_a_decision_leaves_the_rest_of_its_batch_alone(planted: None) -> None:
    told: list[tuple[m.Command, BaseException | None]] = []
    async with rigged(undecided=lambda command, error: told.append((command, error.__cause__))) as rig:
        before = len(rig.store.transactions)
        first, failed, second = await answers(rig, tenant("one"), tenant(POISON), tenant("two"))
        assert not isinstance(first, BaseException)
        assert not isinstance(second, BaseException)
        assert isinstance(failed, RefusedError)
        assert failed.code is RefusalCode.INTERNAL
        assert "nothing was done" in failed.message
        assert POISON not in failed.message
        assert [type(cause) for _, cause in told] == [KeyError]
        assert [len(one.events) for one in rig.store.transactions[before:]] == [2]
        assert sorted(rig.state.tenants) == ["ten_one", "ten_two"]


async def test_fault_where_nobody_is_told_ends_the_loop(planted: None) -> None:
    """As in simulations, which must not pass over one."""
    async with rigged() as rig:
        (failed,) = await answers(rig, tenant(POISON))
        assert isinstance(failed, RefusedError)
        assert failed.code is RefusalCode.UNAVAILABLE
        await settle()
        assert isinstance(rig.task.exception(), UndecidedError)


async def test_fault_after_something_was_applied_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is then in between, and only the disk is right."""
    async with rigged(undecided=lambda _command, _error: None) as rig:

        def torn(*_arguments: object) -> None:
            raise KeyError("half applied")

        monkeypatch.setattr(decide, "consequences", torn)
        (failed,) = await answers(rig, tenant("one"))
        assert isinstance(failed, RefusedError)
        assert failed.code is RefusalCode.UNAVAILABLE
        await settle()
        assert isinstance(rig.task.exception(), KeyError)


async def test_fault_at_a_session_sends_its_worker_away_for_a_while_only(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_arguments: object) -> None:
        raise KeyError(POISON)

    async with agent_of(served) as agent:
        await agent.join()
        monkeypatch.setattr(fleet, "connect_worker", faulty)
        answer = await agent.hello()
        assert answer.farewell.retry
        assert "nothing was done" in answer.farewell.reason


async def test_fault_is_answered_counted_and_logged_without_what_was_asked(
    served: Served, planted: None
) -> None:
    events = written(served)
    with capture_logs() as logged, refused(grpc.StatusCode.INTERNAL, "nothing was done"):
        request = operator_pb2.CreateTenantRequest(name=POISON)
        await served.operator.CreateTenant(request, metadata=served.admin)
    (line,) = [one for one in logged if one["event"] == "decision_failed"]
    assert (line["command"], line["error"]) == ("CreateTenant", "KeyError")
    assert "in faulty" in line["where"]
    assert POISON not in str(logged)
    assert refusals(served, "CreateTenant", "internal") >= 1
    assert written(served) == events
    honest = operator_pb2.CreateTenantRequest(name="acme")
    assert (await served.operator.CreateTenant(honest, metadata=served.admin)).tenant.name == "acme"
