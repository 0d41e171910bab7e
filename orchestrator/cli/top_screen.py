"""The screen of `orch top`, as lines of text: each table takes the rows and the columns for which there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from orchestrator.api.v1 import operator_pb2, overview_pb2
from orchestrator.cli.output import NONE, STYLES, clean
from orchestrator.cli.status_screen import standing_text, verdict_line
from orchestrator.cli.wording import hardware_class_name
from orchestrator.core.wording import span

GAP = "  "
"""Between two columns."""

FLEXIBLE_CELLS_MIN = 8
"""Of a column that takes what is left: less would show nothing."""

NAME_CELLS_MIN = 20
"""Of the first column: enough to tell one from another."""

SHARE = 4
"""Clusters and the queue get a quarter of the rows each, if they need them; workers the rest."""

ROWS_LEAST = 2

STALE_INTERVALS, STALE_MS = 2, 3_000
"""An answer that takes so much longer is said to be missing."""

GIB = 1 << 30

SORT_KEYS = {
    "t": "trouble",
    "g": "gpu",
    "m": "memory",
    "c": "temperature",
    "s": "silence",
    "a": "age",
    "n": "name",
}
"""Keys, and what they put the workers in order by."""

T = TypeVar("T")
Worker = overview_pb2.TopWorker
Cluster = overview_pb2.TopCluster
Job = overview_pb2.TopJob


@dataclass(frozen=True, slots=True)
class View:
    """What is shown. ``trouble`` says why it is not fresh, and ``stale_ms`` for how long there was no answer."""

    top: overview_pb2.GetTopResponse
    status: operator_pb2.GetStatusResponse
    sort: str
    interval_s: float
    trouble: str = ""
    stale_ms: int = 0


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column; those of higher ``rank`` go first where the terminal is narrow."""

    head: str
    rank: int
    text: Callable[[T], str]
    right: bool = False
    flexible: bool = False
    """It takes what the others leave; the last one of a table."""


def ratio(value: float, *, known: bool) -> str:
    """`87 %`."""
    return f"{value * 100:.0f} %" if known else NONE


def gpu_memory(one: Worker) -> str:
    """`20 of 48 GiB`."""
    if not one.gpu_memory_bytes:
        return NONE
    size = f"{one.gpu_memory_bytes / GIB:.0f} GiB"
    measured = one.HasField("gpu_utilization_ratio")
    return f"{one.gpu_memory_used_bytes / GIB:.0f} of {size}" if measured else size


def gpus_text(one: Worker, state: str) -> str:
    """`1 of 4`: GPUs in one of their states."""
    return f"{one.gpus_by_state[state]} of {one.gpus}" if one.gpus else NONE


def state_text(one: Worker) -> str:
    """Liveness and what qualifies it, shortly."""
    away = ("away",) if one.liveness == "live" and not one.connected else ()
    cordoned = (f"{one.devices_cordoned} cordoned",) if one.devices_cordoned else ()
    return ", ".join((one.liveness, *away, *one.holds, *cordoned))


def style_of(one: Worker) -> str:
    """Red for lost, yellow for what is not quite there."""
    if one.liveness == "lost":
        return "red"
    odd = one.liveness != "live" or not one.connected or bool(one.holds) or bool(one.devices_cordoned)
    return "yellow" if odd else ""


WORKERS: tuple[Column[Worker], ...] = (
    Column("WORKER", 0, lambda one: one.name),
    Column("CLASS", 6, lambda one: hardware_class_name(one.hardware_class)),
    Column("SUPPLIER", 11, lambda one: one.supplier_name),
    Column("STATE", 1, state_text),
    Column("FOR", 9, lambda one: span(one.liveness_ms), right=True),
    Column("HEARD", 7, lambda one: span(one.silence_ms) if one.HasField("silence_ms") else NONE, right=True),
    Column("UP", 13, lambda one: ratio(one.uptime_ratio, known=one.HasField("uptime_ratio")), right=True),
    Column("MODEL", 8, lambda one: one.gpu_model),
    Column("LEASED", 2, lambda one: gpus_text(one, "leased"), right=True),
    Column("FREE", 14, lambda one: gpus_text(one, "free"), right=True),
    Column(
        "GPU",
        3,
        lambda one: ratio(one.gpu_utilization_ratio, known=one.HasField("gpu_utilization_ratio")),
        right=True,
    ),
    Column("GPU MEMORY", 5, gpu_memory, right=True),
    Column(
        "TEMP",
        4,
        lambda one: f"{one.temperature_celsius:.0f} °C" if one.HasField("temperature_celsius") else NONE,
        right=True,
    ),
    Column(
        "CPU",
        10,
        lambda one: ratio(one.cpu_utilization_ratio, known=one.HasField("cpu_utilization_ratio")),
        right=True,
    ),
    Column("CLUSTERS", 12, lambda one: " ".join(one.cluster_ids), flexible=True),
)

CLUSTERS: tuple[Column[Cluster], ...] = (
    Column("CLUSTER", 0, lambda one: one.cluster_id),
    Column("PHASE", 1, lambda one: "kept warm" if one.idle else one.phase.replace("_", " ")),
    Column("IN IT", 4, lambda one: span(one.phase_ms), right=True),
    Column("AGE", 2, lambda one: span(one.age_ms), right=True),
    Column("TENANT", 3, lambda one: one.tenant_name),
    Column("CLASS", 7, lambda one: hardware_class_name(one.hardware_class)),
    Column("MACHINES", 8, lambda one: str(one.machines), right=True),
    Column("GPUS", 5, lambda one: str(one.gpus), right=True),
    Column("JOB", 6, lambda one: one.job_id),
    Column("REASON", 9, lambda one: one.reason, flexible=True),
)

