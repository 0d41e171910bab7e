"""Workers: joining, connecting, silence, leaving."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.decisions.devices import retold
from orchestrator.core.decisions.hosts import Hosts
from orchestrator.core.decisions.newcomers import join_stranger
from orchestrator.core.decisions.operators import authenticate, check_name
from orchestrator.core.decisions.terms import check_terms
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import SupplierId
from orchestrator.core.supply.catalogue import CPU_MODEL, GIB, MODELS, nearest
from orchestrator.core.supply.claims import name_of
from orchestrator.core.supply.fleet import NEBULA, FleetPolicy, Inventory, Liveness, Token, TokenRole, Worker
from orchestrator.core.supply.hardware import check_device_count, evidence_fault, hardware_changes, misfit
from orchestrator.core.supply.holds import Hold, HoldKind
from orchestrator.core.supply.reliability import THOUSAND, decayed
from orchestrator.core.supply.versions import is_outdated, upgrade_notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import Now, WorkerId
    from orchestrator.core.state import State

SLOTS_MAX = 64

TERMS_AHEAD_MAX = 10_000
"""More starts than any backup is old; an agent that claims more is wrong or lies."""

DEVICE_ID = re.compile(r"[!-~]{1,128}")
"""What a receipt can name: a device that none can name would be held and never paid. Vendors' UUIDs have about
forty characters."""


def check_inventory(inventory: Inventory, *, head_host: bool = False) -> None:
    """Refuse what no machine can be, and head slots of whoever was not let in as a head host; names the field."""
    check_device_count(len(inventory.devices))
    seen: set[str] = set()
    for device in inventory.devices:
        if not DEVICE_ID.fullmatch(device.device_id):
            message = "every device needs an id of 1 to 128 visible ASCII characters without spaces"
            raise invalid("inventory.devices.device_id", message)
        if name_of(device.device_id) in seen:
            raise invalid("inventory.devices.device_id", f"device {device.device_id} is listed twice")
        seen.add(name_of(device.device_id))
        model = MODELS.get(device.model)
        if model is None:
            hint = nearest(device.model[:80], list(MODELS))
            raise invalid(
                "inventory.devices.model", f"unknown model {device.model[:80]!r}: did you mean {hint!r}?"
            )
        if model.name != CPU_MODEL and device.memory_bytes > model.memory_gb * GIB:
            message = (
                f"{model.name} has {model.memory_gb} GB, less than the {device.memory_bytes} bytes declared"
            )
            raise invalid("inventory.devices.memory_bytes", message)
        fault = evidence_fault(device)
        if fault is not None:
            raise invalid("inventory.devices.evidence", f"device {device.device_id}: {fault}")
    wrong = misfit(inventory.devices, inventory.hardware_class)
    if wrong is not None:
        offered = ", ".join(sorted(wrong.classes))
        message = f"a {wrong.name} is offered by class {offered}, not by {inventory.hardware_class}"
        raise invalid("inventory.hardware_class", message)
    if inventory.head_slots and not head_host:
        message = (
            "head slots take a token made with --head-host: join with one from the operator, or offer none"
        )
        raise invalid("inventory.head_slots", message)
    if inventory.slots > SLOTS_MAX or inventory.head_slots > SLOTS_MAX:
        raise invalid("inventory.slots", f"at most {SLOTS_MAX} slots and head slots a worker")
    if inventory.slots + inventory.head_slots == 0:
        raise invalid("inventory.slots", "a worker needs at least one slot or head slot to be of use")


def join_worker(state: State, command: m.JoinWorker, at_ms: int) -> m.Decision:
    """A join token's one use, or a stranger's joining.

    The same keys with the same token get the same worker again: the answer was lost.
    """
    check_name("worker_name", command.name)
    check_terms(command.terms)
    known_id = state.worker_by_key.get(command.statement_key)
    token = state.token_by_hash.get(command.token_sha256) if command.token_sha256 else None
    token = state.tokens[token.token_id] if token is not None else None
    # Of an unknown token nothing is known: what is wrong with it is said below.
    head_host = bool(command.token_sha256) if token is None else token.head_host
    check_inventory(command.inventory, head_host=head_host)
    if known_id is not None:
        return _joined_before(state, command, state.workers[known_id], token)
    if not command.token_sha256:
        return join_stranger(state, command, _new_worker(command, command.supplier_id, at_ms), at_ms)
    token = authenticate(state, command.token_sha256, at_ms)
    if token.role is not TokenRole.SUPPLIER:
        raise RefusedError(RefusalCode.FORBIDDEN, "only a supplier token joins a worker", "join_token")
    worker = _new_worker(command, SupplierId(token.subject_id), at_ms, head_host=token.head_host)
    return m.Decision((m.WorkerJoined(worker, token.token_id),), worker.worker_id)


def _joined_before(state: State, command: m.JoinWorker, worker: Worker, token: Token | None) -> m.Decision:
    same_keys = command.tls_key_sha256 == worker.tls_key_sha256
    spent_here = token is not None and token.used and token.subject_id == worker.supplier_id
    stranger = not command.token_sha256 and worker.supplier_id in state.suppliers_unvouched
    if same_keys and (spent_here or stranger) and not worker.enrolled:
        return m.Decision((), worker.worker_id)
    raise RefusedError(
        RefusalCode.ALREADY_EXISTS, f"this key is registered as worker {worker.worker_id}", "statement_key"
    )


def _new_worker(
    command: m.JoinWorker, supplier_id: SupplierId, at_ms: int, *, head_host: bool = False
) -> Worker:
    return Worker(
        worker_id=command.worker_id,
        supplier_id=supplier_id,
        name=command.name,
        statement_key=command.statement_key,
        inventory=command.inventory,
        liveness=Liveness.SUSPECT,
        liveness_since_ms=at_ms,
        draining=False,
        dismissed=False,
        joined_at_ms=at_ms,
        tls_key_sha256=command.tls_key_sha256,
        terms=command.terms,
        head_host=head_host,
    )


def recover_worker(state: State, command: m.RecoverWorker, at_ms: int) -> m.Decision:
    """Another certificate for a worker that was away for longer than its last one lived: counted, and not for ever."""
    worker = find_worker(state, command.worker_id)
    if command.tls_key_sha256 != worker.tls_key_sha256:
        reason = f"this TLS key is not the one that {worker.worker_id} joined with"
        raise RefusedError(RefusalCode.FORBIDDEN, reason, "tls_csr")
    check_admitted(worker)
    policy = state.policies.fleet
    if recoveries_left(worker, policy, at_ms) == 0:
        hours = policy.recoveries_half_life_ms / 3_600_000
        reason = (
            f"recovered {policy.recoveries_max} times lately, and no more for now: each counts half after"
            f" {hours:g} hours. Keep the agent running, or see whether its keys are used elsewhere"
        )
        raise RefusedError(RefusalCode.EXHAUSTED, reason, "worker_id")
    count = recoveries_at(worker, policy, at_ms) + THOUSAND
    return m.Decision((m.WorkerRecovered(worker.worker_id, count),), worker.worker_id)


def recoveries_at(worker: Worker, policy: FleetPolicy, at_ms: int) -> int:
    """Thousandths of recoveries that count at ``at_ms``."""
    return decayed(worker.recoveries, at_ms - worker.recovered_at_ms, policy.recoveries_half_life_ms)


def recoveries_left(worker: Worker, policy: FleetPolicy, at_ms: int) -> int:
    """How many more may follow at once: what is past counts by its part, rounded up."""
    return max(0, policy.recoveries_max - -(-recoveries_at(worker, policy, at_ms) // THOUSAND))


def record_certificate(state: State, command: m.RecordCertificate) -> m.Decision:
    """Which authority a worker's newest certificate is of; a renewal under the same one writes nothing."""
    worker = find_worker(state, command.worker_id)
    if worker.certificate_generation == command.generation:
        return m.Decision((), worker.worker_id)
    return m.Decision((m.CertificateIssued(worker.worker_id, command.generation),), worker.worker_id)


