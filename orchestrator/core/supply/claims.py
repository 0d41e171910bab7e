"""Whose a device is: the worker's that has had its name for the longest; and who contradicts that.

All of it follows from the workers' rows, in whatever order they are put: a loaded state says the same as an applied one.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from orchestrator.core.ids import DeviceId
from orchestrator.core.supply.fleet import Liveness, Worker
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.watched import mark

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.core.ids import SupplierId, WorkerId


class Registry(Protocol):
    """What claims are judged by: the state, and nothing else of it."""

    @property
    def workers(self) -> Mapping[WorkerId, Worker]: ...
    @property
    def suppliers_unvouched(self) -> Mapping[SupplierId, None]: ...


@dataclass(frozen=True, slots=True)
class Rival:
    """A device that a worker brings and that is another one's."""

    device_id: DeviceId
    owner_id: WorkerId


class Claims:
    """Indexes of ``State``, kept true by its ``put``."""

    def __init__(self) -> None:
        self._claims: dict[DeviceId, list[tuple[int, WorkerId]]] = {}
        """Who brings a device since which event, the owner first."""
        self.unsettled: dict[WorkerId, None] = {}
        """Workers whose quarantine does not follow from the claims: empty once a command is through."""

    def put(self, old: Worker | None, worker: Worker, state: Registry) -> None:
        """A worker was added or changed; the state has it already."""
        if old is not None and _same(old, worker):
            return
        yielding = _gives_way(worker) and (old is None or not _gives_way(old))
        looked = self._moved({} if old is None else claimed_since(old), claimed_since(worker), worker)
        if yielding:
            for device_id in claimed_since(worker):
                if self.owner(device_id) == worker.worker_id:
                    looked.update((one, None) for _, one in self._claims[device_id])
        for worker_id in looked:
            self._look(state.workers[worker_id], state)

    def remove(self, worker: Worker, state: Registry) -> None:
        """A worker is forgotten; the state has it no more."""
        looked = self._moved(claimed_since(worker), {}, worker)
        self.unsettled.pop(worker.worker_id, None)
        for worker_id in looked:
            if worker_id != worker.worker_id:
                self._look(state.workers[worker_id], state)

    def _moved(
        self, before: dict[DeviceId, int], after: dict[DeviceId, int], worker: Worker
    ) -> dict[WorkerId, None]:
        """Replace what one worker claims; everybody for whom an owner changed by it, himself included."""
        worker_id = worker.worker_id
        looked = {worker_id: None}
        for device_id in {**before, **after}:
            if before.get(device_id) == after.get(device_id):
                continue
            claims = self._claims.setdefault(device_id, [])
            owner = self.owner(device_id)
            if device_id in before:
                del claims[bisect.bisect_left(claims, (before[device_id], worker_id))]
            if device_id in after:
                bisect.insort(claims, (after[device_id], worker_id))
            changed = self.owner(device_id)
            if changed != owner:
                looked.update((one, None) for one in (owner, changed) if one is not None)
            if not claims:
                del self._claims[device_id]
        return looked

    def _look(self, worker: Worker, state: Registry) -> None:
        hold = worker.hold(HoldKind.QUARANTINED)
        rival = self.rival(worker, state)
        if rival is None:
            wrong = hold is not None and hold.automatic and bool(claimed_since(worker))
        else:
            wrong = hold is None or self.gives_way(state.workers[rival.owner_id], worker, state)
        mark(self.unsettled, worker.worker_id, on=wrong)

    # ------------------------------------------------------------ reading

    def owner(self, device_id: DeviceId) -> WorkerId | None:
        """Whose a device is; None where nobody brings it."""
        claims = self._claims.get(name_of(device_id))
        return claims[0][1] if claims else None

    def owners(self) -> dict[DeviceId, WorkerId]:
        """Whose each device is: what two states are compared by."""
        return {device_id: claims[0][1] for device_id, claims in self._claims.items()}

    def rival(self, worker: Worker, state: Registry) -> Rival | None:
        """A device of the worker that is another one's, first one whose owner gives way; None where all are its own."""
        found = [
            Rival(device_id, owner_id)
            for device_id in claimed_since(worker)
            if (owner_id := self.owner(device_id)) is not None and owner_id != worker.worker_id
        ]
        yielding = (one for one in found if self.gives_way(state.workers[one.owner_id], worker, state))
        return next(yielding, found[0] if found else None)

    def gives_way(self, owner: Worker, worker: Worker, state: Registry) -> bool:
        """Whether the owner is the same machine before it was set up anew: one that its own supplier brings again."""
        same = owner.supplier_id == worker.supplier_id and owner.supplier_id not in state.suppliers_unvouched
        return same and _gives_way(owner) and worker.shut_out is None


def _gives_way(owner: Worker) -> bool:
    return owner.liveness is Liveness.LOST or owner.hold(HoldKind.CLONED) is not None


def _same(old: Worker, worker: Worker) -> bool:
    return (
        old.holds is worker.holds
        and old.liveness is worker.liveness
        and old.inventory is worker.inventory
        and old.devices_since is worker.devices_since
    )


def name_of(device_id: DeviceId) -> DeviceId:
    """What two spellings of one device have in common."""
    return DeviceId(device_id.casefold())


def claimed_since(worker: Worker) -> dict[DeviceId, int]:
    """Since which event a worker claims each of its devices; one that is gone for good claims none."""
    if worker.liveness is Liveness.LEFT or worker.hold(HoldKind.REVOKED) is not None:
        return {}
    known = dict(worker.devices_since)
    names = (name_of(device.device_id) for device in worker.inventory.devices)
    return {name: known.get(name, 0) for name in names}


def claiming(worker: Worker, version: int, *, anew: bool = False) -> Worker:
    """The worker with its claims dated: what it brings newly, or comes back with after it was gone, is its from now."""
    known = {} if anew else dict(worker.devices_since)
    names = (name_of(device.device_id) for device in worker.inventory.devices)
    return replace(worker, devices_since=tuple((name, known.get(name, version)) for name in names))
