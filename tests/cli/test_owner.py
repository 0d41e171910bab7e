"""`orch worker cordon|uncordon|drain|reclaim|terms`: to this machine's agent, or to the control plane."""

# ruff: noqa: N802 -- gRPC calls methods by the names of the protos

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.agent.owner import socket_path
from orchestrator.api.v1 import agent_pb2, standing_pb2, terms_pb2, worker_pb2
from orchestrator.api.v1.agent_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from orchestrator.cli import owner
from tests.cli.conftest import Control, Orch
from tests.cli.control import lines_with
from tests.cli.samples import REMARK

TERMS = terms_pb2.Terms(
    asks=[terms_pb2.Ask(model="RTX4090", microcredits_per_gpu_hour=350_000)],
    schedule=[terms_pb2.WeekWindow(start_minute=22 * 60, end_minute=31 * 60)],
    notice_ms=30_000,
    webhook_url="https://example.org/secret-path",
)


class FakeAgent(AgentServiceServicer):
    """Remembers wishes; its members go one at each look once it is wished."""

    def __init__(self) -> None:
        self.wishes: list[worker_pb2.OwnerWish] = []
        self.members = 1
        self.end_on = "reclaim"
        self.refusal = ""
        self.standing: standing_pb2.Standing | None = standing_pb2.Standing(
            terms=TERMS, holds=[standing_pb2.WorkerHold(kind="owner", reason="dust", since_unix_ms=1_000)]
        )

    def GetAgent(self, request: Any, context: Any) -> agent_pb2.GetAgentResponse:
        members = [
            agent_pb2.AgentMember(member_id=f"m{number}", phase="up", device_ids=["gpu-1"])
            for number in range(self.members)
        ]
        if any(wish.WhichOneof("wish") == self.end_on for wish in self.wishes) and self.members:
            self.members -= 1
        return agent_pb2.GetAgentResponse(
            worker_id="wrk_1",
            name="attic",
            connected=True,
            standing=self.standing,
            members=members,
            isolation="box",
            overlay="none",
            remarks=[REMARK],
            runtimes=[
                agent_pb2.AgentRuntime(name="default", digest="ab" * 32, state="ready"),
                agent_pb2.AgentRuntime(
                    name="torch", digest="cd" * 32, state="failed", detail="the disk is full"
                ),
            ],
        )

    def Ask(self, request: agent_pb2.AskRequest, context: Any) -> agent_pb2.AskResponse:
        if self.refusal:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        self.wishes.append(request.wish)
        return agent_pb2.AskResponse(sent=True, message="as you wish")


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    """An agent that listens in the directory that ORCH_WORKER_DATA_DIR names."""
    folder = tmp_path / "agent"
    folder.mkdir()
    monkeypatch.setenv("ORCH_WORKER_DATA_DIR", str(folder))
    monkeypatch.setattr(owner, "LOOK_S", 0.01)
    server, fake = grpc.server(ThreadPoolExecutor(2)), FakeAgent()
    add_AgentServiceServicer_to_server(fake, server)
    server.add_insecure_port(f"unix:{socket_path(folder)}")
    server.start()
    yield fake
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("command", "wish"),
    [
        ("cordon --reason dust", worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason="dust"))),
        ("uncordon", worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon())),
        ("reclaim", worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim())),
        ("reclaim --notice 2m", worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(notice_ms=120_000))),
    ],
)
def test_owner_without_worker_speaks_to_his_agent(
    orch: Orch, agent: FakeAgent, command: str, wish: worker_pb2.OwnerWish
) -> None:
    answer = orch("worker", *command.split())
    assert (answer.code, answer.out, answer.err) == (0, "as you wish\n", "")
    assert agent.wishes == [wish]
    shown = orch("worker", *command.split(), "-o", "json").out
    assert json.loads(shown) == {"sent": True, "message": "as you wish", "refusal": ""}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("cordon attic --reason dust", "CordonWorkerRequest"),
        ("uncordon attic", "UncordonWorkerRequest"),
        ("reclaim attic --notice 2m", "ReclaimWorkerRequest"),
    ],
)
def test_operator_with_worker_speaks_to_the_control_plane(
    admin: Orch, control: Control, agent: FakeAgent, command: str, kind: str
) -> None:
    answer = admin("worker", *command.split())
    assert (answer.code, answer.err) == (0, "")
    assert lines_with(answer.out, "attic", "live")
    assert [type(one).__name__ for one in control.operator.asked] == [kind]
    assert control.operator.asked[0].worker == "attic"
    assert agent.wishes == []


def test_cordon_of_one_device_is_the_operators(admin: Orch, control: Control, agent: FakeAgent) -> None:
    assert admin("worker", "cordon", "attic", "--device", "dev_1").code == 0
    assert control.operator.asked[0].device_id == "dev_1"
    answer = admin("worker", "cordon", "--device", "dev_1")
    assert answer.code == 2
    assert "--device: only an operator" in answer.err


def test_reclaim_wait_shows_progress_until_the_machine_is_free(orch: Orch, agent: FakeAgent) -> None:
    agent.members = 2
    answer = orch("worker", "reclaim", "--wait")
    assert answer.code == 0
    assert answer.err.splitlines() == ["2 member(s) on 2 device(s)", "1 member(s) on 1 device(s)"]
    assert "the machine is free" in answer.out


def test_drain_cordons_and_waits_for_jobs_to_end(orch: Orch, agent: FakeAgent) -> None:
    agent.end_on = "cordon"
    answer = orch("worker", "drain", "-o", "json")
    assert json.loads(answer.out) == {"drained": True, "reclaimed": False}
    assert [wish.WhichOneof("wish") for wish in agent.wishes] == ["cordon"]


