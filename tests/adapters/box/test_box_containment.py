"""What code in a real box can reach of its host, and what it can break."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adapters.box.entering import inside
from orchestrator.adapters.box.namespaces import run_in
from orchestrator.adapters.box.network import read_surroundings
from orchestrator.adapters.box.tools import BoxError, run_tool
from tests.adapters.box.harness import (
    HOST_ADDRESSES,
    MIB,
    NEIGHBOURS,
    PORT,
    PUBLIC,
    RESERVED,
    Place,
    box_of,
    finish,
    output_of,
    run,
    sh,
    start,
)
from tests.polling import wait_until

LOOK = """
import json, os, sys
def can(act):
    try:
        act()
        return True
    except OSError:
        return False
print(json.dumps({path: can(lambda: os.stat(path)) for path in sys.argv[1:]}))
"""

WRITE = """
import json, os, sys
def writable(folder):
    try:
        open(folder + "/probe", "w").close()
        return True
    except OSError:
        return False
folders = [folder for folder, _, _ in os.walk("/") if not folder.startswith("/proc")]
print(json.dumps([folder for folder in folders if writable(folder)]))
"""

REACH = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def answer(address):
    try:
        with socket.create_connection((address, int(sys.argv[1])), timeout=5.0) as connection:
            return connection.recv(64).decode()
    except OSError:
        return ""
addresses = sys.argv[2:]
# At once: most are never answered, and who is has to wait for a processor, it may be.
with ThreadPoolExecutor(len(addresses)) as pool:
    print(json.dumps(dict(zip(addresses, pool.map(answer, addresses)))))
"""

FORBIDDEN = """
import ctypes, errno, json, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
def error(value):
    return errno.errorcode.get(ctypes.get_errno(), "?") if value < 0 else "done"
def refused(act):
    try:
        act()
        return "done"
    except OSError as problem:
        return errno.errorcode[problem.errno]
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "CapEff": int(status["CapEff"], 16), "CapBnd": int(status["CapBnd"], 16), "CapPrm": int(status["CapPrm"], 16),
    "NoNewPrivs": status["NoNewPrivs"], "Seccomp": status["Seccomp"],
    "setuid": refused(lambda: os.setuid(0)),
    "chroot": refused(lambda: os.chroot("/tmp")),
    "mknod": refused(lambda: os.mknod("/tmp/sda", 0o60666, os.makedev(254, 0))),
    "mount": error(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
    "umount": error(libc.umount2(b"/proc", 2)),
    "unshare user": error(libc.unshare(0x10000000)),
    "unshare net": error(libc.unshare(0x40000000)),
    "setns": error(libc.setns(os.open("/proc/self/ns/net", os.O_RDONLY), 0)),
    "ptrace": error(libc.ptrace(16, os.getpid() + 100000, 0, 0)),
    "keyctl": error(libc.syscall(250 if platform.machine() == "x86_64" else 219, 0, 0, 0)),
    "bpf": error(libc.syscall(321 if platform.machine() == "x86_64" else 280, 0, 0, 0)),
    "io_uring": error(libc.syscall(425, 1, 0)),
    "clone3": error(libc.syscall(435, 0, 0)),
    "vsock": refused(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "packet": refused(lambda: socket.socket(17, socket.SOCK_RAW)),
    "raw": refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "processes": [int(name) for name in os.listdir("/proc") if name.isdigit()],
    "environment": {name: os.environ[name] for name in os.environ if name not in ("PWD", "OLDPWD", "LC_CTYPE")},
    "devices": sorted(os.listdir("/dev")),
    "descriptors": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                          if os.path.exists(f"/proc/self/fd/{fd}")),
}))
"""


