"""Converging on the desired list of members: level-triggered, one operation at a time for each member.

What is not desired is ended; what is desired is prepared, then run. A device is never given to a member while
another one that holds it is still there, whatever the order in which lists arrive.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from orchestrator.adapters.node_records import (
    HeadAddress,
    NodeOrder,
    NodeStatus,
    OverlayBeacon,
    OverlayEntry,
    Prepared,
    RuntimeName,
)
from orchestrator.api.v1 import common_pb2, worker_pb2

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from orchestrator.adapters.node_records import Isolation, Role
    from orchestrator.agent.ports import NodeDriver

log = structlog.get_logger(__name__)

ROLES: dict[int, Role] = {
    worker_pb2.MEMBER_ROLE_HEAD: "head",
    worker_pb2.MEMBER_ROLE_MEMBER: "member",
    worker_pb2.MEMBER_ROLE_SOLO: "solo",
}

ISOLATIONS: dict[str, Isolation] = {"box": "box", "container": "container"}
"""What a member may be told; an older control plane says nothing, and knows only bare members."""

PHASES = {
    "provisioning": worker_pb2.MEMBER_PHASE_PROVISIONING,
    "prepared": worker_pb2.MEMBER_PHASE_PREPARED,
    "starting": worker_pb2.MEMBER_PHASE_STARTING,
    "up": worker_pb2.MEMBER_PHASE_UP,
    "failed": worker_pb2.MEMBER_PHASE_FAILED,
    "stopped": worker_pb2.MEMBER_PHASE_FAILED,
}


BRIDGED = "through the network's bridge, as no UDP gets out; with --overlay-transport tls no member tries that first"


class Members:
    """The members of one worker. ``cpus_per_member`` is what each Ray node may offer."""

    def __init__(self, driver: NodeDriver, cpus_per_member: int, gpu_ids: frozenset[str]) -> None:
        self._driver = driver
        self._cpus = cpus_per_member
        self._gpu_ids = gpu_ids
        self.desired: dict[str, worker_pb2.DesiredMember] = {}
        self.statuses: dict[str, NodeStatus] = {
            member_id: NodeStatus("none") for member_id in driver.discover()
        }
        self._prepared: dict[str, Prepared] = {}
        self._failures: dict[str, str] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._devices: dict[str, frozenset[str]] = {}
        """By member, from its first preparation until nothing of it is left."""
        self._deadline_boottime_ms = 0

    def want(self, members: list[worker_pb2.DesiredMember]) -> None:
        """Take over a desired list."""
        self.desired = {member.member_id: member for member in members}
        for member_id in list(self._failures):
            if member_id not in self.desired:
                del self._failures[member_id]
        for member_id, wanted in self.desired.items():
            entry = _entry_of(wanted)
            status = self.statuses.get(member_id)
            if entry is None or status is None or status.phase not in ("starting", "up"):
                continue
            try:
                self._driver.enter_overlay(member_id, entry)
            except (KeyError, OSError, ValueError) as error:
                log.warning("overlay_not_renewed", member_id=member_id, reason=str(error))

    def renew(self, deadline_boottime_ms: int) -> None:
        """Move the deadline of every member that has a node; nodes past it end by themselves."""
        self._deadline_boottime_ms = max(self._deadline_boottime_ms, deadline_boottime_ms)
        for member_id, status in self.statuses.items():
            if status.phase not in ("starting", "up") or member_id not in self.desired:
                continue
            try:
                self._driver.renew(member_id, self._deadline_boottime_ms)
            except (KeyError, OSError) as error:
                # It may have gone since it was observed; and one member's trouble must not end the others.
                log.warning("member_not_renewed", member_id=member_id, reason=str(error))

    @property
    def deadline_boottime_ms(self) -> int:
        """Until when the nodes here may run by what was acknowledged; 0 while that is not known."""
        return self._deadline_boottime_ms

    def await_renewal(self) -> None:
        """Start no node before the next `renew`: the deadline known so far may have passed meanwhile."""
        self._deadline_boottime_ms = 0

    def observe(self) -> None:
        """Read what every member is now."""
        present = set(self._driver.discover()) | set(self._busy)
        before, self.statuses = (
            self.statuses,
            {member_id: self._driver.observe(member_id) for member_id in sorted(present)},
        )
        for member_id, status in self.statuses.items():
            known = before.get(member_id, NodeStatus("none"))
            if status.overlay_transport == "tls" and known.overlay_transport != "tls":
                log.info("overlay_over_tls", member_id=member_id, hint=BRIDGED)
        # A member whose preparation failed leaves nothing behind that a stop would have to end.
        for member_id in self._devices.keys() - self.statuses.keys() - self.desired.keys():
            del self._devices[member_id]

    def running(self) -> list[str]:
        """Members whose node is up."""
        return [member_id for member_id, status in self.statuses.items() if status.phase == "up"]

    def ended(self) -> dict[str, int | None]:
        """When each node that is no longer up ended, on the boot clock; None where nobody saw it."""
        return {
            member_id: status.ended_boottime_ms or None
            for member_id, status in self.statuses.items()
            if status.phase in ("failed", "stopped")
        }

    def devices_of(self, member_id: str) -> frozenset[str]:
        """What a member holds here."""
        return self._devices.get(member_id, frozenset())

    @property
    def empty(self) -> bool:
        """Nothing of any member is left here."""
        return not self.statuses and not self._busy

    def converge(self) -> None:
        """Begin the next operation of every member that is not busy with one."""
        for member_id in [*self.statuses, *(one for one in self.desired if one not in self.statuses)]:
            if member_id in self._busy:
                continue
            operation = self._next(member_id)
            if operation is not None:
                self._busy[member_id] = asyncio.create_task(self._run(member_id, operation))

    def _next(self, member_id: str) -> Coroutine[None, None, None] | None:
        wanted = self.desired.get(member_id)
        status = self.statuses.get(member_id, NodeStatus("none"))
        if wanted is None:
            return self._stop(member_id) if member_id in self.statuses else None
        if member_id in self._failures:
            return None
        if status.phase == "none" or member_id not in self._devices:
            # After a restart of the agent the devices of a running member are taken over again.
            devices = frozenset(wanted.device_ids)
            if self._held_by_another(member_id, devices):
                return None
            self._devices[member_id] = devices
        if status.phase == "none":
            return self._prepare(wanted)
        if member_id not in self._prepared and status.phase in ("prepared", "starting", "up"):
            return self._adopt(wanted, status)
        starts = status.phase == "prepared" and wanted.stage == worker_pb2.MEMBER_STAGE_RUN
        # Its certificate comes once its key is known, which takes a round trip.
        starts &= not wanted.overlay.address or bool(wanted.overlay.certificate)
        # Before a heartbeat was acknowledged there is no deadline to give, and the node would end at once.
        return self._start(wanted) if starts and self._deadline_boottime_ms else None

    def _held_by_another(self, member_id: str, devices: frozenset[str]) -> bool:
        """Whether a device is taken. What an earlier agent left and nobody wants may hold any of them."""
        unknown = any(one not in self._devices and one not in self.desired for one in self.statuses)
        taken = any(devices & held for other, held in self._devices.items() if other != member_id)
        return bool(devices) and (unknown or taken)

    async def _run(self, member_id: str, operation: Coroutine[None, None, None]) -> None:
        try:
            await operation
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            log.warning("member_operation_failed", member_id=member_id, reason=str(error))
            self._failures[member_id] = str(error) or type(error).__name__
        finally:
            del self._busy[member_id]

    async def _prepare(self, wanted: worker_pb2.DesiredMember) -> None:
        gpus = sum(device_id in self._gpu_ids for device_id in wanted.device_ids)
        order = NodeOrder(
            member_id=wanted.member_id,
            cluster_id=wanted.cluster_id,
            role=ROLES[wanted.role],
            gpus=gpus,
            cpus=self._cpus,
            device_ids=tuple(wanted.device_ids),
            isolation=ISOLATIONS.get(wanted.isolation, "none"),
            runtime=_runtime_of(wanted),
            image=wanted.image,
            overlay_address=wanted.overlay.address,
        )
        self._prepared[wanted.member_id] = await self._driver.prepare(order)

    async def _adopt(self, wanted: worker_pb2.DesiredMember, status: NodeStatus) -> None:
        """After a restart of the agent, learn the ports again of a member that is there."""
        try:
            await self._prepare(wanted)
        except ValueError as error:
            if status.phase == "prepared":
                raise
            # Settings have changed since it started. That is no reason to end what runs.
            log.info("member_kept_as_it_was", member_id=wanted.member_id, reason=str(error))
            self._prepared[wanted.member_id] = Prepared({}, status.node_ip, "")

    async def _start(self, wanted: worker_pb2.DesiredMember) -> None:
        head = None
        if wanted.role == worker_pb2.MEMBER_ROLE_MEMBER:
            head = HeadAddress(wanted.head.gcs_address, wanted.head.host_id, wanted.head.temp_dir)
        log.info("member_starting", member_id=wanted.member_id, cluster_id=wanted.cluster_id)
        await self._driver.start(
            wanted.member_id,
            head=head,
            cluster_token=wanted.cluster_token,
            deadline_boottime_ms=self._deadline_boottime_ms,
            overlay=_entry_of(wanted),
        )

    async def _stop(self, member_id: str) -> None:
        log.info("member_stopping", member_id=member_id)
        await self._driver.stop(member_id)
        self._devices.pop(member_id, None)
        self._prepared.pop(member_id, None)
        self._failures.pop(member_id, None)
        log.info("member_gone", member_id=member_id)

    def report(self) -> list[worker_pb2.MemberObserved]:
        """Every member that is here in any form, as the control plane is told of it."""
        reports = []
        for member_id in sorted({*self.statuses, *self._busy, *self._failures}):
            wanted = self.desired.get(member_id)
            status = self.statuses.get(member_id, NodeStatus("none"))
            report = worker_pb2.MemberObserved(member_id=member_id, reason=status.reason)
            if wanted is None:
                report.phase = worker_pb2.MEMBER_PHASE_STOPPING
            elif member_id in self._failures:
                report.phase = worker_pb2.MEMBER_PHASE_FAILED
                report.reason = self._failures[member_id]
            else:
                report.phase = PHASES.get(status.phase, worker_pb2.MEMBER_PHASE_UNSPECIFIED)
            if wanted is not None:
                report.fence.CopyFrom(
                    common_pb2.Fence(term=wanted.fence.term, generation=wanted.fence.generation)
                )
            address = self._address(member_id, status)
            if address is not None:
                report.address.CopyFrom(address)
            reports.append(report)
        return reports

    def _address(self, member_id: str, status: NodeStatus) -> worker_pb2.NodeAddress | None:
        """None until it is whole: what joins a head needs all of it."""
        prepared = self._prepared.get(member_id)
        if prepared is None:
            return None
        return worker_pb2.NodeAddress(
            node_ip=status.node_ip or prepared.node_ip,
            gcs_address=status.gcs_address,
            host_id=prepared.host_id,
            temp_dir=status.temp_dir,
            ports=prepared.ports,
            overlay_public_key=prepared.overlay_public_key,
        )

    async def settle(self) -> None:
        """Wait for the operations under way: what a stop begun must be finished before the process ends."""
        while self._busy:
            await asyncio.gather(*self._busy.values(), return_exceptions=True)


def _runtime_of(wanted: worker_pb2.DesiredMember) -> RuntimeName | None:
    return RuntimeName(wanted.runtime.name, wanted.runtime.digest) if wanted.HasField("runtime") else None


def _entry_of(wanted: worker_pb2.DesiredMember) -> OverlayEntry | None:
    """The member's way into the overlay; None without one, or while its certificate is not there."""
    told = wanted.overlay
    if not told.certificate:
        return None
    return OverlayEntry(
        address=told.address,
        certificate=told.certificate.decode(),
        authorities=told.authorities.decode(),
        group=told.group,
        beacons=tuple(OverlayBeacon(one.address, one.endpoint, one.bridge) for one in told.beacons),
        blocked=tuple(told.blocked),
        bridge_token=told.bridge_token,
    )
