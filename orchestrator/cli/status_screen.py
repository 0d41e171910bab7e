"""One screen of the network: the judgement first, then what it is made of. A small network fits 80 columns by 24."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.wording import counts_text, hardware_class_name
from orchestrator.core.wording import counted, named, span

WELL = "well"
FINDINGS_MAX = 4
"""With what to do about each they take a third of the screen; the others come once these are gone."""
GPU_KINDS_MAX = 4
"""Lines of GPUs; the others are counted together."""
GPU_STATES = ("leased", "free", "reserved", "held", "unreachable")
INFO = "info"

Status = operator_pb2.GetStatusResponse
Field = tuple[str, str]


def verdict_line(status: Status) -> str:
    """`well: …`, or what is not, the worst first; the first line of all."""
    if not status.verdict:
        return "not judged: this control plane is older than this program; run both of one version"
    if status.verdict == WELL:
        return f"well: {standing_text(status)}"
    codes = [one.code.replace("_", " ") for one in status.findings if one.severity != INFO]
    return f"not well, {status.verdict}: {named(list(dict.fromkeys(codes)))}"


def standing_text(status: Status) -> str:
    """`5 workers live, 4 GPUs of which 1 is leased, nothing waits`."""
    gpus = sum(one.gpus for one in status.gpus)
    leased = sum(one.gpus for one in status.gpus if one.state == "leased")
    waiting = status.queue.jobs
    lost = status.workers_by_liveness.get("lost", 0)
    return ", ".join(
        (
            f"{counted(status.workers_by_liveness.get('live', 0), 'worker')} live",
            *((f"{lost} lost",) if lost else ()),
            f"{counted(gpus, 'GPU')} of which {leased} {'is' if leased == 1 else 'are'} leased"
            if gpus
            else "no GPUs",
            f"{counted(waiting, 'job')} waiting" if waiting else "nothing waits",
        )
    )


def findings(status: Status) -> Iterator[tuple[str, str, str]]:
    """(severity, text, what to do), the worst first, as many as fit."""
    for one in status.findings[:FINDINGS_MAX]:
        yield one.severity, one.text, one.action
    more = len(status.findings) - FINDINGS_MAX
    if more > 0:
        yield INFO, f"{more} more: `orch status --output json`", ""


def fields(status: Status) -> Iterator[Field]:
    """Label and text of each line, in the order in which they are asked for."""
    yield "workers", _workers(status)
    yield from _gpus(status)
    yield "clusters", _clusters(status)
    yield "jobs", _jobs(status)
    yield "receipts", _receipts(status)
    yield "overlay", _overlay(status)
    yield "control", _control(status)
    yield "certificates", _certificates(status)
    yield "gateway", status.gateway_url
    yield "metrics", status.metrics_url
    yield "network", status.network_id
    yield "receipts' key", status.receipt_public_key


def _workers(status: Status) -> str:
    classes: dict[str, int] = defaultdict(int)
    for one in status.workers:
        if one.liveness != "left":
            classes[hardware_class_name(one.hardware_class)] += one.workers
    parts = [ordered(status.workers_by_liveness, ("live", "suspect", "lost"))]
    if classes:
        parts.append(counts_text(classes))
    if status.verdict:
        parts.append(f"{status.workers_connected} connected, {status.workers_placeable} open to new work")
    if status.workers_by_hold:
        parts.append(f"held: {counts_text(status.workers_by_hold)}")
    return " · ".join(parts)


def _gpus(status: Status) -> Iterator[Field]:
    """A line for each class and model, those of which there are most first."""
    kinds: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in status.gpus:
        kinds[hardware_class_name(one.hardware_class), one.model][one.state] += one.gpus
    rows = sorted(kinds.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    shown, others = rows[:GPU_KINDS_MAX], rows[GPU_KINDS_MAX:]
    lines = [
        f"{sum(states.values())} {model}, {of_class}: {ordered(states, GPU_STATES)}"
        for (of_class, model), states in shown
    ]
    if others:
        states: dict[str, int] = defaultdict(int)
        for _, found in others:
            for state, number in found.items():
                states[state] += number
        lines.append(f"{sum(states.values())} of {len(others)} other kinds: {ordered(states, GPU_STATES)}")
    if status.devices_simulated:
        simulated = f"{status.devices_simulated} of {counted(status.devices, 'device')} simulated"
        lines = [*lines[:-1], f"{lines[-1]} ({simulated})"] if lines else [f"none ({simulated})"]
    for number, line in enumerate(lines or ["none"]):
        yield "" if number else "GPUs", line


def _clusters(status: Status) -> str:
    phases = ("preparing", "starting_head", "joining", "ready", "closing")
    text = ordered(status.clusters_by_phase, phases)
    if status.clusters_idle:
        text += f" ({status.clusters_idle} kept warm)"
    formed = status.formations
    if formed.ready or formed.failed:
        text += f" · in {span(formed.window_ms)}: {formed.ready} formed, {formed.failed} given up"
    return text


def _jobs(status: Status) -> str:
    names = {name.lower(): number for name, number in status.jobs_by_status.items()}
    parts = [ordered(names, ("running", "pending", "succeeded", "failed", "stopped"))]
    queue = status.queue
    if queue.jobs:
        asked = f" for {counted(queue.gpus, 'GPU')}" if queue.gpus else ""
        parts.append(
            f"{queue.jobs} waiting{asked}, the oldest for {span(queue.oldest_ms)}: {queue.oldest_reason}"
        )
    if queue.jobs_for_reservations:
        parts.append(f"{queue.jobs_for_reservations} waiting for their reservation")
    return " · ".join(parts)


def _receipts(status: Status) -> str:
    text = str(status.receipts)
    if status.receipts_unposted:
        text += f", {status.receipts_unposted} not in the ledger yet"
        if status.outbox_oldest_ms:
            text += f", the oldest for {span(status.outbox_oldest_ms)}"
    elif status.receipts:
        text += ", all in the ledger"
    return text + (f" · {counted(status.leases_open, 'lease')} open" if status.leases_open else "")


def _overlay(status: Status) -> str:
    live = status.workers_by_liveness.get("live", 0)
    text = f"{status.overlay}, isolation {status.isolation}" if live else "no live worker that could have one"
    if status.HasField("relay"):
        text += f" · bridge: {status.relay.connections} of {status.relay.connections_max} connections"
    return text


def _control(status: Status) -> str:
    text = f"version {status.version}, term {status.term}"
    if not status.verdict:
        return text
    late = f"{span(status.loop.lag_ms)} behind" if status.loop.lag_ms else "in time"
    waiting = f", {status.loop.inbox_commands} commands waiting" if status.loop.inbox_commands else ""
    return f"{text}, up for {span(status.running_ms)} · decisions {late}{waiting}"


def _certificates(status: Status) -> str:
    ordered_by_end = sorted(status.certificates, key=lambda one: one.remaining_ms)
    return ", ".join(f"{one.certificate} {span(one.remaining_ms)}" for one in ordered_by_end)


def ordered(counts: Mapping[str, int], names: Iterable[str]) -> str:
    """`3 live, 1 lost`: those that are there, in this order, then whatever a newer control plane has."""
    first = tuple(names)
    known = [name for name in first if counts.get(name)]
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in known) or "none"
