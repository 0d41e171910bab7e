"""What can be had, as a table: one row for each worker's devices of one kind, in columns of integers.

Filters and scores read whole columns, so that a decision over ten thousand machines costs a fraction of a millisecond,
and the same line of code removes a machine and counts it for the reason why a job waits. ``State`` keeps the table
true; nothing of it is stored.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from orchestrator.core.supply.evidence import EVIDENCE_RANK, capability_number
from orchestrator.core.supply.fleet import (
    ISOLATION_RANK,
    OVERLAY,
    Device,
    DeviceKind,
    HardwareClass,
    Liveness,
)
from orchestrator.core.supply.hardware import evidence_class
from orchestrator.core.supply.holds import PHRASES, HoldKind
from orchestrator.core.supply.interconnect import interconnect_rank
from orchestrator.core.supply.terms import NEVER_MS, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from orchestrator.core.ids import DeviceId, WorkerId
    from orchestrator.core.supply.fleet import Worker
    from orchestrator.core.supply.terms import Terms

    Numbers = NDArray[np.int64]

ROWS_MIN = 64

OPEN = 0
"""The state of a worker that may be given something new."""

DRAINING = "draining"

_LIVENESS_STATE = {
    Liveness.LEFT: "left the network",
    Liveness.SUSPECT: "suspect",
    Liveness.LOST: "lost",
}

STATES = ("", *_LIVENESS_STATE.values(), DRAINING, *(PHRASES[kind] for kind in HoldKind))
"""Why a worker gets nothing new, by the number of its state."""

_STATE_NUMBER = {phrase: number for number, phrase in enumerate(STATES)}

CLASSES = tuple(HardwareClass)
CLASS_NUMBER = {one: number for number, one in enumerate(CLASSES)}

NO_DEVICE, GPU, CPU = 0, 1, 2
_KIND = {DeviceKind.GPU: GPU, DeviceKind.CPU: CPU}

NO_REACH, BY_OVERLAY, BY_ZONE = 0, 1, 2

NO_ASK = -1
"""The price of a device that the market prices."""


class Column(IntEnum):
    """What is known of a row."""

    WORKER = 0
    """Number of its worker."""
    STATE = 1
    """OPEN, or which of STATES."""
    HARDWARE_CLASS = 2
    GROUND = 3
    """Number of its (hardware class, runtime, reach): rows of one ground may form one cluster."""
    REACH = 4
    ISOLATION = 5
    BOXED = 6
    CONSENTED = 7
    """Whether tenants' code may run there at all: it is kept apart, or the owner wants it without."""
    PLACE_CPUS = 8
    """CPUs of one place of the machine."""
    MACHINE_BYTES = 9
    """Memory of the machine."""
    NOTICE_MS = 10
    COMMITTED = 11
    CLOSES_MS = 12
    """When its owner's hours end; 0 while it is closed."""
    RECHECK_MS = 13
    """Until then CLOSES_MS is true."""
    KIND = 14
    MODEL = 15
    """Number of the devices' model."""
    DEVICE_BYTES = 16
    """Memory of each device."""
    CAPABILITY = 17
    EVIDENCE = 18
    PRICE = 19
    """Microcredits per device and hour as the owner asks, or NO_ASK."""
    DEVICES = 20
    """All devices of the row, and of these …"""
    SERVING = 21
    """… those that nobody cordoned, and of these …"""
    FREE = 22
    """… those that no member holds."""
    SLOTS = 23
    """Members with devices that the worker can still take."""
    KEPT = 24
    """Its reliability: thousandths of leases kept, of leases broken, and as of when."""
    BROKEN = 25
    JUDGED_MS = 26
    MACHINE_CPUS = 27
    LEADS = 28
    """1 for the first row of each worker: where machines are counted."""
    SITE = 29
    """Number of its (runtime, reach): what a head has to share with its members."""
    INTERCONNECT = 30
    """Rank of how its devices reach each other."""
    SIMULATED = 31
    """1 where any of its devices that serve is not a real one."""


_WIDTH = len(Column)


class _Kind(NamedTuple):
    """What makes devices of one worker alike."""

    kind: int
    model: str
    memory_bytes: int
    capability: int
    evidence: int


_NOTHING = _Kind(NO_DEVICE, "", 0, 0, 0)
"""Of the one row of a worker without any device: it is counted, too, where workers are."""


class Numbered:
    """Names and their numbers, in the order of their first use."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of a name; a new one where it has none yet."""
        number = self._number.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def find(self, name: str) -> int:
        """The number of a name, -1 where it has none."""
        return self._number.get(name, -1)


