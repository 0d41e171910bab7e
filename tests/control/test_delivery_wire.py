"""What agents say of the ways between members: figures that no network can show are refused, all others come whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.api.v1 import overlay_pb2, worker_pb2
from orchestrator.control.services import views
from orchestrator.control.wire import PATHS_MAX, bus_to, observed_from, path_to
from orchestrator.core.clusters import BusSeen, ClusterPhase, PathSeen
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import JobId, MemberId, WorkerId
from orchestrator.core.queries.certificate import certificate
from tests.control.test_overlay import gang, told
from tests.core.worlds import World

WORKER = WorkerId("wrk_1")
TIMES_US = {"rtt_min_us": 900, "rtt_median_us": 1_000, "rtt_p90_us": 1_500, "jitter_us": 40}
GOOD: dict[str, int | str] = {"peer_id": "mem_0", "sent": 20, "received": 19, **TIMES_US}
BUS: dict[str, int | str] = {
    "method": "ring",
    "ranks": 3,
    "size_bytes": 4 << 20,
    "bus_bits_per_s": 90_000_000,
}
BILLION = 10**9


def member(**fields: object) -> worker_pb2.MemberObserved:
    return worker_pb2.MemberObserved(member_id="mem_1", **fields)  # type: ignore[arg-type]  # as the proto has them


def path(**fields: int | str) -> overlay_pb2.PathMeasured:
    return overlay_pb2.PathMeasured(**(GOOD | fields))  # type: ignore[arg-type]  # as the proto has them


def bus(**fields: int | str) -> overlay_pb2.BusMeasured:
    return overlay_pb2.BusMeasured(**(BUS | fields))  # type: ignore[arg-type]  # as the proto has them


def test_measurements_come_whole_and_go_out_as_they_came() -> None:
    fast = path(bandwidth_bits_per_s=50_000_000)
    report = worker_pb2.Observed(members=[member(paths=[fast], bus=bus())])
    (observed,) = observed_from(WORKER, report).members
    seen = PathSeen(MemberId("mem_1"), MemberId("mem_0"), 20, 19, 900, 1_000, 1_500, 40, 50_000_000)
    assert observed.paths == (seen,)
    assert observed.bus == BusSeen("ring", 3, 4 << 20, 90_000_000)
    assert path_to(seen) == fast
    assert bus_to(observed.bus) == bus()
    assert bus_to(None) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"received": 0, "rtt_min_us": 0, "rtt_median_us": 0, "rtt_p90_us": 0, "jitter_us": 0},
        {"received": 1, "jitter_us": 0},
        {"jitter_us": 0},
        {"rtt_p90_us": 60_000_000},
    ],
)
def test_path_at_the_edge_of_what_can_be_is_taken(fields: dict[str, int]) -> None:
    report = worker_pb2.Observed(members=[member(paths=[path(**fields)])])
    (observed,) = observed_from(WORKER, report).members
    assert observed.paths[0].received == fields.get("received", 19)
    assert observed.bus is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peer_id": ""}, "peer must have"),
        ({"peer_id": "p" * 129}, "peer must have"),
        ({"peer_id": "a\nb"}, "peer must have"),
        ({"peer_id": "mem_1"}, "to itself"),
        ({"sent": 0, "received": 0}, "sent is 0"),
        ({"sent": BILLION}, "sent is"),
        ({"received": 21}, "received is 21"),
        ({"received": 0}, "rtt_min_us is 900"),
        ({"received": 1}, "jitter_us is 40"),
        ({"rtt_min_us": 0}, "no answer comes in no time"),
        ({"rtt_min_us": 0, "rtt_median_us": 0, "rtt_p90_us": 0}, "no answer comes in no time"),
        ({"rtt_median_us": 899}, "rtt_median_us is 899"),
        ({"rtt_p90_us": 999}, "rtt_p90_us is 999"),
        ({"rtt_p90_us": BILLION}, "rtt_p90_us is"),
        ({"rtt_p90_us": 2**64 - 1}, "rtt_p90_us is"),
        ({"jitter_us": BILLION}, "jitter_us is"),
        ({"bandwidth_bits_per_s": 10**13 + 1}, "faster than any network"),
    ],
)
def test_path_that_no_network_can_show_is_refused(fields: dict[str, int | str], words: str) -> None:
    report = worker_pb2.Observed(members=[member(paths=[path(), path(**fields)])])
    with pytest.raises(RefusedError, match=words) as refused:
        observed_from(WORKER, report)
    assert refused.value.field == "members.paths"


def test_more_paths_than_any_agent_measures_are_refused_unread() -> None:
    too_many = [path(peer_id=f"mem_{number + 2}") for number in range(PATHS_MAX + 1)]
    with pytest.raises(RefusedError, match=f"at most {PATHS_MAX}"):
        observed_from(WORKER, worker_pb2.Observed(members=[member(paths=too_many)]))
    (observed,) = observed_from(WORKER, worker_pb2.Observed(members=[member(paths=too_many[:-1])])).members
    assert len(observed.paths) == PATHS_MAX


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": ""}, "method is ''"),
        ({"method": "mpi"}, "ring, gloo and nccl"),
        ({"ranks": 1}, "ranks is 1"),
        ({"ranks": 65}, "ranks is 65"),
        ({"size_bytes": 0}, "size_bytes is 0"),
        ({"size_bytes": 2**63}, "size_bytes is"),
        ({"bus_bits_per_s": 0}, "bus_bits_per_s is 0"),
        ({"bus_bits_per_s": 10**13 + 1}, "bus_bits_per_s is"),
    ],
)
def test_all_reduce_that_no_network_can_show_is_refused(fields: dict[str, int | str], words: str) -> None:
    with pytest.raises(RefusedError, match=words) as refused:
        observed_from(WORKER, worker_pb2.Observed(members=[member(bus=bus(**fields))]))
    assert refused.value.field == "members.bus"


# ------------------------------------------------------------ what is told of it


def reported(world: World, job_id: JobId, bus_seen: BusSeen | None) -> None:
    """Everybody reports until nothing follows; the first that brings a device tells of the all-reduce."""
    first = world.members(job_id)[1].member_id
    for _ in range(8):
        for worker_id in list(world.state.workers):
            shown = tuple(
                replace(one, bus=bus_seen) if one.member_id == first else one
                for one in world.honest(worker_id)
            )
            world.report(worker_id, shown)


def test_desired_member_is_told_of_its_peers_until_everything_is_measured() -> None:
    world, job_id = gang()
    members = world.members(job_id)
    ranks = [(peer.member_id, peer.rank) for peer in told(world, members[0]).probe_peers]
    assert ranks == [(member.member_id, rank) for rank, member in enumerate(members)]
    reported(world, job_id, None)
    assert world.cluster(job_id).phase is ClusterPhase.READY
    assert len(told(world, members[0]).probe_peers) == 3
    reported(world, job_id, BusSeen("ring", 2, 1 << 19, 12_000_000))
    for member in world.members(job_id):
        assert list(told(world, member).probe_peers) == []


@pytest.mark.parametrize(
    ("asked", "every_pair", "bits_per_s"),
    [({}, False, 0), ({"max_rtt_ms": 30}, True, 0), ({"min_bandwidth_mbps": 50}, True, 50_000_000)],
)
def test_desired_member_is_told_what_the_job_asked_of_the_ways(
    asked: dict[str, int], every_pair: bool, bits_per_s: int
) -> None:
    world, job_id = gang()
    job = world.state.jobs[job_id]
    requirements = replace(job.request.requirements, **asked)  # type: ignore[arg-type]  # names of its fields
    world.state.put(replace(job, request=replace(job.request, requirements=requirements)))
    for member in world.members(job_id):
        needs = told(world, member).probe_needs
        assert (needs.every_pair, needs.bandwidth_bits_per_s) == (every_pair, bits_per_s)
        assert told(world, member).HasField("probe_needs") == bool(asked)


def test_certificate_is_shown_by_rank_and_what_was_not_measured_stays_unset() -> None:
    world, job_id = gang()
    reported(world, job_id, BusSeen("ring", 2, 1 << 19, 12_000_000))
    members = world.members(job_id)[1:]
    shown = [views.rank_message(one) for one in certificate(world.state, world.cluster(job_id))]
    assert [one.rank for one in shown] == [0, 1]
    for rank, member in zip(shown, members, strict=True):
        assert [one.uuid for one in rank.devices] == list(member.device_ids)
        assert (rank.evidence_class, rank.devices[0].simulated) == ("t0", True)
        assert (rank.rtt_us, rank.bus_bits_per_s) == (21_000, 12_000_000)
        assert not rank.HasField("bandwidth_bits_per_s")


def test_job_names_the_longest_way_of_its_cluster() -> None:
    world, job_id = gang()
    assert not any("round trip" in line for line in explanation(world, job_id))
    reported(world, job_id, None)
    world.start(job_id)
    _, first, second = world.members(job_id)
    ends = [world.state.workers[one.worker_id].name for one in (first, second)]
    (line,) = (line for line in explanation(world, job_id) if "round trip" in line)
    assert line.startswith("delivered: round trips up to 21.0 ms, that from ")
    assert any(name in line for name in ends)


def explanation(world: World, job_id: JobId) -> list[str]:
    return list(views.job_message(world.state, world.state.jobs[job_id]).attempts[0].explanation)


def test_path_is_shown_with_who_measured_it() -> None:
    world, job_id = gang()
    reported(world, job_id, None)
    _, first, second = world.members(job_id)
    shown = views.path_message(world.cluster(job_id).paths[-1])
    assert (shown.member_id, shown.measured.peer_id) == (second.member_id, first.member_id)
    assert shown.measured.rtt_median_us == 21_000
