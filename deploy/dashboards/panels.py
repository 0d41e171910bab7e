"""What all dashboards are made of: panels that read alike, units, colours, links and variables.

A panel is made from a ``Face`` (title, what it is and what to do, unit, limits) and queries. Nothing here knows a metric
but those that say whether the control plane is scraped at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel: TypeAlias = stat.Panel | timeseries.Panel | bargauge.Panel | table.Panel
Drawn = TypeVar("Drawn", stat.Panel, timeseries.Panel, bargauge.Panel, table.Panel)

RATIO = units.PercentUnit
"""0 to 1, shown as a percentage."""

COUNT = units.Short
SECONDS = units.Seconds
BYTES = units.BytesIEC
PER_MINUTE = units.CountsPerMinute

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

DASHBOARDS = {
    "orchestrator-fleet": "Fleet health",
    "orchestrator-clusters": "Clusters and jobs",
    "orchestrator-scheduling": "Scheduling",
    "orchestrator-control-plane": "Control plane",
}
"""All there are, by the uid that links and bookmarks hold on to."""

STATE_COLOURS: dict[str, dict[str, str]] = {
    "liveness": {"live": "green", "suspect": "yellow", "lost": "red", "left": "text"},
    "state": {
        "free": "green",
        "leased": "blue",
        "reserved": "purple",
        "held": "orange",
        "unreachable": "red",
    },
    "phase": {
        "preparing": "light-blue",
        "starting_head": "blue",
        "joining": "purple",
        "ready": "green",
        "closing": "orange",
        "total": "text",
    },
    "status": {
        "PENDING": "yellow",
        "RUNNING": "blue",
        "SUCCEEDED": "green",
        "STOPPED": "text",
        "FAILED": "red",
    },
    "outcome": {
        "ready": "green",
        "succeeded": "green",
        "ok": "green",
        "stopped": "text",
        "failed": "red",
        "ground": "orange",
    },
    "way": {"direct": "green", "bridged": "orange"},
}
"""One colour for one state, wherever it is drawn; by the label that holds it."""

FIGURE_PIXELS = 36
"""Readable from a wall, and leaves half of the panel to what was before."""

FIGURES_PIXELS = 18
"""Of several in one panel: three with their names below each other fit where one does."""

NAME_PIXELS = 13
"""As panels' titles."""

ROW_WIDTH = 24
"""Grafana's grid has 24 columns."""


@dataclass(frozen=True, slots=True)
class Face:
    """What a panel says of itself.

    Attributes:
        title: What is shown, without the unit.
        text: What it is, what is bad and what to do then.
        unit: One of Grafana's.
        steps: Colours from values up, the first without a value; none: nothing is known to be bad.
        low: Least value of the axis or bar.
        high: Largest value of the axis or bar; none: as the data have it.
        decimals: None: as the values ask for.
        empty: What stands there while there are no data.
        width: Columns of the grid.
        height: Rows of the grid.
    """

    title: str
    text: str
    unit: str = COUNT
    steps: tuple[models.Threshold, ...] = ()
    low: float | None = 0
    high: float | None = None
    decimals: int | None = None
    empty: str = "No data: is the control plane scraped?"
    width: int = 8
    height: int = 8


