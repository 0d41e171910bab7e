"""Hosts for the overlay's tests: network namespaces on one switch, boxes on them, and nebula between the boxes.

All names carry this process's number, and whatever was made is removed again when the context is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.adapters.clock import SystemClock, boottime_ms
from orchestrator.adapters.overlay.certificates import Authority, KeyPair, MemberCertificate, new_key
from orchestrator.adapters.overlay.config import MTU, Files, Landmark, lighthouse_config, node_config
from orchestrator.adapters.overlay.process import NebulaLighthouse, NebulaNode, available, interface_name
from tests.polling import wait_until

PREFIX = f"ov{os.getpid()}"
CLONE_NEWNET = 0x40000000
LIGHTHOUSE_ADDRESS = "198.18.0.1"
LIGHTHOUSE_PORT = 4242
ECHO_PORT = 7000
STREAM = Path(__file__).with_name("stream.py")
HOUR_S = 3600

NEEDS = available()


def wall_s() -> int:
    """Nebula reads the real clock, so the tests live in its present."""
    return SystemClock().now().wall_ms // 1000


def run(*command: str, script: str = "") -> str:
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread, and what it starts meanwhile, in another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(home, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(there)
        os.close(home)


class Talk:
    """A stream that goes on inside a box; what came back is counted in a file."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self._path = path

    @property
    def count(self) -> int:
        return self._path.read_bytes().count(b"\n")

    def goes_on(self, deadline_s: float = 60.0) -> None:
        """Wait until three more came back: three, as one may have been on its way."""
        seen = self.count
        wait_until(lambda: self.count >= seen + 3, what="the stream to go on", deadline_s=deadline_s)


@dataclass
class Box:
    """A network namespace of its own, held by a process that waits for its input to end."""

    holder: subprocess.Popen[bytes]
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def namespace(self) -> Path:
        return Path(f"/proc/{self.holder.pid}/ns/net")

    def run_in(self, *command: str) -> str:
        return run("nsenter", f"--net={self.namespace}", *command)

    def close(self) -> None:
        for child in (*self.children, self.holder):
            child.kill()
            child.wait()
            if child.stdin is not None:
                child.stdin.close()


def open_box() -> Box:
    holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    box = Box(holder)
    home = Path("/proc/self/ns/net").readlink()
    wait_until(lambda: box.namespace.readlink() != home, what="a namespace", deadline_s=60)
    box.run_in("ip", "link", "set", "dev", "lo", "up")
    return box


@dataclass
class Member:
    """One host on the overlay, in a box."""

    name: str
    address: str
    group: str
    host: str
    box: Box
    node: NebulaNode
    files: Files
    config: Path
    key: KeyPair
    certificate: MemberCertificate
    landmarks: tuple[Landmark, ...]


