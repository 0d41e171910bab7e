"""What a job asked of the ways between its machines: nobody is READY with less, and nothing is charged for trying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import BusSeen, ClusterPhase, ClusterPolicy, Member, MemberPhase, PathSeen
from orchestrator.core.delivery import BITS_PER_MBIT, Asked, is_delivered, mbps_text
from orchestrator.core.ids import JobId, MemberId, WorkerId
from orchestrator.core.jobs import JobPolicy, JobStatus, Requirements
from orchestrator.core.market.pricing import Currency
from orchestrator.core.policies import Policies
from orchestrator.core.queries.certificate import certificate, delivered_words
from orchestrator.core.queries.explain import explain
from orchestrator.core.queries.quote import quote
from orchestrator.core.supply.fleet import NEBULA, Isolation
from tests.core.test_isolation import RUNTIMES
from tests.core.worlds import World, path_seen

POLICY = ClusterPolicy()
ASKED_MBPS = 100
FAST_MBPS, SLOW_MBPS = 400, 12


def wanted(gpus: int = 2, mbps: int = ASKED_MBPS, **more: object) -> Requirements:
    values: dict[str, object] = {"gpus": gpus, "isolation": Isolation.BOX, "min_bandwidth_mbps": mbps}
    return replace(Requirements(), **(values | more))  # type: ignore[arg-type]  # names checked by the dataclass


@dataclass
class Lines:
    """Machines in boxes with an overlay, whose lines carry so much; a way carries what the slower of both does."""

    world: World
    mbps: dict[WorkerId, int] = field(default_factory=dict)
    ways: dict[frozenset[WorkerId], int] = field(default_factory=dict)
    """Where a way carries less than both lines do."""
    rtt_ms: dict[frozenset[WorkerId], int] = field(default_factory=dict)
    """Of some ways; those of all others are path_seen's."""
    mute: set[WorkerId] = field(default_factory=set)
    """Those that measure no bandwidth."""
    boasting: Mapping[WorkerId, int] = field(default_factory=dict)
    """What these say of every way, whatever it carries, and that it takes a millisecond."""
    to_head: bool = False
    """Whether anything was carried to the head, too."""

    @classmethod
    def of(cls, *mbps: int, policies: Policies | None = None, gpus: int = 1) -> Lines:
        world = World(policies or Policies(jobs=RUNTIMES))
        world.head_host(isolation=Isolation.BOX, overlay=NEBULA)
        lines = cls(world)
        for rate in mbps:
            lines.add(rate, gpus)
        return lines

    def add(self, mbps: int, gpus: int = 1) -> WorkerId:
        worker_id = self.world.worker("RTX4090", gpus, isolation=Isolation.BOX, overlay=NEBULA)
        self.mbps[worker_id] = mbps
        return worker_id

    @property
    def workers(self) -> list[WorkerId]:
        return list(self.mbps)

    def carried(self, one: WorkerId, other: WorkerId) -> int:
        lesser = min(self.mbps[one], self.mbps[other])
        return min(lesser, self.ways.get(frozenset((one, other)), lesser))

    def measured(self, member: Member, peer: Member) -> PathSeen:
        """As ``member`` says it."""
        path = path_seen(member, peer)
        rtt_ms = self.rtt_ms.get(frozenset((member.worker_id, peer.worker_id)))
        if rtt_ms is not None:
            rtt_us = 1_000 if member.worker_id in self.boasting else rtt_ms * 1_000
            path = replace(path, rtt_min_us=rtt_us, rtt_median_us=rtt_us, rtt_p90_us=rtt_us)
        if member.worker_id in self.mute:
            return path
        if peer.worker_id not in self.mbps:
            rate = self.mbps[member.worker_id] if self.to_head else 0
            return replace(path, bandwidth_bits_per_s=rate * BITS_PER_MBIT)
        mbps = self.boasting.get(member.worker_id, self.carried(member.worker_id, peer.worker_id))
        return replace(path, bandwidth_bits_per_s=mbps * BITS_PER_MBIT)

    def report(self) -> None:
        """Everybody says what it has measured, until nothing follows."""
        world = self.world
        for _ in range(12):
            before = world.state.version
            for worker_id in list(world.state.workers):
                world.report(worker_id, tuple(self._told(one) for one in world.honest(worker_id)))
            if world.state.version == before:
                return

    def _told(self, one: m.ObservedMember) -> m.ObservedMember:
        member = self.world.state.members[one.member_id]
        if member.role != "member":
            return one
        cluster = self.world.state.clusters[member.cluster_id]
        others = [peer for peer in self.world.state.cluster_members(cluster) if peer != member]
        return replace(one, paths=tuple(self.measured(member, peer) for peer in others))

    def form(self, requirements: Requirements | None = None) -> JobId:
        """A job, planned for and measured once."""
        job_id = self.world.submit(requirements or wanted())
        self.world.plan()
        self.report()
        return job_id

    def settle(self, job_id: JobId, rounds: int = 12) -> None:
        """Plan and measure until the job's cluster is READY."""
        for _ in range(rounds):
            if self.world.cluster(job_id).phase is ClusterPhase.READY:
                return
            self.world.plan()
            self.report()


