"""Workers: joining, connecting, silence, leaving."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.catalogue import CPU_MODEL, GIB, MODELS, nearest
from orchestrator.core.decisions.operators import authenticate, check_name
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.fleet import Inventory, Liveness, TokenRole, Worker, held_zones
from orchestrator.core.ids import SupplierId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import Now, WorkerId
    from orchestrator.core.state import State

DEVICES_MAX = 64
"""No machine on sale holds more; a larger list is a mistake or an attack."""

SLOTS_MAX = 64

TERMS_AHEAD_MAX = 10_000
"""More starts than any backup is old; an agent that claims more is wrong or lies."""

DEVICE_ID = re.compile(r"[!-~]{1,128}")
"""What a receipt can name: a device that none can name would be held and never paid. Vendors' UUIDs have about
forty characters."""


def check_inventory(inventory: Inventory) -> None:
    """Refuse what no machine can be; the field at fault is named."""
    if len(inventory.devices) > DEVICES_MAX:
        raise invalid(
            "inventory.devices", f"{len(inventory.devices)} devices on one machine; at most {DEVICES_MAX}"
        )
    seen: set[str] = set()
    for device in inventory.devices:
        if not DEVICE_ID.fullmatch(device.device_id):
            message = "every device needs an id of 1 to 128 visible ASCII characters without spaces"
            raise invalid("inventory.devices.device_id", message)
        if device.device_id in seen:
            raise invalid("inventory.devices.device_id", f"device {device.device_id} is listed twice")
        seen.add(device.device_id)
        model = MODELS.get(device.model)
        if model is None:
            hint = nearest(device.model[:80], list(MODELS))
            raise invalid(
                "inventory.devices.model", f"unknown model {device.model[:80]!r}: did you mean {hint!r}?"
            )
        if inventory.hardware_class not in model.classes:
            offered = ", ".join(sorted(model.classes))
            message = f"a {model.name} is offered by class {offered}, not by {inventory.hardware_class}"
            raise invalid("inventory.hardware_class", message)
        if model.name != CPU_MODEL and device.memory_bytes > model.memory_gb * GIB:
            message = (
                f"{model.name} has {model.memory_gb} GB, less than the {device.memory_bytes} bytes declared"
            )
            raise invalid("inventory.devices.memory_bytes", message)
    if inventory.slots > SLOTS_MAX or inventory.head_slots > SLOTS_MAX:
        raise invalid("inventory.slots", f"at most {SLOTS_MAX} slots and head slots a worker")
    if inventory.slots + inventory.head_slots == 0:
        raise invalid("inventory.slots", "a worker needs at least one slot or head slot to be of use")


def join_worker(state: State, command: m.JoinWorker, at_ms: int) -> m.Decision:
    """A join token's one use. The same key with the same token gets the same worker again: the answer was lost."""
    check_name("worker_name", command.name)
    check_inventory(command.inventory)
    known_id = state.worker_by_key.get(command.statement_key)
    token = state.token_by_hash.get(command.token_sha256)
    token = state.tokens[token.token_id] if token is not None else None
    if known_id is not None:
        worker = state.workers[known_id]
        if token is not None and token.used and token.subject_id == worker.supplier_id:
            return m.Decision((), known_id)
        raise RefusedError(
            RefusalCode.ALREADY_EXISTS, f"this key is registered as worker {known_id}", "statement_key"
        )
    token = authenticate(state, command.token_sha256, at_ms)
    if token.role is not TokenRole.SUPPLIER:
        raise RefusedError(RefusalCode.FORBIDDEN, "only a supplier token joins a worker", "join_token")
    worker = Worker(
        worker_id=command.worker_id,
        supplier_id=SupplierId(token.subject_id),
        name=command.name,
        statement_key=command.statement_key,
        inventory=command.inventory,
        liveness=Liveness.SUSPECT,
        liveness_since_ms=at_ms,
        draining=False,
        dismissed=False,
        joined_at_ms=at_ms,
    )
    return m.Decision((m.WorkerJoined(worker, token.token_id),), worker.worker_id)


