"""A Prometheus of this machine: how the demo, the tests and the dashboards' pictures start one and ask it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from deploy.local.ports import free_address

FILES = Path(__file__).resolve().parents[1] / "helm" / "orchestrator" / "files"
"""What operators get: `prometheus.yaml` and the rules beside it."""

DEFAULT_ADDRESS = "127.0.0.1:9464"
"""Where that configuration looks for `orch serve`; its own comment says to write another address there."""

PROGRAM = "prometheus"

READY_S = 60.0
"""A start on an empty folder takes a second or two; on two busy cores more."""

LOOK_S = 2.0
"""Whether it is ready, it answers at once or not at all."""

EXIT_S = 20.0
"""It writes down what it has first."""

POLL_S = 0.05
LOG_CHARS = 2000
"""The end of what it said: enough to see why it did not start."""

RETENTION = "100y"
"""Histories of tests lie in the past, and nothing here lives long enough to fill a disk."""

INTERVALS = ("scrape_interval", "scrape_timeout", "evaluation_interval", "refresh_interval")


class QueryRefusedError(Exception):
    """Prometheus did not take the query; says why."""


def operators_configuration(
    metrics: str, token_file: Path, rules: Sequence[Path | str], *, interval: str = ""
) -> dict[str, Any]:
    """The operators' own configuration, for the metrics listener at ``metrics`` (HOST:PORT).

    Args:
        metrics: Where the control plane shows its metrics.
        token_file: What it wants to be shown there.
        rules: Files or patterns.
        interval: Such as "1s": how often everything is done that has an interval; the operators' own without it.

    Raises:
        ValueError: The configuration does not name the default address any more, so nothing would be scraped.
    """
    path = FILES / "prometheus.yaml"
    text = path.read_text(encoding="utf-8")
    if DEFAULT_ADDRESS not in text:
        raise ValueError(f"{path} does not name {DEFAULT_ADDRESS} any more")
    made: dict[str, Any] = yaml.safe_load(text.replace(DEFAULT_ADDRESS, metrics))
    made["rule_files"] = [str(one) for one in rules]
    _replace(made, "credentials_file", str(token_file))
    for name in INTERVALS if interval else ():
        _replace(made, name, interval)
    return made


def _replace(part: object, name: str, value: str) -> None:
    """Wherever the name stands."""
    if isinstance(part, dict):
        for key, inner in part.items():
            if key == name:
                part[key] = value
            else:
                _replace(inner, name, value)
    elif isinstance(part, list):
        for inner in part:
            _replace(inner, name, value)


def backfill(folder: Path, lines: Iterable[str]) -> None:
    """Write lines of OpenMetrics' text, with their instants, where a Prometheus of this folder finds them.

    Raises:
        RuntimeError: promtool did not take them; says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "history.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    # Few and large blocks: promtool reads all of the text again for each.
    command = ["promtool", "tsdb", "create-blocks-from", "--max-block-duration=2000h", "openmetrics"]
    done = subprocess.run(
        [*command, str(text), str(folder / "data")], capture_output=True, text=True, check=False
    )
    text.unlink()
    if done.returncode:
        raise RuntimeError(f"promtool did not take the history: {done.stdout}{done.stderr}"[-LOG_CHARS:])


class Asked:
    """A Prometheus that somebody runs, by its URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Whatever proxy the environment names, it is not on the way to this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def unready(self) -> str | None:
        """Why it does not answer yet; None where it does."""
        try:
            with self._opener.open(f"{self.url}/-/ready", timeout=LOOK_S):
                return None
        except OSError as error:
            return f"starting ({error})"

    def at(self, expr: str, at_s: float) -> list[dict[str, Any]]:
        """Series and their value at an instant. Raises QueryRefusedError."""
        return self._ask("query", query=expr, time=at_s)

    def now(self, expr: str) -> list[dict[str, Any]]:
        """Series and their value now. Raises QueryRefusedError."""
        return self.at(expr, time.time())

    def over(self, expr: str, begin_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        """Series and their values over time. Raises QueryRefusedError."""
        return self._ask("query_range", query=expr, start=begin_s, end=end_s, step=step_s)

    def values_of(self, label: str, metric: str) -> list[str]:
        """What a variable of a dashboard offers."""
        found: list[str] = self._get(f"label/{label}/values", {"match[]": metric})
        return found

    def _ask(self, kind: str, **query: str | float) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self._get(kind, query)["result"]
        return result

    def _get(self, path: str, query: Mapping[str, str | float]) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with self._opener.open(url, timeout=READY_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise QueryRefusedError(json.load(error).get("error", str(error))) from None


class Prometheus(Asked):
    """One on a free port, with its configuration, data and log in a folder of its own.

    As a context it runs while the context lasts. Whoever has other processes to look after starts ``command`` himself.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        """Write the configuration. Raises FileNotFoundError, with what to do, where Prometheus is not installed."""
        program = shutil.which(PROGRAM)
        if program is None:
            raise FileNotFoundError("prometheus is not installed: make system")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "prometheus.yaml"
        # JSON is YAML.
        path.write_text(json.dumps(configuration), encoding="utf-8")
        address = free_address()
        super().__init__(f"http://{address}")
        self.command = [
            program,
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--storage.tsdb.retention.time={RETENTION}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
        self._log = folder / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers. Raises RuntimeError, with what it said, where it never does."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end_s = time.monotonic() + READY_S
        while (missing := self.unready()) is not None:
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.stop()
                said = self._log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARS:]
                raise RuntimeError(f"Prometheus did not start: {missing}; it said: {said}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it; its data stay in the folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(EXIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
