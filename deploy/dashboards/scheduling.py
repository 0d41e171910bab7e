"""Scheduling: who waits, for what, and does the plan keep up?"""

from __future__ import annotations

from deploy.dashboards.panels import (
    PER_MINUTE,
    RATIO,
    SECONDS,
    Column,
    Face,
    Panel,
    Query,
    Section,
    bars,
    choice,
    compose,
    lines,
    neutral,
    number,
    per_minute,
    quantile,
    rising,
    rows,
)

UID = "orchestrator-scheduling"

CLASS = 'hardware_class=~"$hardware_class"'

SELDOM = "30m"
"""Window of waits: jobs begin some times an hour."""

NOT_YET = "Nothing of it has happened yet"


def build() -> str:
    """The dashboard's JSON."""
    return compose(
        UID,
        "Who waits, for what, and does the plan keep up?",
        (choice("hardware_class", "Class", "orchestrator_gpus", "Hardware classes whose GPUs are shown."),),
        (
            Section("Is the queue moving?", _well()),
            Section("Queue", _queue()),
            Section("What plans do", _placing()),
            Section("Is the plan quick?", _planning()),
        ),
    )


def _well() -> tuple[Panel, ...]:
    free = 'sum(orchestrator_gpus{state="free"})'
    return (
        number(
            Face(
                "Jobs that wait",
                "Jobs that wait for machines now. A number by itself is not bad: it is when the oldest grows "
                "old or GPUs are free beside it.",
                steps=neutral(),
                width=5,
                height=5,
            ),
            "for machines",
            "sum(orchestrator_queue_jobs)",
        ),
        number(
            Face(
                "Longest wait now",
                "How long the job that waits longest has waited. Over an hour: ask why with orch job explain; "
                "it is too much for the fleet, a bound too tight, or a quota.",
                unit=SECONDS,
                decimals=1,
                steps=rising(900, 3600),
                width=5,
                height=5,
            ),
            "of the oldest job",
            "max(orchestrator_queue_oldest_seconds)",
        ),
        number(
            Face(
                "GPUs asked for, to free ones",
                "GPUs that waiting jobs ask for, to those that are free. Above 1 the fleet is too small; below 1 "
                "with jobs waiting, reasons below say what is in the way.",
                unit=RATIO,
                decimals=0,
                steps=rising(1, 3),
                empty="No GPU is free",
                width=5,
                height=5,
            ),
            "all that jobs ask for",
            f"sum(orchestrator_queue_gpus) / ({free} > 0)",
        ),
        *_pace(),
    )


def _pace() -> tuple[Panel, ...]:
    return (
        number(
            Face(
                "Wait, slowest tenth, 1 h",
                "Nine of ten jobs that began in the last hour had waited less. It is what tenants feel.",
                unit=SECONDS,
                decimals=1,
                steps=rising(300, 1800),
                empty="No job began",
                width=5,
                height=5,
            ),
            "nine of ten waited less",
            quantile(0.9, "orchestrator_job_queue_seconds", window="1h"),
        ),
        number(
            Face(
                "Plan's lag",
                "Age of the oldest change that no plan has seen. Over some seconds plans are too slow for what "
                "happens: see Is the plan quick?",
                unit=SECONDS,
                decimals=1,
                steps=rising(5, 30),
                width=4,
                height=5,
            ),
            "oldest change unplanned",
            "max(orchestrator_plan_lag_seconds)",
        ),
    )


