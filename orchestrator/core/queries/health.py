"""Whether the network is well: a judgement in words, the worst first, each with what to do next.

Where an alert speaks of the same thing, the number here is the alert's: who is woken finds the same on this screen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING

from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.wording import DAY_MS, HOUR_MS, MINUTE_MS, counted, named, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from orchestrator.core.queries.overview import Fleet, Overview

LOOP_SLOW_MS = 2_000
"""A command is answered within milliseconds; after seconds agents and people notice."""

LOOP_STUCK_MS = 15_000
"""Half of the time after which a caller is refused: nothing is decided in time any more."""

INBOX_FULL_RATIO = 0.5
"""Of the commands that may wait: the next storm of this size is refused."""

PLAN_LATE_MS = 30_000
"""A plan follows each change within milliseconds."""

QUEUE_STUCK_MS = 30 * MINUTE_MS
"""A place is found within seconds where machines are free."""

QUEUE_LONG_MS = 4 * HOUR_MS
"""Too few machines, or a wish that nobody has: the operator's to know, and nothing is broken."""

FORMATIONS_FAILED_MIN = 5
"""Fewer say nothing: a network of three machines forms so few that one bad start is half of them."""

FORMATION_FAILING_RATIO = 0.5
"""Of those that ended lately: a job then needs two tries in the mean, which its tenant feels."""

LOST_AT_ONCE_MIN = 5
"""One machine of three that is switched off is a tenth of nothing."""

LOST_AT_ONCE_RATIO = 0.1
"""Of all workers that did not leave: more than come and go by themselves."""

OUTBOX_OLD_MS = 15 * MINUTE_MS
"""Posting takes milliseconds and is tried again each 15 s: sixty tries have failed."""

CERTIFICATE_SHORT_MS = {"authority": 90 * DAY_MS, "overlay": 14 * DAY_MS}
"""Ten years' authority is replaced by hand, and every machine has to follow; an overlay's is made anew at 15 days."""

CERTIFICATE_SHORT_ELSE_MS = 2 * DAY_MS
"""Of those that live a week and are made anew at half of it."""

CERTIFICATE_ENDING_MS = {"authority": 30 * DAY_MS}
"""Some machines are off for weeks, and have to come while the old one counts."""

CERTIFICATE_ENDING_ELSE_MS = DAY_MS
"""The last day on which somebody can still be asked."""

RELAY_FULL_RATIO = 0.85
"""Of the bridge's connections: one large site more, and machines are turned away."""


class Severity(StrEnum):
    """How much a finding matters; INFO leaves the network well."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


WELL = "well"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. ``code`` is for programs and never changes; ``action`` says what to do next."""

    code: str
    severity: Severity
    text: str
    action: str


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the state does not know: the process around it."""

    inbox_commands: int = 0
    """Commands that wait to be decided."""
    inbox_commands_max: int = 0
    loop_lag_ms: int = 0
    """Age of the oldest command that is not answered yet; 0: none waits."""
    plan_lag_ms: int = 0
    """Age of the oldest change that no plan has seen."""
    receipts_unaccounted: int = 0
    """Neither posted nor in the outbox, or posted and unknown to the ledger."""
    ledger_imbalance_microcredits: int = 0
    """Debits less credits over all accounts."""
    certificates_ms: Mapping[str, int] = field(default_factory=dict)
    """What is left of each certificate of the network's own: authority, session, gateway, overlay."""
    relay_connections: int = 0
    relay_connections_max: int = 0
    """0: there is no bridge."""


@dataclass(frozen=True, slots=True)
class Health:
    """``verdict`` is WELL, or the severity of the worst finding."""

    verdict: str
    findings: tuple[Finding, ...]


def judge(seen: Overview, vitals: Vitals) -> Health:
    """What is not well, the worst first, and what else is worth a line."""
    found = chain(
        _zones(seen),
        _loop(vitals),
        _books(vitals),
        _supply(seen),
        _lost(seen.fleet),
        _outbox(seen),
        _formations(seen),
        _queue(seen),
        _certificates(vitals),
        _relay(vitals),
        _cordoned(seen.fleet),
        _suspect(seen.fleet),
    )
    order = list(Severity)
    findings = tuple(sorted(found, key=lambda one: order.index(one.severity)))
    worst = findings[0].severity if findings else Severity.INFO
    return Health(WELL if worst is Severity.INFO else worst.value, findings)


