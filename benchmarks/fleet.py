"""A state of many workers, made by the real core from commands and written by the real store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.adapters import clock
from orchestrator.adapters.store import SqlStore, Transaction
from orchestrator.core import messages as m
from orchestrator.core.decide import handle
from orchestrator.core.ids import DeviceId, SupplierId, TenantId, TokenId, WorkerId
from orchestrator.core.policies import Policies
from orchestrator.core.state import State
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.fleet import Device, DeviceKind, HardwareClass, Inventory, Isolation, TokenRole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.core.ids import Now

COMMANDS_PER_TRANSACTION = 512
"""As many as the loop takes at once."""

NETWORK_ID = "net_bench"
TENANTS = 100
SUPPLIERS = 200
ZONES = 10
TOKEN_TTL_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of machine, and how many of a hundred are such."""

    percent: int
    hardware_class: HardwareClass
    model: str
    memory_gb: int
    devices: int
    head_slots: int = 0


MIX = (
    Kind(70, HardwareClass.CONSUMER, "RTX4090", 24, 1),
    Kind(12, HardwareClass.MINER, "RTX3080", 10, 6),
    Kind(10, HardwareClass.DATACENTER, "H100", 80, 8),
    Kind(6, HardwareClass.CPU, "CPU", 64, 1),
    Kind(2, HardwareClass.CPU, "", 0, 0, head_slots=16),
)
"""Mostly single gaming machines; 222 GPUs to a hundred workers."""

KIND_OF = tuple(chain.from_iterable([kind] * kind.percent for kind in MIX))


def tenant_ids() -> list[TenantId]:
    """The tenants of every fleet made here."""
    return [TenantId(f"ten_{number:04d}") for number in range(TENANTS)]


@dataclass(frozen=True, slots=True)
class Identity:
    """The public half of a worker's keys, as the state keeps it."""

    statement_key: str
    tls_key_sha256: str


def made_up(number: int) -> Identity:
    """For workers that never speak for themselves."""
    return Identity(_sha256(f"key {number}"), "")


def build(
    database: Path, workers: int, identity: Callable[[int], Identity] = made_up, zones: int = ZONES
) -> None:
    """Write a fleet of live, idle workers into a new database."""
    store = SqlStore(f"sqlite:///{database}")
    state = State(Policies())
    now = clock.SystemClock().now()
    batch: list[m.Command] = []
    for command in commands(workers, identity, zones):
        batch.append(command)
        if len(batch) == COMMANDS_PER_TRANSACTION:
            _write(store, state, batch, now)
            batch = []
    _write(store, state, batch, now)
    store.close()


def remember(state: State, made: Iterable[m.Command], now: Now) -> None:
    """Decide in memory alone, for a figure that writes nothing."""
    for command in made:
        handle(state, command, now)
        state.take_touched()


def _write(store: SqlStore, state: State, batch: list[m.Command], now: Now) -> None:
    base_version = state.version
    events = [event for command in batch for event in handle(state, command, now).events]
    rows = [(table, key, state.entity(table, key)) for table, key in state.take_touched()]
    store.write(Transaction(base_version, state.time_ms(now), events, rows))


def commands(
    workers: int, identity: Callable[[int], Identity] = made_up, zones: int = ZONES
) -> Iterator[m.Command]:
    """All that makes a fleet of live, idle workers out of nothing."""
    yield m.StartControl(NETWORK_ID)
    for tenant_id in tenant_ids():
        yield m.CreateTenant(tenant_id, tenant_id.replace("_", "-"))
    for number in range(workers):
        token = _sha256(f"token {number}")
        supplier_id, offer = supplier_id_of(number), inventory(number, zones)
        yield m.CreateToken(
            TokenId(f"tok_{number}"),
            TokenRole.SUPPLIER,
            f"supplier-{number % SUPPLIERS}",
            token,
            TOKEN_TTL_MS,
            supplier_id,
            head_host=offer.head_slots > 0,
        )
        worker_id, keys = worker_id_of(number), identity(number)
        yield m.JoinWorker(
            worker_id,
            token,
            f"worker-{number}",
            keys.statement_key,
            offer,
            keys.tls_key_sha256,
        )
        yield m.ConnectWorker(worker_id, None)


def worker_id_of(number: int) -> WorkerId:
    """The worker of this number."""
    return WorkerId(f"wk_{number:06d}")


def supplier_id_of(number: int) -> SupplierId:
    """Whose worker it is."""
    return SupplierId(f"sup_{number % SUPPLIERS}")


def inventory(number: int, zones: int = ZONES) -> Inventory:
    """What the worker of this number has: kinds are spread evenly over the numbers."""
    # 37 and 100 have no common factor, so any hundred numbers in a row hold each kind as often as MIX says.
    kind = KIND_OF[number * 37 % len(KIND_OF)]
    return Inventory(
        hardware_class=kind.hardware_class,
        devices=tuple(
            Device(
                DeviceId(f"wk{number}-d{index}"),
                DeviceKind.CPU if kind.model == "CPU" else DeviceKind.GPU,
                kind.model,
                kind.memory_gb * GIB,
                simulated=True,
            )
            for index in range(kind.devices)
        ),
        cpus=16,
        memory_bytes=64 * GIB,
        slots=kind.devices,
        head_slots=kind.head_slots,
        operating_system="linux",
        architecture="x86_64",
        python_version="3.11.9",
        ray_version="2.60.0",
        isolation=Isolation.NONE,
        overlay="none",
        zone=f"zone-{number % zones}",
        unisolated=True,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
