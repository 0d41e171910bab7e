"""A network of namespaces on this machine: hosts, home routers with their NAT, and links of a chosen quality.

Each place is a network namespace named `<prefix>-<place>`: a host `h`, its router `h-r` if it has a NAT, and
`core`, a bridge where all public sides meet. All interfaces are made inside these namespaces, so nothing of the
machine's own network is touched. Frames between a public side and the core pass through one process, delay.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.lab.processes import PLACE_VARIABLE, NetworkId, end_all, family_of, look_at, network_id
from tests.lab.topology import (
    CORE,
    LabHost,
    LinkQuality,
    Site,
    core_script,
    host_script,
    plan,
    router_script,
)

NETNS = Path("/run/netns")
RECORDS = Path("/run/orch-lab")
"""One file per lab, named by its prefix: the start time of its owner, as a process number alone may come again."""

PREFIX = re.compile(r"ol([0-9a-f]{1,6})[g-z]")
"""The owner's process number, and a letter that is no hexadecimal digit for each lab of one owner."""
PREFIX_LETTERS = string.ascii_lowercase[6:]

RUN_S = 30.0
"""A command of a test that has not ended by then never will."""

BYTES_PER_MBIT = 125_000

Output = int | IO[bytes] | None


def missing() -> str | None:
    """Why no lab can stand here, with what to do about it; None if one can."""
    if os.geteuid() != 0:
        return "the network lab needs root (namespaces, NAT): run as root, for example `sudo make test`"
    if absent := [program for program in ("ip", "nft", "nsenter") if shutil.which(program) is None]:
        return f"the network lab needs {', '.join(absent)}: apt-get install iproute2 nftables util-linux"
    if not Path("/dev/net/tun").exists():
        return "the network lab needs /dev/net/tun: modprobe tun, or give the container that device"
    return None


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """Bytes that crossed a host's public link, as the host sees it, since it was made."""

    sent_bytes: int
    received_bytes: int


