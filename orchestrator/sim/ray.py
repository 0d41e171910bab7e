"""Machines and Ray, simulated behind the agent's own ports: nodes come up, die, keep deadlines; drivers run and log.

A machine outlives its agent. Nodes belong to the machine, deadlines are held by it in boot time, and a frozen machine
does nothing until it wakes, when it first looks at the deadlines: just as a keeper does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.adapters.node_records import HeadAddress, NodeOrder, NodeStatus, OverlayEntry, Prepared
from orchestrator.agent.ports import DriverStatus, HeadUnreachableError, NodeListed
from orchestrator.sim.virtual import SimClock, virtual_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from random import Random

    from orchestrator.adapters.node_records import Role
    from orchestrator.api.v1 import worker_pb2

PREPARE_S = 0.1
STOP_S = 0.6
UP_MS = (1_000, 6_000)
"""How long a Ray node takes to come up."""

START_FAILURE_RATIO = 0.04
"""Nodes that never come up: a port taken, a broken installation."""


LASTING_MS = (3_000, 15_000, 60_000)
"""Drivers take about one of these."""

USER_FAILURE_RATIO = 0.1
"""Drivers that fail by their own fault."""


@dataclass(slots=True)
class Node:
    """One Ray node on a machine."""

    member_id: str
    cluster_id: str
    role: Role
    gpus: int
    phase: str = "prepared"
    up_at_ms: int = 0
    deadline_boottime_ms: int = 0
    head_member: str = ""
    reason: str = ""
    started_boottime_ms: int = 0
    ended_boottime_ms: int = 0

    @property
    def runs(self) -> bool:
        """Whether it has processes."""
        return self.phase in ("starting", "up")


@dataclass(slots=True)
class Driver:
    """One job's driver in a cluster."""

    attempt_id: str
    ends_at_ms: int
    code: int
    nodes: frozenset[str]
    status: str = "RUNNING"
    started_ms: int = 0
    log: bytes = b""


@dataclass(slots=True)
class Machine:
    """What stays when an agent dies."""

    name: str
    clock: SimClock
    nodes: dict[str, Node] = field(default_factory=dict)
    frozen: bool = False
    """Suspended: its boot clock goes on, and nothing else."""
    ran_ms: dict[str, int] = field(default_factory=dict)
    """For how long each member's node really ran within its deadline, on this machine's clock."""

    def keep(self) -> None:
        """What this machine's keepers do about now."""
        if self.frozen:
            return
        for node in self.nodes.values():
            if not node.runs:
                continue
            if self.clock.boottime_ms() > node.deadline_boottime_ms:
                # A keeper that slept finds it passed long ago; what was promised ended then all the same.
                self._fail(node, "not renewed in time", node.deadline_boottime_ms)
            elif node.phase == "starting" and virtual_ms() >= node.up_at_ms:
                if node.reason:
                    self._fail(node, node.reason, self.clock.boottime_ms())
                else:
                    node.phase = "up"

    def _fail(self, node: Node, reason: str, at_boottime_ms: int) -> None:
        """A node ends by itself."""
        self._count(node, at_boottime_ms)
        node.phase, node.reason, node.ended_boottime_ms = "failed", reason, at_boottime_ms

    def _count(self, node: Node, until_boottime_ms: int) -> None:
        if node.runs:
            until_ms = min(until_boottime_ms, node.deadline_boottime_ms)
            ran_ms = self.ran_ms.get(node.member_id, 0)
            self.ran_ms[node.member_id] = ran_ms + max(0, until_ms - node.started_boottime_ms)

    def remove(self, member_id: str) -> None:
        """End a node and what is left of it."""
        node = self.nodes.pop(member_id, None)
        if node is not None:
            self._count(node, self.clock.boottime_ms())

    def reboot(self) -> None:
        """Nothing of the nodes survives but their directories; nobody saw when they ended."""
        for node in self.nodes.values():
            if node.phase != "prepared":
                self._fail(node, "the machine restarted", self.clock.boottime_ms())
                node.ended_boottime_ms = 0
        self.clock.reboot()

    def alive(self) -> list[Node]:
        """Nodes with processes."""
        self.keep()
        return [node for node in self.nodes.values() if node.runs]


class SimRay:
    """All clusters' drivers, and what every driver came to: the checker's ground truth."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.lasting_ms = LASTING_MS
        self.machines: dict[str, Machine] = {}
        self.drivers: dict[str, Driver] = {}
        self.submissions: list[tuple[str, int]] = []
        """(attempt_id, gpus its cluster had) in order."""

    def node(self, member_id: str) -> Node | None:
        """A member's node, wherever it is."""
        for machine in self.machines.values():
            machine.keep()
            if member_id in machine.nodes:
                return machine.nodes[member_id]
        return None

    def cluster_nodes(self, head_member: str) -> list[Node]:
        """Nodes that are up under a head."""
        nodes = [node for machine in self.machines.values() for node in machine.alive()]
        return [
            node for node in nodes if node.phase == "up" and head_member in (node.member_id, node.head_member)
        ]

    def start(self, attempt_id: str, head_member: str) -> None:
        """Begin a driver; how long it runs and how it ends is drawn here."""
        if attempt_id in self.drivers:
            return
        nodes = self.cluster_nodes(head_member)
        code = 1 if self._random.random() < USER_FAILURE_RATIO else 0
        now_ms = virtual_ms()
        lasting_ms = int(self._random.choice(self.lasting_ms) * (0.5 + self._random.random()))
        members = frozenset(node.member_id for node in nodes)
        self.drivers[attempt_id] = Driver(attempt_id, now_ms + lasting_ms, code, members, started_ms=now_ms)
        self.submissions.append((attempt_id, sum(node.gpus for node in nodes)))

    def advance(self, driver: Driver, head_member: str) -> None:
        """Bring a driver to what it is now: it fails when a node under it is gone."""
        if driver.status != "RUNNING":
            return
        alive = {node.member_id for node in self.cluster_nodes(head_member)}
        if not driver.nodes <= alive:
            driver.status, driver.code = "FAILED", 1
        elif virtual_ms() >= driver.ends_at_ms:
            driver.status = "FAILED" if driver.code else "SUCCEEDED"
        else:
            return
        driver.log = f"{driver.attempt_id} ended {driver.status}\n".encode()