class Underlay:
    """Hosts on one switch, with an authority and a lighthouse; leave the context to remove all of it."""

    def __init__(self, folder: Path, hosts: Sequence[str]) -> None:
        now_s = wall_s()
        self.authority = Authority.create(b"s" * 32, "net_test", now_s - HOUR_S, now_s + HOUR_S)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._hosts = tuple(hosts)
        self._stack = contextlib.ExitStack()
        self._talks = 0
        self.landmark = Landmark(LIGHTHOUSE_ADDRESS, (f"{self.ip('hub')}:{LIGHTHOUSE_PORT}",))

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def namespace(self, host: str) -> Path:
        return Path(f"/run/netns/{PREFIX}-{host}")

    def ip(self, host: str) -> str:
        return f"10.77.0.{('hub', *self._hosts).index(host) + 1}"

    def run_on(self, host: str, *command: str, script: str = "") -> str:
        return run("ip", "netns", "exec", f"{PREFIX}-{host}", *command, script=script)

    def block(self, host: str, rule: str, hook: str = "input") -> None:
        """Drop what of a host's incoming (or outgoing) packets matches."""
        chain = f"chain cut {{ type filter hook {hook} priority 0; {rule} drop; }};"
        self.run_on(host, "nft", "-f", "-", script=f"table ip cut_{hook} {{ {chain} }}")

    def on_exit(self, end: Callable[[], object]) -> None:
        """Have this called before the hosts go."""
        self._stack.callback(end)

    def start_lighthouse(self) -> NebulaLighthouse:
        """On the host that is called hub."""
        key = new_key(b"h" * 32)
        now_s = wall_s()
        issued = self.authority.issue(
            "hub",
            f"{LIGHTHOUSE_ADDRESS}/15",
            ["lighthouse"],
            key.public_bytes,
            now_s - 60,
            now_s + HOUR_S // 2,
        )
        files = self._write("hub", key, issued)
        config = self.folder / "hub.json"
        config.write_text(lighthouse_config(files, listen_port=LIGHTHOUSE_PORT))
        lighthouse = NebulaLighthouse(config, self.folder / "hub.log")
        with inside(self.namespace("hub")):
            lighthouse.start(boottime_ms())
        self._stack.callback(lighthouse.stop)
        return lighthouse

    def add(
        self,
        host: str,
        number: int,
        group: str,
        *,
        life_s: int = HOUR_S // 2,
        landmarks: Sequence[Landmark] = (),
    ) -> Member:
        """A member in a box on this host, its interface up."""
        name, address = f"mb_{number}", f"198.18.0.{number}/15"
        key = new_key(bytes([number]) * 32)
        box = open_box()
        self._stack.callback(box.close)
        issued = self._issue(name, address, group, key, life_s)
        files = self._write(name, key, issued)
        config = self.folder / f"{name}.json"
        interface = interface_name(f"{PREFIX}{name}")
        node = NebulaNode(config, self.folder / f"{name}.log", interface=interface, address=address, mtu=MTU)
        chosen = tuple(landmarks) or (self.landmark,)
        member = Member(
            name, address.partition("/")[0], group, host, box, node, files, config, key, issued, chosen
        )
        self.configure(member)
        self._stack.callback(node.stop)
        with inside(self.namespace(host)):
            node.start(box.holder.pid)
        return member

    def configure(self, member: Member, blocklist: Sequence[str] = ()) -> None:
        member.config.write_text(
            node_config(
                member.files,
                interface=interface_name(f"{PREFIX}{member.name}"),
                group=member.group,
                landmarks=member.landmarks,
                blocklist=blocklist,
            )
        )

    def renew(self, member: Member, life_s: int = HOUR_S // 2) -> None:
        issued = self._issue(member.name, f"{member.address}/15", member.group, member.key, life_s)
        self._write(member.name, member.key, issued)
        member.certificate = issued
        member.node.reload()

    def serve(self, member: Member) -> None:
        """An echo on ECHO_PORT of a member's box."""
        output = self.folder / f"{member.name}.serve"
        self._spawn(member.box, output, "serve", str(ECHO_PORT))
        wait_until(lambda: output.read_bytes() != b"", what="the echo to listen", deadline_s=60)

    def talk(self, source: Member, target: Member) -> Talk:
        self._talks += 1
        output = self.folder / f"talk-{self._talks}"
        return Talk(self._spawn(source.box, output, "talk", target.address, str(ECHO_PORT)), output)

    def log_of(self, member: Member) -> str:
        return (self.folder / f"{member.name}.log").read_text()

    def _issue(self, name: str, address: str, group: str, key: KeyPair, life_s: int) -> MemberCertificate:
        now_s = wall_s()
        return self.authority.issue(name, address, [group], key.public_bytes, now_s - 60, now_s + life_s)

    def _write(self, name: str, key: KeyPair, issued: MemberCertificate) -> Files:
        files = Files(self.folder / "ca.pem", self.folder / f"{name}.pem", self.folder / f"{name}.key")
        files.authorities.write_text(self.authority.certificate_pem)
        files.certificate.write_text(issued.pem)
        files.key.touch(0o600)
        files.key.write_text(key.private_pem)
        return files

    def _spawn(self, box: Box, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with output.open("wb") as file:
            child = subprocess.Popen(
                ["nsenter", f"--net={box.namespace}", sys.executable, str(STREAM), *arguments],
                stdout=file,
                stderr=subprocess.DEVNULL,
            )
        box.children.append(child)
        return child

    def _build(self) -> None:
        for name in ("switch", "hub", *self._hosts):
            run("ip", "netns", "add", f"{PREFIX}-{name}")
            self._stack.callback(run, "ip", "netns", "delete", f"{PREFIX}-{name}")
            self.run_on(name, "ip", "link", "set", "dev", "lo", "up")
        self.run_on("switch", "ip", "link", "add", "br0", "up", "type", "bridge")
        for host in ("hub", *self._hosts):
            script = (
                f"link add dev {host} type veth peer name eth0 netns {PREFIX}-{host}\n"
                f"link set dev {host} master br0 up\n"
            )
            self.run_on("switch", "ip", "-batch", "-", script=script)
            script = f"address add {self.ip(host)}/24 dev eth0\nlink set dev eth0 up\n"
            self.run_on(host, "ip", "-batch", "-", script=script)
