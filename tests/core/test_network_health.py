"""Whether the network is well: each finding at its boundary, the worst first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.ids import JobId
from orchestrator.core.queries.health import (
    FORMATIONS_FAILED_MIN,
    LOOP_SLOW_MS,
    LOOP_STUCK_MS,
    LOST_AT_ONCE_MIN,
    OUTBOX_OLD_MS,
    PLAN_LATE_MS,
    QUEUE_LONG_MS,
    QUEUE_STUCK_MS,
    WELL,
    Finding,
    Health,
    Severity,
    Vitals,
    judge,
)
from orchestrator.core.queries.overview import Devices, Fleet, Formations, Outbox, Overview, Waiting
from orchestrator.core.supply.fleet import HardwareClass, Isolation, Liveness
from orchestrator.core.wording import DAY_MS, HOUR_MS, MINUTE_MS, counted, named, span

CRITICAL, WARNING, INFO = Severity

FLEET = Fleet(
    workers={(Liveness.LIVE, HardwareClass.CONSUMER): 3},
    connected=3,
    placeable=2,
    holds={},
    lost_lately=(),
    lost_before=0,
    lost_at_once=0,
    cordoned_lately=(),
    devices=Devices(3, 0, 0),
    isolation=Isolation.BOX,
    overlay="nebula",
    remarks={},
)
GOOD = Overview(
    fleet=FLEET,
    clusters={},
    clusters_idle=0,
    jobs={},
    waiting=Waiting(0, 0, 0, 8, False, 0, None, ""),
    formations=Formations(0, 0, ""),
    outbox=Outbox(0, 0),
    receipts=0,
    leases_open=0,
    zones_held=(),
    gpus={},
)
FULL_INBOX = Vitals(inbox_commands=5_000, inbox_commands_max=10_000)


def found(seen: Overview = GOOD, vitals: Vitals | None = None) -> dict[str, Severity]:
    return {one.code: one.severity for one in judge(seen, vitals or Vitals()).findings}


def fleet(**changed: Any) -> Overview:
    return replace(GOOD, fleet=replace(FLEET, **changed))


def waiting(jobs: int, oldest_ms: int, *, free_gpus: int = 8, placed: bool = False) -> Waiting:
    """Each for one GPU."""
    return Waiting(jobs, jobs, 0, free_gpus, placed, oldest_ms, JobId("job_1"), "needs 64 GPUs")


def lost(at_once: int, workers: int) -> Overview:
    """So many lost within minutes, of so many that there are, themselves among them."""
    fleet_of = {
        (Liveness.LIVE, HardwareClass.CPU): workers - at_once,
        (Liveness.LOST, HardwareClass.CPU): at_once,
        (Liveness.LEFT, HardwareClass.CPU): 1_000,
    }
    return fleet(workers=fleet_of, lost_lately=("attic",) * at_once, lost_at_once=at_once)


def certificates(**left_ms: int) -> Vitals:
    return Vitals(certificates_ms=left_ms)


def test_judge_nothing_wrong_is_well() -> None:
    assert judge(GOOD, Vitals()) == Health(WELL, ())


@pytest.mark.parametrize(
    ("seen", "vitals", "code", "severity"),
    [
        (replace(GOOD, zones_held=("hall",)), Vitals(), "zones_held", CRITICAL),
        (GOOD, Vitals(loop_lag_ms=LOOP_SLOW_MS + 1), "loop_slow", WARNING),
        (GOOD, Vitals(loop_lag_ms=LOOP_STUCK_MS), "loop_slow", WARNING),
        (GOOD, Vitals(loop_lag_ms=LOOP_STUCK_MS + 1), "loop_slow", CRITICAL),
        (GOOD, FULL_INBOX, "inbox_filling", WARNING),
        (GOOD, Vitals(plan_lag_ms=PLAN_LATE_MS + 1), "plan_late", WARNING),
        (GOOD, Vitals(receipts_unaccounted=1), "receipts_unbalanced", CRITICAL),
        (GOOD, Vitals(ledger_imbalance_microcredits=-1), "ledger_unbalanced", CRITICAL),
        (fleet(workers={}, placeable=0), Vitals(), "no_workers", INFO),
        (replace(fleet(workers={}, placeable=0), waiting=waiting(1, 0)), Vitals(), "no_workers", CRITICAL),
        (fleet(placeable=0), Vitals(), "nothing_placeable", WARNING),
        (replace(fleet(placeable=0), waiting=waiting(1, 0)), Vitals(), "nothing_placeable", CRITICAL),
        (lost(1, 3), Vitals(), "workers_lost", INFO),
        (lost(LOST_AT_ONCE_MIN - 1, 5), Vitals(), "workers_lost", INFO),
        (lost(LOST_AT_ONCE_MIN, 50), Vitals(), "workers_lost", INFO),
        (lost(LOST_AT_ONCE_MIN, 49), Vitals(), "workers_lost", WARNING),
        (fleet(lost_before=1), Vitals(), "workers_lost_before", INFO),
        (fleet(cordoned_lately=("attic",)), Vitals(), "devices_cordoned", WARNING),
        (
            replace(GOOD, waiting=waiting(2, QUEUE_STUCK_MS + 1, free_gpus=2)),
            Vitals(),
            "queue_stuck",
            WARNING,
        ),
        (replace(GOOD, waiting=waiting(2, QUEUE_LONG_MS + 1, free_gpus=1)), Vitals(), "queue_long", INFO),
        (replace(GOOD, waiting=waiting(2, QUEUE_LONG_MS + 1, placed=True)), Vitals(), "queue_long", INFO),
        (
            replace(GOOD, formations=Formations(FORMATIONS_FAILED_MIN - 1, FORMATIONS_FAILED_MIN, "late")),
            Vitals(),
            "formation_failing",
            CRITICAL,
        ),
        (replace(GOOD, outbox=Outbox(1, OUTBOX_OLD_MS + 1)), Vitals(), "outbox_ageing", WARNING),
        (GOOD, certificates(session=2 * DAY_MS - 1), "certificate_expiring", WARNING),
        (GOOD, certificates(gateway=DAY_MS), "certificate_expiring", WARNING),
        (GOOD, certificates(gateway=DAY_MS - 1), "certificate_expiring", CRITICAL),
        (GOOD, certificates(gateway=-1), "certificate_expiring", CRITICAL),
        (GOOD, certificates(overlay=14 * DAY_MS - 1), "certificate_expiring", WARNING),
        (GOOD, certificates(authority=90 * DAY_MS - 1), "certificate_expiring", WARNING),
        (GOOD, certificates(authority=30 * DAY_MS), "certificate_expiring", WARNING),
        (GOOD, certificates(authority=30 * DAY_MS - 1), "certificate_expiring", CRITICAL),
        (GOOD, Vitals(relay_connections=86, relay_connections_max=100), "relay_saturated", WARNING),
    ],
)
def test_judge_each_fault_alone_is_found(
    seen: Overview, vitals: Vitals, code: str, severity: Severity
) -> None:
    assert found(seen, vitals) == {code: severity}
    health = judge(seen, vitals)
    assert health.verdict == (WELL if severity is INFO else severity.value)
    assert all(one.text and one.action for one in health.findings)


@pytest.mark.parametrize(
    ("seen", "vitals"),
    [
        (GOOD, Vitals(loop_lag_ms=LOOP_SLOW_MS, plan_lag_ms=PLAN_LATE_MS)),
        (GOOD, replace(FULL_INBOX, inbox_commands=4_999)),
        (GOOD, certificates(session=2 * DAY_MS, gateway=2 * DAY_MS)),
        (GOOD, certificates(authority=90 * DAY_MS, overlay=14 * DAY_MS)),
        (GOOD, Vitals(relay_connections=85, relay_connections_max=100)),
        (replace(GOOD, waiting=waiting(2, QUEUE_STUCK_MS)), Vitals()),
        (replace(GOOD, waiting=waiting(2, QUEUE_LONG_MS, free_gpus=1)), Vitals()),
        (replace(GOOD, waiting=waiting(2, QUEUE_LONG_MS, placed=True)), Vitals()),
        (replace(GOOD, outbox=Outbox(9, OUTBOX_OLD_MS)), Vitals()),
        (replace(GOOD, formations=Formations(0, FORMATIONS_FAILED_MIN - 1, "late")), Vitals()),
        (
            replace(GOOD, formations=Formations(FORMATIONS_FAILED_MIN, FORMATIONS_FAILED_MIN, "late")),
            Vitals(),
        ),
    ],
)
def test_judge_just_within_each_bound_is_well(seen: Overview, vitals: Vitals) -> None:
    assert judge(seen, vitals) == Health(WELL, ())


def test_judge_suspect_worker_is_worth_a_line_and_leaves_the_network_well() -> None:
    workers = {**FLEET.workers, (Liveness.SUSPECT, HardwareClass.CPU): 2}
    health = judge(fleet(workers=workers), Vitals())
    assert (health.verdict, [one.code for one in health.findings]) == (WELL, ["workers_suspect"])


def test_judge_worst_comes_first_and_gives_the_verdict() -> None:
    seen = replace(
        fleet(lost_lately=("attic", "shed"), lost_before=1),
        waiting=waiting(1, QUEUE_STUCK_MS + 1),
        zones_held=("hall",),
    )
    health = judge(seen, Vitals(loop_lag_ms=LOOP_SLOW_MS + 1))
    assert health.verdict == CRITICAL.value
    order = [one.severity for one in health.findings]
    assert order == sorted(order, key=list(Severity).index)
    assert len(order) == 5


def test_judge_worker_that_left_is_nobody() -> None:
    workers = {(Liveness.LEFT, HardwareClass.CPU): 4}
    assert found(fleet(workers=workers, placeable=0)) == {"no_workers": INFO}


def test_judge_queue_says_which_job_and_what_would_help() -> None:
    (one,) = judge(replace(GOOD, waiting=waiting(3, 2 * HOUR_MS)), Vitals()).findings
    assert one == Finding(
        "queue_stuck",
        WARNING,
        "3 jobs waiting, the oldest for 2 h while 8 GPUs are free: needs 64 GPUs",
        "`orch job explain job_1` says what would have to change",
    )


@pytest.mark.parametrize(
    ("time_ms", "said"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (2 * MINUTE_MS - 1, "119 s"),
        (2 * MINUTE_MS, "2 min"),
        (2 * HOUR_MS - 1, "119 min"),
        (2 * HOUR_MS, "2 h"),
        (2 * DAY_MS - 1, "47 h"),
        (3_650 * DAY_MS, "3650 d"),
    ],
)
def test_span_is_in_the_largest_unit_of_which_there_are_two(time_ms: int, said: str) -> None:
    assert span(time_ms) == said


def test_named_and_counted_read_as_people_say_it() -> None:
    assert named(["a"]) == "a"
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert (counted(1, "GPU"), counted(0, "GPU")) == ("1 GPU", "0 GPUs")
