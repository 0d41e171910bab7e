"""Schedules: a small world on short terms, and everything that can happen to *time* in it.

The large world of `orchestrator.sim.world` asks whether work gets done whatever breaks. This one asks a narrower question
many more times: whatever messages are lost or late, whichever process is stopped and goes on later, whichever machine
sleeps, restarts or has a clock that drifts or jumps: no stale holder affects a newer attempt, and none is paid.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.ids import JobId, TenantId
from orchestrator.core.jobs import JobPolicy, JobRequest, Requirements
from orchestrator.core.metering import MeteringPolicy
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import FleetPolicy, Liveness
from orchestrator.receipts import ids
from orchestrator.sim import checks
from orchestrator.sim.virtual import run_virtual, virtual_ms
from orchestrator.sim.world import Result, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.core.state import State
    from orchestrator.sim.world import SimWorker

POLICIES = Policies(
    fleet=FleetPolicy(
        heartbeat_interval_ms=2_000,
        suspect_after_ms=7_000,
        lease_ttl_ms=11_000,
        lost_after_ms=17_000,
        # Three machines share a zone; here they must be lost one by one, or nothing would ever be handed over.
        zone_hold_min_workers=100,
        flap_hold_ms=2_000,
        flap_hold_max_ms=2_000,
    ),
    clusters=ClusterPolicy(
        prepare_deadline_ms=15_000,
        head_deadline_ms=15_000,
        join_deadline_ms=15_000,
        idle_teardown_ms=4_000,
        log_deadline_ms=15_000,
    ),
    jobs=JobPolicy(retry_backoff_ms=200, retry_backoff_max_ms=2_000, avoid_ms=10_000),
    metering=MeteringPolicy(statement_interval_ms=6_000),
)
"""A few heartbeats between any two deadlines, so that a schedule of a minute crosses all of them several times."""

FLEET = (
    ("consumer", "RTX4090", 1, 0),
    ("consumer", "RTX4090", 1, 0),
    ("consumer", "RTX4090", 1, 0),
    ("cpu", "", 0, 1),
)
"""(class, model, devices, head slots): two jobs, one of them perhaps of two machines, and one machine to spare."""

EVENTS = (4, 7)
"""Things that happen in a schedule."""

BETWEEN_S = 3.0
"""At most this long from one to the next: several overlap, and the next comes before the last is dealt with."""

LASTING_S = 20.0
"""Longer than it takes to be lost, so that some outlast every deadline and some end just before one."""

LASTING_MS = (3_000, 9_000, 18_000)
"""Of drivers: some end before anything happens, some would outlast it all."""

DRIFT = 500e-6
"""Crystals are a tenth as bad; a worse clock is broken."""

DRIFT_MS = 15
"""By which two such clocks may differ over a lease, and a millisecond for each rounding."""

REPEAT_S = 0.5

LOOK_S = 0.5
"""Pause between looks at every machine; its keepers look all the time."""


class Schedule(World):
    """One seeded schedule."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, POLICIES)
        self.outside.inspect = self._inspect
        self.outside.clock.rate = self._rate()
        self.ray.lasting_ms = LASTING_MS
        self._devices_of: dict[str, frozenset[str]] = {}
        self._lost: frozenset[str] = frozenset()

    def _rate(self) -> float:
        return 1.0 + self.random.uniform(-DRIFT, DRIFT)

    def _inspect(self, state: State) -> None:
        checks.check_state(state)
        for member_id, member in state.members.items():
            if member_id not in self._devices_of:
                self._devices_of[member_id] = frozenset(member.device_ids)
        lost = (one.worker_id for one in state.workers.values() if one.liveness is Liveness.LOST)
        self._lost = frozenset(lost)

    async def add_fleet(self) -> None:
        """Every machine with a clock of its own."""
        for kind in FLEET:
            await self.add_worker(*kind)
        for worker in self.workers:
            worker.machine.clock.rate = self._rate()

    async def submit_jobs(self) -> None:
        """One job of one machine, and another of one or two."""
        for number, gpus in enumerate((1, self.random.choice((1, 2, 2)))):
            request = JobRequest("python train.py", "{}", (), (), Requirements(gpus=gpus), max_attempts=10)
            name = f"sub-{number}"
            command = m.SubmitJob(JobId(f"job_{number}"), TenantId("tn_1"), name, request, name)
            self.acknowledged[name] = str(await self.submit(command))

    # ------------------------------------------------------------ what happens

    async def happen(self) -> None:
        """Let a few things happen, one soon after the other, and wait until the last is over."""
        kinds: tuple[Callable[[SimWorker, float], Awaitable[None]], ...] = (
            self._lose_messages,
            self._delay_messages,
            self._cut_off,
            self._pause,
            self._sleep,
            self._sleep,
            self._restart_agent,
            self._reboot,
            self._restart_control,
            self._pause_control,
            self._move_clocks,
        )
        under_way = []
        for _ in range(self.random.randint(*EVENTS)):
            await asyncio.sleep(self.random.random() * BETWEEN_S)
            kind = self.random.choice(kinds)
            name = kind.__name__.strip("_")
            self.result.faults[name] = self.result.faults.get(name, 0) + 1
            worker = self.random.choice(self.workers)
            lasting_s = self.random.random() * LASTING_S
            under_way.append(self.processes.spawn("world", _run(kind, worker, lasting_s)))
        await asyncio.gather(*under_way)

    async def _lose_messages(self, worker: SimWorker, lasting_s: float) -> None:
        worker.link.loss = 0.3
        await asyncio.sleep(lasting_s)
        worker.link.loss = 0.0

    async def _delay_messages(self, worker: SimWorker, lasting_s: float) -> None:
        before_s = worker.link.delay_s_max
        worker.link.delay_s_max = 4.0
        await asyncio.sleep(lasting_s)
        worker.link.delay_s_max = min(before_s, worker.link.delay_s_max)

    async def _cut_off(self, worker: SimWorker, lasting_s: float) -> None:
        worker.link.blocked = True
        await asyncio.sleep(lasting_s)
        worker.link.blocked = False

    async def _pause(self, worker: SimWorker, lasting_s: float) -> None:
        """The agent is stopped; keepers and nodes are not."""
        process = self.process_of(worker)
        self.processes.freeze(process)
        await asyncio.sleep(lasting_s)
        if not worker.machine.frozen:
            self.processes.thaw(process)

    async def _sleep(self, worker: SimWorker, lasting_s: float) -> None:
        """The whole machine stands still but for its boot clock."""
        if worker.machine.frozen:
            return
        worker.machine.frozen = True
        process = self.process_of(worker)
        self.processes.freeze(process)
        await asyncio.sleep(lasting_s)
        worker.machine.frozen = False
        worker.machine.keep()
        self.processes.thaw(process)

    async def _restart_agent(self, worker: SimWorker, lasting_s: float) -> None:
        if worker.machine.frozen:
            return
        await self.crash_agent(worker)
        await asyncio.sleep(lasting_s / 4)
        self.start_agent(worker)

    async def _reboot(self, worker: SimWorker, lasting_s: float) -> None:
        if worker.machine.frozen:
            return
        await self.crash_agent(worker)
        worker.machine.reboot()
        await asyncio.sleep(lasting_s / 2)
        self.start_agent(worker)

    async def _restart_control(self, _worker: SimWorker, _lasting_s: float) -> None:
        if self.control is not None:
            step = self.random.choice(("decided", "after_write", "committed", "performed", "now"))
            self.control.death_at = step
            if step == "now":
                self.control.died.set()

    async def _pause_control(self, _worker: SimWorker, lasting_s: float) -> None:
        process = f"control-{self.lives}"
        self.processes.freeze(process)
        await asyncio.sleep(lasting_s)
        self.processes.thaw(process)

    async def _move_clocks(self, worker: SimWorker, _lasting_s: float) -> None:
        """Wall clocks jump, up to two hours either way; nothing that is promised or paid may follow them."""
        self.outside.clock.wall_skew_ms = self.random.randint(-7_200_000, 7_200_000)
        worker.machine.clock.wall_skew_ms = self.random.randint(-7_200_000, 7_200_000)

    async def repeat_reports(self) -> None:
        """All the time, what some agent once said of an attempt arrives once more."""
        while True:
            await asyncio.sleep(REPEAT_S)
            link = self.random.choice(self.workers).link
            if link.pipe is not None and link.reports:
                link.pipe.repeat(self.random.choice(link.reports))

    # ------------------------------------------------------------ watching

    async def watch(self) -> None:
        """Look at every machine; a violation ends the run."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.outside.failures:
                raise self.outside.failures[0]
            for worker in self.workers:
                checks.check_deadlines(worker.machine)
                checks.check_devices(worker.machine, self._devices_of)
                if worker.worker_id in self._lost:
                    checks.check_gone(worker.machine)
                silent_ms = self._silent_ms(worker)
                if silent_ms is not None:
                    promised_ms = POLICIES.fleet.lease_ttl_ms - silent_ms
                    checks.check_promise(worker.machine, promised_ms + DRIFT_MS)

    def _silent_ms(self, worker: SimWorker) -> int | None:
        """How long the control plane has not heard a worker, by its clock; None where it has not, or is away."""
        if self.control is None or self.control.died.is_set():
            return None
        now_ms = self.outside.clock.boottime_ms()
        heard_ms = self.control.state.heartbeats.heard_ms(worker.worker_id, -1)
        return None if heard_ms < 0 else now_ms - heard_ms

    def ran_ms(self) -> dict[str, int]:
        """For how long each member's node ran before its deadline, by its machine's own clock."""
        ran: dict[str, int] = {}
        for worker in self.workers:
            ran.update(worker.machine.ran_ms)
        return ran


async def _run(
    kind: Callable[[SimWorker, float], Awaitable[None]], worker: SimWorker, lasting_s: float
) -> None:
    await kind(worker, lasting_s)


async def _play(seed: int) -> Result:
    world = Schedule(seed)
    await world.start_control()
    await world.submit(m.CreateTenant(TenantId("tn_1"), "acme", "r"))
    await world.add_fleet()
    await world.submit_jobs()
    watching = world.processes.spawn("world", world.watch())
    repeating = world.processes.spawn("world", world.repeat_reports())
    await asyncio.sleep(world.random.random() * 10.0)
    await world.happen()
    repeating.cancel()
    world.heal()
    finishing = world.processes.spawn("world", world.until_done())
    await asyncio.wait((finishing, watching), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        watching.result()
    state = finishing.result()
    public = world.public_key.public_bytes_raw()
    receipts = checks.receipts_of(world.outside.ledger, public, ids.key_id(public))
    checks.check_succession(world.outside.store)
    checks.check_jobs(state, world.acknowledged, world.ray)
    checks.check_gangs(world.ray, state)
    checks.check_money(state, world.outside.ledger, receipts, world.ran_ms(), slack_ms=0)
    result = world.result
    result.jobs, result.attempts, result.receipts = len(state.jobs), len(state.attempts), len(receipts)
    result.billed_ms = sum(one.billed_ms for one in receipts)
    result.virtual_s = virtual_ms() / 1000
    return result


def play(seed: int) -> Result:
    """One whole schedule in virtual time. Raises ViolationError where an invariant does not hold."""
    return run_virtual(_play(seed))
