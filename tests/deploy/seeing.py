"""Dashboards' queries asked of a real Prometheus, for tests that cannot wait for minutes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.local.prometheus import Asked
from tests.deploy.dashboards import Query, filled
from tests.deploy.promql import RULES

ALWAYS = {"alert": "OrchestratorAlways", "expr": "vector(1)", "labels": {"severity": "info"}}
"""Fires in every network, so that what is shown of alerts has something to show."""


def rules(folder: Path) -> list[Path]:
    """Files in ``folder`` with all rules of the chart, each of them worked out every second."""
    written = []
    for source in sorted(RULES.glob("*.yaml")):
        groups = yaml.safe_load(source.read_text(encoding="utf-8"))["groups"]
        path = folder / f"{source.stem}.json"
        path.write_text(
            json.dumps({"groups": [{**group, "interval": "1s"} for group in groups]}), encoding="utf-8"
        )
        written.append(path)
    always = folder / "always.json"
    always.write_text(json.dumps({"groups": [{"name": "always", "rules": [ALWAYS]}]}), encoding="utf-8")
    return [*written, always]


VARIABLES = {
    "hardware_class": ".*",
    "supplier": ".*",
    "ray_io_cluster": ".*",
    # Five scrapes, a second apart: Grafana takes four at least.
    "__rate_interval": "5s",
}
"""As Grafana fills them in where nothing was chosen."""


LONGEST = 'orchestrator_group_rtt_seconds{stat="longest"}'
LOSS = "orchestrator_group_loss_ratio"
WORST = "({0}) and on (group) topk(5, max_over_time(({0})[$__range:$__rate_interval] @ end()))"

OF_AN_OVERLAY = (
    (
        "Groups",
        'sum by (group, model, hardware_class) (orchestrator_group_workers{hardware_class=~"$hardware_class"})',
    ),
    ("Groups", 'sum by (group) (orchestrator_group_rtt_seconds{stat="median"})'),
    ("Groups", f"sum by (group) ({LONGEST})"),
    ("Groups", f"sum by (group) ({LOSS})"),
    ("Longest round trips within groups", WORST.format(LONGEST)),
    ("Loss within groups", WORST.format(LOSS)),
    (
        "Next certificates to run out",
        'min(orchestrator_certificate_remaining_seconds{certificate=~"overlay"})',
    ),
)
"""By title of its panel and expression: what only a network with an overlay has, over which its ways are measured."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A network that is scraped every second, and the time that is looked at."""

    prometheus: Asked
    begin_s: float
    end_s: float

    def answer(self, query: Query, **chosen: str) -> list[dict[str, Any]]:
        """What a panel would be given."""
        span_s = f"{math.ceil(self.end_s - self.begin_s)}s"
        expr = filled(query.expr, {**VARIABLES, "__range": span_s, **chosen})
        if query.instant:
            return self.prometheus.at(expr, self.end_s)
        return self.prometheus.over(expr, self.begin_s, self.end_s, 1)

    def shows(self, query: Query) -> bool:
        """Whether a panel would show any figure."""
        pairs = (pair for one in self.answer(query) for pair in one.get("values", [one.get("value")]))
        return any(math.isfinite(float(value)) for _, value in pairs)
