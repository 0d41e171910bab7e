"""Fleets of unlike machines without a control plane around them: workers as they are, their table, and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st

from orchestrator.core import messages as m
from orchestrator.core.apply import apply
from orchestrator.core.ids import DeviceId, JobId, SupplierId, WorkerId
from orchestrator.core.jobs import JobStatus, Outcome, Requirements
from orchestrator.core.nearness.bandwidth import BandwidthMap
from orchestrator.core.policies import Policies
from orchestrator.core.scheduling.filters import Question
from orchestrator.core.scheduling.offers import NO_ASK, Column, Offers
from orchestrator.core.state import State
from orchestrator.core.supply.catalogue import CPU_MODEL, GIB, MODELS
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, EvidenceClass, Sighting, Source
from orchestrator.core.supply.fleet import (
    NEBULA,
    Device,
    DeviceKind,
    HardwareClass,
    Isolation,
    Liveness,
    Supplier,
    Worker,
)
from orchestrator.core.supply.holds import DeviceHold, Hold, HoldKind
from orchestrator.core.supply.reliability import Reliability
from orchestrator.core.supply.terms import WEEK_MINUTES, Ask, Terms, Tier, WeekWindow
from tests.core.worlds import START_WALL_MS, World, inventory

AT_MS = START_WALL_MS
HALF_LIFE_MS = 7 * 24 * 3_600_000
CREDIT = 1_000_000
GARAGE = SupplierId("sup")


def device(
    name: str, model: str = "RTX4090", *, capability: str = "", proven: bool = False, memory_gb: int = 0
) -> Device:
    """One device; ``proven`` as two sources of the machine show it."""
    cpu = model == CPU_MODEL
    size = (memory_gb or (32 if cpu else MODELS[model].memory_gb)) * GIB
    kind = DeviceKind.CPU if cpu else DeviceKind.GPU
    sources = (Source.NVML, Source.PROCFS) if proven else ()
    bus = "0000:01:00.0"
    evidence = DeviceEvidence(
        vendor=DeviceVendor.NVIDIA,
        model=model,
        memory_bytes=size,
        uuid=name,
        pci_bus_id=bus,
        compute_capability=capability,
        sightings=tuple(Sighting(source, name, model, bus) for source in sources),
    )
    return Device(DeviceId(name), kind, model, size, simulated=False, evidence=evidence)


def machine(
    name: str,
    *devices: Device,
    hardware_class: HardwareClass = HardwareClass.CONSUMER,
    slots: int | None = None,
    head_slots: int = 0,
    zone: str = "home",
    isolation: Isolation = Isolation.NONE,
    overlay: str = "none",
    unisolated: bool = True,
    terms: Terms | None = None,
    reliability: Reliability | None = None,
) -> Worker:
    """A live worker of eight processors and 32 GiB."""
    offer = replace(
        inventory(
            count=0,
            hardware_class=hardware_class,
            head_slots=head_slots,
            slots=len(devices) if slots is None else slots,
            zone=zone,
            isolation=isolation,
            overlay=overlay,
            unisolated=unisolated,
        ),
        devices=devices,
    )
    return Worker(
        worker_id=WorkerId(name),
        supplier_id=GARAGE,
        name=name,
        statement_key=name,
        inventory=offer,
        liveness=Liveness.LIVE,
        liveness_since_ms=0,
        draining=False,
        dismissed=False,
        joined_at_ms=0,
        head_host=head_slots > 0,
        terms=terms or Terms(),
        reliability=reliability or Reliability(),
        devices_since=tuple((one.device_id, 1) for one in devices),
    )


def cordoned(worker: Worker, *device_ids: str) -> Worker:
    holds = tuple(DeviceHold(DeviceId(one), "XID 79", 0) for one in device_ids)
    return replace(worker, device_holds=holds)


def held(worker: Worker, kind: HoldKind) -> Worker:
    return replace(worker, holds=(Hold(kind, "because", 0),))


def table_of(workers: Iterable[Worker]) -> Offers:
    """The table of workers that hold nothing."""
    offers = Offers()
    for worker in workers:
        put(offers, worker)
    return offers


def put(offers: Offers, worker: Worker) -> None:
    """As State does it, for a worker without members."""
    away = {one.device_id for one in worker.device_holds}
    free = {one.device_id: None for one in worker.inventory.devices if one.device_id not in away}
    offers.put(worker)
    offers.hold(worker.worker_id, free, worker.inventory.slots)


def state_of(workers: Iterable[Worker]) -> State:
    """A state of workers that nobody uses."""
    state = State(Policies())
    state.put(Supplier(GARAGE, "garage", 0))
    for worker in workers:
        state.put(worker)
    return state


MARKET = {"RTX4090": CREDIT // 2, "RTX3060": CREDIT // 10, "H100": 2 * CREDIT, CPU_MODEL: CREDIT // 100}
"""What a device costs whose owner asks no price."""


def asked(
    offers: Offers,
    wanted: Requirements,
    *,
    at_ms: int = AT_MS,
    avoid: tuple[WorkerId, ...] = (),
    bandwidth: BandwidthMap | None = None,
) -> Question:
    """What filters look at, with MARKET for the market."""
    prices = offers[Column.PRICE].copy()
    for row in range(offers.size):
        if prices[row] == NO_ASK:
            prices[row] = MARKET.get(offers.model_of(row), 0)
    return Question(offers, wanted, at_ms, prices, HALF_LIFE_MS, avoid, bandwidth)


# ------------------------------------------------------------ random ones

REGIONS: tuple[tuple[str, ...], ...] = ((), ("eu",), ("eu", "de"), ("us",))
ASKS = ((), (Ask("RTX4090", CREDIT),), (Ask("RTX4090", 300_001), Ask("RTX3060", 50_000)))


def any_terms(dice: random.Random) -> Terms:
    windows = () if dice.random() < 0.5 else range(dice.randint(0, 3))
    return Terms(
        asks=dice.choice(ASKS),
        regions=dice.choice(REGIONS),
        schedule=tuple(
            WeekWindow(dice.randrange(WEEK_MINUTES), dice.randrange(WEEK_MINUTES)) for _ in windows
        ),
        tier=dice.choice(list(Tier)),
        notice_ms=dice.choice([30_000, 3_600_000]),
    )


def any_machine(name: str, seed: int) -> Worker:
    """Any machine, of one kind of device or several; the same for the same seed."""
    dice = random.Random(seed)
    hardware_class = dice.choice([HardwareClass.CONSUMER, HardwareClass.CONSUMER, HardwareClass.MINER])
    if dice.random() < 0.15:
        hardware_class = HardwareClass.CPU
        devices = [device(f"{name}-cpu", CPU_MODEL)] * dice.randint(0, 1)
    else:
        devices = [
            device(
                f"{name}-{index}",
                dice.choice(["RTX4090", "RTX4090", "RTX3060", "H100"]),
                capability=dice.choice(["", "8.9", "8.6", "not known"]),
                proven=dice.random() < 0.5,
            )
            for index in range(dice.randint(0, 4))
        ]
    worker = machine(
        name,
        *devices,
        hardware_class=hardware_class,
        slots=dice.randint(1, 3),
        zone=dice.choice(["home", "home", "attic"]),
        isolation=dice.choice(list(Isolation)),
        overlay=dice.choice(["none", NEBULA]),
        unisolated=dice.random() < 0.8,
        terms=any_terms(dice),
        reliability=Reliability(
            broken=dice.randrange(20_000),
            completed=dice.randrange(20_000),
            at_ms=AT_MS - dice.randrange(2 * HALF_LIFE_MS),
        ),
    )
    if dice.random() < 0.25:
        worker = cordoned(worker, *(one.device_id for one in devices if dice.random() < 0.5))
    match dice.randrange(12):
        case 0:
            return held(worker, dice.choice(list(HoldKind)))
        case 1:
            return replace(worker, liveness=dice.choice(list(Liveness)))
        case 2:
            return replace(worker, draining=True)
        case _:
            return worker


def fleets(max_size: int = 12) -> st.SearchStrategy[list[Worker]]:
    """Any machines; each comes of one number, so that a fleet is drawn quickly and shrinks to few of them."""
    seeds = st.lists(st.integers(0, 2**32), max_size=max_size)
    return seeds.map(lambda drawn: [any_machine(f"w{number}", seed) for number, seed in enumerate(drawn)])


_WISHES: dict[str, st.SearchStrategy[object]] = {
    "gpu_model": st.sampled_from(["RTX4090", "RTX3060", "A10"]),
    "hardware_class": st.sampled_from([HardwareClass.CONSUMER, HardwareClass.MINER]),
    "min_gpu_memory_gb": st.sampled_from([12, 13, 24, 81]),
    "isolation": st.sampled_from(Isolation),
    "runtime": st.just("a" * 64),
    "driver_cpus": st.integers(1, 9),
    "driver_memory_bytes": st.sampled_from([GIB, 32 * GIB, 33 * GIB]),
    "one_machine": st.just(True),
    "min_compute_capability": st.sampled_from([806, 809, 900]),
    "region": st.sampled_from(["eu", "de", "mars"]),
    "max_price": st.sampled_from([49_999, 50_000, 300_000, 300_001, 500_000, 1_000_000]),
    "min_reliability_bp": st.integers(3_000, 8_000),
    "min_evidence": st.sampled_from(EvidenceClass),
    "committed": st.just(True),
    "gpus_per_worker": st.sampled_from([1, 2, 3]),
}


@st.composite
def requests(draw: st.DrawFn, gpus_max: int = 6) -> Requirements:
    """Any request, with a few of all the wishes that there are."""
    gpus = draw(st.integers(0, gpus_max))
    names = draw(st.lists(st.sampled_from(sorted(_WISHES)), max_size=3, unique=True))
    fields = {name: draw(_WISHES[name]) for name in names}
    each = fields.get("gpus_per_worker", 0)
    if gpus == 0:
        fields = {name: wish for name, wish in fields.items() if not name.startswith(("gpu", "min_", "hard"))}
    elif each and (gpus % int(str(each)) or "one_machine" in fields):
        del fields["gpus_per_worker"]
    return replace(Requirements(gpus=gpus), **fields)  # type: ignore[arg-type]  # each of its own type above


# ------------------------------------------------------------ whole runs


def let_go(world: World, job_id: JobId) -> None:
    """A placed job ends and nothing is left of its cluster, all at once."""
    cluster = world.cluster(job_id)
    attempt_id = world.attempt(job_id).attempt_id
    events: list[m.Event] = [
        m.AttemptEnded(attempt_id, Outcome.SUCCEEDED, "done", 0),
        m.JobEnded(job_id, JobStatus.SUCCEEDED, "done", 0),
        m.LogCompleted(attempt_id, 0),
        m.ClusterClosing(cluster.cluster_id, "done"),
        *(m.MemberReleased(member_id) for member_id in cluster.member_ids),
        m.ClusterClosed(cluster.cluster_id),
    ]
    for event in events:
        apply(world.state, event, world.at_ms)


def placed_jobs(world: World) -> list[JobId]:
    """Jobs that have a cluster, the oldest first."""
    return [job.job_id for job in world.state.jobs.values() if not job.status.terminal and job.attempt_id]


def running_of(world: World, tenant: str) -> int:
    """How many jobs of a tenant have a cluster."""
    tenant_id = world.tenant(tenant)
    return sum(world.state.jobs[job_id].tenant_id == tenant_id for job_id in placed_jobs(world))
