from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adapters.process_tree import descendants, marked_processes, parents, sweep
from orchestrator.adapters.ray_node import MEMBER_ID_ENV
from tests.polling import wait_until

# A process that leaves its session and its parent, ignores SIGTERM, and leaves a child that does the same.
STUBBORN = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(300)
"""

# A keeper in small: takes over orphans, starts the stubborn tree, ends it when told.
KEEPER = """
import subprocess, sys
from orchestrator.adapters.process_tree import become_subreaper, end_descendants
become_subreaper()
subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], check=True)
print("started", flush=True)
input()
end_descendants(grace_s=0.1)
"""


def pids_in(directory: Path) -> set[int]:
    return {int(entry.name) for entry in directory.iterdir()}


def test_end_descendants_of_a_subreaper_ends_orphans_that_ignore_sigterm(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", KEEPER, STUBBORN, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"started\n"
        wait_until(lambda: len(pids_in(tmp_path)) == 2, what="two orphans", deadline_s=60)
        assert pids_in(tmp_path) == descendants({keeper.pid})
        keeper.communicate(b"\n")
    assert keeper.returncode == 0
    assert not pids_in(tmp_path) & parents().keys()


def test_sweep_of_a_member_ends_its_marked_processes_and_no_other(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    wanted, other = f"sweep-{os.getpid()}-1", f"sweep-{os.getpid()}-11"
    for directory, member_id in ((ours, wanted), (others, other)):
        directory.mkdir()
        env = dict(os.environ) | {MEMBER_ID_ENV: member_id}
        subprocess.run([sys.executable, "-c", STUBBORN, str(directory)], env=env, check=True)
    wait_until(lambda: len(pids_in(ours) | pids_in(others)) == 4, what="four orphans", deadline_s=60)
    try:
        assert marked_processes(wanted) == pids_in(ours)
        assert sweep(wanted) == 2
        assert not pids_in(ours) & parents().keys()
        assert pids_in(others) <= parents().keys()
    finally:
        sweep(other)


def test_sweep_of_a_member_reaches_children_that_lost_the_mark(tmp_path: Path) -> None:
    code = "import subprocess; subprocess.run(['/bin/sleep', '300'], env={})"
    member_id = f"sweep-{os.getpid()}-2"
    env = dict(os.environ) | {MEMBER_ID_ENV: member_id}
    with subprocess.Popen([sys.executable, "-c", code], env=env) as marked:

        def lost() -> set[int]:
            # Until it is another program, a child has its parent's environment.
            return descendants({marked.pid}) - marked_processes(member_id)

        wait_until(lambda: bool(lost()), what="the unmarked child", deadline_s=60)
        unmarked = descendants({marked.pid})
        assert sweep(member_id) == 2
    assert not unmarked & parents().keys()


def test_sweep_of_an_unknown_member_finds_nothing() -> None:
    assert sweep(f"sweep-{os.getpid()}-nobody") == 0


# Ends the tree while it is still being made: parents die in the middle of the search for their children.
ENDED_AT_ONCE = """
import subprocess, sys
from orchestrator.adapters.process_tree import become_subreaper, end_descendants
become_subreaper()
subprocess.Popen(["/bin/bash", "-c", sys.argv[1]])
end_descendants(grace_s=float(sys.argv[2]))
"""
FORKING = "for i in 1 2 3 4 5 6; do (setsid /bin/sleep 300 & /bin/sleep 300 &) & done; exit 0"


@pytest.mark.parametrize("grace_s", [0.0, 0.05])
def test_end_descendants_that_are_still_forking_leaves_none(grace_s: float) -> None:
    for attempt in range(5):
        member_id = f"forking-{os.getpid()}-{attempt}"
        argv = [sys.executable, "-c", ENDED_AT_ONCE, FORKING, str(grace_s)]
        subprocess.run(argv, env=dict(os.environ) | {MEMBER_ID_ENV: member_id}, check=True)
        left = marked_processes(member_id)
        sweep(member_id)
        assert not left