def who(world: World, job_id: JobId) -> set[WorkerId]:
    return {member.worker_id for member in world.members(job_id) if member.device_ids}


def failed(world: World) -> list[Member]:
    return [one for one in world.state.members.values() if one.reason]


# ------------------------------------------------------------ before READY


def test_cluster_whose_ways_carry_what_was_asked_is_ready_and_certified() -> None:
    lines = Lines.of(FAST_MBPS, ASKED_MBPS)
    job_id = lines.form()
    cluster = lines.world.cluster(job_id)
    assert cluster.phase is ClusterPhase.READY
    assert [one.bits_per_s for one in certificate(lines.world.state, cluster)] == [100 * BITS_PER_MBIT] * 2


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_member_with_a_slow_line_is_the_one_to_be_replaced_wherever_it_stands(slow: int) -> None:
    rates = [FAST_MBPS] * 3
    rates[slow] = SLOW_MBPS
    lines = Lines.of(*rates)
    job_id = lines.form(wanted(3))
    (out,) = failed(lines.world)
    assert out.worker_id == lines.workers[slow]
    assert out.reason == "12 Mbit/s between it and another member, 100 Mbit/s were asked for"
    assert lines.world.cluster(job_id).phase is ClusterPhase.JOINING
    substitute = lines.add(FAST_MBPS)
    lines.settle(job_id)
    assert lines.world.cluster(job_id).phase is ClusterPhase.READY
    assert who(lines.world, job_id) == {one for one in lines.workers if one != out.worker_id}
    assert substitute in who(lines.world, job_id)
    lines.world.start(job_id)
    assert lines.world.job(job_id).status is JobStatus.RUNNING


@pytest.mark.parametrize("slow", [0, 1])
def test_of_two_on_a_slow_way_the_slow_one_is_found_by_a_third(slow: int) -> None:
    rates = [FAST_MBPS] * 2
    rates[slow] = SLOW_MBPS
    lines = Lines.of(*rates)
    job_id = lines.form()
    for _ in range(2):
        lines.add(FAST_MBPS)
    lines.settle(job_id)
    assert lines.world.cluster(job_id).phase is ClusterPhase.READY
    assert lines.workers[slow] not in who(lines.world, job_id)
    # Once for each member that the way could be the fault of, and no more.
    assert len(failed(lines.world)) <= 2


@pytest.mark.parametrize("slow", [0, 1])
def test_of_two_on_a_slow_way_the_one_that_carried_less_to_the_head_goes_first(slow: int) -> None:
    rates = [FAST_MBPS] * 2
    rates[slow] = SLOW_MBPS
    lines = Lines.of(*rates)
    lines.to_head = True
    lines.form()
    (out,) = failed(lines.world)
    assert out.worker_id == lines.workers[slow]


def test_boast_of_a_slow_member_counts_for_nothing() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS, SLOW_MBPS)
    boaster = lines.workers[2]
    lines.boasting = {boaster: 9_000}
    lines.form(wanted(3))
    assert [one.worker_id for one in failed(lines.world)] == [boaster]