def check_admitted(worker: Worker) -> None:
    """Refuse a worker that may have no session, with the reason."""
    if worker.shut_out is not None:
        raise RefusedError(RefusalCode.FORBIDDEN, worker.shut_out.reason, "worker_id")


def connect_worker(state: State, command: m.ConnectWorker, now: Now, at_ms: int) -> m.Decision:
    """A worker is there: it becomes live, with the inventory it brings.

    The result is False where it is shut out, which its reason says; None where the operator let it go meanwhile,
    which it must be told first.
    """
    worker = find_worker(state, command.worker_id)
    if worker.shut_out is not None:
        return m.Decision((), result=False)
    if command.session is not None and command.session <= worker.sessions:
        reason = (
            f"its keys were used in two places: session {command.session} was opened after session"
            f" {worker.sessions}; join again with new keys, or ask the operator to readmit this one"
        )
        return m.Decision(
            (m.HoldPlaced(worker.worker_id, Hold(HoldKind.CLONED, reason, at_ms)),), result=False
        )
    if worker.liveness is Liveness.LEFT and worker.dismissed:
        return m.Decision((m.DismissalTold(worker.worker_id),), None)
    if command.inventory is not None:
        check_inventory(command.inventory, head_host=worker.head_host)
    inventory = _reclassed(command.inventory, worker)
    state.heartbeats.heard(worker.worker_id, now.monotonic_ms)
    events: list[m.Event] = []
    if command.session is not None:
        host = _own_host(state, worker, inventory or worker.inventory)
        events.extend(_opened(worker, command.session, command.agent_version, host))
        events.extend(retold(state, worker))
    if inventory is not None and inventory != worker.inventory:
        changes = hardware_changes(worker.inventory, inventory)
        events.append(m.InventoryChanged(worker.worker_id, inventory, changes))
    if worker.liveness is not Liveness.LIVE:
        events.append(m.LivenessChanged(worker.worker_id, Liveness.LIVE, at_ms))
    return m.Decision(tuple(events), worker.worker_id)


