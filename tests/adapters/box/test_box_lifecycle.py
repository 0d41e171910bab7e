"""Making and removing real boxes: in order, out of order, and after a crash of whoever made them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.namespaces import SocketFactory, run_in
from orchestrator.adapters.box.network import disconnect_egress, refresh_egress
from orchestrator.adapters.box.records import BoxSpec, InitConfig
from orchestrator.adapters.box.tools import BoxError
from tests.adapters.box.harness import (
    PORT,
    Place,
    box_of,
    output_of,
    sh,
    start,
    traces,
)
from tests.polling import wait_until

ROOT = Path(__file__).resolve().parents[3]

SPAWN = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
open("/dev/shm/held", "w").write("x")
held = open("held", "w")
held.write("x")
print("ready", flush=True)
time.sleep(1000)
"""

# A keeper in small: makes the box that it is told of, and then does nothing until it is killed.
KEEP = """
import os, sys, time
import msgspec
from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.records import BoxSpec
box = Box(msgspec.json.decode(sys.argv[1].encode(), type=BoxSpec))
box.open()
log = os.open(box.spec.shared_dir + "/log", os.O_WRONLY | os.O_CREAT, 0o600)
box.launch([sys.executable, "-I", "-c", sys.argv[2]], {}, box.spec.scratch_dir, log, log)
box.connect()
box.release()
time.sleep(1000)
"""


def test_destroy_of_a_running_box_leaves_nothing(place: Place) -> None:
    spec = place.spec(egress="internet", cpus=0.5)
    with box_of(spec) as box:
        launcher = start(box, SPAWN)
        wait_until(lambda: "ready" in output_of(box), what="the processes", deadline_s=60)
        assert len(box.members()) >= 5
        assert len(traces(spec)) >= 10
        box.destroy()
        os.waitpid(launcher, 0)
        assert traces(spec) == []
        box.destroy()


def test_killed_keeper_takes_the_box_with_it_and_destroy_removes_the_rest(place: Place) -> None:
    spec = place.spec(egress="internet")
    other = Box(spec)
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEP, msgspec.json.encode(spec).decode(), SPAWN], cwd=ROOT
    )
    try:
        log = Path(spec.shared_dir) / "log"
        wait_until(lambda: log.exists() and "ready" in log.read_text(), what="the box", deadline_s=60)
        assert other.namespace_pid in other.members()
        keeper.kill()
        keeper.wait()
        wait_until(lambda: not other.members(), what="the box to end with its keeper", deadline_s=60)
        other.destroy()
        assert traces(spec) == []
    finally:
        keeper.kill()
        keeper.wait()
        other.destroy()


def test_box_whose_limits_are_refused_leaves_nothing(place: Place) -> None:
    spec = place.spec(pids_max=2**40)
    box = Box(spec)
    try:
        with pytest.raises(BoxError, match=r"cgroups cannot be set up: .*pids\.max"):
            box.open()
        left = traces(spec)
    finally:
        box.destroy()
    assert left == []


def test_box_opened_twice_is_refused_and_the_first_stays(place: Place) -> None:
    spec = place.spec()
    with box_of(spec):
        with pytest.raises(BoxError, match="destroy the box that has it"):
            Box(spec).open()
        assert any(trace.startswith("mount") for trace in traces(spec))


def test_launch_of_a_missing_part_names_it(place: Place) -> None:
    spec = place.spec(readonly_dirs=("/nowhere/runtime",))
    with box_of(spec) as box, pytest.raises(BoxError, match="/nowhere/runtime"):
        start(box, "")


def test_forwarding_is_for_boxes_only_and_put_back_with_the_last(place: Place) -> None:
    switch = Path("/proc/sys/net/ipv4/conf/wan0/forwarding")
    others = Path("/proc/sys/net/ipv4/conf/wan1/forwarding")
    assert switch.read_text() == "0\n"
    first, second = place.spec(egress="internet"), place.spec(egress="internet")
    with box_of(first) as one, box_of(second) as two:
        launchers = [start(one, SPAWN), start(two, SPAWN)]
        assert (switch.read_text(), others.read_text()) == ("1\n", "0\n")
        listing = sh("nft list table inet orchestrator_forwarding")
        assert ('elements = { "wan0" }' in listing, 'oifname != "orch-*" drop' in listing) == (True, True)
        one.destroy()
        assert switch.read_text() == "1\n"
        refresh_egress(second.name)
        two.destroy()
        for launcher in launchers:
            os.waitpid(launcher, 0)
    assert switch.read_text() == "0\n"


