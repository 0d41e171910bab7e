"""What a supplier types is checked before an agent starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.errors import CliError
from orchestrator.cli.join import class_of, join_token, machine_name, simulated_models
from orchestrator.core.fleet import HardwareClass
from tests.cli.conftest import Orch


def test_join_token_each_source_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    assert join_token(None, path, {}, tmp_path) == "from-file"
    assert join_token("from-argv", None, {}, tmp_path) == "from-argv"
    assert join_token(None, None, {"ORCH_JOIN_TOKEN": "from-env"}, tmp_path) == "from-env"


def test_join_token_on_the_command_line_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    join_token("visible-secret", None, {}, tmp_path)
    warning = capsys.readouterr().err
    assert "--token-file" in warning
    assert "visible-secret" not in warning


def test_join_token_machine_that_joined_before_needs_none(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text("{}")
    assert join_token(None, None, {}, tmp_path) is None


def test_join_token_none_at_all_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="orch token create --role supplier") as refused:
        join_token(None, None, {}, tmp_path)
    assert refused.value.exit_code == 2


def test_join_token_two_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="one of the two"):
        join_token("a", tmp_path / "b", {}, tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("RTX4090x1", "RTX4090", 1),
        ("A100-80x8", "A100-80", 8),
        ("RX7900XTXx2", "RX7900XTX", 2),
        ("h100x1", "H100", 1),
    ],
)
def test_simulated_models_known_one_is_counted(text: str, name: str, count: int) -> None:
    [(model, found)] = simulated_models([text])
    assert (model.name, found) == (name, count)


@pytest.mark.parametrize("text", ["RTX4090", "RTX4090x0", "RTX4090x-1", "x1", "RTX4090x1000", "gtx1660", ""])
def test_simulated_models_other_form_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--simulate") as refused:
        simulated_models([text])
    assert refused.value.exit_code == 2


def test_simulated_models_unknown_one_names_the_nearest() -> None:
    with pytest.raises(CliError, match="did you mean RTX4090x3"):
        simulated_models(["RTX4091x3"])


def test_class_of_default_follows_the_models() -> None:
    assert class_of("", []) is None
    assert class_of("", simulated_models(["RTX4090x1"])) is HardwareClass.CONSUMER
    assert class_of("", simulated_models(["H100x2"])) is HardwareClass.DATACENTER
    assert class_of("miner", simulated_models(["RTX4090x8"])) is HardwareClass.MINER


@pytest.mark.parametrize(
    ("chosen", "simulate", "complaint"),
    [
        ("consumer", ["H100x1"], "H100 belongs to datacenter"),
        ("", ["H100x1", "RTX4090x1"], "one class"),
        ("cpu", ["RTX4090x1"], "not cpu"),
        ("consummer", [], "did you mean consumer"),
    ],
)
def test_class_of_contradiction_is_refused(chosen: str, simulate: list[str], complaint: str) -> None:
    with pytest.raises(CliError, match=complaint):
        class_of(chosen, simulated_models(simulate))


@pytest.mark.parametrize("name", ["two words", "-x", "a" * 64, "é"])
def test_machine_name_bad_one_is_refused(name: str) -> None:
    with pytest.raises(CliError, match="--name"):
        machine_name(name)


def test_worker_join_that_offers_nothing_is_refused(orch: Orch) -> None:
    answer = orch("worker", "join", "--slots", "0")
    assert answer.code == 2
    assert "offer nothing" in answer.err
