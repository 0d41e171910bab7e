"""Which processes belong to a place of a lab, and the end of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.polling import wait_until

PLACE_VARIABLE = "LAB_PLACE"
"""Set in the environment of all that a lab starts: what moves to a namespace of its own is found by it."""

END_S = 10.0
"""A killed process that frees gigabytes on a busy machine is gone well within this."""

NetworkId = tuple[int, int]
"""Device and inode of a network namespace: the same for its name and for each process inside."""


@dataclass(frozen=True, slots=True)
class Process:
    """What the kernel tells of one process; a zombie is none."""

    pid: int
    parent: int
    started_ticks: int
    network: NetworkId | None
    place: str | None


def network_id(path: Path) -> NetworkId | None:
    """The namespace behind a name in /run/netns or a link in /proc."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino


def look_at(pid: int) -> Process | None:
    """One process, or nothing if it has ended."""
    folder = Path("/proc") / str(pid)
    try:
        # The name may hold blanks and brackets; what follows its last bracket does not.
        state, parent, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
        variables = (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if state in {"Z", "X"}:
        return None
    mark = f"{PLACE_VARIABLE}=".encode()
    place = next((line.removeprefix(mark).decode() for line in variables if line.startswith(mark)), None)
    return Process(pid, int(parent), int(rest[17]), network_id(folder / "ns/net"), place)


def all_processes() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (process := look_at(int(entry.name))):
            yield process


def family_of(places: Collection[str], networks: Collection[NetworkId]) -> set[int]:
    """Processes of these places or inside these namespaces, and all their descendants, but never ourselves."""
    seen = tuple(all_processes())
    parents = {process.pid: process.parent for process in seen}
    spared: set[int] = set()
    pid = os.getpid()
    while pid:
        spared.add(pid)
        pid = parents.get(pid, 0)
    found = {process.pid for process in seen if process.place in places or process.network in networks}
    found -= spared
    while more := {pid for pid, up in parents.items() if up in found} - found - spared:
        found |= more
    return found


def end_all(find: Callable[[], set[int]]) -> None:
    """Kill what is found until nothing is: a process may have forked while we looked."""
    killed: set[int] = set()

    def none_left() -> bool:
        found = find()
        killed.update(found)
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not found and not any(look_at(pid) for pid in killed)

    wait_until(none_left, what="killed processes to end", deadline_s=END_S)