def test_forwarding_of_a_machine_that_routes_is_left_alone(place: Place) -> None:
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    switch.write_text("1")
    try:
        spec = place.spec(egress="internet")
        with box_of(spec) as box:
            launcher = start(box, SPAWN)
            assert "orchestrator_forwarding" not in sh("nft list tables")
            box.destroy()
            os.waitpid(launcher, 0)
        assert switch.read_text() == "1\n"
        assert Path("/proc/sys/net/ipv4/conf/wan0/forwarding").read_text() == "1\n"
    finally:
        switch.write_text("0")


def test_disconnect_of_a_box_that_never_was_changes_nothing(place: Place) -> None:
    before = sh("nft list ruleset; ip -o link")
    disconnect_egress("never")
    assert sh("nft list ruleset; ip -o link") == before


def test_socket_made_in_a_box_reaches_its_loopback_from_outside(place: Place) -> None:
    code = f"""
import socket
server = socket.create_server(("127.0.0.1", {PORT}))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"from inside")
"""
    with box_of(place.spec()) as box:
        launcher = start(box, code)
        wait_until(lambda: "ready" in output_of(box), what="the server", deadline_s=60)
        factory = SocketFactory(box.namespace_pid)
        for made in (factory.create(), SocketFactory(box.namespace_pid).create()):
            with made as client:
                client.settimeout(60)
                client.connect(("127.0.0.1", PORT))
                assert client.recv(64) == b"from inside"
        with socket.socket() as ours:
            ours.connect(("127.0.0.1", PORT))
            assert ours.recv(64) == b"127.0.0.1", "this thread is still on the host"
        assert json.loads(run_in(box.namespace_pid, ["ip", "-j", "link"]))[0]["ifname"] == "lo"
        box.destroy()
        os.waitpid(launcher, 0)
        with pytest.raises(BoxError, match="no socket in the box's network"):
            factory.create()


@dataclass
class InitRun:
    box: Box
    launcher: int
    report_fd: int

    def reports(self) -> list[dict[str, str]]:
        with os.fdopen(os.dup(self.report_fd)) as lines:
            return [json.loads(line) for line in lines]


@contextmanager
def init_running(spec: BoxSpec, script: str) -> Iterator[InitRun]:
    """A box whose first process is ours, told to start a shell script that stands for `ray start`."""
    config = InitConfig(
        command=("/bin/sh", "-c", script),
        log_file=f"{spec.scratch_dir}/start.log",
        vital_names=("raylet",),
        vital_scripts=(("board.py", "dashboard"),),
        required_names=("raylet",),
    )
    report_read, report_write = os.pipe()
    log = os.open(f"{spec.shared_dir}/log", os.O_WRONLY | os.O_CREAT, 0o600)
    with box_of(spec) as box:
        try:
            launcher = box.launch_init(sys.executable, config, {"PATH": "/usr/bin:/bin"}, log, report_write)
            os.close(report_write)
            box.release()
            yield InitRun(box, launcher, report_read)
            box.destroy()
            os.waitpid(launcher, 0)
        finally:
            os.close(report_read)
            os.close(log)


def first_line(run: InitRun) -> dict[str, str]:
    """Read one report, byte by byte: what follows is for whoever asks next."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(run.report_fd, 1)
    return dict(json.loads(line))


# Two that outlive their parent; the shell goes on once both are what they are called.
DAEMONS = """
for name in raylet other; do
  cp /bin/sleep $name; setsid ./$name 1000 &
  until grep -qsx $name /proc/$!/comm; do :; done
