"""Control plane: does it keep up, are its books right, and do its doors and certificates hold?"""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from deploy.dashboards.panels import (
    BYTES,
    COUNT,
    PER_MINUTE,
    RATIO,
    SECONDS,
    Column,
    Face,
    Panel,
    Query,
    Section,
    compose,
    falling,
    lines,
    none_of_it,
    number,
    numbers,
    of_control_plane,
    or_zero,
    per_minute,
    quantile,
    rising,
    rows,
)

UID = "orchestrator-control-plane"

HOUR_S = 3_600
DAY_S = 24 * HOUR_S

LIVES = falling(HOUR_S, 4 * HOUR_S)
"""Of a worker's certificate: a day at most, renewed at half of it; OrchestratorRenewalsFailing warns at four hours."""

NETWORK_LIVES = (
    ("session, gateway", "session|gateway", falling(DAY_S, 2 * DAY_S)),
    ("overlay", "overlay", falling(DAY_S, 14 * DAY_S)),
    ("authority", "authority", falling(30 * DAY_S, 90 * DAY_S)),
)
"""The network's own certificates by how long they live; yellow and red as OrchestratorCertificateExpiring and
OrchestratorCertificateExpiresSoon have it."""


def build() -> str:
    """The dashboard's JSON."""
    return compose(
        UID,
        "Does the control plane keep up, are its books right, and do its doors and certificates hold?",
        (),
        (
            Section("Is the control plane well?", _well()),
            Section("What is wrong, and since when", _alerts()),
            Section("Loop", _loop()),
            Section("Process", _process()),
            Section("Books", _books()),
            Section("Ways and certificates", _ways()),
            Section("Doors and scrapes", _doors()),
        ),
    )


def _well() -> tuple[Panel, ...]:
    started = of_control_plane("process_start_time_seconds")
    return (
        number(
            Face(
                "Up for",
                "Since the control plane's process began. Minutes without anybody having deployed: it exits when "
                "a commit fails, and its log says so.",
                unit=SECONDS,
                decimals=1,
                steps=falling(120, 600),
                width=5,
                height=5,
            ),
            "since its process began",
            f"time() - max({started})",
            spark=False,
        ),
        number(
            Face(
                "Loop's lag",
                "Age of the oldest command that is not answered. Over a second everything waits, heartbeats too: "
                "see whether decide or commit is slow below.",
                unit=SECONDS,
                decimals=2,
                steps=rising(1, 5),
                width=5,
                height=5,
            ),
            "oldest command unanswered",
            "max(orchestrator_loop_lag_seconds)",
        ),
        number(
            Face(
                "Oldest in the outbox",
                "Age of the oldest receipt that is not in the ledger. Over ten minutes the ledger does not "
                "answer: nothing is lost, and suppliers see their rewards late.",
                unit=SECONDS,
                decimals=1,
                steps=rising(600, 3600),
                width=5,
                height=5,
            ),
            "receipt not in the ledger",
            "max(orchestrator_outbox_oldest_seconds)",
        ),
        *_promises(),
    )


def _promises() -> tuple[Panel, ...]:
    return (
        number(
            Face(
                "Books that do not agree",
                "Receipts that the ledger and the control plane do not both know, and accounts that do not "
                "balance. Anything but 0 is for a person: stop payouts and read the runbook.",
                steps=none_of_it(),
                width=5,
                height=5,
            ),
            "receipts and microcredits",
            "sum(orchestrator_receipts_unaccounted) + sum(abs(orchestrator_ledger_imbalance_microcredits))",
        ),
        numbers(
            Face(
                "Next certificates to run out",
                "Of the network's own, by how long they live. Yellow: it should have been replaced by now. Red: those "
                "who have to check it are about to be shut out. The alerts about certificates say what to do.",
                unit=SECONDS,
                decimals=1,
                width=4,
                height=5,
            ),
            *(
                Query(
                    f'min(orchestrator_certificate_remaining_seconds{{certificate=~"{which}"}})', name, steps
                )
                for name, which, steps in NETWORK_LIVES
            ),
        ),
    )


def _alerts() -> tuple[Panel, ...]:
    return (
        rows(
            Face(
                "Alerts that fire",
                "What Prometheus says is wrong now. Any is work: each has its lines in the runbook under its name.",
                empty="No alert fires",
                width=24,
                height=5,
            ),
            {"alertname": "Alert", "severity": "Severity"},
            (
                Column(
                    "How many",
                    'sum by (alertname, severity) (ALERTS{alertname=~"Orchestrator.+", alertstate="firing"})',
                ),
            ),
        ),
    )