@pytest.mark.parametrize("gone_on", [0, 1])
def test_bandwidth_that_one_end_does_not_measure_is_waited_for_and_then_its_member_is_replaced(
    gone_on: int,
) -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS, FAST_MBPS)
    mute = lines.workers[gone_on]
    lines.mute = {mute}
    job_id = lines.form(wanted(3))
    world = lines.world
    world.live_on(POLICY.measure_deadline_ms)
    lines.report()
    assert (world.cluster(job_id).phase, failed(world)) == (ClusterPhase.JOINING, [])
    # Nobody has anything new to say: time alone is up.
    world.live_on(10_000)
    (out,) = failed(world)
    assert out.worker_id == mute
    assert out.reason.startswith("its bandwidth to another member was not measured within 6")
    assert out.reason.endswith(" s, 100 Mbit/s were asked for")


def test_round_trip_that_nobody_measured_is_waited_for_where_a_bound_was_set() -> None:
    world = Lines.of(FAST_MBPS, FAST_MBPS).world
    first, second = [one for one, worker in world.state.workers.items() if worker.inventory.devices]
    world.state.latency.observe(first, second, 5_000, world.at_ms)
    job_id = world.submit(wanted(2, 0, max_rtt_ms=30))
    world.plan()

    def to_head_only(worker_id: WorkerId) -> tuple[m.ObservedMember, ...]:
        return tuple(replace(one, paths=one.paths[:1]) for one in world.honest(worker_id))

    for _ in range(6):
        for worker_id in list(world.state.workers):
            world.report(worker_id, to_head_only(worker_id))
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    world.live_on(POLICY.measure_deadline_ms + 10_000)
    (out,) = failed(world)
    assert "its round trip to another member was not measured within 6" in out.reason
    assert "30 ms were asked for" in out.reason


def test_nothing_asked_waits_for_no_bandwidth() -> None:
    lines = Lines.of(SLOW_MBPS, SLOW_MBPS)
    lines.mute = set(lines.workers)
    job_id = lines.form(wanted(2, 0))
    assert lines.world.cluster(job_id).phase is ClusterPhase.READY


def test_one_machine_has_no_ways_and_passes() -> None:
    lines = Lines.of(SLOW_MBPS, gpus=2)
    job_id = lines.form(wanted(2))
    cluster = lines.world.cluster(job_id)
    assert (cluster.phase, cluster.paths) == (ClusterPhase.READY, ())
    (rank,) = certificate(lines.world.state, cluster)
    assert (rank.rtt_us, rank.bits_per_s, rank.bus_bits_per_s) == (None, None, None)
    assert delivered_words(lines.world.state, cluster) == ()


def test_bare_machines_measure_nothing_and_are_not_put_together() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    world.head_host()
    job_id = world.submit(Requirements(gpus=2, min_bandwidth_mbps=10))
    world.plan()
    assert "at most 1 of them in one class, runtime and overlay" in world.job(job_id).message


def test_replaced_member_leaves_the_next_one_as_much_time_as_it_had() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS, SLOW_MBPS)
    world = lines.world
    job_id = lines.form(wanted(3))
    cluster_id = world.cluster(job_id).cluster_id
    world.live_on(POLICY.join_deadline_ms - 10_000)
    lines.add(FAST_MBPS)
    world.plan()
    world.live_on(POLICY.join_deadline_ms - 10_000)
    assert world.state.clusters[cluster_id].phase is ClusterPhase.JOINING
    lines.report()
    assert world.state.clusters[cluster_id].phase is ClusterPhase.READY


# ------------------------------------------------------------ nothing better


def test_job_that_no_machines_can_serve_ends_in_a_plain_sentence_and_costs_nothing() -> None:
    jobs = JobPolicy(runtimes=RUNTIMES.runtimes, formation_failures_max=2)
    lines = Lines.of(SLOW_MBPS, SLOW_MBPS, policies=Policies(jobs=jobs))
    world = lines.world
    tenant_id = world.tenant()
    month = world.state.tenants[tenant_id].month
    job_id = lines.form()
    for _ in range(40):
        if world.job(job_id).status.terminal:
            break
        world.live_on(30_000)
        world.plan()
        lines.report()
    job = world.job(job_id)
    assert job.status is JobStatus.FAILED
    assert job.message.startswith("no cluster could be formed: not formed: still short of 1 member(s), as ")
    assert "12 Mbit/s between it and another member, 100 Mbit/s were asked for" in job.message
    assert job.attempts == jobs.formation_failures_max + 1
    assert (job.starts, world.leases(job_id)) == (0, [])
    assert (world.state.leases, world.state.receipts, world.state.statements) == ({}, {}, {})
    assert world.state.tenants[tenant_id].month == month
    assert all(one.phase is MemberPhase.RELEASED for one in world.state.members.values())