def test_drain_past_its_deadline_reclaims(orch: Orch, agent: FakeAgent) -> None:
    answer = orch("worker", "drain", "--deadline", "20ms", "-o", "json")
    assert json.loads(answer.out) == {"drained": True, "reclaimed": True}
    assert [wish.WhichOneof("wish") for wish in agent.wishes] == ["cordon", "reclaim"]
    assert "still held after 20ms" in answer.err


def test_drain_by_an_operator_follows_the_devices_held(
    admin: Orch, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "LOOK_S", 0.01)
    control.operator.held = [2, 1, 0]
    answer = admin("worker", "drain", "attic")
    assert answer.code == 0
    assert answer.err.splitlines() == ["2 device(s) held", "1 device(s) held"]


def test_terms_are_shown_without_the_secret_of_the_webhook(orch: Orch, agent: FakeAgent) -> None:
    answer = orch("worker", "terms")
    assert lines_with(answer.out, "price", "RTX4090 0.35 credits per GPU-hour")
    assert lines_with(answer.out, "schedule", "Mon 22:00 to Tue 07:00 UTC")
    assert lines_with(answer.out, "notice", "30s")
    assert "secret-path" not in answer.out


def test_terms_change_only_what_is_given(orch: Orch, agent: FakeAgent) -> None:
    assert orch("worker", "terms", "--max-lease", "12h", "--idle-only").code == 0
    wanted = terms_pb2.Terms()
    wanted.CopyFrom(TERMS)
    wanted.lease_max_ms, wanted.idle_only = 12 * 3_600_000, True
    assert agent.wishes[0].terms == wanted


def test_terms_can_go_back_to_what_is_nothing_on_the_wire(orch: Orch, agent: FakeAgent) -> None:
    assert orch("worker", "terms", "--price", "auto", "--schedule", "").code == 0
    assert (list(agent.wishes[0].terms.asks), list(agent.wishes[0].terms.schedule)) == ([], [])
    assert agent.wishes[0].terms.notice_ms == 30_000


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--tier committed", "--notice: a committed worker"),
        ("--price RTX4909=1", "did you mean RTX4090?"),
        ("--timezone Europe/Paris", "--timezone: says how --schedule is meant"),
    ],
)
def test_terms_that_nobody_can_mean_are_refused_before_they_are_sent(
    orch: Orch, agent: FakeAgent, flags: str, words: str
) -> None:
    answer = orch("worker", "terms", *flags.split())
    assert answer.code == 2
    assert words in answer.err
    assert agent.wishes == []


def test_terms_before_the_network_told_any_are_not_guessed(orch: Orch, agent: FakeAgent) -> None:
    agent.standing = None
    answer = orch("worker", "terms", "--idle-only")
    assert answer.code == 1
    assert "has not told this machine its terms yet" in answer.err
    assert agent.wishes == []


def test_wish_that_the_agent_refuses_is_a_usage_error_in_its_words(orch: Orch, agent: FakeAgent) -> None:
    agent.refusal = "reason: one line"
    answer = orch("worker", "cordon")
    assert (answer.code, answer.err) == (2, "orch: reason: one line\n")


def test_machine_without_an_agent_says_what_to_do(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_WORKER_DATA_DIR", str(tmp_path))
    answer = orch("worker", "reclaim")
    assert answer.code == 1
    assert "is it running?" in answer.err
    assert "--data-dir" in answer.err


def test_socket_that_nobody_listens_at_says_so(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_WORKER_DATA_DIR", str(tmp_path))
    socket_path(tmp_path).touch()
    answer = orch("worker", "uncordon")
    assert answer.code == 1
    assert "does not answer" in answer.err


def test_worker_and_data_dir_together_are_refused(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORCH_WORKER_DATA_DIR", raising=False)
    answer = orch("worker", "cordon", "attic", "--data-dir", str(tmp_path))
    assert answer.code == 2
    assert "give WORKER as an operator" in answer.err


def joined(folder: Path) -> None:
    about = {"worker_id": "wrk_1", "name": "attic", "supplier_id": "sup_1", "control_plane": "here:1"}
    (folder / "agent.json").write_text(json.dumps(about))


def test_status_prefers_the_running_agent(orch: Orch, agent: FakeAgent, tmp_path: Path) -> None:
    joined(tmp_path / "agent")
    answer = orch("worker", "status")
    assert answer.code == 0
    assert lines_with(answer.out, "connected", "yes")
    assert lines_with(answer.out, "members", "m0 (up)")
    assert lines_with(answer.out, "isolation", "box")
    assert lines_with(answer.out, "overlay", "none")
    assert lines_with(answer.out, "remark 1", REMARK)
    assert lines_with(answer.out, "runtime default", "ready (abababababab)")
    assert lines_with(answer.out, "runtime torch", "failed (cdcdcdcdcdcd): the disk is full")
    assert lines_with(answer.out, "hold 1", "owner: dust (since 1970-01-01 00:00:01Z)")
    assert "ORCH_TOKEN" not in answer.err
    shown = json.loads(orch("worker", "status", "-o", "json").out)
    assert (shown["live"]["connected"], shown["network"]) == (True, None)


def test_status_of_an_agent_that_does_not_run_shows_what_it_was_told_last(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_WORKER_DATA_DIR", str(tmp_path))
    joined(tmp_path)
    (tmp_path / "standing.json").write_text('{"holds": [{"kind": "reclaimed", "reason": "mine"}]}')
    answer = orch("worker", "status")
    assert lines_with(answer.out, "connected", "no: the agent does not run")
    assert lines_with(answer.out, "hold 1", "reclaimed: mine")