@dataclass(frozen=True, slots=True)
class Query:
    """One query and how its series are named; ``steps`` where its figure has colours of its own."""

    expr: str
    legend: str = ""
    steps: tuple[models.Threshold, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table that shows values; what is not given is as the table's face has it."""

    name: str
    expr: str
    unit: str = COUNT
    steps: tuple[models.Threshold, ...] = ()
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A row of a dashboard: a heading and its panels, which fill whole lines of the grid."""

    title: str
    panels: tuple[Panel, ...]


def rising(warning: float, critical: float) -> tuple[models.Threshold, ...]:
    """The more, the worse: green, from ``warning`` yellow, from ``critical`` red."""
    return (
        models.Threshold(None, "green"),
        models.Threshold(warning, "yellow"),
        models.Threshold(critical, "red"),
    )


def falling(critical: float, warning: float) -> tuple[models.Threshold, ...]:
    """The less, the worse: red, from ``critical`` yellow, from ``warning`` green."""
    return (
        models.Threshold(None, "red"),
        models.Threshold(critical, "yellow"),
        models.Threshold(warning, "green"),
    )


def none_of_it(colour: str = "red") -> tuple[models.Threshold, ...]:
    """Nothing is green, anything is ``colour``."""
    return (models.Threshold(None, "green"), models.Threshold(1, colour))


def neutral(colour: str = "blue") -> tuple[models.Threshold, ...]:
    """One colour: no value of it is good or bad by itself."""
    return (models.Threshold(None, colour),)


def or_zero(expr: str) -> str:
    """Zero where nothing was counted, and no data at all where the control plane is not scraped."""
    return f"({expr}) or 0 * max(orchestrator_build_info)"


def per_minute(counter: str, by: str, matchers: str = "") -> str:
    """How often a minute, by labels."""
    return f"60 * sum by ({by}) (rate({counter}{{{matchers}}}[$__rate_interval]))"


def highest(number: int, series: str, of: str) -> str:
    """The series that were highest over the range, the same ones at every point of it.

    Args:
        number: How many.
        series: A selector, or what is shown of it.
        of: The labels that a series is known by.
    """
    return f"({series}) and on ({of}) topk({number}, max_over_time(({series})[$__range:$__rate_interval] @ end()))"


def quantile(share: float, histogram: str, by: str = "", matchers: str = "", window: str = "") -> str:
    """A quantile of a histogram over a window, which is the rate interval unless something happens seldom."""
    labels = f"le, {by}" if by else "le"
    rate = f"rate({histogram}_bucket{{{matchers}}}[{window or '$__rate_interval'}])"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate}))"


def mean(histogram: str, window: str = "") -> str:
    """The mean of a histogram over a window."""
    window = window or "$__rate_interval"
    return f"sum(rate({histogram}_sum[{window}])) / sum(rate({histogram}_count[{window}]))"


def of_control_plane(metric: str) -> str:
    """A metric of the process that shows ``orchestrator_build_info``, whatever its job is called."""
    return f"{metric} and on (job, instance) orchestrator_build_info"


def number(face: Face, says: str, expr: str, *, spark: bool = True) -> stat.Panel:
    """One figure, coloured by its steps, with a word of what it is of above it and its course below.

    It never has both ends of an axis: the course that Grafana draws behind it fails on a range that is given whole.
    """
    if spark and face.high is not None:
        raise ValueError(f"{face.title}: a figure with a course takes no largest value")
    panel = _figures(FIGURE_PIXELS)
    panel.graph_mode(kinds.BigValueGraphMode.AREA if spark else kinds.BigValueGraphMode.NONE)
    # With a name and not wide, Grafana puts the figure over its course and not on it.
    panel.wide_layout(False)
    return _faced(panel, face).with_target(_query("A", Query(expr, says), instant=not spark))


def numbers(face: Face, *queries: Query) -> stat.Panel:
    """Figures below each other, each coloured by its query's steps beside its name."""
    panel = _figures(FIGURES_PIXELS)
    panel.graph_mode(kinds.BigValueGraphMode.NONE).wide_layout(True)
    panel.orientation(kinds.VizOrientation.HORIZONTAL)
    _faced(panel, face)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_query(letter, query, instant=True))
        if query.steps:
            panel.override_by_name(query.legend, [_colours(query.steps)])
    return panel


def _figures(pixels: int) -> stat.Panel:
    panel = (
        stat.Panel()
        .color_mode(kinds.BigValueColorMode.VALUE)
        .text_mode(kinds.BigValueTextMode.VALUE_AND_NAME)
    )
    panel.text(common.VizTextDisplayOptions().value_size(pixels).title_size(NAME_PIXELS))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))


def lines(face: Face, *queries: Query, stacked: bool = False, table_legend: bool = False) -> timeseries.Panel:
    """Series over time; stacked where they add up to a whole."""
    panel = timeseries.Panel().line_width(1).show_points(kinds.VisibilityMode.NEVER)
    panel.fill_opacity(35 if stacked else 8)
    if stacked:
        panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if face.steps:
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        )
    legend = common.VizLegendOptions().show_legend(True).placement(kinds.LegendPlacement.BOTTOM)
    if table_legend:
        legend.display_mode(kinds.LegendDisplayMode.TABLE).placement(kinds.LegendPlacement.RIGHT)
        legend.calcs(["lastNotNull", "max"]).sort_by("Last *").sort_desc(True)
    else:
        legend.display_mode(kinds.LegendDisplayMode.LIST).calcs([])
    panel.legend(legend)
    panel.tooltip(
        common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
    )
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    for query in queries:
        for name, colour in STATE_COLOURS.get(query.legend.strip("{}"), {}).items():
            panel.override_by_name(name, [_fixed(colour)])
    _faced(panel, face)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_query(letter, query, instant=False))
    return panel


def bars(face: Face, *queries: Query) -> bargauge.Panel:
    """What things are now, side by side."""
    panel = bargauge.Panel().orientation(kinds.VizOrientation.HORIZONTAL)
    panel.display_mode(kinds.BarGaugeDisplayMode.BASIC).value_mode(kinds.BarGaugeValueMode.TEXT)
    panel.name_placement(kinds.BarGaugeNamePlacement.LEFT).show_unfilled(True)
    panel.sizing(kinds.BarGaugeSizing.MANUAL).min_viz_height(16).max_viz_height(32)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    _faced(panel, face)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_query(letter, query, instant=True))
    return panel