def test_box_looking_for_host_files_finds_only_what_was_given(place: Place, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("the agent's")
    unix_path = place.folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(unix_path))
        spec = place.spec()
        (Path(spec.shared_dir) / "token").write_text("the cluster's")
        hidden = [str(secret), str(unix_path), str(Path.home() / ".ssh"), str(Path.home() / ".profile")]
        hidden += [
            "/etc/shadow",
            "/etc/machine-id",
            "/boot",
            "/srv",
            "/opt",
            "/mnt",
            "/var/lib",
        ]
        hidden += [
            "/run/netns",
            "/run/systemd",
            "/dev/vda",
            "/dev/kvm",
            "/dev/loop0",
            "/sys/class",
            str(Path.cwd() / "README.md"),
        ]
        given = [
            spec.scratch_dir,
            f"{spec.shared_dir}/token",
            "/usr/bin",
            "/etc/passwd",
            "/proc/self",
            "/dev/null",
        ]
        with box_of(spec) as box:
            outcome = run(box, LOOK, *hidden, *given)
    seen = json.loads(outcome.output)
    assert {path: seen[path] for path in hidden} == dict.fromkeys(hidden, False)
    assert {path: seen[path] for path in given} == dict.fromkeys(given, True)


def test_box_writing_everywhere_succeeds_only_in_scratch_and_small_tmpfs(place: Place) -> None:
    spec = place.spec()
    with box_of(spec) as box:
        outcome = run(box, WRITE)
    assert set(json.loads(outcome.output)) == {spec.scratch_dir, "/tmp", "/run", "/home", "/dev/shm"}


def test_box_asking_for_rights_is_refused_all(place: Place) -> None:
    spec = place.spec()
    with box_of(spec) as box:
        outcome = run(box, FORBIDDEN)
    said = json.loads(outcome.output)
    user = spec.user_id
    assert said["ids"] == [[user] * 3, [user] * 3, []]
    assert (said["CapEff"], said["CapPrm"], said["CapBnd"]) == (0, 0, 0)
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    refused = {name: said[name] for name in ("setuid", "chroot", "mknod", "mount", "umount", "unshare user")}
    refused |= {name: said[name] for name in ("unshare net", "setns", "keyctl", "bpf", "io_uring", "raw")}
    assert refused == dict.fromkeys(refused, "EPERM")
    assert (said["vsock"], said["packet"]) == ("EAFNOSUPPORT", "EAFNOSUPPORT")
    assert (said["clone3"], said["ptrace"]) == ("ENOSYS", "ESRCH")
    assert said["processes"] == [1, 2]
    assert said["environment"] == {"GREETING": "it's here"}
    assert not [
        name for name in said["devices"] if name.startswith(("nvidia", "sd", "vd", "loop", "kvm", "fuse"))
    ]
    assert not [
        target
        for target in said["descriptors"]
        if target.startswith("/") and "log" not in target and target != "/dev/null"
    ]


def test_program_entering_a_box_later_has_no_more_rights_than_the_others(place: Place) -> None:
    spec = place.spec()
    with box_of(spec) as box:
        launcher = start(box, "import time; print('ready', flush=True); time.sleep(1000)")
        wait_until(lambda: "ready" in output_of(box), what="the box", deadline_s=60)
        code = FORBIDDEN + 'print(open("/proc/self/cgroup").read())'
        said, _, cgroups = run_tool(inside(box.namespace_pid, [sys.executable, "-I", "-c", code])).partition(
            "\n"
        )
        rights = json.loads(said)
        assert rights["ids"] == [[spec.user_id] * 3, [spec.user_id] * 3, []]
        assert (rights["CapEff"], rights["CapPrm"], rights["CapBnd"]) == (0, 0, 0)
        assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
        assert (rights["unshare user"], rights["setuid"], rights["vsock"]) == (
            "EPERM",
            "EPERM",
            "EAFNOSUPPORT",
        )
        assert rights["processes"][:2] == [1, 2]
        assert "orch" not in cgroups
        assert ":memory:/\n" in cgroups or "0::/\n" in cgroups
        with pytest.raises(BoxError, match="exit 3"):
            run_tool(inside(box.namespace_pid, ["/bin/sh", "-c", "exit 3"]))
        box.destroy()
        os.waitpid(launcher, 0)
        with pytest.raises(BoxError, match="is not in a box"):
            inside(os.getpid(), ["/bin/true"])


