"""What a plan keeps for somebody, and lends to those who will have ended by the time that it is wanted."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.ids import JobId, TenantId, WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.scheduling.draft import FORMING_ALLOWANCE_MS, Draft
from orchestrator.core.scheduling.placement import JobNeed, SpareNeed
from tests.core.fleets import AT_MS, device, machine, state_of

LIMIT_MS = 3_600_000
OVER_MS = AT_MS + FORMING_ALLOWANCE_MS + LIMIT_MS
"""When a job that is placed now is over for sure."""


def need(limit_ms: int) -> JobNeed:
    return JobNeed(JobId("job"), TenantId("ten"), Requirements(), time_limit_ms=limit_ms)


@pytest.fixture
def draft() -> Draft:
    """Two machines, of two devices and of three."""
    return Draft(
        state_of(
            [
                machine("w0", device("a"), device("b")),
                machine("w1", device("c"), device("d"), device("e")),
            ]
        ),
        AT_MS,
    )


def free_to(draft: Draft, limit_ms: int) -> list[int]:
    with draft.lending(need(limit_ms)):
        found: list[int] = draft.free.tolist()
    return found


def test_keep_takes_what_is_free_of_the_rows_from_everybody(draft: Draft) -> None:
    draft.keep(np.array([1]), None)
    assert draft.free.tolist() == [2, 0]
    assert draft.spoken_for.tolist() == [False, True]
    assert free_to(draft, LIMIT_MS) == [2, 0]
    assert draft.lent_until_ms(need(LIMIT_MS)) == 0


def test_lending_gives_back_the_rows_by_whose_time_a_need_is_over(draft: Draft) -> None:
    draft.keep(np.array([0]), OVER_MS)
    draft.keep(np.array([1]), OVER_MS - 1)
    assert free_to(draft, LIMIT_MS) == [2, 0]
    assert free_to(draft, LIMIT_MS - 1) == [2, 3]
    assert free_to(draft, LIMIT_MS + 1) == [0, 0]
    assert draft.free.tolist() == [0, 0]


def test_lending_lends_nothing_to_a_need_whose_end_nobody_knows(draft: Draft) -> None:
    draft.keep(np.array([0, 1]), OVER_MS)
    spare = SpareNeed(JobId("job"), TenantId("ten"), Requirements(), ())
    with draft.lending(spare):
        assert draft.free.tolist() == [0, 0]
    assert free_to(draft, 0) == [0, 0]


def test_lending_keeps_again_what_the_need_left(draft: Draft) -> None:
    draft.keep(np.array([0, 1]), OVER_MS)
    with draft.lending(need(LIMIT_MS)):
        assert not draft.spoken_for.any()
        taken = draft.take([(1, 2)], None)
    assert [(share.worker_id, len(share.device_ids)) for share in taken] == [(WorkerId("w1"), 2)]
    assert draft.free.tolist() == [0, 0]
    assert draft.spoken_for.all()
    assert free_to(draft, LIMIT_MS) == [2, 1]


def test_keep_of_rows_kept_already_lends_them_until_the_earlier_instant(draft: Draft) -> None:
    draft.keep(np.array([0, 1]), OVER_MS)
    draft.keep(np.array([0]), OVER_MS - 1)
    draft.keep(np.array([1]), OVER_MS + 1)
    assert free_to(draft, LIMIT_MS) == [0, 3]
    draft.keep(np.array([1]), None)
    assert free_to(draft, LIMIT_MS) == [0, 0]


def test_give_back_frees_rows_only_that_are_kept_for_nobody_else(draft: Draft) -> None:
    draft.keep(np.array([0, 1]), OVER_MS)
    draft.keep(np.array([0]), None)
    draft.give_back(np.array([0, 1]))
    assert draft.free.tolist() == [0, 3]
    assert draft.spoken_for.tolist() == [True, False]
    draft.give_back(np.array([0]))
    assert draft.free.tolist() == [2, 3]
    assert free_to(draft, LIMIT_MS) == [2, 3]


def test_lent_until_names_the_rows_that_are_lent(draft: Draft) -> None:
    draft.keep(np.array([0]), OVER_MS)
    draft.keep(np.array([1]), OVER_MS + 10)
    assert draft.lent_until_ms(need(LIMIT_MS)) == OVER_MS
    assert draft.lent_until_ms(need(LIMIT_MS - 7)) == OVER_MS
    assert draft.lent_until_ms(need(LIMIT_MS + 1)) == OVER_MS + 10
    assert draft.lent_until_ms(need(LIMIT_MS + 11)) == 0
    assert draft.lent_until_ms(need(0)) == 0
