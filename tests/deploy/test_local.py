"""What the demo and the tests start beside a network: a Prometheus with the operators' configuration, on a free port."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deploy.local.ports import free_ports
from deploy.local.prometheus import DEFAULT_ADDRESS, Prometheus, backfill, operators_configuration

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus: `make system` installs it",
)

AT = "127.0.0.1:1"


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(5))) == 5


def test_configuration_is_the_operators_own_with_another_address_and_token() -> None:
    made = operators_configuration(AT, Path("/a/token"), [Path("/a/rules/*.yaml")])
    text = json.dumps(made)
    assert DEFAULT_ADDRESS not in text
    assert text.count(AT) == len(made["scrape_configs"]) == 4
    # Each scrapes, and three of them ask for a list.
    assert text.count('"/a/token"') == text.count("credentials_file") == 7
    assert made["rule_files"] == ["/a/rules/*.yaml"]
    assert made["global"]["scrape_interval"] == "15s"


def test_configuration_in_a_hurry_does_everything_as_often_as_it_is_told() -> None:
    text = json.dumps(operators_configuration(AT, Path("/a/token"), [], interval="1s"))
    told = {word for word in text.replace('"', "").replace(",", "").split() if word.endswith("0s")}
    assert text.count('"1s"') == 8
    assert not told


def test_configuration_without_the_default_address_fails_before_it_scrapes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prometheus.yaml").write_text("global: {}\n")
    monkeypatch.setattr("deploy.local.prometheus.FILES", tmp_path)
    with pytest.raises(ValueError, match="does not name"):
        operators_configuration(AT, tmp_path, [])


@needs_prometheus
def test_prometheus_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="scrape_intervall"),
        Prometheus(tmp_path, {"global": {"scrape_intervall": "1s"}}),
    ):
        pytest.fail("it took a mistyped key")


@needs_prometheus
def test_history_that_promtool_refuses_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not take the history"):
        backfill(tmp_path, ["orchestrator_workers nothing\n"])
