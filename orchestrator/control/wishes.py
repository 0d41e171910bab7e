"""What an agent says on behalf of its owner and its machine: wishes, failing devices, the time it believes it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.control.standing_wire import offered_terms
from orchestrator.core import messages as m
from orchestrator.core.errors import invalid
from orchestrator.core.ids import DeviceId
from orchestrator.core.supply.holds import OWNERS, HoldKind

if TYPE_CHECKING:
    from orchestrator.api.v1 import worker_pb2
    from orchestrator.core.ids import WorkerId

REASON_CHARACTERS_MAX = 200

FAULTS_MAX = 64
"""As many as a worker may have devices."""

FAULT_CHARACTERS_MAX = 500

CLOCK_OFF_S_MAX = 300
"""Certificates are valid from an hour before they are made, so a few minutes hurt nobody."""


def wished(worker_id: WorkerId, wish: worker_pb2.OwnerWish) -> list[m.Command]:
    """An owner's wish as commands about his own worker. Raises RefusedError."""
    match wish.WhichOneof("wish"):
        case "cordon":
            reason = wish.cordon.reason[:REASON_CHARACTERS_MAX] or "cordoned by its owner"
            return [m.PlaceHold(worker_id, HoldKind.OWNER, reason)]
        case "uncordon":
            kinds = (HoldKind.BUSY,) if wish.uncordon.busy_only else tuple(sorted(OWNERS))
            return [m.LiftHold(worker_id, kind) for kind in kinds]
        case "reclaim":
            kind = HoldKind.BUSY if wish.reclaim.busy else HoldKind.RECLAIMED
            reason = wish.reclaim.reason[:REASON_CHARACTERS_MAX] or "taken back by its owner"
            return [m.ReclaimWorker(worker_id, kind, reason, wish.reclaim.notice_ms or None)]
        case "terms":
            return [m.SetTerms(worker_id, offered_terms(wish.terms))]
        case _:
            raise invalid("owner_wish", "this wish is not known here; the agent may be newer than this")


def faults_reported(worker_id: WorkerId, report: worker_pb2.FaultReport) -> list[m.HoldDevice]:
    """A report of failing devices as commands about them."""
    return [
        m.HoldDevice(
            worker_id, DeviceId(fault.device_id), f"{fault.kind[:40]}: {fault.text[:FAULT_CHARACTERS_MAX]}"
        )
        for fault in report.faults[:FAULTS_MAX]
    ]


def clock_notice(worker_ms: int, wall_ms: int) -> str:
    """What to tell the owner of a clock that is off; empty where it is near enough, or was not said."""
    off_s = (worker_ms - wall_ms) // 1000
    if not worker_ms or abs(off_s) < CLOCK_OFF_S_MAX:
        return ""
    way = "ahead" if off_s > 0 else "behind"
    return f"this machine's clock is {abs(off_s)} s {way} of the network's; set it (no pay depends on it)"