QUEUE: tuple[Column[Job], ...] = (
    Column("WAITING JOB", 0, lambda one: one.job_id),
    Column("WAIT", 1, lambda one: span(one.wait_ms), right=True),
    Column("PLACE", 4, lambda one: str(one.position), right=True),
    Column("TENANT", 3, lambda one: one.tenant_name),
    Column("GPUS", 5, lambda one: str(one.gpus), right=True),
    Column("TRIES", 6, lambda one: str(one.attempts), right=True),
    Column("REASON", 2, lambda one: one.reason, flexible=True),
)


def screen(view: View, width: int, height: int | None) -> Group:
    """Lines that fit; without a ``height`` as many as there are rows, and no line about keys."""
    top = view.top
    head = list(_head(view, width))
    foot = [] if height is None else [_foot(view, width)]
    sizes = [len(top.workers), len(top.clusters), len(top.queue)]
    if height is not None:
        # Each table has a line of heads, and a blank one before it.
        sizes = shares(height - len(head) - len(foot) - 2 * len(sizes), sizes)
    lines = [
        *head,
        Text(),
        *table(WORKERS, top.workers[: sizes[0]], top.workers_total, width, style_of),
        Text(),
        *table(CLUSTERS, top.clusters[: sizes[1]], top.clusters_total, width),
        Text(),
        *table(QUEUE, top.queue[: sizes[2]], top.queue_total, width),
    ]
    if height is not None:
        lines = lines[: height - len(foot)]
        lines += [Text()] * (height - len(foot) - len(lines))
    return Group(*lines, *foot)


def shares(room: int, wanted: Sequence[int]) -> list[int]:
    """Rows of workers, clusters and queue: the last two at most a SHARE each, unless workers leave more."""
    workers, *others = wanted
    given = [min(rows, max(ROWS_LEAST, room // SHARE)) for rows in others]
    left = max(0, room - sum(given))
    rest = max(0, left - workers)
    for number, rows in enumerate(others):
        more = min(rest, rows - given[number])
        given[number] += more
        rest -= more
    return [min(workers, left), *given]


def table(
    columns: Sequence[Column[T]],
    rows: Sequence[T],
    total: int,
    width: int,
    style: Callable[[T], str] | None = None,
) -> Iterator[Text]:
    """Heads, then a line for each row; the first head says how many there are."""
    cells = [[clean(column.text(row)) or NONE for column in columns] for row in rows]
    heads = [column.head for column in columns]
    heads[0] = f"{heads[0]} ({len(rows)} of {total})" if total > len(rows) else f"{heads[0]} ({total})"
    widths = [max(map(cell_len, texts)) for texts in zip(heads, *cells, strict=True)]
    chosen = fitting(columns, widths, width)
    yield Text(_line(columns, heads, chosen), style="bold")
    for row, texts in zip(rows, cells, strict=True):
        yield Text(_line(columns, texts, chosen), style="" if style is None else style(row))


def fitting(columns: Sequence[Column[T]], widths: Sequence[int], width: int) -> dict[int, int]:
    """Cells of each column that is shown, by its number: the lowest ranks first, as long as there is room."""
    chosen: dict[int, int] = {}
    left = width
    for number in sorted(range(len(columns)), key=lambda number: columns[number].rank):
        gap = len(GAP) if chosen else 0
        least = min(widths[number], FLEXIBLE_CELLS_MIN) if columns[number].flexible else widths[number]
        if not chosen:
            least = min(widths[number], NAME_CELLS_MIN, width)
        if left < gap + least:
            continue
        chosen[number] = least
        left -= gap + least
    for number in sorted(chosen):
        more = min(left, widths[number] - chosen[number])
        chosen[number] += more
        left -= more
    return dict(sorted(chosen.items()))


def _line(columns: Sequence[Column[T]], texts: Sequence[str], chosen: dict[int, int]) -> str:
    return GAP.join(
        _cell(texts[number], cells, right=columns[number].right) for number, cells in chosen.items()
    )


def _cell(text: str, cells: int, *, right: bool) -> str:
    size = cell_len(text)
    if size > cells:
        return set_cell_size(text, cells - 1) + "…"
    return " " * (cells - size) + text if right else text + " " * (cells - size)


def _head(view: View, width: int) -> Iterator[Text]:
    """What is not well, how it stands, and whether this is fresh."""
    status = view.status
    yield _fit(verdict_line(status), width, STYLES.get(status.verdict, "bold"))
    if status.verdict != "well":
        yield _fit(standing_text(status), width, "")
    if view.trouble or view.stale_ms > STALE_INTERVALS * view.interval_s * 1000 + STALE_MS:
        yield _fit(
            f"no answer for {span(view.stale_ms)}: {view.trouble or 'still waiting for one'}",
            width,
            "bold red",
        )


def _foot(view: View, width: int) -> Text:
    said = f"every {view.interval_s:g} s · by {view.sort} · q ends · by "
    keys = ", ".join(f"{key} {name}" for key, name in SORT_KEYS.items())
    return _fit(said + (keys if len(said + keys) <= width else " ".join(SORT_KEYS)), width, "dim")


def _fit(text: str, width: int, style: str) -> Text:
    shown = clean(text)
    return Text(shown if cell_len(shown) <= width else _cell(shown, width, right=False), style=style)
