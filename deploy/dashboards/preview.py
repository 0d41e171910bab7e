"""Takes pictures of the dashboards: ``python -m deploy.dashboards.preview [PROMETHEUS]``.

Some hours of the model fleet are written into a real Prometheus, its recording rules worked out over them, and the
page in ``preview/`` draws the chart's own JSON from it with Grafana's panel components. With the URL of a Prometheus
that scrapes a network now, it draws that one's last minutes instead.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.dashboards.build import FOLDER
from deploy.dashboards.model import Fleet
from deploy.dashboards.model_machines import HOUR_S
from deploy.dashboards.series import Labels, Sample
from deploy.local.prometheus import Prometheus, backfill

PAGE = Path(__file__).parent / "preview"
RULES = FOLDER.parent / "rules" / "uptime.yaml"
PICTURES = Path(__file__).parents[2] / "docs" / "dashboards"
LIVE_PICTURES = PICTURES / "live"

SHOWN_S = 6 * HOUR_S
"""What the dashboards show unless another range is chosen."""

LIVED_S = SHOWN_S + HOUR_S // 4
"""Rates have something to look back on where the pictures begin."""

LIVE_S = 10 * 60
"""Of a network that runs: a job and what it leaves, of `make demo KEEP=1`."""

STEP_S = 30
"""As often as a Prometheus with some thousand targets scrapes."""

RULES_ON_RULES = 4
"""The month's uptime is the fourth rule over another, and each pass sees only what the one before has written."""

NETWORK: Labels = (("job", "orchestrator"), ("instance", "control-plane:9464"))
WORKERS: Labels = (("job", "orchestrator-workers"), ("instance", "control-plane:9464"))


def history(fleet: Fleet, begin_s: int, end_s: int) -> Iterator[str]:
    """What a Prometheus would have scraped, line by line, in OpenMetrics' text."""
    for at_s in range(begin_s, end_s + 1, STEP_S):
        fleet.step(STEP_S)
        for sample in fleet.network(at_s):
            yield _line(sample, NETWORK, at_s)
        for alert, severity in fleet.alerts():
            named = (("alertname", alert), ("alertstate", "firing"), ("severity", severity))
            yield _line(Sample("ALERTS", named, 1), (), at_s)
        for sample in fleet.workers():
            yield _line(sample, WORKERS, at_s)
        for worker, shown in fleet.agents():
            target = (*worker.target.items(), ("job", "orchestrator-agents"), ("instance", worker.worker))
            for sample in shown:
                yield _line(sample, target, at_s)
        for member, cluster, worker, shown in fleet.ray_nodes():
            named = (("job", "orchestrator-ray"), ("instance", member), ("cluster", cluster))
            target = (*worker.target.items(), *named, ("ray_io_cluster", cluster))
            for sample in shown:
                yield _line(sample, target, at_s)
    yield "# EOF\n"


def _line(sample: Sample, more: Labels, at_s: int) -> str:
    return f"{sample.line(more, at_s)}\n"


def main(arguments: Sequence[str]) -> None:
    """Take the pictures, of a Prometheus that is named or of the model."""
    for program in ("prometheus", "promtool", "node", "npm", "chromium"):
        if shutil.which(program) is None:
            sys.exit(
                f"{program} is missing: as root, apt-get install prometheus nodejs npm chromium fonts-inter"
            )
    _bundle()
    if arguments:
        end_s = int(time.time())
        _draw(arguments[0], "Demo", end_s - LIVE_S, end_s, LIVE_PICTURES)
    else:
        _draw_model()


def _draw_model() -> None:
    """Make the history, start Prometheus over it, and draw."""
    end_s = int(time.time()) // STEP_S * STEP_S
    begin_s = end_s - LIVED_S
    with tempfile.TemporaryDirectory(prefix="dashboards-") as made:
        folder = Path(made)
        backfill(folder, history(Fleet(), begin_s, end_s))
        for _ in range(RULES_ON_RULES):
            with Prometheus(folder, {}) as prometheus:
                _work_out_rules(folder, prometheus.url, begin_s, end_s)
        with Prometheus(folder, {}) as prometheus:
            _draw(prometheus.url, "Model fleet", end_s - SHOWN_S, end_s, PICTURES)


def _draw(prometheus: str, source: str, begin_s: int, end_s: int, pictures: Path) -> None:
    span = (str(begin_s * 1_000), str(end_s * 1_000))
    _run("node", "shoot.mjs", prometheus, source, *span, str(FOLDER), str(pictures), folder=PAGE)
    for picture in sorted(pictures.glob("*.png")):
        print(f"{picture.relative_to(Path.cwd())}: {picture.stat().st_size // 1_000} kB", file=sys.stderr)


def _bundle() -> None:
    if not (PAGE / "node_modules").exists():
        _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=PAGE)
    _run("node", "build.mjs", folder=PAGE)


def _work_out_rules(folder: Path, url: str, begin_s: int, end_s: int) -> None:
    span = (f"--start={begin_s}", f"--end={end_s}", f"--url={url}", "--eval-interval=60s")
    output = f"--output-dir={folder / 'data'}"
    _run("promtool", "tsdb", "create-blocks-from", "rules", *span, output, str(RULES), folder=folder)


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    main(sys.argv[1:])
