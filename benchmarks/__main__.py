"""`python -m benchmarks [FIGURE ...]`: measure the named figures, or all of them.

Ends with 0 even where a target is missed: a figure is measured, not tested. Ends with 1 only where a figure could
not be measured, with 2 where there is no such figure.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Protocol, cast

from benchmarks import plot
from benchmarks.report import Case, FigureError, note, print_json, print_table, quiet

# Before gRPC is loaded: it would warn of every child that is started beside its threads.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

FIGURES = {
    "P1": "benchmarks.p1_warm_submit",
    "P2": "benchmarks.p2_cold_start",
    "P3": "benchmarks.p3_placement",
    "P4": "benchmarks.p4_durable",
    "P5": "benchmarks.p5_openb",
    "P7-BEATS": "benchmarks.p7_beats",
    "P7-SESSIONS": "benchmarks.p7_sessions",
    "P7-STORM": "benchmarks.p7_storm",
    "P8-LATENCY": "benchmarks.p8_latency",
    "P8-GANGS": "benchmarks.p8_gangs",
    "P9": "benchmarks.p9_goodput",
    "FAIRNESS": "benchmarks.fairness",
    "P11": "benchmarks.p11_transfer",
    "RUNTIME": "benchmarks.runtime_provision",
    "METRICS": "benchmarks.metrics_scrape",
    "HOSTILE": "benchmarks.hostile",
    "DEMO": "benchmarks.demo_seconds",
}
"""Figure to the module whose ``measure()`` returns its cases."""

EXIT_NOT_MEASURED = 1
LOAD_NOTED = 0.5
"""Processes running beside us, on average of the last minute, above which the reader is told so."""


class Figure(Protocol):
    """What each figure's module offers."""

    def measure(self) -> list[Case]: ...


def figure_module(name: str) -> Figure:
    """The module behind a figure; imported only now, because some bring half of the system along."""
    return cast("Figure", importlib.import_module(FIGURES[name]))


def run(names: list[str]) -> int:
    """Measure in order; what was measured is printed even where a later figure fails."""
    quiet()
    cases: list[Case] = []
    failed = False
    for name in names:
        load = os.getloadavg()[0]
        if load > LOAD_NOTED:
            note(f"{load:.2f} processes ran beside this in the last minute: absolute figures will suffer")
        try:
            cases.extend(figure_module(name).measure())
        except FigureError as error:
            note(f"{name} was not measured: {error}")
            failed = True
    if cases:
        print_table(cases)
        print_json(cases)
        plot.write(cases)
    return EXIT_NOT_MEASURED if failed else 0


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the project's figures."
    )
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"any of {', '.join(FIGURES)}; none: all"
    )
    asked: list[str] = [name.upper() for name in parser.parse_args().figures]
    unknown = [name for name in asked if not _named(name)]
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    return run([figure for name in asked for figure in _named(name)] or list(FIGURES))


def _named(name: str) -> list[str]:
    """The figure of that name, or those that it is the beginning of: P7 is P7-BEATS and the rest."""
    return [figure for figure in FIGURES if figure == name or figure.startswith(f"{name}-")]


if __name__ == "__main__":
    sys.exit(main())
