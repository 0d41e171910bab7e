"""A member's keeper from outside: started, asked whether it lives, and what it leaves behind when it does not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import structlog

from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.node_records import NodeSpec, NodeStatus, read_record, write_record
from orchestrator.adapters.process_tree import ProcessesRemainError, sweep
from orchestrator.agent.grounds import REASON_CHARS, box_of
from orchestrator.agent.keeper import KEEPER_LOCK_FILE, KEEPER_LOG_FILE, SPEC_FILE, STATUS_FILE

log = structlog.get_logger(__name__)


def lock_keeper_file(member_dir: Path) -> int | None:
    """Take the lock that says a keeper lives; None when one does."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock_fd = os.open(member_dir / KEEPER_LOCK_FILE, flags, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    return lock_fd


def keeper_lives(member_dir: Path) -> bool:
    """Report whether a keeper holds the member's lock."""
    if not (member_dir / KEEPER_LOCK_FILE).exists():
        return False
    lock_fd = lock_keeper_file(member_dir)
    if lock_fd is None:
        return True
    os.close(lock_fd)
    return False


def keeper_pid(member_dir: Path) -> set[int]:
    """Return who keeps the member's node, if anybody does."""
    if not keeper_lives(member_dir):
        return set()
    with contextlib.suppress(OSError, ValueError):
        return {int((member_dir / KEEPER_LOCK_FILE).read_text())}
    return set()


def launch_keeper(member_dir: Path, keeper_fd: int, port_fd: int) -> None:
    """Start a keeper, which detaches itself at once, and hand it both locks."""
    argv = [sys.executable, "-m", "orchestrator.agent.keeper", str(member_dir), str(keeper_fd), str(port_fd)]
    launched = subprocess.run(
        argv,
        pass_fds=(keeper_fd, port_fd),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if launched.returncode != 0:
        reason = launched.stderr.decode(errors="replace").strip()[-REASON_CHARS:]
        failed = NodeStatus(phase="failed", reason=f"the keeper did not start: {reason}")
        write_record(member_dir / STATUS_FILE, failed)


def bury(member_dir: Path, spec: NodeSpec) -> NodeStatus:
    """End what a dead keeper left behind and record the failure."""
    try:
        clear(spec)
    except (OSError, RuntimeError) as error:
        # Its stop tries again; whoever only looks must not fail by it.
        log.warning("node_not_cleared", member_id=spec.member_id, reason=str(error))
    keeper_log = member_dir / KEEPER_LOG_FILE
    said = (
        " ".join(keeper_log.read_text(errors="replace").split())[-REASON_CHARS:]
        if keeper_log.exists()
        else ""
    )
    reason = f"the keeper ended without a word{': ' + said if said else ''}"
    status = NodeStatus(phase="failed", reason=reason, node_ip=spec.node_ip, temp_dir=spec.temp_dir)
    write_record(member_dir / STATUS_FILE, status)
    return status


def clear(spec: NodeSpec) -> None:
    """End what is left of a node, and remove what it was made of. Raises ProcessesRemainError."""
    if spec.box is not None:
        box = box_of(spec, spec.box)
        try:
            box.destroy()
        except BoxError as error:
            log.warning("box_not_removed", member_id=spec.member_id, reason=str(error))
            if box.members():
                # It still holds its devices: forgotten now, they would be given to the next.
                raise ProcessesRemainError(str(error)) from None
    sweep(spec.member_id)
    if spec.owns_temp_dir and spec.temp_dir:
        shutil.rmtree(spec.temp_dir, ignore_errors=True)


def remove(member_dir: Path, member_id: str) -> None:
    """Kill a keeper that did not end, sweep, and remove the member's files."""
    if keeper_lives(member_dir):
        for pid in keeper_pid(member_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    spec = read_record(member_dir / SPEC_FILE, NodeSpec)
    if spec is None:
        sweep(member_id)
    else:
        clear(spec)
    shutil.rmtree(member_dir, ignore_errors=True)