def connect_worker(state: State, command: m.ConnectWorker, now: Now, at_ms: int) -> m.Decision:
    """A worker is there: it becomes live, with the inventory it brings.

    The result is None where the operator let it go meanwhile: that it must be told first.
    """
    worker = find_worker(state, command.worker_id)
    if worker.liveness is Liveness.LEFT and worker.dismissed:
        return m.Decision((m.DismissalTold(worker.worker_id),), None)
    state.heartbeats.heard(worker.worker_id, now.monotonic_ms)
    events: list[m.Event] = []
    if command.inventory is not None and command.inventory != worker.inventory:
        check_inventory(command.inventory)
        events.append(m.InventoryChanged(worker.worker_id, command.inventory))
    if worker.liveness is not Liveness.LIVE:
        events.append(m.LivenessChanged(worker.worker_id, Liveness.LIVE, at_ms))
    return m.Decision(tuple(events), worker.worker_id)


def pass_term(state: State, command: m.PassTerm) -> m.Decision:
    """Rise above a term that an agent has obeyed: after a restored backup agents know more than the store."""
    term = state.control.term
    if command.term <= term:
        return m.Decision((), term)
    if command.term > term + TERMS_AHEAD_MAX:
        raise invalid("hello.term", f"term {command.term} is too far above {term} to be this network's")
    return m.Decision((m.TermPassed(command.term + 1),), command.term + 1)


def drain_worker(state: State, command: m.DrainWorker) -> m.Decision:
    """Begin to leave; repeating it changes nothing."""
    worker = find_worker(state, command.worker_id)
    if worker.liveness is Liveness.LEFT or (worker.draining and worker.dismissed >= command.dismiss):
        return m.Decision((), worker.worker_id)
    return m.Decision((m.WorkerDrained(worker.worker_id, command.dismiss),), worker.worker_id)


def leave_worker(state: State, command: m.LeaveWorker, at_ms: int) -> m.Decision:
    """The worker has gone of its own will; refused while it still holds members."""
    worker = find_worker(state, command.worker_id)
    if worker.liveness is Liveness.LEFT:
        return m.Decision((), worker.worker_id)
    if state.members_on.get(worker.worker_id) and worker.liveness is not Liveness.LOST:
        raise RefusedError(RefusalCode.CONFLICT, "the worker still holds members; drain it first", "worker")
    events: list[m.Event] = [m.LivenessChanged(worker.worker_id, Liveness.LEFT, at_ms)]
    if worker.dismissed and command.told:
        events.append(m.DismissalTold(worker.worker_id))
    return m.Decision(tuple(events), worker.worker_id)


def find_worker(state: State, worker_id: WorkerId) -> Worker:
    """A worker by id."""
    worker = state.workers.get(worker_id)
    if worker is None:
        raise not_found("worker", worker_id)
    return worker


def tick_liveness(state: State, now: Now, at_ms: int) -> Iterator[m.Event]:
    """Silence turns live into suspect and suspect into lost, unless so much of a zone is silent that it is us."""
    policy = state.policies.fleet
    silent = {
        worker_id: now.monotonic_ms - state.heartbeats.heard_ms(worker_id, now.monotonic_ms)
        for worker_id in state.heartbeats.silent_since(now.monotonic_ms - policy.suspect_after_ms)
    }
    if not silent:
        return
    held: frozenset[str] | None = None
    for worker_id, silence_ms in silent.items():
        worker = state.workers.get(worker_id)
        if worker is None or worker.liveness in (Liveness.LOST, Liveness.LEFT):
            continue
        heard_ms = at_ms - silence_ms
        if worker.liveness is Liveness.LIVE:
            yield m.LivenessChanged(worker_id, Liveness.SUSPECT, heard_ms)
        elif silence_ms > policy.lost_after_ms:
            if held is None:
                held = held_zones(state.workers.values(), silent, policy)
            if worker.inventory.zone not in held:
                yield m.LivenessChanged(worker_id, Liveness.LOST, heard_ms)


def start_heartbeats(state: State, now: Now) -> None:
    """After a start nobody has been heard yet: everybody gets a full term from now."""
    for worker in state.workers.values():
        if worker.liveness in (Liveness.LIVE, Liveness.SUSPECT):
            state.heartbeats.heard(worker.worker_id, now.monotonic_ms)
