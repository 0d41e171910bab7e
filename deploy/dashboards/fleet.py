"""Fleet health: are the machines there, are they whole, and are they near each other?"""

from __future__ import annotations

from deploy.dashboards.fleet_hardware import CLASS, OWNED, agents, devices, groups
from deploy.dashboards.panels import (
    PER_MINUTE,
    RATIO,
    Column,
    Face,
    Panel,
    Query,
    Section,
    bars,
    choice,
    compose,
    falling,
    lines,
    neutral,
    none_of_it,
    number,
    or_zero,
    per_minute,
    rows,
)

UID = "orchestrator-fleet"

UPTIME_STEPS = falling(0.95, 0.99)
"""Below 95 % a worker is away for more than an hour a day."""

GONE = "Nobody of it is measured: are the workers' pages scraped and the recording rules loaded?"


def build() -> str:
    """The dashboard's JSON."""
    return compose(
        UID,
        "Are the machines there, are they whole, and are they near each other?",
        (
            choice("hardware_class", "Class", "orchestrator_workers", "Hardware classes that are shown."),
            choice(
                "supplier",
                "Supplier",
                "orchestrator_worker_expected_seconds_total",
                "Suppliers whose workers are shown, where a panel has workers.",
            ),
        ),
        (
            Section("Is the fleet well?", _well()),
            Section("Uptime", _uptime()),
            Section("Supply", _supply()),
            Section("Groups", groups()),
            Section("Devices", devices()),
            Section("Machines and agents", agents()),
        ),
    )


def _well() -> tuple[Panel, ...]:
    return (
        number(
            Face(
                "Alerts that fire",
                "Alerts of the network that Prometheus has now. Any is work: the table on Control plane names "
                "them, and each has its lines in the runbook.",
                steps=none_of_it(),
                width=5,
                height=5,
            ),
            "firing now",
            or_zero('count(ALERTS{alertname=~"Orchestrator.+", alertstate="firing"})'),
        ),
        number(
            Face(
                "Uptime, 24 h",
                "Mean over the chosen workers of the share of a day in which their lease was live. Below 95 % "
                "suppliers are losing income: see by whom under Uptime.",
                unit=RATIO,
                decimals=2,
                steps=UPTIME_STEPS,
                empty=GONE,
                width=5,
                height=5,
            ),
            "mean of workers",
            f"avg(orchestrator:worker_uptime_ratio:24h{{{OWNED}}})",
        ),
        *_presence(),
    )


def _presence() -> tuple[Panel, ...]:
    present = f'sum(orchestrator_workers{{liveness!="left", {CLASS}}})'
    return (
        number(
            Face(
                "Workers that are live",
                "Live workers to all that joined and did not leave. If it falls at once, look at Zones held and "
                "at the control plane before blaming suppliers.",
                unit=RATIO,
                decimals=1,
                steps=falling(0.8, 0.95),
                empty="No worker has joined",
                width=5,
                height=5,
            ),
            "of those that joined",
            f'sum(orchestrator_workers{{liveness="live", {CLASS}}}) / ({present} > 0)',
        ),
        number(
            Face(
                "GPUs that can serve",
                "GPUs that are free, leased or reserved, to all. The rest is held back or unreachable: Holds and "
                "Workers by liveness say why.",
                unit=RATIO,
                decimals=1,
                steps=falling(0.8, 0.95),
                empty="No GPU has joined",
                width=5,
                height=5,
            ),
            "free, leased or reserved",
            f'sum(orchestrator_gpus{{state=~"free|leased|reserved", {CLASS}}}) '
            f"/ (sum(orchestrator_gpus{{{CLASS}}}) > 0)",
        ),
        number(
            Face(
                "Zones held",
                "Zones that fell silent at once, so that nobody of them is given up. More than 0: suspect the "
                "control plane's own network first.",
                steps=none_of_it(),
                width=4,
                height=5,
            ),
            "silent at once",
            "sum(orchestrator_zones_held)",
        ),
    )


