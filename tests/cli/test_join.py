"""What a supplier types is checked before an agent starts."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.adapters.host import Host, Wsl
from orchestrator.agent.daemon import AgentConfig
from orchestrator.cli.errors import CliError
from orchestrator.cli.join import (
    consent_lines,
    has_consented,
    join_token,
    machine_name,
    record_consent,
    simulated_models,
)
from orchestrator.cli.machine import Wanted, require_consent
from orchestrator.cli.worker_settings import WorkerSettings
from orchestrator.core.supply.terms import Ask, Terms
from tests.cli.conftest import Answer, Orch

PIN = 43 * "p"
SECRET = f"made-up.{PIN}"
NOBODY_LISTENS = "127.0.0.1:9"
"""The port of a service that no machine runs any more."""


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


def test_join_token_of_the_settings_comes_after_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "configured"
    path.write_text("from-settings\n")
    assert join_token(None, None, {}, tmp_path, path) == "from-settings"
    assert join_token(None, None, {"ORCH_JOIN_TOKEN": "from-env"}, tmp_path, path) == "from-env"


def test_join_token_of_the_settings_may_be_gone_once_joined(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"token_file: cannot read .*spent"):
        join_token(None, None, {}, tmp_path, tmp_path / "spent")
    (tmp_path / "agent.json").write_text("{}")
    assert join_token(None, None, {}, tmp_path, tmp_path / "spent") is None


def test_join_token_none_at_all_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="orch token create --role supplier") as refused:
        join_token(None, None, {}, tmp_path)
    assert refused.value.exit_code == 2


def test_join_token_stranger_needs_none_and_one_at_hand_is_used(tmp_path: Path) -> None:
    assert join_token(None, None, {}, tmp_path, open_enrolment=True) is None
    assert join_token(None, None, {"ORCH_JOIN_TOKEN": "one"}, tmp_path, open_enrolment=True) == "one"


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


@pytest.mark.parametrize("name", ["two words", "-x", "a" * 64, "é"])
def test_machine_name_bad_one_is_refused(name: str) -> None:
    with pytest.raises(CliError, match="--name"):
        machine_name(name)


# ------------------------------------------------------------ consent


def consent(isolation: str, egress: str = "internet") -> str:
    return " ".join(consent_lines("ada", isolation, egress, Path("/keys")))


def test_consent_lines_without_a_box_hide_nothing() -> None:
    text = consent("none")
    assert "strangers' code, with isolation none" in text
    assert "everything that ada can" in text
    assert "the agent's keys, the internet and your own network" in text
    assert "/keys" in text


@pytest.mark.parametrize("isolation", ["auto", "box", "container"])
def test_consent_lines_with_isolation_say_what_it_keeps_and_what_it_cannot(isolation: str) -> None:
    text = consent(isolation)
    assert "none of your files, of your other programs and of the agent's keys" in text
    assert "its own cluster and the internet, but nothing of your own network" in text
    assert "shares this machine's kernel and GPU driver" in text
    assert ("where it can do none, no job comes here" in text) is (isolation == "auto")


@pytest.mark.parametrize("isolation", ["auto", "box", "container", "none"])
@pytest.mark.parametrize("user", ["root", "ada"])
def test_consent_lines_agent_that_is_root_says_why_and_that_no_job_is(user: str, isolation: str) -> None:
    text = " ".join(consent_lines(user, isolation, "internet", Path("/keys")))
    isolated = user == "root" and isolation != "none"
    assert ("the agent runs as root, which boxes" in text) is isolated
    assert ("No job ever runs as root" in text) is isolated


def test_consent_lines_without_egress_say_so() -> None:
    assert "neither the internet nor your own network" in consent("auto", "none")


def test_consent_is_remembered_for_its_own_meaning_only(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert not has_consented(folder, "auto", "internet")
    record_consent(folder, "auto", "internet", 1_000)
    assert has_consented(folder, "auto", "internet")
    assert not has_consented(folder, "none", "internet")
    record_consent(folder, "auto", "none", 1_000)
    assert not has_consented(folder, "auto", "internet")
    for damaged in ('{"version": 1, "given_at_ms": 1000}', "no JSON", "[]"):
        (folder / "consent.json").write_text(damaged)
        assert not has_consented(folder, "auto", "none")


@pytest.mark.parametrize("isolation", ["auto", "none"])
@pytest.mark.parametrize(("wsl", "named"), [(Wsl.WSL2, True), (None, False)])
def test_require_consent_windows_guest_and_root_are_named(
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wsl: Wsl | None,
    named: bool,
    isolation: Literal["auto", "none"],
) -> None:
    host = Host(wsl=wsl, kernel="", user="ada", uid=1000, timezone="UTC")
    settings = WorkerSettings(yes=True, isolation=isolation)
    wanted = Wanted(settings, "127.0.0.1:1", "attic", (), tmp_path, Terms(), host)
    require_consent(wanted, "ada", remember=True)
    said = capsys.readouterr().err
    assert ("WSL2 guest of Windows" in said) is named
    assert "as root" not in said
    require_consent(wanted, "root", remember=True)
    assert ("warning: as root, jobs may do anything" in capsys.readouterr().err) is (isolation == "none")


def own_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
    return {**kept, "HOME": str(home), "ORCH_JOIN_TOKEN": SECRET, "ORCH_URL": NOBODY_LISTENS}


def at_a_terminal(home: Path, typed: bytes, *arguments: str) -> Answer:
    """`orch worker join` where a person sits."""
    with terminal() as (here, there):
        process = subprocess.Popen(
            [Path(sys.executable).with_name("orch"), "worker", "join", *arguments],
            env=own_environment(home),
            stdin=there,
            stdout=subprocess.PIPE,
            stderr=there,
        )
        os.close(there)
        os.write(here, typed)
        shown = b""
        try:
            while part := os.read(here, 4096):
                shown += part
        except OSError:
            # The terminal's other end is closed: the process has ended.
            pass
        out = process.communicate(timeout=60)[0]
    return Answer(process.returncode, out.decode(), shown.decode())


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    here, there = pty.openpty()
    try:
        yield here, there
    finally:
        os.close(here)


def test_join_at_a_terminal_asks_once_and_no_means_nothing_happens(tmp_path: Path) -> None:
    refused = at_a_terminal(tmp_path, b"\n", "--no-gpus")
    assert refused.code == 1
    assert "Offer this machine? [y/N]" in refused.err
    assert "nothing was offered" in refused.err
    assert not (tmp_path / ".orchestrator").exists()
    agreed = at_a_terminal(tmp_path, b"y\n", "--no-gpus")
    assert f"cannot reach the control plane at {NOBODY_LISTENS}" in agreed.err
    assert json.loads((tmp_path / ".orchestrator/agent/consent.json").read_text())["isolation"] == "auto"
    again = at_a_terminal(tmp_path, b"", "--no-gpus")
    assert "What runs here" in again.err
    assert "[y/N]" not in again.err
    assert again.code == 2
    # Whoever agreed to boxes has not agreed to go without.
    other = at_a_terminal(tmp_path, b"\n", "--no-gpus", "--isolation", "none")
    assert "Offer this machine? [y/N]" in other.err
    assert other.code == 1


def test_join_at_a_terminal_yes_needs_no_answer(tmp_path: Path) -> None:
    answer = at_a_terminal(tmp_path, b"", "--no-gpus", "--yes")
    assert "[y/N]" not in answer.err
    assert "cannot reach the control plane" in answer.err


def test_join_in_a_script_says_what_will_run_and_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("orch"), "worker", "join", "--no-gpus"],
        env=own_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "What runs here" in done.stderr
    assert "What is shared with the network" in done.stderr
    assert "cannot reach the control plane" in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


# ------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--slots", "0"), "offer nothing"),
        (("--simulate", "RTX4090x1", "--no-gpus"), "--simulate and --no-gpus"),
        (("--control-plane", "https://x"), "--control-plane: HOST:PORT"),
        (("--slots", "65"), "ORCH_WORKER_SLOTS"),
        (("--isolation", "boxes"), "'none', 'box' or 'container' (--isolation or ORCH_WORKER_ISOLATION)"),
        (("--overlay", "wireguard"), "'none' or 'nebula' (--overlay or ORCH_WORKER_OVERLAY)"),
        (("--egress", "lan"), "'internet' or 'none' (--egress or ORCH_WORKER_EGRESS)"),
        (("--isolation", "none", "--overlay", "nebula"), "--isolation none and --overlay nebula"),
        (("--isolation", "none", "--egress", "none"), "--isolation none and --egress none"),
        (("--price", "H100=cheap"), "--price"),
        (("--tier", "committed"), "--notice: a committed worker"),
        (("--schedule", "sometimes"), "--schedule"),
        (("--config", "/nowhere/at/all"), "--config: cannot read"),
        (("--hardware-class", "miner"), "--hardware-class"),
    ],
)
def test_worker_join_bad_setting_is_refused_before_anything_runs(
    orch: Orch, arguments: tuple[str, ...], complaint: str
) -> None:
    answer = orch("worker", "join", *arguments)
    assert answer.code == 2
    assert complaint in answer.err
    assert answer.err.count("\n") == 1


class FakeAgent:
    """Stands where the agent starts: keeps what it was asked for, and ends as it is told to."""

    def __init__(self, end: int | Exception) -> None:
        self.end = end
        self.asked: list[AgentConfig] = []

    def __call__(self, config: AgentConfig) -> int:
        self.asked.append(config)
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


def test_worker_join_everything_asked_for_reaches_the_agent(
    orch: Orch, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent = FakeAgent(0)
    environment.setattr("orchestrator.agent.daemon.run_agent", agent)
    environment.setenv("ORCH_JOIN_TOKEN", "made-up")
    environment.setenv("ORCH_WORKER_PRICE", "RTX4090=0.35")
    config = tmp_path / "worker.toml"
    config.write_text(f'zone = "home"\nca_pin = "{PIN}"\nidle_only = true\nslots = 3\nisolation = "box"\n')
    environment.setenv("ORCH_WORKER_EGRESS", "none")
    offer = ("--simulate", "RTX4090x2", "--slots", "2", "--head-slots", "1", "--cpus", "4", "--name", "attic")
    more = ("--overlay", "none", "--data-dir", str(tmp_path / "agent"))
    answer = orch("worker", "join", "--config", str(config), *offer, *more)
    assert answer.code == 0
    (asked,) = agent.asked
    assert (asked.control_plane, asked.join_token, asked.name) == ("127.0.0.1:7443", "made-up", "attic")
    assert (asked.simulate, asked.gpus, asked.cpus) == (("RTX4090x2",), True, 4)
    assert asked.ca_pin == PIN
    assert (asked.slots, asked.head_slots, asked.zone) == (2, 1, "home")
    assert (asked.isolation, asked.overlay, asked.egress) == ("box", "none", "none")
    assert asked.data_dir == tmp_path / "agent"
    assert asked.terms == Terms(asks=(Ask("RTX4090", 350_000),), idle_only=True)
    assert "made-up" not in repr(asked)


@pytest.mark.parametrize(("end", "code"), [(0, 0), (1, 1), (2, 2), (RuntimeError("a slip"), 70)])
def test_worker_join_exit_code_tells_a_service_whether_to_start_again(
    orch: Orch, environment: pytest.MonkeyPatch, end: int | Exception, code: int
) -> None:
    environment.setattr("orchestrator.agent.daemon.run_agent", FakeAgent(end))
    environment.setenv("ORCH_JOIN_TOKEN", "made-up")
    answer = orch("worker", "join", "--no-gpus")
    assert answer.code == code
    assert ("the agent failed: RuntimeError: a slip" in answer.err) is isinstance(end, Exception)