ORPHAN = """
import ctypes, os, sys
from orchestrator.adapters.box.entering import end_with_parent

go_on, parent_lives, held = (int(word) for word in sys.argv[1:])
if os.fork() == 0:
    os.close(held)
    os.read(go_on, 1)
    end_with_parent(ctypes.CDLL(None, use_errno=True), parent_lives)
    print("goes on", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("elsewhere", "said"), [(False, ""), (True, "goes on\n")])
def test_program_whose_parent_died_before_it_asked_to_end_with_it_ends_at_once(
    *, elsewhere: bool, said: str
) -> None:
    """The pipe's other end in another hand stands for a parent that lives."""
    go_on, going = os.pipe()
    parent_lives, held = os.pipe()
    descriptors = (go_on, parent_lives, held)
    argv = [sys.executable, "-c", ORPHAN, *map(str, descriptors)]
    with subprocess.Popen(argv, pass_fds=descriptors, stdout=subprocess.PIPE, text=True) as parent:
        parent.wait()
        if not elsewhere:
            os.close(held)
        os.close(going)
        assert parent.stdout is not None
        assert parent.stdout.read() == said
    for descriptor in (go_on, parent_lives, *([held] if elsewhere else [])):
        os.close(descriptor)


def test_box_with_internet_reaches_public_addresses_and_no_neighbour(place: Place) -> None:
    assert set(read_surroundings().gateways) == {NEIGHBOURS[0]}
    targets = [PUBLIC, *NEIGHBOURS, *RESERVED, *HOST_ADDRESSES, "198.19.240.1", "127.0.0.1"]
    with box_of(place.spec(egress="internet", name_servers=("9.9.9.9",))) as box:
        outcome = run(box, REACH, str(PORT), *targets)
    answers = json.loads(outcome.output)
    # The public side sees the host's address: the box's own is nobody's business.
    assert {address: answer for address, answer in answers.items() if answer} == {PUBLIC: HOST_ADDRESSES[0]}


def test_box_without_egress_reaches_nothing(place: Place) -> None:
    with box_of(place.spec()) as box:
        outcome = run(box, REACH, str(PORT), PUBLIC, *NEIGHBOURS, *RESERVED, *HOST_ADDRESSES)
    assert set(json.loads(outcome.output).values()) == {""}


LISTEN = """
import os, socket, subprocess
server = socket.socket()
server.bind(("0.0.0.0", 8200))
server.listen()
hidden = socket.socket(socket.AF_UNIX)
hidden.bind("\\0box-abstract")
hidden.listen()
open("ready", "w").close()
while True:
    server.accept()[0].close()
"""

VISIT = """
import json, os, socket, sys
def reached(family, address):
    with socket.socket(family) as client:
        client.settimeout(1.0)
        try:
            client.connect(address)
            return True
        except OSError:
            return False
print(json.dumps({
    "own": reached(socket.AF_INET, ("127.0.0.1", 8200)),
    "address": reached(socket.AF_INET, (sys.argv[1], 8200)),
    "abstract": reached(socket.AF_UNIX, "\\0box-abstract"),
    "scratch": os.path.exists(sys.argv[2]),
    "processes": [int(name) for name in os.listdir("/proc") if name.isdigit()],
}))
"""


def egress_address(name: str) -> str:
    host = sh(f"ip -o -4 addr show dev orch-{name}").split()[3].split("/")[0]
    front, _, last = host.rpartition(".")
    return f"{front}.{int(last) + 1}"


def test_two_boxes_on_one_machine_do_not_see_each_other(place: Place) -> None:
    first, second = place.spec(egress="internet"), place.spec(egress="internet")
    with box_of(first) as listener, box_of(second) as visitor:
        launcher = start(listener, LISTEN)
        ready = Path(first.scratch_dir) / "ready"
        wait_until(ready.exists, what="the listener", deadline_s=60)
        outcome = run(visitor, VISIT, egress_address(first.name), str(ready))
        assert json.loads(outcome.output) == {
            "own": False,
            "address": False,
            "abstract": False,
            "scratch": False,
            "processes": [1, 2],
        }
        listener.terminate()
        listener.destroy()
        os.waitpid(launcher, 0)