def rows(
    face: Face,
    names: Mapping[str, str],
    columns: Sequence[Column],
    *,
    descending: bool = True,
    widths: Mapping[str, int] | None = None,
) -> table.Panel:
    """A table of what is now: a row for each set of labels, sorted by the first column of values.

    Args:
        face: The table's own; its unit counts where a column names none.
        names: The labels that are shown, in their order, by their headings. All columns' queries share at least one.
        columns: What stands beside them.
        descending: Whether the largest comes first.
        widths: Pixels of headings that need more or less than their share.
    """
    panel = table.Panel().show_header(True).cell_height(kinds.TableCellHeight.SM)
    panel.sort_by([common.TableSortByFieldState().display_name(columns[0].name).desc(descending)])
    _faced(panel, face)
    values = {f"Value #{letter}": column for letter, column in zip("ABCDEFGH", columns, strict=False)}
    if len(columns) == 1:
        values = {"Value": columns[0]}
    shown = [*names, *values]
    panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    # What is not named is hidden by what is: a label that a target brings along needs no word here.
    panel.with_transformation(
        models.DataTransformerConfig("filterFieldsByName", options={"include": {"names": shown}})
    )
    panel.with_transformation(
        models.DataTransformerConfig(
            "organize",
            options={
                "excludeByName": {},
                "indexByName": {name: index for index, name in enumerate(shown)},
                "renameByName": {**names, **{value: column.name for value, column in values.items()}},
            },
        )
    )
    for letter, column in zip("ABCDEFGH", columns, strict=False):
        panel.with_target(_query(letter, Query(column.expr), instant=True, as_table=True))
        panel.override_by_name(column.name, _column_look(column))
    for name, width in (widths or {}).items():
        panel.override_by_name(name, [models.DynamicConfigValue("custom.width", width)])
    return panel


def _column_look(column: Column) -> list[models.DynamicConfigValue]:
    look = [models.DynamicConfigValue("unit", column.unit)]
    # The table's own words are for a table without rows.
    look.append(models.DynamicConfigValue("noValue", "–"))
    if column.decimals is not None:
        look.append(models.DynamicConfigValue("decimals", column.decimals))
    if column.steps:
        look.append(_colours(column.steps))
        look.append(models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
    return look


def _colours(steps: Sequence[models.Threshold]) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(
        "thresholds", models.ThresholdsConfig(models.ThresholdsMode.ABSOLUTE, list(steps))
    )


def _fixed(colour: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})


def _query(letter: str, query: Query, *, instant: bool, as_table: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().ref_id(letter).expr(query.expr).datasource(SOURCE)
    made.legend_format(query.legend or "__auto")
    made.format(PromQueryFormat.TABLE if as_table else PromQueryFormat.TIME_SERIES)
    return made.instant() if instant else made.range()


def _faced(panel: Drawn, face: Face) -> Drawn:
    panel.title(face.title).description(face.text).unit(face.unit).no_value(face.empty)
    panel.datasource(SOURCE).span(face.width).height(face.height)
    if face.low is not None:
        panel.min(face.low)
    if face.high is not None:
        panel.max(face.high)
    if face.decimals is not None:
        panel.decimals(face.decimals)
    steps = list(face.steps or neutral())
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    return panel


def choice(name: str, label: str, metric: str, text: str) -> dashboard.QueryVariable:
    """A variable: values of a label of a metric, all of them unless some are chosen."""
    query = {"qryType": 1, "query": f"label_values({metric}, {name})", "refId": name}
    variable = dashboard.QueryVariable(name).label(label).description(text).datasource(SOURCE).query(query)
    variable.multi(True).include_all(True).all_value(".*").sort(models.VariableSort.ALPHABETICAL_ASC)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))


def compose(
    uid: str, text: str, variables: Iterable[dashboard.QueryVariable], sections: Iterable[Section]
) -> str:
    """A dashboard as the JSON that Grafana reads: the same bytes for the same dashboard.

    Raises:
        ValueError: A line of the grid is not filled, so what follows would not stand where it should.
    """
    made = dashboard.Dashboard(DASHBOARDS[uid]).uid(uid).description(text).tags(["orchestrator"])
    made.time("now-6h", "now").refresh("30s").timezone("browser").readonly()
    made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    made.with_variable(source)
    for variable in variables:
        made.with_variable(variable)
    for other, title in DASHBOARDS.items():
        if other != uid:
            link = dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).url(f"/d/{other}")
            made.link(link.icon("dashboard").keep_time(True).include_vars(True))
    made.annotation(_starts())
    identity = 0
    for section in sections:
        identity += 1
        made.with_row(dashboard.Row(section.title).id(identity))
        filled = 0
        for panel in section.panels:
            identity += 1
            made.with_panel(panel.id(identity))
            filled += _width(panel)
        if filled % ROW_WIDTH:
            raise ValueError(f"{DASHBOARDS[uid]}: {section.title!r} fills {filled} columns, not whole lines")
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _width(panel: Panel) -> int:
    position = panel.build().grid_pos
    return position.w if position else 0


def _starts() -> dashboard.AnnotationQuery:
    """Where the control plane began anew: counters begin at nothing there, and leases are heard of again."""
    expr = of_control_plane("(changes(process_start_time_seconds[2m]) > 0)")
    query = dashboard.AnnotationQuery().name("Starts of the control plane").datasource(SOURCE).enable(True)
    return query.icon_color("purple").expr(expr)
