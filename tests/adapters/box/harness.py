"""A pretended host with its LAN and an internet, and boxes on it; all names carry this process's id."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.cgroups import MOUNTS_FILE, find_hierarchies
from orchestrator.adapters.box.network import host_interface, table_name
from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.box.scratch import image_path

MIB = 1024 * 1024
USER_ID = 231_000
PORT = 8123

PUBLIC = "9.9.9.9"
GATEWAY = "192.168.77.1"
LAN_NEIGHBOUR = "192.168.77.9"
PUBLIC_LAN_NEIGHBOUR = "11.22.33.9"
ROUTED_SITE = "44.1.2.3"
METADATA = "169.254.169.254"
AZURE_METADATA = "168.63.129.16"
CARRIER_NAT = "100.64.3.3"
OVERLAY_ADDRESS = "198.18.5.5"
HOST_ADDRESSES = ("192.168.77.2", "11.22.33.2", "77.7.7.7")

NEIGHBOURS = (GATEWAY, LAN_NEIGHBOUR, PUBLIC_LAN_NEIGHBOUR, ROUTED_SITE)
RESERVED = (METADATA, AZURE_METADATA, CARRIER_NAT, OVERLAY_ADDRESS)

# Where the interpreter lies; what is below /usr is in every box anyway.
RUNTIME_DIRS = tuple(
    dict.fromkeys(path for path in (sys.base_prefix, sys.prefix) if not f"{path}/".startswith("/usr/"))
)

# Ten characters: a pid of seven at most, and two for the boxes of one run.
_numbers = itertools.count()
_users = itertools.count()


def new_name() -> str:
    """Unique on this machine: the process, and a number within it."""
    return f"t{os.getpid()}{next(_numbers)}"


def sh(script: str) -> str:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Place:
    """Where boxes are made: a folder with a short path, and the names of two network namespaces."""

    folder: Path
    host: str
    around: str

    def spec(self, **changes: object) -> BoxSpec:
        name = new_name()
        shared = self.folder / f"shared-{name}"
        shared.mkdir()
        spec = BoxSpec(
            name=name,
            user_id=USER_ID + next(_users),
            scratch_dir=str(self.folder / name),
            scratch_bytes=48 * MIB,
            shared_dir=str(shared),
            readonly_dirs=RUNTIME_DIRS,
            memory_bytes=512 * MIB,
            pids_max=64,
            shm_bytes=32 * MIB,
        )
        return replace(spec, **changes)  # type: ignore[arg-type]  # a test names fields as it likes


@contextlib.contextmanager
def inside(namespace: str) -> Generator[None]:
    """Have this thread, and what it starts, in a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home, Path("/run/netns", namespace).open() as there:
        assert libc.setns(there.fileno(), 0) == 0
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), 0) == 0


@contextlib.contextmanager
def pretended_host() -> Iterator[Place]:
    """A host with two LANs, one of public addresses, behind a gateway; this thread is on it meanwhile."""
    host, around = f"ob{os.getpid()}h", f"ob{os.getpid()}r"
    folder = Path(tempfile.mkdtemp(prefix="ob", dir="/tmp"))
    folder.chmod(0o711)
    try:
        sh(f"""
        ip netns add {host}; ip netns add {around}
        ip -n {host} link set lo up; ip -n {around} link set lo up
        ip -n {host} link add wan0 type veth peer name lan0 netns {around}
        ip -n {host} link add wan1 type veth peer name lan1 netns {around}
        ip -n {host} addr add 192.168.77.2/24 dev wan0
        ip -n {host} addr add 11.22.33.2/24 dev wan1
        ip -n {host} addr add 77.7.7.7/32 dev lo
        ip -n {around} addr add {GATEWAY}/24 dev lan0
        ip -n {around} addr add {LAN_NEIGHBOUR}/24 dev lan0
        ip -n {around} addr add {PUBLIC_LAN_NEIGHBOUR}/24 dev lan1
        for address in {PUBLIC} {ROUTED_SITE} {" ".join(RESERVED)}; do
          ip -n {around} addr add $address/32 dev lo
        done
        for link in wan0 wan1; do ip -n {host} link set $link up; done
        for link in lan0 lan1; do ip -n {around} link set $link up; done
        ip -n {host} route add default via {GATEWAY}
        ip -n {host} route add 44.1.2.0/24 via {PUBLIC_LAN_NEIGHBOUR}
        ip -n {around} route add 198.19.240.0/20 via 192.168.77.2
        ip netns exec {host} sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'
        ip netns exec {host} sh -c 'echo 0 > /proc/sys/net/ipv4/conf/wan0/forwarding'
        """)
        with inside(host), listening(around), listening(host):
            yield Place(folder, host, around)
    finally:
        for namespace in (host, around):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False)


@contextlib.contextmanager
def listening(namespace: str) -> Iterator[None]:
    """Answer TCP on every address of a namespace."""
    stop_read, stop_write = os.pipe()
    with inside(namespace):
        server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", PORT))
    server.listen(16)

    def answer() -> None:
        while stop_read not in select.select([server.fileno(), stop_read], [], [])[0]:
            connection, peer = server.accept()
            with connection:
                connection.sendall(peer[0].encode())

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        os.write(stop_write, b"x")
        thread.join()
        server.close()
        os.close(stop_read)
        os.close(stop_write)


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str


@contextlib.contextmanager
def box_of(spec: BoxSpec) -> Iterator[Box]:
    """A box that is open, and destroyed at the end."""
    box = Box(spec)
    try:
        box.open()
        yield box
    finally:
        box.destroy()


def start(box: Box, code: str, *arguments: str) -> int:
    """Launch Python code in a box, connect and release it; return the launcher's pid."""
    log_path = Path(box.spec.shared_dir) / "log"
    with log_path.open("ab") as log:
        argv = [sys.executable, "-I", "-B", "-c", code, *arguments]
        launcher = box.launch(
            argv, {"GREETING": "it's here"}, box.spec.scratch_dir, log.fileno(), log.fileno()
        )
    box.connect()
    box.release()
    return launcher


def output_of(box: Box) -> str:
    return (Path(box.spec.shared_dir) / "log").read_text()


def finish(box: Box, launcher: int) -> Outcome:
    code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    return Outcome(code, output_of(box))


def run(box: Box, code: str, *arguments: str) -> Outcome:
    return finish(box, start(box, code, *arguments))


def traces(spec: BoxSpec) -> list[str]:
    """What is left of a box on this machine, in words."""
    found = [f"process {pid}" for pid in Box(spec).members()]
    found += [
        f"mount {line}" for line in MOUNTS_FILE.read_text().splitlines() if f" {spec.scratch_dir} " in line
    ]
    interface, table = host_interface(spec.name), table_name(spec.name)
    found += [f"interface {interface}"] if f" {interface}@" in sh("ip -o link") else []
    tables = sh("nft list tables").split()
    found += [f"table {name}" for name in (table, "orchestrator_forwarding") if name in tables]
    found += [
        f"cgroup {mount}"
        for mount in find_hierarchies(MOUNTS_FILE.read_text()).mounts.values()
        if (mount / "orch" / spec.name).exists()
    ]
    found += [f"file {path}" for path in (image_path(spec), Path(spec.scratch_dir)) if path.exists()]
    found += [
        f"loop {line}" for line in sh("losetup -l -n -O BACK-FILE").split() if line == str(image_path(spec))
    ]
    return found
