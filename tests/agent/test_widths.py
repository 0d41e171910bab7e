"""How much is measured where a job asked for bandwidth, and that a line is shared by nobody meanwhile."""

from __future__ import annotations

import socket

import pytest

from orchestrator.adapters.probes.bandwidth import BandwidthPlan, BandwidthServer, Line
from orchestrator.adapters.probes.wire import ProbeFailed, Target, listen
from orchestrator.agent.widths import ALL_MS, BYTES_MAX, EACH_MS_MAX, LIGHT, Needs, Receiver
from tests.adapters.probes.instruments import KEY, LOOPBACK, REAL, closed_port, running, target_of

PLAN = BandwidthPlan(1 << 20, 1_000)


def receiver(line: Line) -> Receiver:
    return Receiver(KEY, REAL, line, PLAN)


def test_needs_of_nothing_are_a_glance() -> None:
    assert Needs().plan(5) == LIGHT
    assert Needs(every_pair=True).plan(5) == LIGHT


@pytest.mark.parametrize("others", [0, 1, 3, 7, 15, 63, 255])
@pytest.mark.parametrize("mbps", [1, 100, 1_000, 1_000_000])
def test_needs_are_measured_long_enough_and_never_for_more_than_is_theirs(others: int, mbps: int) -> None:
    plan = Needs(every_pair=True, bits_per_s=mbps * 10**6).plan(others)
    assert LIGHT.duration_ms <= plan.duration_ms <= EACH_MS_MAX
    assert LIGHT.bytes <= plan.bytes <= BYTES_MAX
    assert plan.duration_ms == LIGHT.duration_ms or 2 * others * plan.duration_ms <= ALL_MS
    if mbps <= 1_000:
        # A line of exactly so much is not done before its time is up, so its rate is what it shows.
        assert plan.bytes * 8 * 1_000 >= mbps * 10**6 * plan.duration_ms


async def test_receiver_whose_line_is_lent_measures_nothing_and_frees_nothing() -> None:
    line = Line()
    with listen(socket.socket, LOOPBACK, 0) as listener:
        async with running(BandwidthServer(listener, KEY, REAL, PLAN).run()):
            assert line.take("a peer")
            with pytest.raises(ProbeFailed, match="another member measures with this one"):
                await receiver(line).from_one(target_of(listener))
            assert not line.take("somebody else")
            line.free("a peer")
            assert await receiver(line).from_one(target_of(listener)) > 0
            assert line.take("somebody else")


async def test_server_whose_owner_measures_is_busy() -> None:
    line = Line()
    with listen(socket.socket, LOOPBACK, 0) as listener:
        async with running(BandwidthServer(listener, KEY, REAL, PLAN, line).run()):
            assert line.take("its owner")
            with pytest.raises(ProbeFailed, match="it is measuring with another member"):
                await receiver(Line()).from_one(target_of(listener))


async def test_receiver_asks_again_whoever_failed_until_its_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.agent.widths.SURVEY_S", 3.0)
    found: dict[str, int] = {}
    with listen(socket.socket, LOOPBACK, 0) as listener, closed_port() as port:
        async with running(BandwidthServer(listener, KEY, REAL, PLAN).run()):
            there, away = target_of(listener), Target("away", LOOPBACK, port)
            await receiver(Line()).measure_all(
                [away, there], lambda target, rate: found.update({target.peer: rate})
            )
    assert set(found) == {there.peer}