# ------------------------------------------------------------ the control plane itself


def _zones(seen: Overview) -> Iterator[Finding]:
    if seen.zones_held:
        zones = named([zone or "(unnamed)" for zone in seen.zones_held])
        yield Finding(
            "zones_held",
            Severity.CRITICAL,
            f"most of {'zone' if len(seen.zones_held) == 1 else 'zones'} {zones} fell silent at once;"
            " nobody there is given up",
            "suspect this control plane's own line first; then ask there: `orch worker list`",
        )


def _loop(vitals: Vitals) -> Iterator[Finding]:
    if vitals.loop_lag_ms > LOOP_SLOW_MS:
        stuck = vitals.loop_lag_ms > LOOP_STUCK_MS
        yield Finding(
            "loop_slow",
            Severity.CRITICAL if stuck else Severity.WARNING,
            f"decisions are late: the oldest command has waited {span(vitals.loop_lag_ms)}",
            "see to the disk and the processor of this control plane: orchestrator_loop_commit_seconds",
        )
    full = vitals.inbox_commands_max * INBOX_FULL_RATIO
    if full and vitals.inbox_commands >= full:
        yield Finding(
            "inbox_filling",
            Severity.WARNING,
            f"{vitals.inbox_commands} of {vitals.inbox_commands_max} commands wait; beyond that callers are refused",
            "see who asks so much: orchestrator_refusals_total, and the log",
        )
    if vitals.plan_lag_ms > PLAN_LATE_MS:
        yield Finding(
            "plan_late",
            Severity.WARNING,
            f"no plan has looked at what changed {span(vitals.plan_lag_ms)} ago",
            "see to the processor of this control plane: orchestrator_plan_seconds, and the log",
        )


def _certificates(vitals: Vitals) -> Iterator[Finding]:
    for name, left_ms in sorted(vitals.certificates_ms.items(), key=lambda item: item[1]):
        if left_ms >= CERTIFICATE_SHORT_MS.get(name, CERTIFICATE_SHORT_ELSE_MS):
            continue
        ending = left_ms < CERTIFICATE_ENDING_MS.get(name, CERTIFICATE_ENDING_ELSE_MS)
        text = f"ends in {span(left_ms)}" if left_ms > 0 else "has ended"
        yield Finding(
            "certificate_expiring",
            Severity.CRITICAL if ending else Severity.WARNING,
            f"the {name} certificate {text}",
            _RENEWALS.get(name, "renew it"),
        )


_RENEWALS = {
    "authority": "`orch authority rotate`, then `orch authority retire` once all workers have followed",
    "overlay": "it is made anew by itself; as it was not, see the log and start `orch serve` again",
    "gateway": "renew the files of --gateway-certificate; they are read anew by themselves",
    "session": "it is made anew by itself; as it was not, see the log and start `orch serve` again",
}


def _relay(vitals: Vitals) -> Iterator[Finding]:
    most = vitals.relay_connections_max
    if most and vitals.relay_connections > most * RELAY_FULL_RATIO:
        yield Finding(
            "relay_saturated",
            Severity.WARNING,
            f"the overlay's bridge carries {vitals.relay_connections} of {most} connections",
            "start a beacon with a bridge of its own: --overlay-beacon",
        )


# ------------------------------------------------------------ supply


def _supply(seen: Overview) -> Iterator[Finding]:
    fleet = seen.fleet
    present = sum(number for (standing, _), number in fleet.workers.items() if standing is not Liveness.LEFT)
    if not present:
        waits = bool(seen.waiting.jobs)
        yield Finding(
            "no_workers",
            Severity.CRITICAL if waits else Severity.INFO,
            f"{counted(seen.waiting.jobs, 'job')} waiting, and no workers" if waits else "no workers yet",
            "offer a machine: `orch token create --role supplier --subject NAME`, then `orch worker join` there",
        )
    elif not fleet.placeable:
        yield Finding(
            "nothing_placeable",
            Severity.CRITICAL if seen.waiting.jobs else Severity.WARNING,
            f"none of {counted(present, 'worker')} can be given work",
            "`orch worker list` says what holds each",
        )


