"""The owner's terms between protobuf and core, for agent, control plane and command line alike."""

from __future__ import annotations

from orchestrator.api.v1 import terms_pb2
from orchestrator.core.supply.terms import Ask, Terms, Tier, WeekWindow


def terms_to(terms: Terms) -> terms_pb2.Terms:
    """On the wire zero stands for no limit, and what is not committed is interruptible."""
    return terms_pb2.Terms(
        asks=[
            terms_pb2.Ask(model=ask.model, microcredits_per_gpu_hour=ask.microcredits_per_gpu_hour)
            for ask in terms.asks
        ],
        regions=terms.regions,
        lease_max_ms=terms.lease_max_ms or 0,
        schedule=[
            terms_pb2.WeekWindow(start_minute=window.start_minute, end_minute=window.end_minute)
            for window in terms.schedule
        ],
        idle_only=terms.idle_only,
        committed=terms.tier is Tier.COMMITTED,
        notice_ms=terms.notice_ms,
        webhook_url=terms.webhook_url,
    )


def terms_from(wire: terms_pb2.Terms) -> Terms:
    """The inverse of ``terms_to``; a notice of zero is the default one."""
    return Terms(
        asks=tuple(Ask(one.model, one.microcredits_per_gpu_hour) for one in wire.asks),
        regions=tuple(wire.regions),
        lease_max_ms=wire.lease_max_ms or None,
        schedule=tuple(WeekWindow(one.start_minute, one.end_minute) for one in wire.schedule),
        idle_only=wire.idle_only,
        tier=Tier.COMMITTED if wire.committed else Tier.INTERRUPTIBLE,
        notice_ms=wire.notice_ms or Terms().notice_ms,
        webhook_url=wire.webhook_url,
    )
