"""How the network sees a worker, as its owner is told: holds, terms, reliability, alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.adapters.terms_wire import terms_from, terms_to
from orchestrator.api.v1 import standing_pb2, terms_pb2
from orchestrator.core.errors import invalid
from orchestrator.core.supply.reliability import explain, score_bp
from orchestrator.core.supply.versions import upgrade_notice

if TYPE_CHECKING:
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker
    from orchestrator.core.supply.terms import Terms

DAY_MS = 24 * 3_600_000

LIST_MAX = 64
"""Longer lists than any owner writes are refused before they are looked at."""


def offered_terms(wire: terms_pb2.Terms) -> Terms:
    """The owner's terms; core checks what they say. Raises RefusedError for more of them than anybody means."""
    for field in ("asks", "regions", "schedule"):
        if len(getattr(wire, field)) > LIST_MAX:
            raise invalid(f"terms.{field}", f"at most {LIST_MAX} entries")
    return terms_from(wire)


def standing_to(state: State, worker: Worker, at_ms: int) -> standing_pb2.Standing:
    """How the network sees a worker, for its owner and for operators."""
    half_life_ms = state.policies.fleet.reliability_half_life_ms
    return standing_pb2.Standing(
        holds=[
            standing_pb2.WorkerHold(
                kind=hold.kind.value,
                reason=hold.reason,
                since_unix_ms=hold.since_ms,
                until_unix_ms=hold.until_ms or 0,
            )
            for hold in worker.holds
        ],
        device_holds=[
            standing_pb2.DeviceHold(device_id=one.device_id, reason=one.reason, since_unix_ms=one.since_ms)
            for one in worker.device_holds
        ],
        terms=terms_to(worker.terms),
        hardware_class=worker.inventory.hardware_class.value,
        class_reason=worker.class_override.reason
        if worker.class_override is not None
        else worker.inventory.class_reason,
        reliability_bp=score_bp(worker.reliability, at_ms, half_life_ms),
        reliability_reasons=explain(worker.reliability, at_ms, half_life_ms),
        alerts=[
            standing_pb2.OwnerAlert(
                number=alert.number, kind=alert.kind.value, text=alert.text, at_unix_ms=alert.at_ms
            )
            for alert in worker.alerts
        ],
        upgrade_notice=_upgrade_notice(state, worker, at_ms),
    )


def _upgrade_notice(state: State, worker: Worker, at_ms: int) -> str:
    if worker.outdated_since_ms is None:
        return ""
    left_ms = worker.outdated_since_ms + state.policies.fleet.outdated_grace_ms - at_ms
    return upgrade_notice(worker.agent_version, max(0, -(-left_ms // DAY_MS)))
