"""The keeper of one Ray node: `python -m orchestrator.agent.keeper MEMBER_DIR KEEPER_FD PORT_FD`.

It starts the node, holds its deadline in boot time and ends it: when asked, when the deadline passes
unrenewed, or when a vital Ray process dies. It outlives the agent that started it, so that an agent's restart
or upgrade leaves the node running, and nothing but files in MEMBER_DIR passes between the two:

    spec.json    what to start (read once)        deadline   boot time in ms, replaced at each renewal
    shared/      what the node itself may read     stop       its presence asks the node to end
    status.json  what became of it (written)       *.log      output of the keeper and of `ray start`
    overlay/     its nebula's files, where it is in an overlay

KEEPER_FD and PORT_FD are locked descriptors: while they are open the agent knows that the keeper lives and no
other node takes its ports. The keeper imports little on purpose: one runs beside every node for as long as
the node does.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.node_records import NodeSpec, NodeStatus, Phase, read_record, write_record
from orchestrator.adapters.overlay.tunnels import NONE
from orchestrator.adapters.process_tree import become_subreaper
from orchestrator.adapters.ray_node import (
    SHARED_DIR,
    START_SCRIPT,
    node_environment,
    session_dir_of,
    start_command,
)
from orchestrator.agent.grounds import ChildState, ground_of

SPEC_FILE = "spec.json"
STATUS_FILE = "status.json"
DEADLINE_FILE = "deadline"
STOP_FILE = "stop"
KEEPER_LOCK_FILE = "keeper.lock"
KEEPER_LOG_FILE = "keeper.log"

POLL_INTERVAL_S = 0.25
"""How late a stop or a deadline may be noticed; four looks a second cost a thousandth of a core."""

START_TIMEOUT_MS = 120_000
"""A head takes 3 to 12 s on two cores; ten times that means it will not come."""

ARGUMENT_COUNT = 3
"""MEMBER_DIR, KEEPER_FD and PORT_FD."""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the decision needs; times are boot time in ms. `detail` says how a child ended."""

    now_ms: int
    deadline_ms: int
    started_ms: int
    stop_requested: bool
    child: ChildState
    detail: str = ""


class KeepOn(NamedTuple):
    """Nothing to do until the next look."""


class End(NamedTuple):
    """End every process of the node, then record this."""

    phase: Phase
    reason: str


def decide(situation: Situation) -> KeepOn | End:
    """Say what the keeper does now.

    Being asked to stop outranks all else: what follows from it is no failure.
    """
    match situation:
        case Situation(stop_requested=True):
            return End("stopped", "asked to stop")
        case Situation(child="start_failed"):
            return End("failed", f"ray did not start: {situation.detail}")
        case Situation(child="died"):
            return End("failed", f"ray ended by itself: {situation.detail}")
        case Situation(now_ms=now_ms, deadline_ms=deadline_ms) if now_ms >= deadline_ms:
            return End("failed", f"deadline passed without renewal ({now_ms - deadline_ms} ms ago)")
        case Situation(child="waiting" | "starting") if (
            situation.now_ms - situation.started_ms >= START_TIMEOUT_MS
        ):
            return End("failed", f"ray did not come up in {START_TIMEOUT_MS // 1000} s")
        case _:
            return KeepOn()