def _loop() -> tuple[Panel, ...]:
    parts = {name: f"orchestrator_loop_{name}_seconds" for name in ("wait", "decide", "commit")}
    return (
        lines(
            Face(
                "Where a command's time goes, mean",
                "Waiting for its batch, deciding, and making durable. Commit alone high is the disk; decide high "
                "is a large state or a costly command.",
                unit=SECONDS,
                empty="No command has come",
            ),
            *(
                Query(
                    f"sum(rate({name}_sum[$__rate_interval])) / sum(rate({name}_count[$__rate_interval]))",
                    part,
                )
                for part, name in parts.items()
            ),
        ),
        lines(
            Face(
                "The same, slowest hundredth",
                "One batch in a hundred is slower. A tail of commit alone is a disk that pauses: look at its "
                "queue before anything else.",
                unit=SECONDS,
                steps=rising(0.25, 1),
                empty="No command has come",
            ),
            *(Query(quantile(0.99, name), part) for part, name in parts.items()),
        ),
        lines(
            Face(
                "Loop's lag",
                "Age of the oldest command that is not answered. It returns to nothing many times a second; a "
                "line that stays up is a loop that is behind.",
                unit=SECONDS,
                steps=rising(1, 5),
            ),
            Query("max(orchestrator_loop_lag_seconds)", "lag"),
        ),
        *_load(),
    )


def _load() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Commands and events",
                "Commands decided and events committed, a second. Many more commands than usual from nowhere: "
                "see Refusals and Requests.",
                unit=units.OpsPerSecond,
            ),
            Query("sum(rate(orchestrator_loop_commands_total[$__rate_interval]))", "commands"),
            Query("sum(rate(orchestrator_loop_events_total[$__rate_interval]))", "events"),
        ),
        lines(
            Face(
                "Inbox",
                "Commands that wait to be decided. The inbox is bounded: when it is full callers are told to come "
                "back.",
            ),
            Query("sum(orchestrator_loop_inbox_commands)", "waiting"),
        ),
        lines(
            Face(
                "Share of each second",
                "Time spent deciding and committing, of each second. Near 1 there is no room left: what comes "
                "more waits.",
                unit=RATIO,
                high=1,
                steps=rising(0.5, 0.8),
            ),
            Query("sum(rate(orchestrator_loop_decide_seconds_sum[$__rate_interval]))", "decide"),
            Query("sum(rate(orchestrator_loop_commit_seconds_sum[$__rate_interval]))", "commit"),
        ),
    )


def _process() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Processor",
                "Cores that the control plane's process uses. It decides on one thread: steady near 1 is the end "
                "of what one can do.",
                unit=COUNT,
                steps=rising(0.8, 1.2),
            ),
            Query(of_control_plane("rate(process_cpu_seconds_total[$__rate_interval])"), "cores"),
        ),
        lines(
            Face(
                "Memory",
                "Resident memory of the control plane's process. It follows the fleet and the jobs that are not "
                "deleted; a line that only rises for days is a leak.",
                unit=BYTES,
            ),
            Query(of_control_plane("process_resident_memory_bytes"), "resident"),
        ),
        lines(
            Face(
                "Open files and sockets",
                "Descriptors of the control plane's process, to those it may have. One for each session and "
                "bridge: near the limit newcomers are refused. Raise the limit of open files.",
                unit=RATIO,
                high=1,
                steps=rising(0.7, 0.9),
            ),
            Query(of_control_plane("process_open_fds / process_max_fds"), "open"),
        ),
    )


def _books() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Receipts",
                "Receipts that were sealed, signed and posted, a minute. Posted below sealed for long: the outbox "
                "grows, and the ledger does not take them.",
                unit=PER_MINUTE,
                empty="No receipt has been sealed yet",
                width=6,
            ),
            Query(per_minute("orchestrator_receipts_total", "state"), "{{state}}"),
        ),
        lines(
            Face(
                "Outbox",
                "Receipts that are not in the ledger yet. It fills when an hour closes and is empty minutes "
                "later; one that stays is a ledger that is away.",
                width=6,
            ),
            Query("sum(orchestrator_receipts_unposted)", "receipts"),
        ),
        lines(
            Face(
                "Books",
                "Receipts that are known to one side only, and debits less credits in microcredits. Both are 0, "
                "always; anything else is in the runbook.",
                low=None,
                width=6,
            ),
            Query("sum(orchestrator_receipts_unaccounted)", "receipts unaccounted"),
            Query("sum(orchestrator_ledger_imbalance_microcredits)", "imbalance"),
        ),
        lines(
            Face(
                "Billed and disputed",
                "Device time of sealed receipts and what workers never stated of it, as devices in use. Disputed "
                "time of one class is its suppliers' clocks or lines.",
                empty="Nothing has been billed yet",
                width=6,
            ),
            Query(
                "sum by (hardware_class) (rate(orchestrator_billed_seconds_total[$__rate_interval]))",
                "billed {{hardware_class}}",
            ),
            Query("sum(rate(orchestrator_disputed_seconds_total[$__rate_interval]))", "disputed"),
        ),
    )