done
"""


def test_init_with_vital_process_up_reports_and_ends_all_when_it_dies(place: Place) -> None:
    with init_running(place.spec(), f"{DAEMONS} echo started") as run:
        assert first_line(run) == {"state": "up", "detail": ""}
        vital = [pid for pid in run.box.members() if Path(f"/proc/{pid}/comm").read_text() == "raylet\n"]
        os.kill(vital[0], signal.SIGKILL)
        assert run.reports() == [{"state": "died", "detail": "raylet (exit -9)"}]
        wait_until(lambda: not run.box.members(), what="the box to end", deadline_s=60)


def test_init_with_failing_start_reports_the_end_of_its_output(place: Place) -> None:
    with init_running(place.spec(), "echo no luck today; exit 3") as run:
        assert run.reports() == [{"state": "failed", "detail": "exit 3: no luck today"}]
        wait_until(lambda: not run.box.members(), what="the box to end", deadline_s=60)


def test_init_without_required_process_reports_failure(place: Place) -> None:
    with init_running(place.spec(), "echo all well") as run:
        assert run.reports() == [{"state": "failed", "detail": "no raylet stayed: all well"}]


def test_init_asked_to_stop_ends_all(place: Place) -> None:
    with init_running(place.spec(), f"trap '' TERM; {DAEMONS} true") as run:
        assert first_line(run)["state"] == "up"
        run.box.terminate()
        assert run.reports() == [{"state": "stopped", "detail": "asked to stop"}]
        wait_until(lambda: not run.box.members(), what="the box to end", deadline_s=60)


def test_init_is_closed_to_its_own_tenant(place: Place) -> None:
    script = f"{DAEMONS} ls /proc/$PPID/fd > seen 2>&1; cat /proc/$PPID/environ >> seen 2>&1; true"
    with init_running(place.spec(), script) as run:
        assert first_line(run)["state"] == "up"
        seen = (Path(run.box.spec.scratch_dir) / "seen").read_text()
        assert seen.count("Permission denied") == 2


@pytest.mark.ray
def test_ray_head_comes_up_in_a_box_and_runs_a_task(place: Place) -> None:
    spec = place.spec(memory_bytes=4 << 30, scratch_bytes=1 << 30, pids_max=4096, shm_bytes=256 << 20)
    temp = f"{spec.scratch_dir}/r"
    ray = (sys.executable, "-P", "-m", "ray.scripts.scripts", "start")
    head = ("--head", "--node-ip-address=127.0.0.1", "--port=6379", "--num-cpus=1", "--disable-usage-stats")
    task = f"""
import numpy, ray
ray.init(address="127.0.0.1:6379", log_to_driver=False)
@ray.remote
def total(count):
    return int(numpy.arange(count).sum()), ray._private.utils.get_system_memory()
print(*ray.get(total.remote(10)), file=open("{spec.scratch_dir}/answer", "w"))
"""
    # What the job would be: run by the node's own start command here, once the node is up.
    script = '"$@" && exec "$PYTHON" -I -c "$TASK"'
    command = (*ray, *head, f"--temp-dir={temp}", "--object-store-memory=100000000", "--no-monitor")
    config = InitConfig(
        command=("/bin/sh", "-c", script, "start", *command),
        log_file=f"{spec.scratch_dir}/start.log",
        vital_names=("gcs_server", "raylet"),
        vital_scripts=(("dashboard/dashboard.py", "dashboard"),),
        required_names=("gcs_server", "raylet"),
    )
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/home", "PYTHON": sys.executable}
    env |= {"TASK": task, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    report_read, report_write = os.pipe()
    with box_of(replace(spec, egress="none")) as box, os.fdopen(report_read) as reports:
        log = os.open(f"{spec.shared_dir}/log", os.O_WRONLY | os.O_CREAT, 0o600)
        launcher = box.launch_init(sys.executable, config, env, log, report_write)
        os.close(report_write)
        os.close(log)
        box.release()
        assert json.loads(reports.readline()) == {"state": "up", "detail": ""}
        total, memory_bytes = (Path(spec.scratch_dir) / "answer").read_text().split()
        assert (int(total), int(memory_bytes)) == (45, spec.memory_bytes)
        box.destroy()
        os.waitpid(launcher, 0)
        assert traces(spec) == []
