"""The keeper: its decision as a function, and its deeds around a stand-in for `ray start`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.node_records import (
    NodeSpec,
    NodeStatus,
    read_record,
    write_atomically,
    write_record,
)
from orchestrator.adapters.port_blocks import ports_of_block
from orchestrator.adapters.process_tree import marked_processes, sweep
from orchestrator.agent.grounds import ChildState, vital_children
from orchestrator.agent.keeper import (
    DEADLINE_FILE,
    SPEC_FILE,
    START_TIMEOUT_MS,
    STATUS_FILE,
    STOP_FILE,
    End,
    KeepOn,
    Situation,
    decide,
)
from tests.polling import wait_until

UP = Situation(now_ms=5_000, deadline_ms=6_000, started_ms=0, stop_requested=False, child="up")
CHILD_STATES: tuple[ChildState, ...] = ("waiting", "starting", "up", "start_failed", "died")


def test_decide_node_up_within_its_deadline_keeps_on() -> None:
    assert decide(UP) == KeepOn()


def test_decide_deadline_reached_ends_the_node_as_failed() -> None:
    verdict = decide(replace(UP, now_ms=6_000))
    assert isinstance(verdict, End)
    assert verdict.phase == "failed"
    assert "deadline" in verdict.reason


def test_decide_start_that_takes_too_long_ends_the_node() -> None:
    late = replace(UP, child="starting", now_ms=START_TIMEOUT_MS, deadline_ms=START_TIMEOUT_MS + 1)
    assert isinstance(decide(late), End)
    assert decide(replace(late, child="up")) == KeepOn()


def test_decide_ray_that_died_names_what_died() -> None:
    assert decide(replace(UP, child="died", detail="raylet (exit -9)")) == End(
        "failed", "ray ended by itself: raylet (exit -9)"
    )


@given(now_ms=st.integers(0, 10**9), deadline_ms=st.integers(0, 10**9), child=st.sampled_from(CHILD_STATES))
def test_decide_stop_requested_is_always_a_stop(now_ms: int, deadline_ms: int, child: ChildState) -> None:
    assert decide(Situation(now_ms, deadline_ms, 0, stop_requested=True, child=child)) == End(
        "stopped", "asked to stop"
    )


@given(past_ms=st.integers(0, 10**9), child=st.sampled_from(CHILD_STATES))
def test_decide_past_its_deadline_never_keeps_on(past_ms: int, child: ChildState) -> None:
    assert isinstance(decide(Situation(10**6 + past_ms, 10**6, 0, stop_requested=False, child=child)), End)


# Runs a keeper in this process's place around a command handed in.
RUN_KEEPER = """
import sys
from pathlib import Path
from orchestrator.adapters.process_tree import become_subreaper
from orchestrator.adapters.node_records import NodeSpec, read_record
from orchestrator.agent.keeper import SPEC_FILE, Keeper
become_subreaper()
member_dir = Path(sys.argv[1])
Keeper(member_dir, read_record(member_dir / SPEC_FILE, NodeSpec), sys.argv[2:]).run()
"""
# The same, on a ground with as many tunnels as a file says: direct, then relayed.
RUN_TUNNELLED = RUN_KEEPER.replace(
    "become_subreaper()",
    """
from orchestrator.adapters.overlay.tunnels import Tunnels
from orchestrator.agent import grounds, keeper
class Tunnelled(grounds.Bare):
    transport = "udp"
    @property
    def tunnels(self):
        return Tunnels(*map(int, Path(sys.argv[1], "tunnels").read_text().split()))
