"""Clusters and jobs: do clusters form, do jobs end well, and do tenants get answers?"""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from deploy.dashboards.panels import (
    PER_MINUTE,
    RATIO,
    SECONDS,
    Column,
    Face,
    Panel,
    Query,
    Section,
    choice,
    compose,
    falling,
    lines,
    neutral,
    number,
    or_zero,
    per_minute,
    quantile,
    rising,
    rows,
)

UID = "orchestrator-clusters"

SELDOM = "30m"
"""Window of what happens some times an hour: a quantile of nothing is nothing."""

SHORT = 'route!~".*tail.*"'
"""A tail is held for as long as its job runs, which says nothing of the gateway."""

CLUSTER = 'ray_io_cluster=~"$ray_io_cluster"'
NO_RAY = "No Ray node is scraped: is there a cluster, and does Prometheus read /sd/ray?"
NO_REQUEST = "No request has come"


def build() -> str:
    """The dashboard's JSON."""
    return compose(
        UID,
        "Do clusters form, do jobs end well, and do tenants get answers?",
        (
            choice(
                "ray_io_cluster",
                "Ray cluster",
                "ray_node_cpu_utilization",
                "Ray clusters whose nodes are shown.",
            ),
        ),
        (
            Section("Is work getting done?", _well()),
            Section("Formation", _formation()),
            Section("Jobs and attempts", _jobs()),
            Section("Gateway", _gateway()),
            Section("Ray nodes", _nodes()),
        ),
    )


def _well() -> tuple[Panel, ...]:
    ended = "increase(orchestrator_formations_total[1h])"
    return (
        number(
            Face(
                "Clusters that are ready",
                "Ray clusters that serve now. None while jobs run is impossible; none while jobs wait: see "
                "Formation.",
                steps=neutral(),
                width=5,
                height=5,
            ),
            "serving now",
            'sum(orchestrator_clusters{phase="ready"})',
        ),
        number(
            Face(
                "Formations that succeed, 1 h",
                "Clusters of the last hour that became ready, to all that ended forming. Below 90 % machines, "
                "runtimes or the overlay fail: see which phase takes long below.",
                unit=RATIO,
                decimals=0,
                steps=falling(0.8, 0.9),
                empty="None formed",
                width=5,
                height=5,
            ),
            "became ready",
            f'sum(increase(orchestrator_formations_total{{outcome="ready"}}[1h])) / (sum({ended}) > 0)',
        ),
        number(
            Face(
                "Time to ready, slowest tenth",
                "Nine of ten clusters of the last hour were ready sooner. Over two minutes tenants notice: a "
                "runtime that has to be built, a slow head, or members that fail and are replaced.",
                unit=SECONDS,
                decimals=1,
                steps=rising(120, 300),
                empty="None formed",
                width=5,
                height=5,
            ),
            "nine of ten were sooner",
            quantile(0.9, "orchestrator_formation_seconds", matchers='phase="total"', window="1h"),
        ),
        *_losses(),
    )


def _losses() -> tuple[Panel, ...]:
    attempts = "increase(orchestrator_attempts_total[1h])"
    errors = 'orchestrator_gateway_request_seconds_count{status=~"5.."}'
    return (
        number(
            Face(
                "Attempts lost to the ground, 1 h",
                "Attempts that a machine, a head or the overlay ended, to all that ended in the last hour. They "
                "are tried again at the network's cost: from 5 % look at Fleet health.",
                unit=RATIO,
                decimals=1,
                steps=rising(0.05, 0.15),
                empty="None ended",
                width=5,
                height=5,
            ),
            "to be tried again",
            '(sum(increase(orchestrator_attempts_total{outcome="ground"}[1h])) or 0 * max(orchestrator_build_info))'
            f" / (sum({attempts}) > 0)",
        ),
        number(
            Face(
                "Gateway's errors",
                "Answers of 500 and above, to all. Any that stay are ours: the gateway's log has each with its "
                "request id.",
                unit=RATIO,
                decimals=2,
                steps=rising(0.001, 0.01),
                empty=NO_REQUEST,
                width=4,
                height=5,
            ),
            "of all answers",
            f"({or_zero(f'sum(rate({errors}[$__rate_interval]))')}) "
            "/ (sum(rate(orchestrator_gateway_request_seconds_count[$__rate_interval])) > 0)",
        ),
    )