def read_deadline_ms(member_dir: Path) -> int:
    """Read the deadline; 0, which is always past, when there is none. An unreadable lease is no lease."""
    try:
        return int((member_dir / DEADLINE_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return 0


class Keeper:
    """Drives one node from start to end; everything it decides comes from `decide`."""

    def __init__(self, member_dir: Path, spec: NodeSpec, command: Sequence[str]) -> None:
        """Remember the node and the command that starts it; nothing is started yet."""
        self._dir = member_dir
        self._spec = spec
        env = node_environment(spec, member_dir / SHARED_DIR, os.environ)
        self._ground = ground_of(member_dir, spec, command, env)
        self._child: ChildState = "waiting"
        self._detail = ""
        self._stop = False
        self._recorded_transport = ""
        self._recorded_tunnels = NONE

    def run(self) -> None:
        """Keep the node until something ends it; return when nothing of it is left."""
        self._record("starting")
        started_ms = boottime_ms()
        with _wake_on_signals(self._on_stop_signal) as wake_fd:
            while True:
                self._advance()
                verdict = decide(
                    Situation(
                        now_ms=boottime_ms(),
                        deadline_ms=read_deadline_ms(self._dir),
                        started_ms=started_ms,
                        stop_requested=self._stop or (self._dir / STOP_FILE).exists(),
                        child=self._child,
                        detail=self._detail,
                    )
                )
                if isinstance(verdict, End):
                    break
                if select.select([wake_fd], [], [], POLL_INTERVAL_S)[0]:
                    os.read(wake_fd, 4096)
        self._end(verdict)

    def _on_stop_signal(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP as a request to stop."""
        self._stop = True

    def _advance(self) -> None:
        """Take the next step of the start that is possible, and notice what has ended."""
        before = self._child
        self._child, self._detail = self._ground.advance()
        recorded = (self._recorded_transport, self._recorded_tunnels)
        moved = (self._ground.transport, self._ground.tunnels) != recorded
        if self._child == "up" and (before != "up" or moved):
            self._record("up")
        elif self._child == "starting" and before == "waiting":
            # Its network is connected now, which is of use before Ray is.
            self._record("starting")

    def _record(self, phase: Phase, reason: str = "", ended_boottime_ms: int = 0) -> None:
        """Write status.json; addresses are stated only while the node is up."""
        up = phase == "up"
        self._recorded_transport = self._ground.transport
        self._recorded_tunnels = tunnels = self._ground.tunnels
        status = NodeStatus(
            phase=phase,
            reason=reason,
            gcs_address=self._spec.gcs_address if up else "",
            dashboard_url=self._spec.dashboard_url if up else "",
            node_ip=self._spec.node_ip,
            session_dir=session_dir_of(self._spec.temp_dir) if up else "",
            temp_dir=self._spec.temp_dir,
            namespace_pid=self._ground.namespace_pid if phase in ("starting", "up") else 0,
            interpreter=self._spec.interpreter,
            overlay_transport=self._ground.transport if up else "",
            tunnels_direct=tunnels.direct if up else 0,
            tunnels_relayed=tunnels.relayed if up else 0,
            ended_boottime_ms=ended_boottime_ms,
        )
        # The directory is gone when an agent gave the member up for dead; there is nobody left to tell.
        with contextlib.suppress(FileNotFoundError):
            write_record(self._dir / STATUS_FILE, status)

    def _end(self, verdict: End) -> None:
        """End every process, remove what the node made, and only then say so."""
        # A machine that slept finds its deadline passed long ago: the node was promised no longer, and is paid no longer.
        ended_boottime_ms = min(boottime_ms(), read_deadline_ms(self._dir) or boottime_ms())
        remains = self._ground.end()
        if remains:
            verdict = verdict._replace(phase="failed", reason=f"{verdict.reason}; {remains}")
        if self._spec.owns_temp_dir:
            shutil.rmtree(self._spec.temp_dir, ignore_errors=True)
        self._record(verdict.phase, verdict.reason, ended_boottime_ms)


@contextlib.contextmanager
def _wake_on_signals(on_stop: Callable[[], None]) -> Iterator[int]:
    """Yield a descriptor that becomes readable on any signal we handle; stop signals call `on_stop`."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: on_stop())
    try:
        yield read_fd
    finally:
        # From here on the node is being ended anyway: a further signal must not cut that short.
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(read_fd)
        os.close(write_fd)


def _detach(member_dir: Path) -> None:
    """Leave the agent's process tree, session and terminal; return in the process that stays."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    null_fd = os.open(os.devnull, os.O_RDWR)
    log_fd = os.open(
        member_dir / KEEPER_LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(null_fd)
    os.close(log_fd)
    os.chdir("/")


def main(argv: list[str]) -> int:
    """Keep the node described in MEMBER_DIR; return an exit code."""
    if len(argv) != ARGUMENT_COUNT:
        sys.stderr.write("usage: python -m orchestrator.agent.keeper MEMBER_DIR KEEPER_FD PORT_FD\n")
        return 2
    member_dir = Path(argv[0]).resolve()
    spec = read_record(member_dir / SPEC_FILE, NodeSpec)
    if spec is None:
        sys.stderr.write(f"no {SPEC_FILE} in {member_dir}; the agent writes it before it starts a keeper\n")
        return 2
    # Held by the keeper alone, so that both are free once it is gone.
    for held in argv[1:]:
        os.set_inheritable(int(held), False)  # noqa: FBT003 - it has no other form
    _detach(member_dir)
    become_subreaper()
    # The lock descriptor's file doubles as the note of who holds it.
    os.ftruncate(int(argv[1]), 0)
    os.pwrite(int(argv[1]), f"{os.getpid()}\n".encode(), 0)
    Keeper(member_dir, spec, start_command(spec, member_dir / SHARED_DIR / START_SCRIPT)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