class SimNodes:
    """NodeDriver of one machine."""

    def __init__(self, machine: Machine, random: Random) -> None:
        self._machine = machine
        self._random = random

    async def prepare(self, order: NodeOrder) -> Prepared:
        """Reserve; ports are not simulated, and neither are boxes."""
        await asyncio.sleep(PREPARE_S)
        node = Node(order.member_id, order.cluster_id, order.role, order.gpus)
        self._machine.nodes.setdefault(order.member_id, node)
        return Prepared({}, f"10.0.0.{len(self._machine.name)}", self._machine.name)

    async def start(
        self,
        member_id: str,
        *,
        head: HeadAddress | None,
        cluster_token: str,
        deadline_boottime_ms: int,
        overlay: OverlayEntry | None = None,
    ) -> None:
        """Begin to come up, or to fail."""
        del cluster_token, overlay
        await asyncio.sleep(PREPARE_S)
        node = self._machine.nodes[member_id]
        if node.phase != "prepared":
            return
        node.phase = "starting"
        node.started_boottime_ms = self._machine.clock.boottime_ms()
        node.up_at_ms = virtual_ms() + self._random.randint(*UP_MS)
        node.deadline_boottime_ms = deadline_boottime_ms
        node.head_member = head.gcs_address if head is not None else member_id
        if self._random.random() < START_FAILURE_RATIO:
            node.reason = "ray did not start"

    def enter_overlay(self, member_id: str, overlay: OverlayEntry) -> None:
        """Nothing: no overlay is simulated."""

    def observe(self, member_id: str) -> NodeStatus:
        """As RayNodes.observe."""
        self._machine.keep()
        node = self._machine.nodes.get(member_id)
        if node is None:
            return NodeStatus("none")
        return NodeStatus(
            phase=node.phase,  # type: ignore[arg-type]  # drawn from the same words
            reason=node.reason if node.phase == "failed" else "",
            gcs_address=member_id if node.role != "member" else "",
            node_ip=f"10.0.0.{len(self._machine.name)}",
            ended_boottime_ms=node.ended_boottime_ms,
        )

    def renew(self, member_id: str, deadline_boottime_ms: int) -> None:
        """As RayNodes.renew."""
        self._machine.keep()
        self._machine.nodes[member_id].deadline_boottime_ms = deadline_boottime_ms

    def notify(self, member_id: str, notice: bytes) -> None:
        """Simulated jobs do not look."""

    async def stop(self, member_id: str) -> None:
        """As RayNodes.stop."""
        await asyncio.sleep(STOP_S)
        while self._machine.frozen:  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(STOP_S)
        self._machine.remove(member_id)

    def discover(self) -> Sequence[str]:
        """As RayNodes.discover."""
        return sorted(self._machine.nodes)


class SimHead:
    """HeadClient beside one head."""

    def __init__(self, ray: SimRay, member_id: str) -> None:
        self._ray = ray
        self._member_id = member_id

    def _reach(self) -> None:
        node = self._ray.node(self._member_id)
        if node is None or node.phase != "up":
            raise HeadUnreachableError(self._member_id)

    async def nodes(self) -> Sequence[NodeListed]:
        """Up nodes under this head."""
        self._reach()
        return [
            NodeListed(node.member_id, float(node.gpus), 1.0)
            for node in self._ray.cluster_nodes(self._member_id)
        ]

    async def is_clean(self) -> bool:
        """No driver runs."""
        self._reach()
        mine = {node.member_id for node in self._ray.cluster_nodes(self._member_id)}
        return not any(one.status == "RUNNING" and one.nodes & mine for one in self._ray.drivers.values())

    async def submit(self, attempt: worker_pb2.DesiredAttempt, packages: Mapping[str, Path]) -> None:
        """Start the driver."""
        del packages
        self._reach()
        self._ray.start(attempt.attempt_id, self._member_id)

    async def status(self, attempt_id: str) -> DriverStatus | None:
        """How the driver stands."""
        self._reach()
        driver = self._ray.drivers.get(attempt_id)
        if driver is None:
            return None
        self._ray.advance(driver, self._member_id)
        ended = driver.status in ("SUCCEEDED", "FAILED")
        return DriverStatus(driver.status, f"driver {driver.status}", driver.code if ended else None)

    async def stop(self, attempt_id: str) -> None:
        """End the driver."""
        self._reach()
        driver = self._ray.drivers.get(attempt_id)
        if driver is not None and driver.status == "RUNNING":
            driver.status = "STOPPED"

    async def drain(self, member_id: str, reason: str, remaining_ms: int) -> bool:
        """Accepted; simulated jobs run on until the end."""
        del member_id, reason, remaining_ms
        self._reach()
        return True

    def read_log(self, attempt_id: str, offset: int, size_max: int) -> bytes:
        """A line at the end."""
        driver = self._ray.drivers.get(attempt_id)
        return driver.log[offset : offset + size_max] if driver is not None else b""

    async def close(self) -> None:
        """Nothing is held."""