def test_box_listening_everywhere_is_closed_to_host_and_lan(place: Place) -> None:
    spec = place.spec(egress="internet")
    with box_of(spec) as box:
        launcher = start(box, LISTEN)
        wait_until((Path(spec.scratch_dir) / "ready").exists, what="the listener", deadline_s=60)
        address = egress_address(spec.name)
        # Asked by a program of its own: this one may speak to loopback only.
        asked = [sys.executable, "-I", "-c", REACHED, address, "8200"]
        answers = {
            "box itself": run_in(box.namespace_pid, asked),
            "host": run_tool(asked),
            "LAN": run_tool(["ip", "netns", "exec", place.around, *asked]),
        }
        assert answers == {"box itself": "reached\n", "host": "closed\n", "LAN": "closed\n"}
        box.destroy()
        os.waitpid(launcher, 0)


REACHED = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.0).close()
    print("reached")
except OSError:
    print("closed")
"""

FORK_BOMB = """
import os
children = 0
try:
    while True:
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        children += 1
except OSError as error:
    print("refused after", children, error.errno, flush=True)
"""


def test_fork_bomb_is_refused_and_ends_with_its_box(place: Place) -> None:
    spec = place.spec(pids_max=40)
    with box_of(spec) as box:
        launcher = start(box, FORK_BOMB)
        wait_until(lambda: "refused" in output_of(box), what="the bomb to be refused", deadline_s=60)
        assert len(box.members()) <= 40
        assert sh("echo alive") == "alive\n"
        box.destroy()
        os.waitpid(launcher, 0)
        assert box.members() == set()


MEMORY_HOG = """
import os
if os.fork() == 0:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))
print("hog ended by signal", os.WTERMSIG(os.wait()[1]))
"""


def test_memory_hog_is_killed_alone(place: Place) -> None:
    with box_of(place.spec(memory_bytes=64 * MIB)) as box:
        outcome = run(box, MEMORY_HOG)
    assert outcome.output == "hog ended by signal 9\n"


DISK_FILLER = """
import errno, json, os, sys
def fill(folder):
    written = 0
    with open(folder + "/fill", "wb", buffering=0) as file:
        try:
            while True:
                written += file.write(b"x" * (1 << 20))
        except OSError as error:
            os.unlink(folder + "/fill")
            return [errno.errorcode[error.errno], written]
print(json.dumps([fill(folder) for folder in sys.argv[1:]]))
"""


def test_disk_filler_meets_the_quota_of_every_writable_place(place: Place) -> None:
    spec = place.spec()
    with box_of(spec) as box:
        outcome = run(box, DISK_FILLER, spec.scratch_dir, "/dev/shm", "/tmp", "/run", "/home")
    filled = json.loads(outcome.output)
    assert [code for code, _ in filled] == ["ENOSPC"] * 5
    assert filled[0][1] <= spec.scratch_bytes
    assert filled[1][1] <= spec.shm_bytes
    assert all(written <= 64 * MIB for _, written in filled[2:])


def test_shared_folder_replaced_from_outside_is_seen_and_cannot_be_written(place: Place) -> None:
    spec = place.spec()
    code = """
import os, time
try:
    open("{shared}/token", "w")
except OSError as error:
    print("read-only", flush=True)
while open("{shared}/token").read() != "second":
    time.sleep(0.01)
print("seen", flush=True)
""".replace("{shared}", spec.shared_dir)
    token = Path(spec.shared_dir) / "token"
    token.write_text("first")
    with box_of(spec) as box:
        launcher = start(box, code)
        wait_until(lambda: "read-only" in output_of(box), what="the refusal", deadline_s=60)
        fresh = Path(spec.shared_dir) / "fresh"
        fresh.write_text("second")
        fresh.replace(token)
        assert finish(box, launcher).output == "read-only\nseen\n"