def _own_host(state: State, worker: Worker, inventory: Inventory) -> int:
    """A number in the overlay's address plan for a worker that has none yet and can use one; 0 for none."""
    if worker.overlay_host or inventory.overlay != NEBULA or not state.overlay_offered:
        return 0
    try:
        return Hosts(state).take()
    except RefusedError:
        return 0  # It works without one: nobody measures the way to it.


def _opened(worker: Worker, number: int, agent_version: str, overlay_host: int) -> Iterator[m.Event]:
    outdated = is_outdated(agent_version)
    yield m.SessionOpened(worker.worker_id, number, agent_version, outdated, overlay_host)
    if not outdated and worker.hold(HoldKind.OUTDATED) is not None:
        yield m.HoldLifted(worker.worker_id, HoldKind.OUTDATED)


def tick_outdated(state: State, at_ms: int) -> Iterator[m.Event]:
    """An agent that was not upgraded in its time gets nothing new; what runs there goes on."""
    grace_ms = state.policies.fleet.outdated_grace_ms
    for worker_id in list(state.outdated):
        worker = state.workers[worker_id]
        since_ms = worker.outdated_since_ms
        if since_ms is None or at_ms - since_ms < grace_ms or worker.hold(HoldKind.OUTDATED) is not None:
            continue
        hold = Hold(HoldKind.OUTDATED, upgrade_notice(worker.agent_version, 0), at_ms)
        yield m.HoldPlaced(worker_id, hold)


def _reclassed(inventory: Inventory | None, worker: Worker) -> Inventory | None:
    """An operator's word on the class stands, whatever the machine brings."""
    if inventory is None or worker.class_override is None:
        return inventory
    return replace(inventory, hardware_class=worker.class_override.hardware_class)


def set_terms(state: State, command: m.SetTerms) -> m.Decision:
    """The owner's terms for whatever is placed from now on."""
    worker = find_worker(state, command.worker_id)
    check_terms(command.terms)
    if worker.terms == command.terms:
        return m.Decision((), worker.worker_id)
    return m.Decision((m.TermsChanged(worker.worker_id, command.terms),), worker.worker_id)


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