def _formation() -> tuple[Panel, ...]:
    form = "orchestrator_formation_seconds"
    return (
        lines(
            Face(
                "Clusters by phase",
                "Clusters that are not closed. A phase that stays wide is where formation is stuck; preparing "
                "is runtimes and boxes, joining is the overlay.",
            ),
            Query('sum by (phase) (orchestrator_clusters{phase!="closed"})', "{{phase}}"),
            stacked=True,
        ),
        lines(
            Face(
                "Time in each phase, median",
                "How long clusters of the last half hour were in each phase on their way to ready. Preparing "
                "rises with runtimes that have to be built, joining with distance.",
                unit=SECONDS,
                empty="No cluster formed in the last half hour",
            ),
            Query(quantile(0.5, form, "phase", window=SELDOM), "{{phase}}"),
        ),
        lines(
            Face(
                "Time in each phase, slowest tenth",
                "The same, for the slowest tenth: deadlines of phases end what is far above. A phase that runs "
                "into its deadline replaces members.",
                unit=SECONDS,
                steps=rising(120, 300),
                empty="No cluster formed in the last half hour",
            ),
            Query(quantile(0.9, form, "phase", window=SELDOM), "{{phase}}"),
        ),
        lines(
            Face(
                "How formations end",
                "Clusters that became ready or were given up, a minute. Failed ones cost their jobs minutes: the "
                "job's explanation names the member and the phase.",
                unit=PER_MINUTE,
                empty="No cluster has formed yet",
            ),
            Query(per_minute("orchestrator_formations_total", "outcome"), "{{outcome}}"),
            Query(
                "60 * sum(rate(orchestrator_member_replacements_total[$__rate_interval]))", "replaced members"
            ),
        ),
        lines(
            Face(
                "Leases",
                "Leases of members, by how far they are. Closing ones that stay wait for a worker's last "
                "statement: it is away, and a day later the record counts.",
            ),
            Query('sum by (state) (orchestrator_leases{state!="settled"})', "{{state}}"),
            stacked=True,
        ),
        lines(
            Face(
                "Members on agents",
                "What agents say that they have, by phase. It follows leases; more members than leases for long "
                "are members that do not end.",
                empty="No agent is scraped",
            ),
            Query("sum by (phase) (orchestrator_agent_members)", "{{phase}}"),
            stacked=True,
        ),
    )


def _jobs() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Jobs under way",
                "Jobs that wait or run. Waiting ones that grow while GPUs are free: see Scheduling.",
            ),
            Query('sum by (status) (orchestrator_jobs{status=~"PENDING|RUNNING"})', "{{status}}"),
            stacked=True,
        ),
        lines(
            Face(
                "Jobs that ended",
                "Jobs a minute, by how they ended. Failed is the tenants' code or a time limit; many of several "
                "tenants at once is ours.",
                unit=PER_MINUTE,
                empty="No job has ended yet",
            ),
            Query(per_minute("orchestrator_jobs_finished_total", "status"), "{{status}}"),
        ),
        lines(
            Face(
                "Attempts that ended",
                "Attempts a minute, by outcome. Ground: a machine, head or overlay took the attempt, and the job "
                "is tried again.",
                unit=PER_MINUTE,
                empty="No attempt has ended yet",
            ),
            Query(per_minute("orchestrator_attempts_total", "outcome"), "{{outcome}}"),
        ),
    )


def _gateway() -> tuple[Panel, ...]:
    seconds = "orchestrator_gateway_request_seconds"
    return (
        lines(
            Face(
                "Requests by status",
                "Answers a second, by status. 401 and 403 are wrong tokens, 429 is a tenant over its limits, "
                "5xx is ours.",
                unit=units.RequestsPerSecond,
                empty=NO_REQUEST,
                width=6,
            ),
            Query(f"sum by (status) (rate({seconds}_count[$__rate_interval]))", "{{status}}"),
        ),
        lines(
            Face(
                "Answers, without tails",
                "How long an answer takes. Uploads over home lines make the tail; a median above a tenth of a "
                "second is a slow disk or a busy loop: see Control plane.",
                unit=SECONDS,
                steps=rising(1, 5),
                empty=NO_REQUEST,
                width=6,
            ),
            Query(quantile(0.5, seconds, matchers=SHORT), "median"),
            Query(quantile(0.95, seconds, matchers=SHORT), "95 %"),
            Query(quantile(0.99, seconds, matchers=SHORT), "99 %"),
        ),
        rows(
            Face(
                "Routes",
                "What tenants ask for, over the range that is chosen above. A route with many errors or a long "
                "tail is where to look in the log.",
                empty=NO_REQUEST,
                width=12,
            ),
            {"method": "Method", "route": "Route"},
            (
                Column(
                    "Requests",
                    f"sum by (method, route) (increase({seconds}_count[$__range]))",
                    decimals=0,
                ),
                Column(
                    "Refused",
                    f'sum by (method, route) (increase({seconds}_count{{status=~"4.."}}[$__range]))',
                    decimals=0,
                ),
                Column(
                    "Errors",
                    f'sum by (method, route) (increase({seconds}_count{{status=~"5.."}}[$__range]))',
                    steps=rising(1, 10),
                    decimals=0,
                ),
                Column(
                    "Slowest 5 %",
                    quantile(0.95, seconds, "method, route", window="$__range"),
                    SECONDS,
                ),
            ),
            widths={"Method": 70, "Route": 250},
        ),
    )


