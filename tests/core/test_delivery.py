"""The overlay as it was delivered: no cluster is READY before its members reach the head, and the figures are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from orchestrator.adapters import codec
from orchestrator.core import messages as m
from orchestrator.core.apply import apply
from orchestrator.core.clusters import BusSeen, ClusterPhase, Member, PathSeen
from orchestrator.core.decisions.clusters import delivered
from orchestrator.core.ids import JobId, MemberId, WorkerId
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import NEBULA
from tests.core.test_isolation import BOX, boxed, gang
from tests.core.worlds import World, path_seen

BUS = BusSeen("ring", 2, 4 << 20, 90_000_000)

Change = Callable[[m.ObservedMember], m.ObservedMember]


def told(world: World, change: Change, rounds: int = 8) -> None:
    """Everybody reports as an honest agent does, but for this change."""
    for _ in range(rounds):
        for worker_id in list(world.state.workers):
            world.report(worker_id, tuple(change(one) for one in world.honest(worker_id)))


def members_of(world: World, job_id: JobId) -> tuple[Member, Member, Member]:
    head, first, second = world.members(job_id)
    return head, first, second


def silent(one: m.ObservedMember) -> m.ObservedMember:
    return replace(one, paths=())


def joined(measured: Change = silent) -> tuple[World, JobId]:
    """Everybody is up and listed."""
    world = boxed()
    job_id = gang(world)
    told(world, measured)
    return world, job_id


def test_cluster_is_ready_only_when_everybody_reaches_the_head() -> None:
    world, job_id = joined()
    head, first, second = members_of(world, job_id)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.report(first.worker_id)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.report(second.worker_id)
    cluster = world.cluster(job_id)
    assert cluster.phase is ClusterPhase.READY
    assert [node.member_id for node in cluster.certificate] == [
        one.member_id for one in (head, first, second)
    ]
    assert cluster.paths == (path_seen(first, head), path_seen(second, head), path_seen(second, first))


def test_cluster_whose_head_lists_nobody_any_more_waits_for_the_list() -> None:
    world, job_id = joined()
    head, first, second = members_of(world, job_id)
    world.report(head.worker_id, tuple(replace(one, nodes=()) for one in world.honest(head.worker_id)))
    for member in (first, second):
        world.report(member.worker_id)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.report(head.worker_id)
    assert world.cluster(job_id).phase is ClusterPhase.READY


@pytest.mark.parametrize("to", ["head", "peer", "itself", "stranger"])
def test_way_that_shows_no_answer_from_the_head_is_not_enough(to: str) -> None:
    world, job_id = joined()
    head, first, second = members_of(world, job_id)
    stranger = replace(head, member_id=MemberId("mem_stranger"))
    peers = {"head": head, "peer": first, "itself": second, "stranger": stranger}
    shown = path_seen(second, peers[to], received=0 if to == "head" else 20)
    told(world, lambda one: replace(one, paths=(shown,)) if one.member_id == second.member_id else one)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.report(second.worker_id)
    assert world.cluster(job_id).phase is ClusterPhase.READY


def test_member_that_never_reaches_the_head_is_named_when_time_is_up() -> None:
    world, job_id = joined()
    _, first, second = members_of(world, job_id)
    world.report(first.worker_id)
    cluster_id = world.cluster(job_id).cluster_id
    world.live_on(world.policies.clusters.join_deadline_ms + 5_000)
    cluster = world.state.clusters[cluster_id]
    assert cluster.phase is ClusterPhase.CLOSING
    assert f"{world.who(second.worker_id).name} does not reach the head over the overlay" in cluster.reason
    assert world.who(first.worker_id).name not in cluster.reason
    assert world.state.formations == {}


def test_bare_cluster_and_one_machine_need_no_measurement() -> None:
    world = World()
    world.worker(isolation=BOX)
    job_id = world.submit()
    world.plan()
    told(world, silent)
    cluster = world.cluster(job_id)
    assert (cluster.phase, cluster.paths, cluster.bus) == (ClusterPhase.READY, (), None)


def test_way_measured_anew_replaces_the_older_figures() -> None:
    world, job_id = joined()
    head, first, second = members_of(world, job_id)
    worse, better = (replace(path_seen(first, head), bandwidth_bits_per_s=rate) for rate in (10, 20))
    for path in (worse, better):
        world.report(first.worker_id, with_paths(world, first, (path, path)))
    assert delivered(world.state, world.cluster(job_id)) == ((better,), None)
    world.report(second.worker_id)
    assert world.cluster(job_id).paths[0] == better
    assert len(world.cluster(job_id).paths) == 3


def test_replaced_member_takes_its_figures_with_it() -> None:
    world, job_id = joined()
    head, first, second = members_of(world, job_id)
    world.report(first.worker_id)
    world.fail(first)
    substitute = world.worker(isolation=BOX, overlay=NEBULA)
    world.plan()
    told(world, lambda one: silent(one) if one.member_id == second.member_id else one)
    new = next(one for one in world.members(job_id) if one.worker_id == substitute)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.report(
        second.worker_id, with_paths(world, second, (path_seen(second, first), path_seen(second, head)))
    )
    cluster = world.cluster(job_id)
    assert cluster.phase is ClusterPhase.READY
    assert cluster.paths == (path_seen(second, head), path_seen(new, head), path_seen(new, second))


def test_node_of_a_replaced_member_is_gone_from_the_heads_list_before_the_cluster_is_ready() -> None:
    """Ray notices late that a node is gone, and would give it work until then."""
    world, job_id = joined()
    head, first, _ = members_of(world, job_id)
    listed = next(one.nodes for one in world.honest(head.worker_id))
    ghost = next(node for node in listed if node.member_id == first.member_id)
    world.fail(first)
    world.worker(isolation=BOX, overlay=NEBULA)
    world.plan()
    told(world, lambda one: replace(one, nodes=(*one.nodes, ghost)) if one.nodes else one)
    cluster_id = world.cluster(job_id).cluster_id
    assert world.state.clusters[cluster_id].phase is ClusterPhase.JOINING
    world.reports()
    assert world.state.clusters[cluster_id].phase is ClusterPhase.READY


def test_node_of_a_replaced_member_that_never_goes_is_named_when_time_is_up() -> None:
    world, job_id = joined()
    head, first, _ = members_of(world, job_id)
    ghost = next(one.nodes for one in world.honest(head.worker_id))[1]
    assert ghost.member_id == first.member_id
    world.fail(first)
    world.worker(isolation=BOX, overlay=NEBULA)
    world.plan()
    told(world, lambda one: replace(one, nodes=(*one.nodes, ghost)) if one.nodes else one)
    cluster_id = world.cluster(job_id).cluster_id
    world.live_on(world.policies.clusters.join_deadline_ms + 5_000)
    reason = world.state.clusters[cluster_id].reason
    assert f"{world.who(first.worker_id).name} is gone and still listed by the head" in reason


def with_paths(world: World, member: Member, paths: tuple[PathSeen, ...]) -> tuple[m.ObservedMember, ...]:
    return tuple(replace(one, paths=paths) for one in world.honest(member.worker_id))


# ------------------------------------------------------------ the all-reduce


def bus_from(member_id: MemberId, bus: BusSeen = BUS) -> Change:
    return lambda one: replace(one, bus=bus) if one.member_id == member_id else one


def test_all_reduce_that_was_first_is_part_of_what_made_the_cluster_ready() -> None:
    world, job_id = joined()
    _, first, _ = members_of(world, job_id)
    told(world, bus_from(first.member_id))
    assert world.cluster(job_id).bus == BUS


def test_all_reduce_that_comes_later_is_kept_once() -> None:
    world, job_id = joined()
    _, first, _ = members_of(world, job_id)
    world.reports()
    assert (world.cluster(job_id).phase, world.cluster(job_id).bus) == (ClusterPhase.READY, None)
    told(world, bus_from(first.member_id))
    version = world.state.version
    told(world, bus_from(first.member_id, replace(BUS, bus_bits_per_s=1)))
    assert (world.cluster(job_id).bus, world.state.version) == (BUS, version)


@pytest.mark.parametrize("case", ["head", "second", "ranks"])
def test_all_reduce_of_others_is_not_believed(case: str) -> None:
    world, job_id = joined()
    head, first, second = members_of(world, job_id)
    speaker = {"head": head, "second": second, "ranks": first}[case]
    bus = replace(BUS, ranks=3) if case == "ranks" else BUS
    told(world, bus_from(speaker.member_id, bus))
    assert (world.cluster(job_id).phase, world.cluster(job_id).bus) == (ClusterPhase.READY, None)
    told(world, bus_from(speaker.member_id, bus))
    assert world.cluster(job_id).bus is None


# ------------------------------------------------------------ kept


@dataclass(slots=True)
class Chronicle(World):
    """A world that writes down what was decided in it, as the store does."""

    written: list[tuple[int, str, bytes]] = field(default_factory=list)

    def do(self, command: m.Command) -> m.Decision:
        decision = World.do(self, command)
        for event in decision.events:
            self.written.append((self.at_ms, type(event).__name__, codec.encode(event)))
        return decision


def chronicle() -> Chronicle:
    """As ``boxed``."""
    world = Chronicle()
    for _ in range(2):
        world.worker(isolation=BOX, overlay=NEBULA)
    world.head_host(isolation=BOX, overlay=NEBULA)
    return world


def test_delivery_is_the_same_applied_stored_and_replayed() -> None:
    world = chronicle()
    job_id = gang(world)
    world.reports()
    told(world, bus_from(members_of(world, job_id)[1].member_id))
    cluster = world.cluster(job_id)
    assert (len(cluster.paths), cluster.bus) == (3, BUS)
    assert codec.decode_entity("clusters", codec.encode(cluster)) == cluster
    replayed = State(world.policies)
    for at_ms, name, body in world.written:
        apply(replayed, codec.decode_event(name, codec.event_version(name), body), at_ms)
    assert replayed.rows() == world.state.rows()


def test_cluster_and_event_of_a_release_without_measurements_are_read() -> None:
    world, job_id = joined()
    world.reports()
    cluster = world.cluster(job_id)
    row = codec.decode_as(codec.encode(cluster), dict)
    del row["paths"], row["bus"]
    assert codec.decode_entity("clusters", codec.encode(row)) == replace(cluster, paths=(), bus=None)
    event = codec.decode_as(codec.encode(m.ClusterReady(cluster.cluster_id, cluster.certificate)), dict)
    del event["paths"], event["bus"]
    read = codec.decode_event("ClusterReady", 1, codec.encode(event))
    assert read == m.ClusterReady(cluster.cluster_id, cluster.certificate)


def test_what_is_said_of_a_joining_cluster_is_dropped_once_it_is_ready() -> None:
    world, job_id = joined()
    assert set(world.state.formations) == {world.cluster(job_id).cluster_id}
    world.reports()
    assert world.state.formations == {}


def test_worker_of_nobody_leaves_nothing_in_memory() -> None:
    world, _ = joined()
    stranger = WorkerId(str(world.worker()))
    before = set(world.state.formations)
    world.report(stranger, ())
    assert set(world.state.formations) == before