# ------------------------------------------------------------ memory


def test_worker_known_to_be_slow_is_left_out_of_the_next_gang_and_that_is_said() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS, SLOW_MBPS)
    world = lines.world
    slow = lines.workers[2]
    lines.form(wanted(3))
    assert world.state.bandwidth.slower_than(ASKED_MBPS * BITS_PER_MBIT, world.at_ms) == (slow,)
    asking = world.submit(wanted(4), tenant="beta")
    world.plan()
    message = world.job(asking).message
    assert "1 known to deliver less than 100 Mbit/s to others" in message
    wait = explain(world.state, world.state.jobs[asking], world.at_ms).wait
    assert wait is not None
    (change,) = wait.changes
    assert change.key == "orch.min_bandwidth_mbps"
    assert change.says.startswith("without orch.min_bandwidth_mbps: 3 fitting devices")


def test_worker_known_to_be_slow_is_tried_by_who_asks_for_less_and_again_after_a_while() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS, SLOW_MBPS)
    world = lines.world
    lines.form(wanted(3))
    known = world.state.bandwidth
    assert known.slower_than(SLOW_MBPS * BITS_PER_MBIT, world.at_ms) == ()
    assert known.slower_than((SLOW_MBPS + 1) * BITS_PER_MBIT, world.at_ms) == (lines.workers[2],)
    assert known.slower_than((SLOW_MBPS + 1) * BITS_PER_MBIT, world.at_ms + 7 * 3_600_000) == ()


def test_worker_known_to_be_slow_serves_alone_all_the_same() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS)
    world = lines.world
    slow = lines.add(SLOW_MBPS, gpus=2)
    first = lines.form(wanted(4))
    world.do(m.StopJob(first))
    lines.report()
    assert world.state.bandwidth.slower_than(ASKED_MBPS * BITS_PER_MBIT, world.at_ms) == (slow,)
    job_id = lines.form(wanted(2))
    assert (world.cluster(job_id).phase, who(world, job_id)) == (ClusterPhase.READY, {slow})


def test_one_slow_way_makes_nobody_known_as_slow() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS, FAST_MBPS)
    one, other, _ = lines.workers
    lines.ways[frozenset((one, other))] = SLOW_MBPS
    lines.form(wanted(3))
    assert len(failed(lines.world)) == 1
    assert lines.world.state.bandwidth.slower_than(ASKED_MBPS * BITS_PER_MBIT, lines.world.at_ms) == ()


def test_substitute_is_not_one_whose_way_to_a_present_member_is_known_to_be_narrow() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS, SLOW_MBPS)
    world = lines.world
    narrow, wide = lines.add(FAST_MBPS), lines.add(FAST_MBPS)
    world.state.bandwidth.observe(lines.workers[0], narrow, SLOW_MBPS * BITS_PER_MBIT, world.at_ms)
    lines.mbps[lines.workers[2]] = SLOW_MBPS
    job_id = lines.form(wanted(3))
    lines.settle(job_id)
    assert who(world, job_id) == {lines.workers[0], lines.workers[1], wide}


def test_worker_that_is_forgotten_takes_its_figures_with_it() -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS)
    lines.form()
    known = lines.world.state.bandwidth
    assert len(known) == 2
    known.forget(lines.workers[0])
    assert len(known) == 1
    assert known.between(lines.workers[0], lines.workers[1], lines.world.at_ms) is None


# ------------------------------------------------------------ warm clusters