class Offers:
    """The table. A row's number stays as long as its worker has such devices."""

    def __init__(self) -> None:
        self.models = Numbered()
        self.grounds = Numbered()
        self.sites = Numbered()
        self._numbers_given = 0
        self._number: dict[WorkerId, int] = {}
        """A number is given once, to one worker."""
        self._worker_of: dict[int, WorkerId] = {}
        self._rows_of: dict[WorkerId, dict[_Kind, int]] = {}
        self._devices: dict[int, tuple[DeviceId, ...]] = {}
        """Those of a row that serve, in the machine's order."""
        self._terms: dict[int, Terms] = {}
        """Of rows whose owner has a schedule."""
        self._in_region: dict[str, dict[int, None]] = {}
        self._spare_rows: list[int] = []
        self._size = 0
        self._table: Numbers = np.zeros((_WIDTH, ROWS_MIN), dtype=np.int64)

    # ------------------------------------------------------------ reading

    @property
    def size(self) -> int:
        """Rows, with those that are empty: there WORKER is -1."""
        return self._size

    @property
    def mixed(self) -> bool:
        """Whether any worker has devices of several kinds, and so several rows."""
        return len(self._devices) > len(self._rows_of)

    def __getitem__(self, column: Column) -> Numbers:
        """A whole column; a view, which is not to be written."""
        return self._table[column, : self._size]

    def rows_of(self, worker_id: WorkerId) -> Iterable[int]:
        """The rows of a worker."""
        return self._rows_of.get(worker_id, {}).values()

    def number_of(self, worker_id: WorkerId) -> int:
        """The worker's number, as Column.WORKER has it."""
        return self._number[worker_id]

    def worker_of(self, row: int) -> WorkerId:
        """Whose row it is."""
        return self._worker_of[row]

    def slots_of(self, worker_id: WorkerId) -> int:
        """Members with devices that a worker can still take."""
        return max((int(self._table[Column.SLOTS, row]) for row in self.rows_of(worker_id)), default=0)

    def model_of(self, row: int) -> str:
        """The model of a row's devices."""
        return self.models.names[self._table.item(Column.MODEL, row)]

    def simulated(self, row: int) -> bool:
        """Whether any of a row's devices that serve is not a real one."""
        return self._table.item(Column.SIMULATED, row) != 0

    def devices_of(self, row: int) -> tuple[DeviceId, ...]:
        """The devices of a row that nobody cordoned, held ones too."""
        return self._devices[row]

    def in_region(self, region: str) -> NDArray[np.bool_]:
        """Which rows stand in a region."""
        found = np.zeros(self._size, dtype=np.bool_)
        found[list(self._in_region.get(region, ()))] = True
        return found

    def closes_ms(self, at_ms: int) -> Numbers:
        """When each row's hours end, 0 where they have not begun, as of control time ``at_ms``."""
        due = np.flatnonzero(self[Column.RECHECK_MS] <= at_ms)
        for row in due.tolist():
            self._table[Column.CLOSES_MS, row], self._table[Column.RECHECK_MS, row] = self._terms[row].hours(
                at_ms
            )
        return self[Column.CLOSES_MS]

    def shown(self) -> dict[tuple[WorkerId, _Kind], tuple[int, ...]]:
        """All of it by worker and kind of device, without the numbers that depend on the order of events."""
        own = (Column.WORKER, Column.GROUND, Column.SITE, Column.MODEL, Column.CLOSES_MS, Column.RECHECK_MS)
        columns = [column for column in Column if column not in own]
        return {
            (worker_id, kind): tuple(int(self._table[column, row]) for column in columns)
            for worker_id, rows in self._rows_of.items()
            for kind, row in rows.items()
        }

    # ------------------------------------------------------------ writing

    def put(self, worker: Worker) -> None:
        """A worker is new or has changed; ``hold`` follows."""
        worker_id = worker.worker_id
        if worker_id not in self._number:
            self._number[worker_id] = self._numbers_given
            self._numbers_given += 1
        cordoned = {hold.device_id for hold in worker.device_holds}
        alike: dict[_Kind, list[Device]] = {}
        for device in worker.inventory.devices:
            alike.setdefault(_kind_of(device), []).append(device)
        if not alike:
            alike[_NOTHING] = []
        rows = self._rows_of.setdefault(worker_id, {})
        for kind in [kind for kind in rows if kind not in alike]:
            self._drop(rows.pop(kind))
        common = self._common(worker)
        for number, (kind, devices) in enumerate(alike.items()):
            common[Column.LEADS] = number == 0
            common[Column.INTERCONNECT] = interconnect_rank(devices)
            row = rows.get(kind)
            if row is None:
                row = rows[kind] = self._new_row()
                self._worker_of[row] = worker_id
            serving = [device for device in devices if device.device_id not in cordoned]
            self._devices[row] = tuple(device.device_id for device in serving)
            common[Column.SIMULATED] = any(device.simulated for device in serving)
            self._write(row, worker, common, kind, (len(devices), len(serving)))

    def hold(self, worker_id: WorkerId, free: Mapping[DeviceId, None], slots: int) -> None:
        """What a worker has left: its free devices, and members with devices that it can still take."""
        for row in self._rows_of[worker_id].values():
            self._table[Column.FREE, row] = sum(map(free.__contains__, self._devices[row]))
            self._table[Column.SLOTS, row] = slots

    def remove(self, worker_id: WorkerId) -> None:
        """Forget a worker; its number is not given again."""
        for row in self._rows_of.pop(worker_id).values():
            self._drop(row)
        del self._number[worker_id]

    def _new_row(self) -> int:
        if self._spare_rows:
            return self._spare_rows.pop()
        if self._size == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._size += 1
        return self._size - 1

    def _drop(self, row: int) -> None:
        self._table[:, row] = 0
        self._table[(Column.WORKER, Column.RECHECK_MS), row] = (-1, NEVER_MS)
        del self._devices[row]
        del self._worker_of[row]
        self._terms.pop(row, None)
        for rows in self._in_region.values():
            rows.pop(row, None)
        self._spare_rows.append(row)

    def _common(self, worker: Worker) -> dict[Column, int]:
        """What all rows of a worker share."""
        inventory, terms = worker.inventory, worker.terms
        reach = NO_REACH if not inventory.reach else BY_OVERLAY if inventory.reach == OVERLAY else BY_ZONE
        site = f"{inventory.runtime}, {inventory.reach}"
        return {
            Column.WORKER: self._number[worker.worker_id],
            Column.STATE: _STATE_NUMBER[_state_of(worker)],
            Column.HARDWARE_CLASS: CLASS_NUMBER[inventory.hardware_class],
            Column.GROUND: self.grounds.number(f"{inventory.hardware_class}, {site}"),
            Column.SITE: self.sites.number(site),
            Column.REACH: reach,
            Column.ISOLATION: ISOLATION_RANK[inventory.isolation],
            Column.BOXED: inventory.boxed,
            Column.CONSENTED: inventory.boxed or inventory.unisolated,
            Column.PLACE_CPUS: max(1, inventory.cpus // max(1, inventory.slots + inventory.head_slots)),
            Column.MACHINE_BYTES: inventory.memory_bytes,
            Column.MACHINE_CPUS: inventory.cpus,
            Column.NOTICE_MS: terms.notice_ms,
            Column.COMMITTED: terms.tier is Tier.COMMITTED,
            Column.CLOSES_MS: 0 if terms.schedule else NEVER_MS,
            Column.RECHECK_MS: 0 if terms.schedule else NEVER_MS,
            Column.KEPT: worker.reliability.completed,
            Column.BROKEN: worker.reliability.broken,
            Column.JUDGED_MS: worker.reliability.at_ms,
        }

    def _write(
        self, row: int, worker: Worker, common: dict[Column, int], kind: _Kind, counts: tuple[int, int]
    ) -> None:
        asks = {ask.model: ask.microcredits_per_gpu_hour for ask in worker.terms.asks}
        known = common | {
            Column.KIND: kind.kind,
            Column.MODEL: self.models.number(kind.model),
            Column.DEVICE_BYTES: kind.memory_bytes,
            Column.CAPABILITY: kind.capability,
            Column.EVIDENCE: kind.evidence,
            Column.PRICE: asks.get(kind.model, NO_ASK),
            Column.DEVICES: counts[0],
            Column.SERVING: counts[1],
            Column.FREE: 0,
            Column.SLOTS: 0,
        }
        self._table[:, row] = [known[column] for column in Column]
        if worker.terms.schedule:
            self._terms[row] = worker.terms
        else:
            self._terms.pop(row, None)
        for rows in self._in_region.values():
            rows.pop(row, None)
        for region in worker.terms.regions:
            self._in_region.setdefault(region, {})[row] = None


def _state_of(worker: Worker) -> str:
    if worker.liveness is not Liveness.LIVE:
        return _LIVENESS_STATE[worker.liveness]
    if worker.draining:
        return DRAINING
    return PHRASES[worker.holds[0].kind] if worker.holds else STATES[OPEN]


def _kind_of(device: Device) -> _Kind:
    capability = device.evidence.compute_capability if device.evidence is not None else ""
    return _Kind(
        _KIND[device.kind],
        device.model,
        device.memory_bytes,
        capability_number(capability),
        EVIDENCE_RANK[evidence_class(device)],
    )
