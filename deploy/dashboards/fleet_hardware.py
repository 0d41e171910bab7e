"""Panels of Fleet health, its lower half: groups, devices, and the agents of the machines they are in."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from deploy.dashboards.panels import (
    BYTES,
    PER_MINUTE,
    RATIO,
    SECONDS,
    Column,
    Face,
    Panel,
    Query,
    bars,
    falling,
    highest,
    lines,
    none_of_it,
    per_minute,
    rising,
    rows,
)

CLASS = 'hardware_class=~"$hardware_class"'
OWNED = f'{CLASS}, supplier=~"$supplier"'
CHOSEN = f"on (worker) group_left () orchestrator_worker_info{{{OWNED}}}"
"""Keeps what belongs to the chosen workers: the info is always 1."""

NAMED = f"on (worker) group_left (name) orchestrator_worker_info{{{OWNED}}}"
"""The same, with the worker's name."""


def groups() -> tuple[Panel, ...]:
    """Workers alike and near."""
    return (
        rows(
            Face(
                "Groups",
                "Workers alike and near that may form one cluster. A long way or loss in a group slows every "
                "all-reduce in it; its workers' lines are what to look at.",
                empty="There is no group of two workers or more",
                width=12,
            ),
            {"group": "Group", "model": "Model", "hardware_class": "Class"},
            (
                Column(
                    "Workers",
                    f"sum by (group, model, hardware_class) (orchestrator_group_workers{{{CLASS}}})",
                ),
                Column("Median way", _of_group("median"), SECONDS, rising(0.02, 0.05), 1),
                Column("Longest way", _of_group("longest"), SECONDS, rising(0.05, 0.1), 1),
                Column(
                    "Loss", "sum by (group) (orchestrator_group_loss_ratio)", RATIO, rising(0.01, 0.03), 1
                ),
            ),
        ),
        lines(
            Face(
                "Longest round trips within groups",
                "The five groups with the longest measured round trip. A step is a changed route; grouping follows "
                "it by itself within minutes.",
                unit=SECONDS,
                steps=rising(0.05, 0.1),
                empty="There is no group of two workers or more",
                width=6,
            ),
            Query(highest(5, 'orchestrator_group_rtt_seconds{stat="longest"}', "group"), "group {{group}}"),
        ),
        lines(
            Face(
                "Loss within groups",
                "The five groups that lose most probes. From 1 % collectives stall now and then, from 3 % jobs "
                "notice: look at the lines of its workers.",
                unit=RATIO,
                steps=rising(0.01, 0.03),
                empty="There is no group of two workers or more",
                width=6,
            ),
            Query(highest(5, "orchestrator_group_loss_ratio", "group"), "group {{group}}"),
        ),
    )


def _of_group(stat: str) -> str:
    return f'sum by (group) (orchestrator_group_rtt_seconds{{stat="{stat}"}})'


def _trouble(expr: str) -> str:
    return f"sum by (worker, device, name) ({expr} * {NAMED})"


def _spread(metric: str, share: float, chosen: str = CHOSEN) -> str:
    return f"quantile({share}, {metric} * {chosen})"


def devices() -> tuple[Panel, ...]:
    """What devices say of themselves."""
    return (
        lines(
            Face(
                "Hottest devices",
                "The ten hottest devices, by their numbers in `orch worker show`. From 80 °C many slow down, "
                "from 90 °C they age: tell the owner to look at the fans.",
                unit=units.Celsius,
                low=None,
                steps=rising(80, 90),
                width=12,
                empty="No device reports its temperature",
            ),
            Query(
                highest(10, f"orchestrator_device_temperature_celsius * {NAMED}", "worker, device"),
                "{{name}}, device {{device}}",
            ),
            table_legend=True,
        ),
        rows(
            Face(
                "Devices in trouble",
                "Devices with uncorrected memory errors, with an error of their driver, or running slower than "
                "they could. Errors: cordon the worker and ask its owner; throttled: heat or power.",
                empty="No device is in trouble",
                width=12,
            ),
            {"name": "Worker", "device": "Device"},
            (
                Column(
                    "Memory errors", _trouble("(orchestrator_device_ecc_uncorrected > 0)"), steps=none_of_it()
                ),
                Column(
                    "Driver's error",
                    _trouble("(orchestrator_device_last_xid > 0)"),
                    units.NoUnit,
                    none_of_it(),
                ),
                Column(
                    "Throttled", _trouble("(orchestrator_device_throttled > 0)"), steps=none_of_it("orange")
                ),
            ),
        ),
        *_device_work(),
    )


