"""Real containers from their making to their last trace, and what a program in one cannot do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.entering import inside
from orchestrator.adapters.box.namespaces import SocketFactory
from orchestrator.adapters.box.records import InitConfig
from orchestrator.adapters.box.scratch import is_mounted
from orchestrator.adapters.box.tiers import Found
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.container.cgroups import ContainerCgroups
from orchestrator.adapters.container.container import ContainerBox
from orchestrator.adapters.container.podman import podman
from orchestrator.adapters.container.records import ContainerSpec
from orchestrator.adapters.container.tiers import Trial, trial
from tests.adapters.box.harness import MIB, Place
from tests.polling import wait_until

END_S = 60.0
"""A container ends in half a second; the machine may be busy."""

PROBE = r"""
import ctypes, json, os, socket

def tried(call):
    try:
        return str(call())
    except OSError as error:
        return error.strerror

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
print(json.dumps({
    "user": os.getuid(), "caps": status["CapBnd"] + status["CapEff"], "privs": status["NoNewPrivs"],
    "root": sorted(os.listdir("/")), "home": tried(lambda: os.listdir("/root")),
    "write": tried(lambda: open("/usr/x", "w")), "etc": tried(lambda: open("/etc/x", "w")),
    "vsock": tried(lambda: socket.socket(40, 1)), "users": tried(lambda: os.stat("/proc/1/root")),
    "namespaces": ctypes.CDLL(None).unshare(0x10000000), "links": [name for _, name in socket.if_nameindex()],
    "limit": open("/sys/fs/cgroup/memory/memory.limit_in_bytes").read().strip()
    if os.path.exists("/sys/fs/cgroup/memory") else open("/sys/fs/cgroup/memory.max").read().strip(),
}))
"""


@dataclass
class Made:
    """A container that runs, and where its first process reports."""

    box: ContainerBox
    report_fd: int

    def out(self) -> str:
        path = Path(self.box.spec.scratch_dir) / "out"
        return path.read_text() if path.exists() else ""

    def said_state(self) -> str:
        """The first report, waited for."""
        lines: list[bytes] = []

        def heard() -> bool:
            with contextlib.suppress(BlockingIOError):
                lines.extend(os.read(self.report_fd, 4096).splitlines())
            return bool(lines)

        wait_until(heard, what="a report", deadline_s=END_S)
        return str(json.loads(lines[0])["state"])

    def ended(self) -> None:
        wait_until(lambda: not self.box.members(), what="the container's end", deadline_s=END_S)


Make = Callable[..., Made]


@pytest.fixture
def make(container_tier: Found) -> Iterator[Make]:
    if container_tier.tier != "container":
        pytest.skip(
            f"needs a machine where podman works (apt-get install podman runc): {container_tier.reason}"
        )
    folder = Path(tempfile.mkdtemp(prefix="oc", dir="/tmp"))
    folder.chmod(0o711)
    place = Place(folder, "", "")
    made: list[Made] = []

    def one(*command: str, **changes: object) -> Made:
        spec = replace(place.spec(), readonly_dirs=())
        box = ContainerBox(replace(spec, **changes), ContainerSpec(trial().runtime))  # type: ignore[arg-type]
        box.open()
        read_fd, write_fd = box.report_pipe()
        made.append(Made(box, read_fd))
        config = InitConfig(command=command, log_file=f"{spec.scratch_dir}/out")
        with (folder / "log").open("wb") as log:
            box.launch_init("/usr/bin/python3", config, {"LANG": "C.UTF-8"}, log.fileno(), write_fd)
        box.connect()
        box.release()
        os.close(write_fd)
        return made[-1]

    try:
        yield one
    finally:
        for each in made:
            each.box.destroy()
        shutil.rmtree(folder)


def test_container_program_has_no_rights_and_sees_nothing_of_its_host(make: Make) -> None:
    made = make("/usr/bin/python3", "-c", PROBE)
    wait_until(lambda: made.out().endswith("}\n"), what="the answer", deadline_s=END_S)
    seen = json.loads(made.out())
    assert seen["user"] == made.box.spec.user_id
    assert (seen["caps"], seen["privs"]) == ("0" * 32, "1")
    assert {"root", "srv", "mnt", "boot", "opt"} & set(seen["root"]) == set()
    assert seen["home"] == "No such file or directory"
    assert seen["write"] == seen["etc"] == "Read-only file system"
    assert seen["users"] == "Permission denied"
    assert seen["vsock"] == "Function not implemented"
    assert seen["namespaces"] == -1
    assert seen["links"] == ["lo"]
    assert int(seen["limit"]) == made.box.spec.memory_bytes


def test_container_leaves_no_process_mount_cgroup_or_file(make: Make) -> None:
    made = make("/bin/sh", "-c", "(sleep 1000 &) ; (setsid sleep 1000 &) ; true")
    spec = made.box.spec
    wait_until(lambda: len(made.box.members()) >= 3, what="its processes", deadline_s=END_S)
    members = made.box.members()
    # From the specs alone, as after a crash of whoever made it.
    ContainerBox(spec, ContainerSpec(trial().runtime)).destroy()
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)
    assert not is_mounted(Path(spec.scratch_dir))
    assert [str(path) for path in Path(spec.scratch_dir).parent.glob(f"{Path(spec.scratch_dir).name}*")] == []
    assert not any(path.is_dir() for path in ContainerCgroups(spec.name).folders)
    assert f"orch-{spec.name}" not in podman(trial().runtime, ["ps", "--all", "--format={{.Names}}"])


def test_container_fork_bomb_is_bounded_and_ends_with_it(make: Make) -> None:
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    made = make("/bin/sh", "-c", f"(python3 -c '{bomb}' &) ; true", pids_max=32)
    wait_until(lambda: len(made.box.members()) >= 30, what="the bomb", deadline_s=END_S)
    assert len(made.box.members()) <= 32
    made.box.destroy()
    assert made.box.members() == set()


def test_container_memory_hog_dies_alone(make: Make) -> None:
    made = make("/bin/sh", "-c", "python3 -c 'bytearray(2**33)'; echo ended $?; (sleep 1000 &) ; true")
    wait_until(lambda: "ended 137" in made.out(), what="the hog's end", deadline_s=END_S)
    assert made.said_state() == "up"


def test_container_disk_filler_fills_its_own_scratch_only(make: Make) -> None:
    made = make("/bin/sh", "-c", "cat /dev/zero > filler; (sleep 1000 &) ; true")
    wait_until(
        lambda: Path(made.box.spec.scratch_dir, "filler").exists(), what="the filler", deadline_s=END_S
    )
    wait_until(
        lambda: shutil.disk_usage(made.box.spec.scratch_dir).free < MIB,
        what="a full scratch",
        deadline_s=END_S,
    )
    assert shutil.disk_usage(Path(made.box.spec.scratch_dir).parent).free > MIB


def test_container_ends_when_nobody_keeps_it_any_more(make: Make) -> None:
    # Whoever could read the reports in the keeper's place could live on.
    stay = "chmod 666 /run/orch/report; (exec 3</run/orch/report; sleep 1000) & (sleep 1000 &) ; true"
    made = make("/bin/sh", "-c", stay)
    assert made.said_state() == "up"
    os.close(made.report_fd)
    made.ended()


def test_container_program_sent_into_it_has_no_more_rights_and_its_network(make: Make) -> None:
    made = make("/bin/sh", "-c", "(sleep 1000 &) ; true")
    assert made.said_state() == "up"
    script = "id -u; grep -c ^Cap.*:.0000000000000000 /proc/self/status; grep Seccomp: /proc/self/status"
    done = subprocess.run(
        inside(made.box.namespace_pid, ["/bin/sh", "-c", script]), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(made.box.spec.user_id), "5", "Seccomp:", "2"]
    with SocketFactory(made.box.namespace_pid).create() as probe:
        probe.bind(("127.0.0.1", 0))


def test_container_that_cannot_be_made_says_what_podman_said(make: Make) -> None:
    made = make("/bin/true")
    spec = replace(made.box.spec, name=f"{made.box.spec.name}x", scratch_dir=f"{made.box.spec.scratch_dir}x")
    unknown = ContainerBox(spec, ContainerSpec(trial().runtime, f"localhost/none@sha256:{'0' * 64}"))
    with pytest.raises(BoxError, match="exists already"):
        made.box.open()
    unknown.open()
    try:
        with Path("/dev/null").open("wb") as log, pytest.raises(BoxError, match=r"podman create: .*image"):
            unknown.launch(["/bin/true"], {}, "/", log.fileno(), log.fileno())
    finally:
        unknown.destroy()


def test_container_has_all_that_a_box_is_driven_by() -> None:
    of_box = {name for name in dir(Box) if not name.startswith("_")} - {"first_pid"}
    assert of_box <= set(dir(ContainerBox))


def test_detect_says_what_was_tried_or_what_keeps_containers_away(container_tier: Found) -> None:
    if container_tier.tier == "container":
        assert (
            container_tier.reason
            == f"a trial container was made by podman and {trial().runtime}, ran and was removed"
        )
    else:
        assert any(
            word in container_tier.reason for word in ("run: apt-get install", "need", "trial", "podman")
        )


def test_detect_without_podman_says_how_to_install_it(
    container_tier: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert container_tier.reason
    monkeypatch.setattr(
        shutil, "which", lambda name, path="": None if name == "podman" else f"/usr/bin/{name}"
    )
    assert trial.__wrapped__() == Trial("", "podman is not installed; run: apt-get install podman runc")