class Lab:
    """The hosts given, as a context manager; what it makes is gone after it, at the latest when the next starts."""

    def __init__(self, hosts: Sequence[LabHost]) -> None:
        self.sites = {site.host.name: site for site in plan(hosts)}
        self.prefix = ""
        self._quality = {name: site.host.link for name, site in self.sites.items()}
        self._cut: set[str] = set()
        self._started: list[subprocess.Popen[bytes]] = []
        self._links: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if reason := missing():
            raise RuntimeError(reason)
        remove_leftovers()
        self.prefix = claim_prefix()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def places(self) -> tuple[str, ...]:
        """Hosts, routers and the core: whatever a command can run in."""
        routers = [site.router for site in self.sites.values() if site.has_router]
        return (*self.sites, *routers, CORE)

    def site(self, host: str) -> Site:
        """A host's place in the plan of addresses."""
        if host not in self.sites:
            raise ValueError(f"no host {host!r} in this lab: it has {', '.join(self.sites)}")
        return self.sites[host]

    def namespace(self, place: str) -> Path:
        """The path by which others enter."""
        if place not in self.places:
            raise ValueError(f"no place {place!r} in this lab: it has {', '.join(self.places)}")
        return NETNS / f"{self.prefix}-{place}"

    def address(self, host: str) -> str:
        """The host's own address, which only its LAN can use if it has a NAT."""
        return self.site(host).address

    def public_ip(self, host: str) -> str:
        """The address by which the others see the host."""
        return self.site(host).public_ip

    def lan_ip(self, host: str) -> str:
        """The router's private address; listen there with `popen(router(host), …)`."""
        return self.site(host).lan_ip

    def lan_device_ip(self, host: str) -> str:
        """Another device of the same home; listen there with `popen(router(host), …)`."""
        return self.site(host).lan_device_ip

    def router(self, host: str) -> str:
        """The place that holds the host's gateway and the metadata address."""
        return self.site(host).router

    def run(
        self,
        place: str,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout_s: float = RUN_S,
        text_in: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end inside a place; with `check`, a failure shows what it wrote."""
        done = subprocess.run(
            self._entering(place, argv),
            input=text_in,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environment(place, env),
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{place}: {argv} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def popen(
        self,
        place: str,
        argv: Sequence[str | Path],
        *,
        stdin: Output = subprocess.DEVNULL,
        stdout: Output = None,
        stderr: Output = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command inside a place; the process is the command itself, and ends with the lab."""
        process = subprocess.Popen(
            self._entering(place, argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=self._environment(place, env),
            cwd=cwd,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def partition(self, host: str) -> None:
        """Cut the host's link: nothing passes, either way, and nothing says so."""
        self._cut.add(self.site(host).host.name)
        self._send_quality(host, "change")

    def heal(self, host: str) -> None:
        """Mend what `partition` cut."""
        self._cut.discard(host)
        self._send_quality(host, "change")

    def change_link(
        self,
        host: str,
        *,
        delay_ms: float | None = None,
        loss_percent: float | None = None,
        rate_mbit: float | None = None,
    ) -> None:
        """Give the host's link another quality from now on; what is None stays as it is."""
        now = self._quality[self.site(host).host.name]
        self._quality[host] = LinkQuality(
            delay_ms=now.delay_ms if delay_ms is None else delay_ms,
            loss_percent=now.loss_percent if loss_percent is None else loss_percent,
            rate_mbit=now.rate_mbit if rate_mbit is None else rate_mbit,
        )
        self._send_quality(host, "change")

    def counters(self, host: str) -> LinkCounters:
        """What has crossed the host's public link so far."""
        site = self.site(host)
        command = ("ip", "-n", f"{self.prefix}-{site.edge}", "-j", "-s", "link", "show", site.edge_interface)
        (link,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seen = link["stats64"]
        return LinkCounters(sent_bytes=seen["tx"]["bytes"], received_bytes=seen["rx"]["bytes"])

    def pids(self, host: str) -> set[int]:
        """The host's processes: those in its namespace, those started there, and all their descendants."""
        return family_of({f"{self.prefix}-{host}"}, known_networks((self.namespace(host),)))

    def kill_host(self, host: str) -> None:
        """End every process of the host at once, as a power cut does; its network stays."""
        name = self.site(host).host.name
        end_all(lambda: self.pids(name))

    def close(self) -> None:
        """End what was started, remove what was made; a second call does nothing."""
        if not self.prefix:
            return
        if self._links and self._links.stdin and self._links.stdout:
            self._links.stdin.close()
            self._links.wait(RUN_S)
            self._links.stdout.close()
        remove_lab(self.prefix)
        for process in self._started:
            process.wait(RUN_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        self.prefix = ""

    def _build(self) -> None:
        names = "".join(f"netns add {self.prefix}-{place}\n" for place in self.places)
        subprocess.run(("ip", "-batch", "-"), input=names, check=True, text=True)
        # It leaves this process's group, so that Ctrl-C reaches the owner alone, which then closes it in order.
        self._links = subprocess.Popen(
            (sys.executable, "-I", "-S", str(Path(__file__).with_name("delay.py"))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for host in self.sites:
            self._send_quality(host, "open")
        self._shell(CORE, core_script(tuple(self.sites.values())))
        for site in self.sites.values():
            if site.has_router:
                self._shell(site.router, router_script(site, f"{self.prefix}-{site.host.name}"))
            self._shell(site.host.name, host_script(site))

    def _shell(self, place: str, script: str) -> None:
        self.run(place, ("sh", "-eu"), text_in=script)

    def _send_quality(self, host: str, verb: str) -> None:
        """Tell the links' process, and wait until it has obeyed."""
        if self._links is None or self._links.stdin is None or self._links.stdout is None:
            raise RuntimeError("the lab is not open: use it in a `with`")
        site, quality = self.site(host), self._quality[host]
        order = {
            "verb": verb,
            "link": host,
            "ends": self._ends(site),
            "delay_s": quality.delay_ms / 2 / 1000,
            "loss": quality.loss_percent / 100,
            "rate_byte_s": quality.rate_mbit * BYTES_PER_MBIT,
            "cut": host in self._cut,
        }
        self._links.stdin.write(json.dumps(order) + "\n")
        self._links.stdin.flush()
        answer = self._links.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that carries the links ended with {self._links.wait(RUN_S)}")
        if error := json.loads(answer).get("error"):
            raise RuntimeError(f"the link of {host}: {error}")

    def _ends(self, site: Site) -> tuple[tuple[str, str], tuple[str, str]]:
        return (
            (str(self.namespace(site.edge)), site.edge_interface),
            (str(self.namespace(CORE)), site.core_port),
        )

    def _entering(self, place: str, argv: Sequence[str | Path]) -> list[str]:
        # Not `ip netns exec`: it would put a mount namespace between, in which what boxes mount stays unseen.
        return ["nsenter", f"--net={self.namespace(place)}", *map(str, argv)]

    def _environment(self, place: str, env: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, **(env or {}), PLACE_VARIABLE: f"{self.prefix}-{place}"}


def claim_prefix() -> str:
    """Take a prefix that no lab has, and record whose it is before anything bears it."""
    owner = look_at(os.getpid())
    if owner is None:
        raise RuntimeError("/proc does not show this process: is it mounted?")
    RECORDS.mkdir(exist_ok=True)
    for letter in PREFIX_LETTERS:
        prefix = f"ol{owner.pid:x}{letter}"
        try:
            with (RECORDS / prefix).open("x") as record:
                record.write(str(owner.started_ticks))
            return prefix
        except FileExistsError:
            continue
    raise RuntimeError(f"this process has {len(PREFIX_LETTERS)} labs open: close one first")


def is_alive(prefix: str) -> bool:
    """Whether the lab's owner still runs; a namespace without a record is judged by the number in its name."""
    match = PREFIX.fullmatch(prefix)
    owner = look_at(int(match[1], 16)) if match else None
    if owner is None:
        return False
    try:
        recorded = (RECORDS / prefix).read_text()
    except FileNotFoundError:
        return True
    # Empty for the moment between the record's creation and its first word.
    return recorded in {"", str(owner.started_ticks)}


def known_networks(namespaces: Sequence[Path]) -> set[NetworkId]:
    return {network for path in namespaces if (network := network_id(path))}


def namespaces_of(prefix: str) -> tuple[Path, ...]:
    return tuple(sorted(NETNS.glob(f"{prefix}-*")))


def remove_lab(prefix: str) -> None:
    """End the processes of a lab and remove its namespaces, then its record."""
    namespaces = namespaces_of(prefix)
    places, networks = {path.name for path in namespaces}, known_networks(namespaces)
    end_all(lambda: family_of(places, networks))
    if namespaces:
        lines = "".join(f"netns del {path.name}\n" for path in namespaces)
        # Forced on: another run may be removing the same leftovers.
        subprocess.run(
            ("ip", "-force", "-batch", "-"), input=lines, capture_output=True, text=True, check=False
        )
    if left := namespaces_of(prefix):
        raise RuntimeError(f"not removed: {', '.join(path.name for path in left)}; try `ip netns del`")
    (RECORDS / prefix).unlink(missing_ok=True)


def remove_leftovers() -> None:
    """Remove the labs whose owners were killed; nothing else is touched."""
    found = {path.name.partition("-")[0] for path in NETNS.glob("ol*-*")}
    found |= {path.name for path in RECORDS.glob("ol*")}
    for prefix in sorted(found):
        if PREFIX.fullmatch(prefix) and not is_alive(prefix):
            remove_lab(prefix)
