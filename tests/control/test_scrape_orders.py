"""Orders of a session that is not read: they end in time, and no more of them are taken than a named number."""

from __future__ import annotations

from orchestrator.control import scrapes as module
from orchestrator.control.scrapes import UNDER_WAY_MAX_PER_WORKER
from tests.control.test_scrapes import RIG, TEXT, Network, clock_moves, failure, pieces, play, whole


def test_orders_that_a_session_never_reads_are_bounded_and_the_next_are_busy() -> None:
    async def story(network: Network) -> None:
        network.rig.hearing.clear()
        ends: list[str] = []
        for _ in range(4 * UNDER_WAY_MAX_PER_WORKER):
            error = await failure(network.ask())
            ends.append(f"{error.outcome} {error}")
        # One is held in the sending, the others wait for it long after their time.
        assert ends.count(f"timeout {module.LATE}") == 1 + UNDER_WAY_MAX_PER_WORKER
        assert ends[1 + UNDER_WAY_MAX_PER_WORKER :] == [f"refused {module.BUSY}"] * (
            3 * UNDER_WAY_MAX_PER_WORKER - 1
        )
        network.rig.hearing.set()
        await clock_moves(1)
        asked = network.ask()
        orders = [await network.rig.orders.get(), await network.rig.orders.get()]
        assert [order.number for order in orders] == [1, 2 + UNDER_WAY_MAX_PER_WORKER]
        await network.scrapes.take(RIG, pieces(*whole(orders[1].number, TEXT)))
        assert (await asked).text == TEXT

    play(story)
