"""Datagrams to and from a member of a lab's overlay while something happens to it, and the nebula that carries them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from orchestrator.adapters.process_tree import descendants
from tests.integration.network import Node, command_of
from tests.lab.network import LabNetwork

TALK = Path(__file__).with_name("talk.py")

ECHO_PORT = 45_000
"""Above Ray's ports and below the ones that the kernel gives away."""


def talk_in(node: Node | None, *arguments: str) -> list[str]:
    """The command for small talk in a member's network, or for None in that of the place where it is run."""
    enter = [] if node is None else ["nsenter", f"--net=/proc/{node.namespace_pid}/ns/net"]
    return [*enter, sys.executable, "-I", str(TALK), *arguments]


@contextmanager
def echo(network: LabNetwork, node: Node) -> Iterator[None]:
    """Answer datagrams in a member's network meanwhile."""
    command = talk_in(node, "udp-serve", node.spec.node_ip, str(ECHO_PORT))
    process = network.lab.popen(node.worker, command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()


class Watch:
    """Asks a member, again and again, and notes when it is answered: from a place, or from another's box there."""

    def __init__(
        self, network: LabNetwork, place: str, asked: Node, output: Path, *, inside: Node | None = None
    ) -> None:
        self.output = output
        command = talk_in(inside, "udp-watch", f"{asked.spec.node_ip}:{ECHO_PORT}")
        with output.open("wb") as file:
            self.process = network.lab.popen(place, command, stdout=file)

    @property
    def answered_s(self) -> list[float]:
        """When, by the monotonic clock."""
        return [float(line) for line in self.output.read_text().splitlines()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def nebula_below(pid: int) -> int:
    """The nebula that is a descendant of a process; 0 while there is none."""
    for below in descendants({pid}):
        if Path(command_of(below).partition(" ")[0]).name == "nebula":
            return below
    return 0