def _ways() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Tunnels between machines",
                "Each counted at both ends: direct, relayed over UDP where two NATs are in the way, or bridged over "
                "TLS where UDP does not pass. A rise of bridged is a beacon that UDP does not reach: look at its "
                "service and firewall. Much relayed is load on the beacons.",
                empty="No agent reports tunnels",
            ),
            Query("sum by (way) (orchestrator_overlay_tunnels)", "{{way}}"),
            stacked=True,
        ),
        lines(
            Face(
                "Bridge's room",
                "Connections at the bridge to those it takes. Full: machines behind strict networks find no way "
                "in. Give it more room, or mend UDP.",
                unit=RATIO,
                high=1,
                steps=rising(0.7, 0.9),
            ),
            Query("max(orchestrator_relay_capacity_ratio)", "used"),
        ),
        lines(
            Face(
                "Bytes over the bridge",
                "What the bridge carries. It is paid twice, in and out; much of it is jobs whose machines cannot "
                "reach each other directly.",
                unit=units.BytesPerSecondIEC,
                empty="The bridge has carried nothing",
            ),
            Query(
                "sum by (direction) (rate(orchestrator_relay_bytes_total[$__rate_interval]))", "{{direction}}"
            ),
        ),
        lines(
            Face(
                "Bridge's connections and losses",
                "Connections, and datagrams let go a minute because a line could not keep up. Losses that grow "
                "with the connections: the bridge's own line is full.",
            ),
            Query("sum(orchestrator_relay_connections)", "connections"),
            Query(
                "60 * sum(rate(orchestrator_relay_dropped_datagrams_total[$__rate_interval]))",
                "dropped a minute",
            ),
        ),
        *_certificates(),
    )


def _certificates() -> tuple[Panel, ...]:
    return (
        rows(
            Face(
                "The network's certificates",
                "Until each runs out. All but the authority renew themselves; the authority is renewed by the "
                "operator, with months to spare. When each is late is told by the figures above.",
            ),
            {"certificate": "Certificate"},
            (
                Column(
                    "Left",
                    "min by (certificate) (orchestrator_certificate_remaining_seconds)",
                    SECONDS,
                    decimals=1,
                ),
            ),
            descending=False,
        ),
        rows(
            Face(
                "Workers' certificates that run out first",
                "The ten workers whose certificates have least left. They are renewed over the session: a short "
                "one is a worker that was away, and gets another when it comes back.",
                empty="No worker has joined",
            ),
            {"worker": "Worker"},
            (
                Column(
                    "Left",
                    "bottomk(10, min by (worker) (orchestrator_worker_certificate_remaining_seconds))",
                    SECONDS,
                    LIVES,
                    1,
                ),
            ),
            descending=False,
        ),
    )


def _doors() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Refusals",
                "Calls and sessions refused a minute, by door and code. A single door that refuses much is an old "
                "token, a stolen one, or somebody who tries.",
                unit=PER_MINUTE,
                empty="Nobody has been refused",
                width=6,
            ),
            Query(per_minute("orchestrator_refusals_total", "door, code"), "{{door}} {{code}}"),
        ),
        lines(
            Face(
                "Requests at the gateway",
                "Answers a second. Its errors and the time it takes stand on Clusters and jobs.",
                unit=units.RequestsPerSecond,
                empty="No request has come",
                width=6,
            ),
            Query("sum(rate(orchestrator_gateway_request_seconds_count[$__rate_interval]))", "answers"),
            Query(
                or_zero(
                    'sum(rate(orchestrator_gateway_request_seconds_count{status=~"5.."}[$__rate_interval]))'
                ),
                "errors",
            ),
        ),
        lines(
            Face(
                "Scrapes through sessions",
                "Scrapes of agents and Ray nodes a minute, by outcome. Away is a worker without a session; "
                "refused and timeout that stay are agents to look at.",
                unit=PER_MINUTE,
                empty="Prometheus does not read /sd/agents and /sd/ray",
                width=6,
            ),
            Query(per_minute("orchestrator_scrapes_total", "outcome"), "{{outcome}}"),
        ),
        lines(
            Face(
                "How long scrapes take",
                "The slowest twentieth, by what is scraped. Prometheus gives up after its own timeout: above it "
                "there are gaps in agents' panels.",
                unit=SECONDS,
                steps=rising(5, 10),
                empty="Prometheus does not read /sd/agents and /sd/ray",
                width=6,
            ),
            Query(quantile(0.95, "orchestrator_scrape_seconds", "target"), "{{target}}"),
        ),
    )