def _lost(fleet: Fleet) -> Iterator[Finding]:
    """One that is switched off is no trouble of the network; many at once are."""
    present = sum(number for (standing, _), number in fleet.workers.items() if standing is not Liveness.LEFT)
    at_once = fleet.lost_at_once
    if fleet.lost_lately:
        many = at_once >= LOST_AT_ONCE_MIN and at_once > present * LOST_AT_ONCE_RATIO
        yield Finding(
            "workers_lost",
            Severity.WARNING if many else Severity.INFO,
            f"{counted(len(fleet.lost_lately), 'worker')} lost since yesterday: {named(fleet.lost_lately)}",
            f"`orch worker show {fleet.lost_lately[0]}`; `orch worker leave` lets one go that stays away",
        )
    if fleet.lost_before:
        yield Finding(
            "workers_lost_before",
            Severity.INFO,
            f"{counted(fleet.lost_before, 'worker')} lost for longer than a day",
            "`orch worker leave` lets one go that stays away",
        )


def _cordoned(fleet: Fleet) -> Iterator[Finding]:
    if fleet.cordoned_lately:
        yield Finding(
            "devices_cordoned",
            Severity.WARNING,
            f"devices were cordoned within the hour: {named(fleet.cordoned_lately)}",
            f"`orch worker show {fleet.cordoned_lately[0]}` has the evidence; `orch worker uncordon` ends it",
        )


def _suspect(fleet: Fleet) -> Iterator[Finding]:
    suspect = fleet.count(Liveness.SUSPECT)
    if suspect:
        yield Finding(
            "workers_suspect",
            Severity.INFO,
            f"{counted(suspect, 'worker')} silent for a moment",
            "they come back, or are lost within the lease",
        )


# ------------------------------------------------------------ work and money


def _queue(seen: Overview) -> Iterator[Finding]:
    waiting = seen.waiting
    if waiting.oldest_job is None:
        return
    said = f"{counted(waiting.jobs, 'job')} waiting, the oldest for {span(waiting.oldest_ms)}"
    next_step = f"`orch job explain {waiting.oldest_job}` says what would have to change"
    idle = waiting.free_gpus >= waiting.gpus and not waiting.placed_lately and not seen.formations.ready
    if waiting.oldest_ms > QUEUE_STUCK_MS and idle:
        text = f"{said} while {counted(waiting.free_gpus, 'GPU')} are free: {waiting.oldest_reason}"
        yield Finding("queue_stuck", Severity.WARNING, text, next_step)
    elif waiting.oldest_ms > QUEUE_LONG_MS:
        yield Finding("queue_long", Severity.INFO, f"{said}: {waiting.oldest_reason}", next_step)


def _formations(seen: Overview) -> Iterator[Finding]:
    ended = seen.formations.ready + seen.formations.failed
    failed = seen.formations.failed
    if failed >= FORMATIONS_FAILED_MIN and failed > ended * FORMATION_FAILING_RATIO:
        yield Finding(
            "formation_failing",
            Severity.CRITICAL,
            f"{failed} of the last {counted(ended, 'cluster')} did not form; the newest:"
            f" {seen.formations.last_reason}",
            "`orch cluster list --all` has every reason",
        )


def _outbox(seen: Overview) -> Iterator[Finding]:
    if seen.outbox.oldest_ms > OUTBOX_OLD_MS:
        yield Finding(
            "outbox_ageing",
            Severity.WARNING,
            f"{counted(seen.outbox.receipts, 'receipt')} not in the ledger, the oldest for"
            f" {span(seen.outbox.oldest_ms)}",
            "the log says why (effect_postponed); none is lost, and each is posted once the ledger answers",
        )


def _books(vitals: Vitals) -> Iterator[Finding]:
    if vitals.receipts_unaccounted:
        yield Finding(
            "receipts_unbalanced",
            Severity.CRITICAL,
            f"control plane and ledger disagree about {counted(vitals.receipts_unaccounted, 'receipt')}",
            "compare `orch receipt list` with `orch ledger balance`; was one of them restored from a backup?",
        )
    if vitals.ledger_imbalance_microcredits:
        yield Finding(
            "ledger_unbalanced",
            Severity.CRITICAL,
            f"debits and credits of the ledger differ by {vitals.ledger_imbalance_microcredits} microcredits",
            "it was changed from outside, or restored in part: restore it whole",
        )