def _queue() -> tuple[Panel, ...]:
    waited = "orchestrator_job_queue_seconds"
    return (
        lines(
            Face(
                "Waiting jobs, by reason",
                "By what the newest plan found in their way. The widest is what to put right first: more "
                "machines, a tenant's quota, or a bound that nothing meets.",
                empty="No job waits",
            ),
            Query("sum by (reason) (orchestrator_queue_jobs)", "{{reason}}"),
            stacked=True,
        ),
        lines(
            Face(
                "GPUs asked for and free",
                "GPUs that waiting jobs ask for, beside those that are free. Both high: what is free does not "
                "fit, by class, model, memory or distance.",
            ),
            Query("sum(orchestrator_queue_gpus)", "asked for"),
            Query('sum(orchestrator_gpus{state="free"})', "free"),
            Query('sum(orchestrator_gpus{state="reserved"})', "reserved"),
        ),
        lines(
            Face(
                "Longest wait",
                "How long the job that waits longest has waited. A line that rises like a clock is one job that "
                "nothing can serve: its explanation says why.",
                unit=SECONDS,
                steps=rising(900, 3600),
            ),
            Query("max(orchestrator_queue_oldest_seconds)", "oldest"),
        ),
        lines(
            Face(
                "Waits of jobs that began",
                "From submission to the first start, of jobs of the last half hour. The median is a warm "
                "cluster's seconds or a new one's minute; the tail is the queue.",
                unit=SECONDS,
                empty="No job began in the last half hour",
            ),
            Query(quantile(0.5, waited, window=SELDOM), "median"),
            Query(quantile(0.9, waited, window=SELDOM), "90 %"),
            Query(quantile(0.99, waited, window=SELDOM), "99 %"),
        ),
        bars(
            Face(
                "Free GPUs by model",
                "What can be given now, of the chosen classes. A model at 0 is where the next job of its kind "
                "waits.",
                empty="No GPU of these classes has joined",
            ),
            Query(f'sort_desc(sum by (model) (orchestrator_gpus{{state="free", {CLASS}}}))', "{{model}}"),
        ),
        lines(
            Face(
                "Reservations",
                "Reservations of machines for a time to come, by phase. Unused ones kept machines from others: "
                "speak with their tenant.",
                empty="Nothing is reserved",
            ),
            Query("sum by (phase) (orchestrator_reservations)", "{{phase}}"),
        ),
    )


def _placing() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Placements",
                "Placements planned a minute: new machines, a warm cluster, or in place of a member that failed. "
                "Many replacements are machines that do not hold what they promised.",
                unit=PER_MINUTE,
                empty=NOT_YET,
                width=6,
            ),
            Query(per_minute("orchestrator_plan_placements_total", "kind"), "{{kind}}"),
        ),
        lines(
            Face(
                "Rejections",
                "Waiting jobs of each plan a minute, by what stood in their way: a job is counted by every plan "
                "that passes it over.",
                unit=PER_MINUTE,
                empty=NOT_YET,
                width=6,
            ),
            Query(per_minute("orchestrator_plan_rejections_total", "reason"), "{{reason}}"),
        ),
        lines(
            Face(
                "Preemptions",
                "Attempts that gave way to another job, a minute. Steady ones mean that shares and demand do not "
                "fit: look at quotas.",
                unit=PER_MINUTE,
                empty=NOT_YET,
                width=6,
            ),
            Query("60 * sum(rate(orchestrator_preemptions_total[$__rate_interval]))", "preempted"),
        ),
        rows(
            Face(
                "Reasons, over the range",
                "The same rejections and what waits now, as numbers. What is high in both is what tenants feel.",
                empty=NOT_YET,
                width=6,
            ),
            {"reason": "In the way"},
            (
                Column(
                    "Passed over",
                    "sum by (reason) (increase(orchestrator_plan_rejections_total[$__range]))",
                    decimals=0,
                ),
                Column("Wait now", "sum by (reason) (orchestrator_queue_jobs)"),
            ),
            widths={"Passed over": 105, "Wait now": 80},
        ),
    )


def _planning() -> tuple[Panel, ...]:
    return (
        lines(
            Face(
                "Making a plan",
                "How long one plan takes. It grows with the queue times the fleet; over a second the lag grows "
                "with it.",
                unit=SECONDS,
                steps=rising(0.5, 1),
                empty="No plan was made",
                width=6,
            ),
            Query(quantile(0.5, "orchestrator_plan_seconds"), "median"),
            Query(quantile(0.99, "orchestrator_plan_seconds"), "99 %"),
        ),
        lines(
            Face(
                "Plan's lag",
                "Age of the oldest change that no plan has seen. Steps back to nothing are plans; a line that "
                "only rises is a planner that does not come to an end.",
                unit=SECONDS,
                steps=rising(5, 30),
                width=6,
            ),
            Query("max(orchestrator_plan_lag_seconds)", "lag"),
        ),
        lines(
            Face(
                "Plans",
                "Plans a minute, and those made again because the state had changed meanwhile. More stale than "
                "good plans: the planner chases its own tail.",
                unit=PER_MINUTE,
                empty="No plan was made",
                width=6,
            ),
            Query("60 * sum(rate(orchestrator_plan_seconds_count[$__rate_interval]))", "made"),
            Query("60 * sum(rate(orchestrator_plans_stale_total[$__rate_interval]))", "stale"),
        ),
        lines(
            Face(
                "Share of a core",
                "Time spent on planning, of one core. Near 1 the planner has no room left.",
                unit=RATIO,
                high=1,
                steps=rising(0.5, 0.8),
                empty="No plan was made",
                width=6,
            ),
            Query("sum(rate(orchestrator_plan_seconds_sum[$__rate_interval]))", "planning"),
        ),
    )
