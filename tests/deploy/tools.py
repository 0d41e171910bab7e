"""The programs that judge the chart: helm, from where `make setup` puts it, and what it says."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "orchestrator"
TOOLS = ROOT / ".venv" / "tools" / "bin"

HELM_S = 60.0
"""Helm renders the chart in half a second; eight at once on two cores take longer."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same, ten times as fast where PyYAML was built with it."""

NO_HELM = (
    "needs helm: run `make setup`, which fetches it for Linux on x86-64, or put helm 3.17 or later on PATH"
)


def find_helm() -> str | None:
    """The project's own helm, else the machine's; None for none that runs."""
    for found in (str(TOOLS / "helm"), shutil.which("helm")):
        if found and Path(found).is_file():
            done = subprocess.run([found, "version"], capture_output=True, check=False, timeout=HELM_S)
            if done.returncode == 0:
                return found
    return None


@cache
def helm() -> str:
    """Helm's path; skips the test, saying why, where there is none."""
    found = find_helm()
    if found is None:
        pytest.skip(NO_HELM)
    return found


def run_helm(*arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """Helm with these arguments and this standard input; its own words are in stdout and stderr."""
    command = [helm(), *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=HELM_S)


def values_file(folder: Path, values: Mapping[str, Any]) -> Path:
    """A file of values for `--values`."""
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return path


def render(
    values: Mapping[str, Any],
    *,
    release: str = "rel",
    namespace: str = "net",
    upgrade: bool = False,
) -> list[dict[str, Any]]:
    """Every manifest that helm makes of these values. Fails the test with helm's words where it refuses."""
    manifests: list[dict[str, Any]] = pickle.loads(
        _rendered(json.dumps(values, sort_keys=True), release, namespace, upgrade)
    )
    return manifests


@cache
def _rendered(values: str, release: str, namespace: str, upgrade: bool) -> bytes:
    """What helm made, read and kept: a hundred tests look at the same few ways to install, each at a copy of its own.

    Whatever a test does to it no other sees; and to read the dashboards' YAML takes longer than helm took to write it.
    """
    arguments = ["template", release, str(CHART), "--namespace", namespace, "--values", "-"]
    done = run_helm(*arguments, *(["--is-upgrade"] if upgrade else []), given=values)
    assert done.returncode == 0, done.stderr
    return pickle.dumps([one for one in yaml.load_all(done.stdout, LOADER) if one])


def refused(folder: Path, values: Mapping[str, Any]) -> str:
    """What helm says against these values; fails the test where it takes them."""
    done = run_helm("template", "rel", CHART, "--values", values_file(folder, values))
    assert done.returncode != 0, "helm took these values"
    return done.stderr


def of_kind(manifests: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Those of one kind."""
    return [dict(manifest) for manifest in manifests if manifest["kind"] == kind]


def named(manifests: Sequence[Mapping[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one of this kind and name."""
    (found,) = [one for one in of_kind(manifests, kind) if one["metadata"]["name"] == name]
    return found