@pytest.mark.parametrize(
    ("before", "then", "reused"),
    [(100, 100, True), (100, 400, True), (100, 401, False), (0, 100, False), (0, 0, True), (100, 0, True)],
)
def test_warm_cluster_is_reused_only_where_it_delivered_what_is_asked(
    before: int, then: int, reused: bool
) -> None:
    lines = Lines.of(FAST_MBPS, FAST_MBPS)
    lines.mute = set() if before else set(lines.workers)
    world = lines.world
    first = lines.form(wanted(2, before))
    world.start(first)
    world.finish(first)
    assert world.cluster(first).idle_since_ms is not None
    world.submit(wanted(2, then))
    assert (len(world.plan().reuses) == 1) == reused


def test_delivered_needs_every_pair_measured_by_both_ends() -> None:
    one, two, three = (MemberId(f"m{number}") for number in range(3))

    def path(start: MemberId, end: MemberId, rate: int) -> PathSeen:
        return PathSeen(start, end, 20, 20, 1_000, 1_000, 1_000, 0, rate)

    asked = Asked(min_bandwidth_mbps=1)
    both = [path(one, two, BITS_PER_MBIT), path(two, one, BITS_PER_MBIT)]
    assert is_delivered([one, two], both, asked)
    assert not is_delivered([one, two], both[:1], asked)
    assert not is_delivered([one, two, three], both, asked)
    assert not is_delivered([one, two], [both[0], path(two, one, BITS_PER_MBIT - 1)], asked)
    assert is_delivered([one], [], asked)
    assert is_delivered([one, two, three], [], Asked())


# ------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("bits_per_s", "words"),
    [
        (99_999_999, "99.9"),
        (100_000_000, "100"),
        (12_340_000, "12.3"),
        (99_999, "less than 0.1"),
        (2_500_000_000, "2500"),
    ],
)
def test_bandwidth_is_never_said_to_be_more_than_it_is(bits_per_s: int, words: str) -> None:
    assert mbps_text(bits_per_s) == words


def test_placed_job_is_told_what_was_delivered() -> None:
    lines = Lines.of(FAST_MBPS, 150)
    world = lines.world
    job_id = lines.form()
    first = world.members(job_id)[1]
    bus = BusSeen("ring", 2, 4 << 20, 93_000_000)
    world.report(first.worker_id, tuple(replace(one, bus=bus) for one in world.honest(first.worker_id)))
    placed = explain(world.state, world.state.jobs[job_id], world.at_ms).placed
    assert placed is not None
    assert placed.why[-1].endswith("; at least 150 Mbit/s between machines; all-reduce 93 Mbit/s")
    assert any("less than 100 Mbit/s to another is replaced before the start" in line for line in placed.why)


def test_certificate_names_devices_evidence_and_figures_by_rank() -> None:
    lines = Lines.of(FAST_MBPS, 150, FAST_MBPS)
    lines.to_head = True
    world = lines.world
    job_id = lines.form(wanted(3))
    ranks = certificate(world.state, world.cluster(job_id))
    assert [one.rank for one in ranks] == [0, 1, 2]
    for rank, member in zip(ranks, world.members(job_id)[1:], strict=True):
        assert rank.worker_name == world.who(member.worker_id).name
        assert [one.uuid for one in rank.devices] == list(member.device_ids)
        assert [(one.model, one.simulated) for one in rank.devices] == [("RTX4090", True)]
        assert rank.evidence is member.evidence
        assert (rank.rtt_us, rank.head_rtt_us) == (21_000, 21_000)
        assert rank.bits_per_s == 150 * BITS_PER_MBIT
        assert rank.head_bits_per_s == lines.mbps[member.worker_id] * BITS_PER_MBIT


def test_quote_says_that_bandwidth_is_measured_before_the_start() -> None:
    world = Lines.of(FAST_MBPS, FAST_MBPS).world
    together = quote(world.state, wanted(2), 3_600_000, Currency.NATIVE, world.at_ms)
    assert any("nothing is charged until then" in reason for reason in together.reasons)
    assert any("with 100 Mbit/s between machines" in reason for reason in together.reasons)
    alone = quote(world.state, wanted(1), 3_600_000, Currency.NATIVE, world.at_ms)
    assert not any("charged" in reason for reason in alone.reasons)
