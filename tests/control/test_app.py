from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from orchestrator.adapters.database import DatabaseUnavailableError
from orchestrator.adapters.metrics.registry import Metrics
from orchestrator.adapters.store import Transaction
from orchestrator.control.app import ControlPlane
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import TenantId
from tests.control.house import DEADLINE_S, house
from tests.polling import wait_until_async


class FullDisk:
    """A store that fails after some commits."""

    def __init__(self, commits: int) -> None:
        self._left = commits

    async def commit(self, _transaction: Transaction) -> None:
        self._left -= 1
        if self._left < 0:
            raise DatabaseUnavailableError("the disk is full")


async def test_start_commit_that_fails_is_raised_and_nobody_waits(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        broken = ControlPlane(replace(built.parts, store=FullDisk(0)))
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(DatabaseUnavailableError):
                await broken.start()
            await broken.stop()


async def test_failure_commit_that_fails_later_ends_the_wait(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        # Raising the term is the one commit that a start with a known admin token needs.
        broken = ControlPlane(replace(built.parts, store=FullDisk(1)))
        assert broken.standing() == "starting"
        async with asyncio.timeout(DEADLINE_S):
            await broken.start()
            assert broken.standing() == ""
            submitting = asyncio.create_task(broken.loop.submit(m.CreateTenant(TenantId("ten_x"), "x")))
            with pytest.raises(DatabaseUnavailableError):
                await broken.failure()
            assert broken.standing() == "loop has ended: the disk is full"
            with pytest.raises(RefusedError, match="safe to retry"):
                await submitting
            await broken.stop()


class Listening(Metrics):
    """Notes what a line of the planner's would carry."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: dict[str, object] = {}

    def observe(self, name: str, value: float, labels: tuple[str, ...] = ()) -> None:
        super().observe(name, value, labels)
        if name == "plan_seconds":
            self.ids = structlog.contextvars.get_contextvars()


async def test_start_lines_of_its_parts_carry_network_and_term(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        observer = Listening()
        plane = ControlPlane(replace(built.parts, observer=observer))
        # In a context of its own: what the test's own plane has bound must not be what is found.
        with structlog.contextvars.bound_contextvars(network_id="", term=0):
            term = await plane.start()
            network_id = await plane.loop.read(lambda state: state.control.network_id)
        await wait_until_async(lambda: bool(observer.ids), what="a plan", deadline_s=DEADLINE_S)
        await plane.stop()
        assert observer.ids == {"network_id": network_id, "term": term}
