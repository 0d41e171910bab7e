"""Every metric there is: name, kind, labels and one sentence. The only place where one is declared.

Collectors are made from it, the table in ``docs/metrics.md`` is generated from it, and what dashboards and rules name is
held against it. No label ever holds a job, a tenant or a user. What has a series per worker or per device stands in
PER_WORKER and is shown on pages of its own (``/metrics/workers?page=N``), so that the network's own endpoint stays as
large as the network has states, not machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a metric's value means, as Prometheus has it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A counter's ``name`` ends in ``_total``; units stand before that, at the end of the name."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Of a histogram: upper bounds, rising."""


QUICK_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""From a batch in memory to a disk in trouble."""

QUEUE_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)
"""From a warm cluster to a day without machines."""

FORMATION_S = (0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1_200)
"""From a member that has all it needs to the longest deadline of a phase."""

REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300)
"""From a status to an upload over a home line; tails are as long as their jobs."""

SCRAPE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""From an agent next door to the longest that a scrape may take."""


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"orchestrator_{name}_total", Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"orchestrator_{name}", Kind.GAUGE, text, labels)


def _seconds(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(f"orchestrator_{name}_seconds", Kind.HISTOGRAM, text, labels, buckets)


NETWORK = (
    _gauge("build_info", "Always 1; which version of the control plane runs.", "version"),
    # ---- fleet
    _gauge("workers", "Workers by the state of their lease.", "liveness", "hardware_class"),
    _gauge("workers_connected", "Workers with an open session.", "hardware_class"),
    _counter("worker_transitions", "Leases of workers that came to a state.", "liveness"),
    _gauge("worker_holds", "Workers held back from new work; one may be held for several reasons.", "kind"),
    _gauge("gpus", "GPUs by what can be done with them now.", "hardware_class", "model", "state"),
    _counter("device_faults", "Faults of devices that agents reported.", "kind"),
    _gauge(
        "zones_held",
        "Zones so silent at once that nobody of them is given up: suspect the control plane itself.",
    ),
    _counter("hardware_changes", "Workers that came back with other hardware."),
    _gauge("leases", "Leases of members, by how far they are.", "state"),
    # ---- groups
    _gauge("groups", "Groups of two workers or more."),
    _gauge("group_workers", "Workers of a group.", "group", "hardware_class", "model"),
    _gauge("group_rtt_seconds", "Measured round trips within a group: median and longest.", "group", "stat"),
    _gauge("group_loss_ratio", "Probes within a group that nobody answered, 0 to 1.", "group"),
    _counter("path_probes", "Ways that workers were told to measure; each worker's are bounded by the hour."),
    # ---- queue and plan
    _gauge("jobs", "Jobs that are not deleted.", "status"),
    _gauge(
        "queue_jobs", "Jobs that wait for machines, by what the newest plan found in their way.", "reason"
    ),
    _gauge("queue_gpus", "GPUs that waiting jobs ask for."),
    _gauge("queue_oldest_seconds", "How long the job that waits longest has waited; 0: none waits."),
    _seconds("job_queue", "From submission to the first start.", QUEUE_S),
    _seconds("plan", "Making one plan.", QUICK_S),
    _gauge("plan_lag_seconds", "Age of the oldest change that no plan has seen yet."),
    _counter(
        "plan_placements", "Placements planned, by whether machines or a warm cluster were given.", "kind"
    ),
    _counter("plan_rejections", "Waiting jobs of each plan, by what stood in their way.", "reason"),
    _counter("plans_stale", "Plans that were made again because the state had changed."),
    _counter("preemptions", "Attempts that gave way to another job."),
    _gauge("reservations", "Reservations of machines for a time to come.", "phase"),
    # ---- clusters and attempts
    _gauge("clusters", "Ray clusters.", "phase"),
    _seconds(
        "formation", "How long clusters were in each phase on their way to ready.", FORMATION_S, "phase"
    ),
    _counter("formations", "Clusters that became ready or were given up before.", "outcome"),
    _counter("member_replacements", "Members that were replaced before their cluster was ready."),
    _counter("attempts", "Attempts that ended.", "outcome"),
    _counter("jobs_finished", "Jobs that ended.", "status"),
    # ---- gateway
    Metric(
        "orchestrator_gateway_request_seconds",
        Kind.HISTOGRAM,
        "Answering a tenant's request; a tail counts as long as it is held.",
        ("method", "route", "status"),
        REQUEST_S,
    ),
    _counter("refusals", "Calls and sessions that were refused, by what was called and why.", "door", "code"),
    # ---- loop
    _counter("loop_commands", "Commands decided."),
    _counter("loop_events", "Events committed."),
    _seconds("loop_decide", "Deciding one batch.", QUICK_S),
    _seconds("loop_commit", "Making one batch durable.", QUICK_S),
    _seconds("loop_wait", "A batch's oldest wait.", QUICK_S),
    _gauge("loop_inbox_commands", "Commands that wait to be decided."),
    _gauge("loop_lag_seconds", "Age of the oldest command that is not answered yet; 0: none waits."),
    # ---- money
    _counter("receipts", "Receipts that reached a state.", "state"),
    _gauge("receipts_unposted", "Receipts that are not in the ledger yet: the outbox."),
    _gauge("outbox_oldest_seconds", "Age of the oldest receipt in the outbox; 0: it is empty."),
    _gauge(
        "receipts_unaccounted",
        "Receipts of the control plane that are neither posted nor in the outbox, or posted and unknown to the ledger.",
    ),
    _gauge(
        "ledger_imbalance_microcredits", "Debits less credits over all accounts of the ledger; 0: balanced."
    ),
    _counter("billed_seconds", "Device time of sealed receipts.", "hardware_class"),
    _counter("disputed_seconds", "Device time recorded here that its worker never stated.", "hardware_class"),
    # ---- overlay and certificates
    _gauge(
        "overlay_tunnels",
        "Tunnels between members as their agents see them, each counted at both ends: direct, relayed by Nebula over UDP,"
        " or bridged over TLS.",
        "way",
    ),
    _gauge("relay_connections", "Connections at the bridge."),
    _gauge("relay_capacity_ratio", "Connections at the bridge to those it takes, 0 to 1."),
    _counter("relay_bytes", "Bytes that the bridge carried.", "direction"),
    _counter("relay_dropped_datagrams", "Datagrams that the bridge let go, as a line could not keep up."),
    _gauge(
        "certificate_remaining_seconds", "Until a certificate of the network's own runs out.", "certificate"
    ),
    # ---- scrapes through sessions
    _seconds("scrape", "Scrapes that went through a worker's session.", SCRAPE_S, "target"),
    _counter("scrapes", "Scrapes that went through a worker's session.", "target", "outcome"),
)

WORKER = ("worker", "supplier", "hardware_class")
DEVICE = ("worker", "device")
"""A device by its number in its worker, never by the id that its agent gives it: that may be another in each session."""

PER_WORKER = (
    _counter(
        "worker_expected_seconds",
        "Seconds in which a worker that joined and did not leave should have been up.",
        *WORKER,
    ),
    _counter("worker_up_seconds", "Seconds in which a worker's lease was live.", *WORKER),
    _gauge(
        "worker_info",
        "Always 1; what else is known of a worker, at most once an hour where that changes often. Group: empty where it"
        " has none; version: its agent's release.",
        *WORKER,
        "name",
        "region",
        "group",
        "agent_version",
    ),
    _gauge("worker_certificate_remaining_seconds", "Until a worker's certificate runs out.", "worker"),
    _gauge("worker_cpu_utilization_ratio", "How busy a worker's processors are, 0 to 1.", "worker"),
    _gauge("worker_memory_used_bytes", "Memory of a worker that is in use.", "worker"),
    _gauge("device_utilization_ratio", "How busy a device is, 0 to 1.", *DEVICE),
    _gauge("device_memory_used_bytes", "Memory of a device that is in use.", *DEVICE),
    _gauge("device_power_watts", "What a device draws.", *DEVICE),
    _gauge("device_temperature_celsius", "How hot a device is.", *DEVICE),
    _gauge(
        "device_ecc_uncorrected",
        "Memory errors of a device that could not be corrected, since its driver was loaded.",
        *DEVICE,
    ),
    _gauge("device_last_xid", "The newest error code of a device's driver; 0: none.", *DEVICE),
    _gauge("device_throttled", "Whether a device runs slower than it could, 0 or 1.", *DEVICE),
)

AGENT = (
    _gauge("agent_build_info", "Always 1; which version of the agent runs.", "version"),
    _gauge("agent_members", "Members that the agent has, by how far they are.", "phase"),
    _gauge("agent_session_connected", "Whether the agent has its session, 0 or 1."),
    _counter("agent_sessions", "Sessions that the agent began."),
    _gauge("agent_heartbeat_rtt_seconds", "From the newest heartbeat's sending to its acknowledgement."),
    _gauge("agent_statements_unacknowledged", "Statements that the control plane has not acknowledged yet."),
    _gauge("agent_disk_free_bytes", "Free where members' scratch and runtimes are."),
)
"""Shown by each agent, and scraped through its session."""

ALL = (*NETWORK, *PER_WORKER, *AGENT)
