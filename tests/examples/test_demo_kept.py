"""The demo that stays up: a real Prometheus scrapes it as operators do, and Ctrl-C ends all of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.prometheus import Asked
from examples.demo.network import MACHINES, Addresses, Network, child_environment
from examples.demo.report import Progress
from examples.demo.run import wait_for_interrupt
from examples.demo.standing import Standing
from examples.demo.watching import MISSING, QUERIES, graph_url, start_prometheus
from tests.examples.test_demo import KEYS
from tests.polling import wait_until

ROOT = Path(__file__).resolve().parents[2]
UP_S = 300.0
"""Six agents, a Ray cluster of three nodes and a training, on two busy cores."""
SCRAPED_S = 90.0
"""Two rounds of the slowest scrapes, and a refresh of the lists before them."""
END_S = 60.0
JOBS = {"orchestrator", "orchestrator-workers", "orchestrator-agents"}


@dataclass
class Kept:
    """A demo that has done its job and stays up."""

    process: subprocess.Popen[str]
    addresses: dict[str, Any]

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series that Prometheus answers with."""
        found = Asked(self.addresses["prometheus"]).now(query)
        return [(one["metric"], float(one["value"][1])) for one in found]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """Started as `make demo JSON=1 KEEP=1` does."""
    said = tmp_path / "said.log"
    with said.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "examples/demo/run.py", "--json", "--keep"],
            cwd=ROOT,
            env=child_environment({"PYTHONPATH": str(ROOT)}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, said.read_text()
        yield Kept(process, json.loads(line)["addresses"])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=END_S)


def alive(folder: str) -> list[str]:
    """Command lines of processes that name the demo's folder."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = one.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in words:
            found.append(words)
    return found


@pytest.mark.ray
@pytest.mark.timeout(UP_S + SCRAPED_S + END_S)
@pytest.mark.skipif(
    sys.platform != "linux", reason="ends processes that left their parents, which needs Linux"
)
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus: `make system` installs it")
def test_demo_kept_is_scraped_by_prometheus_and_leaves_nothing_behind(kept: Kept) -> None:
    wait_until(
        lambda: {labels["job"] for labels, value in kept.ask("up") if value == 1} >= JOBS,
        what="targets of each kind that are up",
        deadline_s=SCRAPED_S,
    )
    uptime = QUERIES["uptime by worker"]
    wait_until(
        lambda: sum(0 < value <= 1 for _, value in kept.ask(uptime)) == len(MACHINES),
        what="the uptime of each worker",
        deadline_s=SCRAPED_S,
    )
    assert sum(value for _, value in kept.ask(QUERIES["GPUs by what can be done with them"])) == 4
    assert kept.ask('ALERTS{alertstate="firing", severity="critical"}') == []
    folder = kept.addresses["folder"]
    assert any("prometheus" in words for words in alive(folder))
    kept.process.send_signal(signal.SIGINT)
    assert kept.process.stdout is not None
    assert list(json.loads(kept.process.stdout.readline())) == KEYS
    assert kept.process.wait(END_S) == 0
    assert not Path(folder).exists()
    assert alive(folder) == []


class Nowhere:
    """A network that is never started."""

    folder = Path("/nonexistent")
    addresses = Addresses("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4")
    metrics_token_file = folder / "metrics-token"
    admin_token_file = folder / "admin-token"
    ca_file = folder / "ca.pem"


def test_kept_network_tells_people_each_address(capsys: pytest.CaptureFixture[str]) -> None:
    standing = Standing("http://127.0.0.1:9090")
    with Progress(to_stderr=True) as progress:
        standing.show(Nowhere(), progress)  # type: ignore[arg-type]  # only named
    said = "".join(capsys.readouterr().err.split())
    told = standing.addresses(Nowhere())  # type: ignore[arg-type]  # only named
    assert {name for name, value in told.items() if str(value) not in said} == {"sessions", "ca_file"}
    assert all(graph_url("http://127.0.0.1:9090", query) in said for query in QUERIES.values())


class Left(Standing):
    """Ctrl-C comes while it still says where everything is."""

    def show(self, network: Network, progress: Progress) -> None:
        raise KeyboardInterrupt


def test_kept_network_may_be_ended_from_its_line_of_addresses_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(to_stderr=True) as progress:
        wait_for_interrupt(Nowhere(), progress, Left(), for_programs=True)  # type: ignore[arg-type]  # only named
    assert json.loads(capsys.readouterr().out)["addresses"]["folder"] == str(Nowhere.folder)


def test_make_demo_keep_runs_the_demo_that_stays_up() -> None:
    asked = subprocess.run(
        ["make", "--dry-run", "demo", "KEEP=1", "JSON=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "examples/demo/run.py --json --keep" in asked.stdout


def test_prometheus_that_is_not_installed_is_said_in_one_line_with_how(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    with Progress(to_stderr=True) as progress:
        assert start_prometheus(Nowhere(), progress) is None  # type: ignore[arg-type]  # never touched
    said = capsys.readouterr().err
    assert MISSING in " ".join(said.split())
    assert "apt install prometheus" in said


def test_graph_url_carries_the_query_as_it_is() -> None:
    query = 'sum by (state) (orchestrator_gpus{model="RTX 4090"})'
    url = urllib.parse.urlparse(graph_url("http://127.0.0.1:9090", query))
    assert urllib.parse.parse_qs(url.query)["g0.expr"] == [query]
    assert url.path == "/graph"