def _nodes() -> tuple[Panel, ...]:
    """Ray's own metrics, scraped through the sessions of the workers: they count utilization in percent."""
    used, free = (
        f"sum by (ray_io_cluster) (ray_node_gram_{part}{{{CLUSTER}}})" for part in ("used", "available")
    )
    fullest = f"ray_node_mem_used{{{CLUSTER}}} / ray_node_mem_total{{{CLUSTER}}}"
    return (
        rows(
            Face(
                "Ray clusters now",
                "What Ray says of each cluster's nodes. Idle GPUs for long hold machines that others wait for; "
                "full processors beside idle GPUs are data loading that holds the job up.",
                empty=NO_RAY,
                width=12,
            ),
            {"ray_io_cluster": "Cluster"},
            (
                Column("Nodes", f"count by (ray_io_cluster) (ray_node_cpu_utilization{{{CLUSTER}}})"),
                Column("GPUs", _of_cluster("gpus_utilization"), units.Percent, decimals=0),
                Column("GPU memory", f"{used} / ({used} + {free})", RATIO, rising(0.9, 0.98), 0),
                Column("Processors", _of_cluster("cpu_utilization"), units.Percent, decimals=0),
                Column("Memory", f"max by (ray_io_cluster) ({fullest})", RATIO, rising(0.85, 0.95), 0),
                Column(
                    "Network in",
                    f"sum by (ray_io_cluster) (ray_node_network_receive_speed{{{CLUSTER}}})",
                    units.BytesPerSecondIEC,
                    decimals=0,
                ),
            ),
        ),
        lines(
            Face(
                "GPUs that Ray uses",
                "The least busy tenth of GPUs in clusters, the median and the busiest. A least that is long at "
                "nothing: a cluster in the table holds what it does not use.",
                unit=units.Percent,
                high=100,
                empty="No Ray node with a GPU is scraped",
                width=6,
            ),
            *_spread("gpus_utilization"),
        ),
        lines(
            Face(
                "Processors that Ray uses",
                "The same of nodes' processors. All high: jobs wait for processors, and machines with more of "
                "them would serve better.",
                unit=units.Percent,
                high=100,
                empty=NO_RAY,
                width=6,
            ),
            *_spread("cpu_utilization"),
        ),
        *_node_totals(),
    )


def _node_totals() -> tuple[Panel, ...]:
    fullest = f"ray_node_mem_used{{{CLUSTER}}} / ray_node_mem_total{{{CLUSTER}}}"
    return (
        lines(
            Face(
                "Ray nodes that are read",
                "Nodes that Prometheus reads. Fewer than members under way: workers' sessions are away, or their "
                "scrapes are refused (Control plane).",
                empty=NO_RAY,
            ),
            Query(f"count(ray_node_cpu_utilization{{{CLUSTER}}})", "nodes"),
        ),
        lines(
            Face(
                "Fullest memory",
                "Memory in use on the fullest Ray node. From 95 % Ray kills tasks, and the job fails by its own "
                "code.",
                unit=RATIO,
                high=1,
                steps=rising(0.85, 0.95),
                empty=NO_RAY,
            ),
            Query(f"max({fullest})", "fullest"),
        ),
        lines(
            Face(
                "Network of Ray nodes",
                "What all nodes receive. It is what all-reduce moves: near the lines' rate, the lines are what "
                "jobs wait for.",
                unit=units.BytesPerSecondIEC,
                empty=NO_RAY,
            ),
            Query(f"sum(ray_node_network_receive_speed{{{CLUSTER}}})", "received"),
        ),
    )


def _of_cluster(name: str) -> str:
    return f"avg by (ray_io_cluster) (ray_node_{name}{{{CLUSTER}}})"


def _spread(name: str) -> tuple[Query, ...]:
    shares = (("least tenth", 0.1), ("median", 0.5), ("busiest tenth", 0.9))
    return tuple(Query(f"quantile({share}, ray_node_{name}{{{CLUSTER}}})", words) for words, share in shares)