def _uptime() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Uptime by class, 1 h",
                "Share of the last hour in which leases were live, by hardware class. A step in all classes at "
                "once is ours; in one class it is its suppliers'.",
                unit=RATIO,
                low=None,
                high=1,
                steps=UPTIME_STEPS,
                empty=GONE,
                width=6,
            ),
            Query(f"orchestrator:class_uptime_ratio:1h{{{CLASS}}}", "{{hardware_class}}"),
        ),
        bars(
            Face(
                "Suppliers that are up least, 24 h",
                "The ten suppliers with the lowest uptime of a day. Ask the first of them what broke before the "
                "jobs ask you.",
                unit=RATIO,
                high=1,
                decimals=1,
                steps=UPTIME_STEPS,
                empty=GONE,
                width=6,
            ),
            Query(
                'sort(bottomk(10, orchestrator:supplier_uptime_ratio:24h{supplier=~"$supplier"}))',
                "{{supplier}}",
            ),
        ),
        rows(
            Face(
                "Workers that are up least, 24 h",
                "The ten workers with the lowest uptime of a day, beside their hour and month. Low over a month "
                "is a bad machine or line; low today only is an incident.",
                unit=RATIO,
                high=1,
                empty=GONE,
                width=12,
            ),
            {"name": "Worker", "hardware_class": "Class", "region": "Region"},
            (
                Column("24 h", _least("24h"), RATIO, UPTIME_STEPS, 1),
                Column("1 h", _of_the_least("1h"), RATIO, UPTIME_STEPS, 1),
                Column("30 d", _of_the_least("30d"), RATIO, UPTIME_STEPS, 1),
            ),
            descending=False,
        ),
    )


def _named(expr: str) -> str:
    info = f"on (worker) group_left (name, region) orchestrator_worker_info{{{OWNED}}}"
    return f"sum by (worker, name, hardware_class, region) ({expr} * {info})"


def _least(window: str) -> str:
    return _named(f"bottomk(10, orchestrator:worker_uptime_ratio:{window}{{{OWNED}}})")


def _of_the_least(window: str) -> str:
    least = f"bottomk(10, orchestrator:worker_uptime_ratio:24h{{{OWNED}}})"
    return _named(f"(orchestrator:worker_uptime_ratio:{window}{{{OWNED}}} and on (worker) {least})")


def _gpus(state: str) -> str:
    return f'sum by (hardware_class, model) (orchestrator_gpus{{state="{state}", {CLASS}}})'


def _supply() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Workers by liveness",
                "Leases of workers: suspect after missed heartbeats, lost after more. Many suspect at once is a "
                "line or the control plane; a slow rise of lost is suppliers going.",
            ),
            Query(f'sum by (liveness) (orchestrator_workers{{liveness!="left", {CLASS}}})', "{{liveness}}"),
            stacked=True,
        ),
        lines(
            Face(
                "GPUs by state",
                "What can be done with GPUs now. Much free while jobs wait: see Scheduling. Much held or "
                "unreachable: see Holds.",
            ),
            Query(f"sum by (state) (orchestrator_gpus{{{CLASS}}})", "{{state}}"),
            stacked=True,
        ),
        lines(
            Face(
                "Holds",
                "Workers held back from new work, by reason; one may be held for several. Quarantined is for the "
                "operator to look at; the others end by themselves or by their owner.",
                empty="No worker is held",
            ),
            Query("sum by (kind) (orchestrator_worker_holds)", "{{kind}}"),
            stacked=True,
        ),
        *_stock(),
    )


def _stock() -> tuple[Panel, ...]:
    return (
        rows(
            Face(
                "GPUs by model",
                "What the network has of each model now. A model without free GPUs is where the next job of its "
                "kind waits.",
                empty="No GPU has joined",
                width=12,
            ),
            {"model": "Model", "hardware_class": "Class"},
            tuple(
                Column(state.capitalize(), _gpus(state), steps=neutral(colour))
                for state, colour in (
                    ("free", "green"),
                    ("leased", "blue"),
                    ("reserved", "purple"),
                    ("held", "orange"),
                    ("unreachable", "red"),
                )
            ),
        ),
        lines(
            Face(
                "Workers with a session",
                "Workers that are connected now, by class. A drop to nothing that comes back is a restart of the "
                "control plane; one that stays is the session port or its certificate.",
                width=6,
            ),
            Query(
                f"sum by (hardware_class) (orchestrator_workers_connected{{{CLASS}}})", "{{hardware_class}}"
            ),
        ),
        lines(
            Face(
                "Leases that changed",
                "How often a minute workers came to a state. Suspect and live in equal numbers is a flapping "
                "line; lost is machines gone.",
                unit=PER_MINUTE,
                empty="No lease has changed since the control plane was scraped first",
                width=6,
            ),
            Query(per_minute("orchestrator_worker_transitions_total", "liveness"), "{{liveness}}"),
            Query("60 * sum(rate(orchestrator_hardware_changes_total[$__rate_interval]))", "other hardware"),
        ),
    )
