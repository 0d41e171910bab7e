"""Random stories: steps that hypothesis draws, read against whatever the world holds at that moment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hypothesis import strategies as st

from orchestrator.adapters.store import Transaction
from orchestrator.core import messages as m
from orchestrator.core.clusters import WANTED, ClusterPhase
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    JobId,
    MemberId,
    ReceiptId,
    ReservationId,
    SupplierId,
    TenantId,
    TokenId,
    WorkerId,
)
from orchestrator.core.jobs import AttemptPhase, Outcome, Requirements
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import NEBULA, HardwareClass, Isolation, LeasePolicy, Reconcile, TokenRole
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import WEEK_MINUTES, Terms, WeekWindow
from tests.core.worlds import NETWORK_ID, Driver, World, inventory, request, sha

T = TypeVar("T")

MODELS = ("RTX4090", "RTX3060", "RTX4090")
REQUIREMENTS = (
    Requirements(),
    Requirements(gpus=2),
    Requirements(gpus=3),
    Requirements(gpu_model="RTX3060"),
    Requirements(gpus=2, min_gpu_memory_gb=16),
    Requirements(gpus=0),
)
OUTCOMES = (Outcome.NONE, Outcome.SUCCEEDED, Outcome.FAILED, Outcome.STOPPED, Outcome.GROUND)
WAITS_MS = (10, 900, 6_000, 16_000, 31_000, 61_000, 125_000)
BEATS_MS = (10, 900, 6_000, 6_000, 61_000, 1_900_000, 90_000_000)

LIMITS_MS = (0, 0, 0, 5_000, 200_000)
OFTEN = ("submit", "plan", "reports", "reports", "driver", "state", "state", "beat", "beat", "sign", "post")
SELDOM = (
    "join", "head", "cpu", "submit", "plan", "report", "partial", "stale", "foreign", "log", "log", "fail",
    "fail", "fail", "wait", "stop", "delete", "drain", "leave", "inventory", "restart", "repeat", "revoke", "bad",
    "reclaim", "reclaim", "lift", "hold", "device", "terms", "policy",
)  # fmt: skip
KINDS = OFTEN * 4 + SELDOM
"""Mostly what makes work go on: a story in which everything breaks at once never comes to the money."""

LEAVING = (
    *("submit", "plan", "begin", "reclaim") * 4, *("lift", "join", "fail", "beat", "log") * 2,
    "hold", "device", "terms", "policy", "wait", "driver", "stop",
)  # fmt: skip
"""What comes and goes: machines that are taken back under jobs that run."""

LEAVING_STEPS = st.lists(st.tuples(st.sampled_from(LEAVING), st.integers(0, 10**6)), min_size=20, max_size=90)

WOVEN = (
    *("reports", "partial") * 3,
    *("plan", "fail", "begin") * 2,
    "stale",
    "foreign",
    "beat",
    "driver",
    "log",
)
"""How a cluster of several machines comes together, or does not."""

BOOKED = (
    *("reserve", "book", "plan", "beat") * 3,
    *("cancel", "submit", "begin", "driver", "reports", "wait", "join", "fail", "reclaim", "stop", "log"),
)
"""Machines that are promised ahead, and taken back."""

BOOKED_STEPS = st.lists(st.tuples(st.sampled_from(BOOKED), st.integers(0, 10**6)), min_size=10, max_size=60)

WOVEN_STEPS = st.lists(st.tuples(st.sampled_from(WOVEN), st.integers(0, 10**6)), min_size=5, max_size=40)


STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6)), min_size=10, max_size=90)
"""A kind of step, and a number from which its choices are taken."""


def check_held(state: State) -> None:
    """No two unreleased members share a device or a slot, and nobody holds more slots than the worker has."""
    for worker_id, member_ids in state.members_on.items():
        members = [state.members[member_id] for member_id in member_ids]
        devices = [device_id for member in members for device_id in member.device_ids]
        assert len(devices) == len(set(devices)), f"{worker_id} holds a device twice"
        slots = [member.slot for member in members]
        assert len(slots) == len(set(slots)), f"{worker_id} holds a slot twice"
        assert set(state.free_devices[worker_id]).isdisjoint(devices)
    for cluster_id, attempt_id in state.attempt_in.items():
        attempt = state.attempts[attempt_id]
        assert state.jobs[attempt.job_id].attempt_id == attempt_id
        if attempt.phase is AttemptPhase.RUNNING:
            members = state.cluster_members(state.clusters[cluster_id])
            wanted = state.jobs[attempt.job_id].request.requirements.device_count
            assert sum(len(member.device_ids) for member in members) == wanted, (
                "a gang runs that is not whole"
            )


def check_jobs(state: State) -> None:
    """No job is forgotten, each has one spare at most, and no spare outlives its job."""
    queues = [*state.queues.values(), *state.bookings.queues.values()]
    queued = {job_id for queue in queues for _, _, job_id in queue}
    for job in state.jobs.values():
        placed = job.attempt_id is not None and state.attempts[job.attempt_id].phase is not AttemptPhase.ENDED
        assert job.status.terminal or placed or job.job_id in queued, f"{job.job_id} is nowhere"
        assert not job.status.terminal or job.job_id not in state.spares, "a spare outlives its job"
    clusters = (state.clusters[cluster_id] for cluster_id in state.open_clusters)
    standing = Counter(
        cluster.spare_for
        for cluster in clusters
        if cluster.spare_for is not None and cluster.phase is not ClusterPhase.CLOSING
    )
    assert standing == Counter(state.spares.keys()), "a job has two spares, or one that nobody knows"
    for job_id, cluster_id in state.spares.items():
        assert cluster_id not in state.attempt_in, "somebody runs on a spare"
        assert state.clusters[cluster_id].tenant_id == state.jobs[job_id].tenant_id


def check_deadlines(state: State, at_ms: int) -> None:
    """After a tick nobody holds on to a machine beyond the notice he was given, or the time that he asked for."""
    for member_ids in state.members_on.values():
        for member in (state.members[member_id] for member_id in member_ids):
            due = member.notice is not None and member.notice.deadline_ms <= at_ms
            assert not (due and member.phase in WANTED), f"{member.member_id} stays beyond its notice"
    for due_ms, attempt_id in state.watched.attempts_due:
        stopped = state.jobs[state.attempts[attempt_id].job_id].stop_requested
        assert stopped or due_ms > at_ms, f"{attempt_id} runs beyond its time limit"


@dataclass(slots=True)
class Story:
    """A world, what was written of it, and the reports that are still under way."""

    world: World = field(default_factory=World)
    transactions: list[Transaction] = field(default_factory=list)
    late: list[m.ObserveWorker] = field(default_factory=list)
    events: int = 0

    def __post_init__(self) -> None:
        self.world.state = State(self.world.policies)
        self.do(m.StartControl(NETWORK_ID))
        self.do(m.CreateTenant(TenantId("ten_a"), "acme"))
        for number in (0, 1, 2, 3):
            self._fleet("join", number)
        # One of each kind: in the overlay, and without.
        self._fleet("head", 1)
        self._fleet("head", 3)

    def busy(self) -> Story:
        """The same with jobs that run, and machines to which they could go."""
        for number in (3, 5, 9, 11, 15):
            self.step("join", number)
        for number in (0, 1, 0):
            self.step("submit", number)
        self.step("plan", 0)
        self.step("begin", 0)
        return self

    def woven(self) -> Story:
        """The same with a cluster of several machines in the overlay, and one more to replace one of them."""
        for number in (6, 12, 18, 24):
            self.step("join", number)
        self.step("submit", 2)
        self.step("plan", 0)
        return self

    def do(self, command: m.Command) -> object:
        """One command as the loop does it; a refusal must leave everything as it was."""
        state = self.world.state
        version = state.version
        before = state.rows()
        at_ms = self.world.at_ms
        try:
            decision = self.world.do(command)
        except RefusedError:
            assert state.version == version
            assert state.rows() == before, "a refused command changed something"
            assert state.take_touched() == []
            return None
        assert state.version == version + len(decision.events)
        rows = [(table, key, state.entity(table, key)) for table, key in state.take_touched()]
        assert bool(rows) == bool(decision.events)
        if decision.events:
            self.transactions.append(Transaction(version, at_ms, decision.events, rows))
        check_held(state)
        check_jobs(state)
        if isinstance(command, m.Tick):
            check_deadlines(state, self.world.at_ms)
        return decision.result

    def play(self, steps: list[tuple[str, int]]) -> None:
        for kind, number in steps:
            self.step(kind, number)

    def step(self, kind: str, number: int) -> None:
        world = self.world
        match kind:
            case "join" | "head" | "cpu" | "inventory":
                self._fleet(kind, number)
            case "submit":
                name = world.name("job")
                wanted = REQUIREMENTS[number % len(REQUIREMENTS)]
                asked = request(
                    wanted,
                    priority=number % 3,
                    max_attempts=1 + number % 3,
                    time_limit_ms=LIMITS_MS[number % 5],
                )
                self.do(m.SubmitJob(JobId(name), TenantId("ten_a"), f"sub-{name}", asked, sha(name)))
            case "plan":
                self._plan()
            case "fail":
                held = [one for members in world.state.members_on.values() for one in members]
                member_id = pick(held, number)
                if member_id is not None:
                    self._fail(member_id)
            case "report" | "reports" | "partial" | "stale" | "foreign":
                self._report(kind, number)
            case "driver":
                attempt = pick(list(world.state.attempt_in.values()), number)
                if attempt is not None:
                    world.drivers[attempt] = Driver(
                        number % 3 > 0, OUTCOMES[number % len(OUTCOMES)], number % 2
                    )
            case "reclaim" | "lift" | "hold" | "device" | "terms" | "policy":
                self._owner(kind, number)
            case "begin":
                for under_way in list(world.state.attempt_in.values()):
                    world.drivers.setdefault(under_way, Driver())
                self._report("reports", 3)
            case "log":
                known = pick(list(world.state.attempts), number)
                if known is not None:
                    self.do(m.CompleteLog(known, number))
            case "state":
                self._state(number)
            case "wait" | "beat" | "restart":
                self._time(kind, number)
            case "stop" | "delete":
                job_id = pick(list(world.state.jobs), number)
                if job_id is not None:
                    self.do(m.StopJob(job_id) if kind == "stop" else m.DeleteJob(job_id))
            case "reserve" | "book" | "cancel":
                self._book(kind, number)
            case "drain" | "leave":
                worker_id = pick(list(world.state.workers), number)
                if worker_id is not None:
                    self.do(m.DrainWorker(worker_id) if kind == "drain" else m.LeaveWorker(worker_id))
            case _:
                self._office(kind, number)

    # ------------------------------------------------------------ steps

    def _fleet(self, kind: str, number: int) -> None:
        world = self.world
        if kind == "inventory":
            worker = pick(list(world.state.workers.values()), number)
            if worker is not None:
                offer = worker.inventory
                shown = offer.devices[: number % (len(offer.devices) + 1)]
                self.do(m.ConnectWorker(worker.worker_id, replace(offer, devices=shown)))
            return
        name = world.name("wkr")
        model = "CPU" if kind != "join" else MODELS[number % len(MODELS)]
        count = 0 if kind == "head" else 1 + number % 2
        offer = inventory(
            model,
            count,
            hardware_class=HardwareClass.MINER if number % 7 == 0 else HardwareClass.CONSUMER,
            head_slots=1 + number % 2 if kind == "head" else 0,
            isolation=Isolation.BOX if number % 3 == 0 else Isolation.NONE,
            overlay=NEBULA if number % 3 == 0 else "none",
            name=name,
        )
        digest = sha(f"token-{name}")
        supplier = f"garage {number % 3}"
        self.do(
            m.CreateToken(
                TokenId(name), TokenRole.SUPPLIER, supplier, digest, 10**9, SupplierId(name),
                head_host=kind == "head",
            )
        )  # fmt: skip
        joined = self.do(m.JoinWorker(WorkerId(name), digest, name, sha(name), offer))
        self.do(m.ConnectWorker(WorkerId(str(joined)), None))

    def _owner(self, kind: str, number: int) -> None:
        """What an owner, an operator or a sick device says of a worker."""
        busy = [worker_id for worker_id, members in self.world.state.members_on.items() if members]
        everybody = list(self.world.state.workers)
        worker_id = pick(busy if number % 3 and busy else everybody, number)
        if worker_id is None:
            return
        worker = self.world.state.workers[worker_id]
        match kind:
            case "reclaim":
                notice_ms = (None, 0, 6_000, 60_000)[number % 4]
                reclaimed = (HoldKind.RECLAIMED, HoldKind.BUSY)[number % 2]
                self.do(m.ReclaimWorker(worker_id, reclaimed, f"back {number % 2}", notice_ms))
            case "lift":
                for hold in worker.holds:
                    self.do(m.LiftHold(worker_id, hold.kind))
                for cordon in worker.device_holds:
                    self.do(m.ReleaseDevice(worker_id, cordon.device_id))
            case "hold":
                self.do(m.PlaceHold(worker_id, list(HoldKind)[number % len(HoldKind)], f"held {number % 2}"))
            case "device":
                device = pick(list(worker.inventory.devices), number)
                if device is not None:
                    self.do(m.HoldDevice(worker_id, device.device_id, "XID 79"))
            case "terms":
                begins = number % WEEK_MINUTES
                window = WeekWindow(begins, (begins + 5_000 + number % 5_000) % WEEK_MINUTES)
                terms = Terms(
                    lease_max_ms=None if number % 2 else 70_000,
                    schedule=(window,) if number % 3 else (),
                    notice_ms=1_000 * (1 + number % 60),
                )
                self.do(m.SetTerms(worker_id, terms))
            case _:
                wins = (Reconcile.ORIGINAL, Reconcile.REPLACEMENT)[number % 2]
                policy = LeasePolicy(200_000, replace=True, reconcile=wins)
                self.do(m.SetLeasePolicy(worker_id, policy))

    def _book(self, kind: str, number: int) -> None:
        world = self.world
        name = world.name("rsv")
        if kind == "reserve":
            from_ms = world.at_ms + number % 5 * 900_000
            wanted = REQUIREMENTS[number % len(REQUIREMENTS)]
            rsv, until_ms = ReservationId(name), from_ms + (1 + number % 7) * 600_000
            self.do(
                m.CreateReservation(
                    rsv, TenantId("ten_a"), f"name {number % 4}", wanted, from_ms, until_ms, name
                )
            )
            return
        one = pick(list(world.state.reservations.values()), number)
        if one is None:
            return
        if kind == "cancel":
            self.do(m.CancelReservation(one.reservation_id))
            return
        wanted = replace(one.requirements, gpus=min(one.requirements.gpus, 1 + number % 2))
        named = one.name if number % 2 else one.reservation_id
        command = m.SubmitJob(
            JobId(name), TenantId("ten_a"), f"sub-{name}", request(wanted), sha(name), named
        )
        self.do(command)

    def _fail(self, member_id: MemberId) -> None:
        worker_id = self.world.state.members[member_id].worker_id
        shown = tuple(
            replace(one, up=False, failed=True, reason="broke") if one.member_id == member_id else one
            for one in self.world.honest(worker_id)
        )
        self.do(m.ObserveWorker(worker_id, self.world.state.version, shown))

    def _plan(self) -> None:
        state, at_ms = self.world.state, self.world.at_ms
        made = plan(state, Queue(state, at_ms), at_ms, Budget())
        fresh = tuple(ClusterId(self.world.name("cl")) for _ in made.placements)
        self.do(m.ApplyPlan(made, fresh))

    def _report(self, kind: str, number: int) -> None:
        world = self.world
        if kind == "reports":
            for _ in range(1 + number % 4):
                for worker_id in list(world.state.workers):
                    self.do(m.ObserveWorker(worker_id, world.state.version, world.honest(worker_id)))
            return
        if kind == "stale":
            if self.late:
                self.do(self.late.pop(number % len(self.late)))
            return
        chosen = pick(list(world.state.workers.values()), number)
        if chosen is None:
            return
        worker_id = chosen.worker_id
        shown = world.honest(worker_id)
        told = m.ObserveWorker(worker_id, world.state.version, shown)
        self.late.append(told)
        if kind == "partial":
            flawed = tuple(
                replace(
                    one,
                    up=False,
                    failed=number % 3 == 0,
                    address=None if number % 3 == 1 else one.address,
                    paths=one.paths[number % 5 :],
                )
                for one in shown
                if number % 4
            )
            told = replace(told, members=flawed)
        elif kind == "foreign":
            everybody = [one for other in world.state.workers for one in world.honest(other)]
            said = tuple(
                m.ObservedAttempt(attempt, number % 2 == 0, OUTCOMES[number % len(OUTCOMES)], "forged", None)
                for attempt in list(world.state.attempts)[-3:]
            )
            forged = tuple(replace(one, attempts=said, generation=number % 4) for one in everybody)
            told = replace(told, members=forged, seen_version=number % (world.state.version + 2))
        self.do(told)

    def _state(self, number: int) -> None:
        state = self.world.state
        # Of the latest leases, mostly: the old ones have said everything.
        lease = pick([*state.leases.values()][-3:] if number % 5 else [*state.leases.values()], number)
        if lease is None:
            return
        sequence = max(0, lease.next_sequence + (0 if number % 4 else number % 3 - 1))
        until_ms = lease.stated_offset_ms + (0, 700, 59_000, 4_000_000, 10**13)[number % 5]
        start_ms = lease.stated_offset_ms + (1 if number % 31 == 0 else 0)
        devices = lease.device_ids if number % 37 else ("other",)
        command = m.AcceptStatement(
            lease.worker_id, lease.lease_id, self.world.subject(lease), sequence, start_ms, until_ms,
            number % 7 == 0, devices, number % 12, sha(f"{lease.lease_id}/{sequence}/{until_ms}"), b"\x00\xffsigned",
        )  # fmt: skip
        self.do(command)

    def _time(self, kind: str, number: int) -> None:
        world = self.world
        if kind == "restart":
            if number % 2:
                world.boot, world.monotonic_ms = world.name("boot"), number
                world.wall_ms -= number
            self.do(m.StartControl(NETWORK_ID))
            return
        waits_ms = BEATS_MS if kind == "beat" else WAITS_MS
        world.forward(waits_ms[number % len(waits_ms)])
        if kind == "beat":
            for index, worker in enumerate(list(world.state.workers.values())):
                if worker.liveness != "left" and (number + index) % 13:
                    self.do(m.ConnectWorker(worker.worker_id, None))
        self.do(m.Tick())

    def _office(self, kind: str, number: int) -> None:
        state = self.world.state
        match kind:
            case "sign":
                unsigned = pick(list(state.receipts.values()), number)
                if unsigned is not None:
                    self.do(m.RecordSignature(unsigned.receipt_id, b"\xfesigned", sha("payload")))
            case "revoke":
                token = pick(list(state.tokens), number)
                if token is not None:
                    self.do(m.RevokeToken(TokenId(token)))
            case "post":
                signed = pick([state.receipts[key] for key in state.unposted], number)
                if signed is not None:
                    self.do(m.RecordPosting(signed.receipt_id, f"tr_{number}"))
            case "repeat":
                name = f"tenant {number % 3}"
                self.do(m.CreateTenant(TenantId(self.world.name("ten")), name, f"req-{number % 2}"))
            case _:
                self.do(m.StopJob(JobId("job_none")))
                self.do(m.CompleteLog(AttemptId("none"), 1))
                self.do(m.RevokeToken(TokenId("none")))
                self.do(m.RecordPosting(ReceiptId("none"), "tr"))


def pick(options: list[T], number: int) -> T | None:
    """One of the options; None where there is none."""
    return options[number % len(options)] if options else None