keeper.ground_of = Tunnelled
become_subreaper()
""",
    1,
)
# Ends only once its last child bears the name that it was given: as `ray start` it leaves a raylet that is there.
NAMED = "until grep --quiet --text ^raylet /proc/$!/cmdline; do :; done"
# Leaves a "raylet" and a worker in a session of its own behind, then says that the node is up.
START_RAY = f"(exec -a raylet /bin/sleep 300) & {NAMED}; setsid /bin/sleep 300 & exit 0"
FAR_MS = 3_600_000


class Node:
    """One keeper at work on a stand-in node, and what can be seen of it."""

    def __init__(self, directory: Path) -> None:
        self.member_dir = directory / "member"
        self.temp_dir = directory / "temp"
        self.member_id = f"keeper-test-{os.getpid()}"
        self.member_dir.mkdir()
        self.temp_dir.mkdir()
        spec = NodeSpec(
            member_id=self.member_id,
            cluster_id="c-1",
            role="head",
            gpus=0,
            cpus=0,
            labels={},
            node_ip="127.0.0.2",
            ports=ports_of_block(0),
            host_id="host-1",
            block_index=0,
            temp_dir=str(self.temp_dir),
        )
        write_record(self.member_dir / SPEC_FILE, spec)
        self.process: subprocess.Popen[bytes] | None = None

    def renew(self, in_ms: int) -> int:
        deadline_ms = boottime_ms() + in_ms
        # As the agent does: one who reads half a deadline has none.
        write_atomically(self.member_dir / DEADLINE_FILE, str(deadline_ms).encode())
        return deadline_ms

    def start(self, script: str, keeper: str = RUN_KEEPER) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", keeper, str(self.member_dir), "/bin/bash", "-c", script]
        self.process = subprocess.Popen(argv)
        return self.process

    def status(self) -> NodeStatus:
        return read_record(self.member_dir / STATUS_FILE, NodeStatus) or NodeStatus(phase="none")

    def await_phase(self, phase: str) -> None:
        ends = {phase, "failed", "stopped"}
        wait_until(lambda: self.status().phase in ends, what=f"phase {phase}", deadline_s=60)
        assert self.status().phase == phase, self.status()

    def await_end(self) -> NodeStatus:
        assert self.process is not None
        assert self.process.wait(timeout=60) == 0
        assert not marked_processes(self.member_id)
        return self.status()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    kept = Node(tmp_path)
    yield kept
    if kept.process is not None:
        kept.process.kill()
        kept.process.wait()
    sweep(kept.member_id)


def touch_stop(node: Node) -> None:
    (node.member_dir / STOP_FILE).touch()


def send_sigterm(node: Node) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("ask", [touch_stop, send_sigterm])
def test_keeper_asked_to_stop_ends_every_process_and_removes_the_temp_dir(
    node: Node, ask: Callable[[Node], None]
) -> None:
    node.renew(FAR_MS)
    node.start(START_RAY)
    node.await_phase("up")
    # A look can miss one that is in the middle of exec.
    wait_until(lambda: len(marked_processes(node.member_id)) == 2, what="both processes", deadline_s=60)
    ask(node)
    assert node.await_end().phase == "stopped"
    assert not node.temp_dir.exists()


def test_keeper_past_its_deadline_ends_the_node_as_failed(node: Node) -> None:
    node.renew(FAR_MS)
    node.start(START_RAY)
    node.await_phase("up")
    node.renew(0)
    ended = node.await_end()
    assert ended.phase == "failed"
    assert "deadline" in ended.reason


def test_keeper_with_a_renewed_deadline_keeps_the_node(node: Node) -> None:
    node.renew(FAR_MS)
    node.start(START_RAY)
    node.await_phase("up")
    first_ms = node.renew(2_000)
    node.renew(FAR_MS)
    wait_until(lambda: boottime_ms() > first_ms + 500, what="the first deadline to pass", deadline_s=60)
    assert node.status().phase == "up"


def test_keeper_without_a_deadline_does_not_keep_the_node(node: Node) -> None:
    node.start(START_RAY)
    assert node.await_end().phase == "failed"


def test_keeper_whose_raylet_dies_ends_the_rest_and_names_it(node: Node) -> None:
    node.renew(FAR_MS)
    node.start(START_RAY)
    node.await_phase("up")
    assert node.process is not None
    (raylet_pid,) = vital_children(node.process.pid)
    os.kill(raylet_pid, signal.SIGKILL)
    ended = node.await_end()
    assert ended.phase == "failed"
    assert "raylet (exit -9)" in ended.reason


def test_keeper_whose_ray_does_not_start_reports_what_ray_said(node: Node) -> None:
    node.renew(FAR_MS)
    node.start("echo the port is taken; exit 7")
    ended = node.await_end()
    assert ended.phase == "failed"
    assert "exit 7: the port is taken" in ended.reason


def test_keeper_whose_raylet_did_not_outlive_the_start_reports_a_failed_start(node: Node) -> None:
    node.renew(FAR_MS)
    node.start("echo raylet aborted; exit 0")
    ended = node.await_end()
    assert ended.phase == "failed"
    assert "raylet aborted" in ended.reason


def test_keeper_stopped_while_ray_starts_does_not_wait_for_it(node: Node) -> None:
    node.renew(FAR_MS)
    node.start("touch begun; exec /bin/sleep 300")
    wait_until((node.temp_dir / "begun").exists, what="the start command", deadline_s=60)
    touch_stop(node)
    assert node.await_end().phase == "stopped"


def test_keeper_tunnels_that_change_are_told_while_the_node_is_up(node: Node) -> None:
    node.renew(FAR_MS)
    tunnels = node.member_dir / "tunnels"
    tunnels.write_text("1 0")
    node.start(START_RAY, RUN_TUNNELLED)
    node.await_phase("up")

    def told() -> tuple[int, int]:
        status = node.status()
        return status.tunnels_direct, status.tunnels_relayed

    assert told() == (1, 0)
    write_atomically(tunnels, b"0 2")
    wait_until(lambda: told() == (0, 2), what="the relayed tunnels", deadline_s=60)
    assert node.status().phase == "up"
    (node.member_dir / STOP_FILE).touch()
    assert node.await_end().phase == "stopped"
    assert told() == (0, 0)