def _device_work() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "How busy devices are",
                "The least, the median and the busiest tenth of devices. Leased GPUs that are idle are tenants "
                "paying for nothing: their jobs wait for data or for each other.",
                unit=RATIO,
                high=1,
                empty="No device reports",
                width=6,
            ),
            Query(_spread("orchestrator_device_utilization_ratio", 0.1), "10 %"),
            Query(_spread("orchestrator_device_utilization_ratio", 0.5), "median"),
            Query(_spread("orchestrator_device_utilization_ratio", 0.9), "90 %"),
        ),
        lines(
            Face(
                "Power of devices",
                "What all chosen devices draw. It follows the work; power without leases is somebody else's work "
                "on the machines.",
                unit=units.Watt,
                empty="No device reports",
                width=6,
            ),
            Query(f"sum(orchestrator_device_power_watts * {CHOSEN})", "power"),
        ),
        lines(
            Face(
                "Memory in use",
                "Memory of the chosen workers and of their devices that is in use. Devices' memory without leases "
                "is somebody else's work, or a process that did not end.",
                unit=BYTES,
                empty="No worker reports",
                width=6,
            ),
            Query(f"sum(orchestrator_worker_memory_used_bytes * {CHOSEN})", "machines"),
            Query(f"sum(orchestrator_device_memory_used_bytes * {CHOSEN})", "devices"),
        ),
        lines(
            Face(
                "Faults that agents reported",
                "Faults of devices, by kind. Single ones are put right by the agent; one kind that repeats is a "
                "bad GPU: Devices in trouble says which.",
                unit=PER_MINUTE,
                empty="No fault was reported since the control plane was scraped first",
                width=6,
            ),
            Query(per_minute("orchestrator_device_faults_total", "kind"), "{{kind}}"),
        ),
    )


def agents() -> tuple[Panel, ...]:
    """What agents say of their machines and themselves."""
    return (
        rows(
            Face(
                "Disks that are nearly full",
                "The ten agents with the least room for scratch and runtimes. Below 20 GiB members cannot be "
                "prepared: ask the owner for room.",
                empty="No agent is scraped",
            ),
            {"worker": "Worker", "hardware_class": "Class"},
            (
                Column(
                    "Free",
                    f"bottomk(10, sum by (worker, hardware_class) (orchestrator_agent_disk_free_bytes{{{OWNED}}}))",
                    BYTES,
                    falling(20 * 2**30, 50 * 2**30),
                ),
            ),
            descending=False,
        ),
        lines(
            Face(
                "Acknowledged heartbeats",
                "From a heartbeat's sending to its acknowledgement, median and slowest of twenty. Slow for all is "
                "the control plane's loop; for some it is their lines.",
                unit=SECONDS,
                steps=rising(1, 5),
                empty="No agent is scraped",
            ),
            Query(f"quantile(0.5, orchestrator_agent_heartbeat_rtt_seconds{{{OWNED}}})", "median"),
            Query(f"quantile(0.95, orchestrator_agent_heartbeat_rtt_seconds{{{OWNED}}})", "95 %"),
        ),
        lines(
            Face(
                "Agents that connect anew",
                "Sessions that an agent began within a quarter of an hour, of the five with most. More than one "
                "now and then is a line that breaks or a proxy that cuts.",
                empty="No agent is scraped",
            ),
            # An agent without a session is not scraped: a shorter window would see nothing of what it is for.
            Query(
                highest(
                    5,
                    f"sum by (worker) (increase(orchestrator_agent_sessions_total{{{OWNED}}}[15m]))",
                    "worker",
                ),
                "{{worker}}",
            ),
        ),
        bars(
            Face(
                "Agents' versions",
                "How many agents run which version. Old ones long after a release: their owners switched updates "
                "off.",
                empty="No agent is scraped",
            ),
            Query(f"sort_desc(count by (version) (orchestrator_agent_build_info{{{OWNED}}}))", "{{version}}"),
        ),
        *_machine_work(),
    )


def _machine_work() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "How busy machines are",
                "Processors of the chosen workers: median and busiest tenth. Busy without GPUs in use is data "
                "loading, or the owner's own work.",
                unit=RATIO,
                high=1,
                empty="No worker reports",
            ),
            Query(_spread("orchestrator_worker_cpu_utilization_ratio", 0.5), "median"),
            Query(_spread("orchestrator_worker_cpu_utilization_ratio", 0.9), "90 %"),
        ),
        lines(
            Face(
                "Statements that wait",
                "Signed statements that the control plane has not acknowledged, over all chosen agents. They "
                "are the suppliers' money: a rise that stays means sessions or the loop do not take them.",
                steps=rising(100, 1000),
                empty="No agent is scraped",
            ),
            Query(f"sum(orchestrator_agent_statements_unacknowledged{{{OWNED}}})", "waiting"),
        ),
    )
