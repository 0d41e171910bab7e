"""What holds for every test: the order, the profiles of hypothesis, and which skips are honest."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
GPU_DEVICE = Path("/dev/nvidiactl")
NO_GPU = f"needs an NVIDIA GPU: {GPU_DEVICE} is absent; install NVIDIA's driver on a machine that has one"

HONEST_SKIPS = ("gpu", "kubernetes", "torch")
"""Marks of tests that need what `make setup` cannot install everywhere."""

# Cheap tests first, so that a mistake shows in seconds; what is not named runs before simulation.
FIRST = ("test_repository.py", "core", "receipts", "ledger", "properties", "adapters")
LAST = ("simulation", "integration", "lab", "deploy")

MACHINE = (
    "adapters/box",
    "adapters/container",
    "adapters/overlay",
    "adapters/probes",
    "adapters/test_port_blocks.py",
    "agent",
    "deploy/test_chart_rights.py",
    "deploy/test_images.py",
    "examples",
    "integration",
    "lab",
)
"""What makes boxes, namespaces or Ray nodes of this machine, or takes their ports, and may find those of no other
test beside it."""

# No deadline per example, and none for making them: on two shared cores slowness says nothing about the code.
settings.register_profile("dev", deadline=None, suppress_health_check=(HealthCheck.too_slow,))
# The same examples each time: a red run is red again when it is repeated.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow,),
)
settings.load_profile("ci" if IN_CI else "dev")


def order_rank(item: pytest.Item) -> tuple[int, bool, bool]:
    """Where a test runs: by its folder, then plain tests before simulations and real Ray nodes."""
    folder = item.path.relative_to(TESTS).parts[0]
    if folder in FIRST:
        rank = FIRST.index(folder)
    elif folder in LAST:
        rank = len(FIRST) + 1 + LAST.index(folder)
    else:
        rank = len(FIRST)
    return rank, item.get_closest_marker("simulation") is not None, item.get_closest_marker("ray") is not None


def company(path: PurePosixPath) -> str:
    """Which tests, by their file below tests/, run one after the other where several processes share the tests."""
    return "machine" if any(path.is_relative_to(place) for place in MACHINE) else str(path)


class Companies(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """Shares tests out by company, the largest first: that is the machine's, which takes longest."""

    def _split_scope(self, nodeid: str) -> str:
        return company(PurePosixPath(nodeid.partition("::")[0]).relative_to(TESTS.name))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Companies:
    """xdist's own groups are lost on the way to its workers since pytest 9."""
    return Companies(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests; skip those that need a GPU where there is none."""
    items.sort(key=order_rank)
    if not GPU_DEVICE.exists():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure, its reason kept."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = (
        f"{report.nodeid}: in CI only tests marked {' or '.join(HONEST_SKIPS)} may skip. {reason}"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing is left out silently: what is missing there is to be installed by `make setup`."""
    report = yield
    honest = hasattr(report, "wasxfail") or any(item.get_closest_marker(mark) for mark in HONEST_SKIPS)
    if IN_CI and report.skipped and not honest:
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips itself whole; a GPU's tests carry their mark instead."""
    report = yield
    if IN_CI and report.skipped:
        refuse_skip(report)
    return report
