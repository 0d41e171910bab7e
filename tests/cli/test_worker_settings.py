"""What a supplier sets comes by flag, variable and file, and what is wrong with it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.errors import CliError
from orchestrator.cli.worker_settings import (
    WorkerSettings,
    read_worker_settings,
    settings_text,
    variable_of,
)

WEBHOOK_FILE = Path("webhook-url")
"""Read when it is named, so the test makes it where it runs."""

VALUES: dict[str, tuple[str, str, object]] = {
    # setting: as a variable, as TOML, as understood
    "control_plane": ("10.0.0.1:7443", '"10.0.0.1:7443"', "10.0.0.1:7443"),
    "token_file": ("/t", '"/t"', Path("/t")),
    "open_enrolment": ("1", "true", True),
    "ca_pin": ("abc", '"abc"', "abc"),
    "name": ("attic", '"attic"', "attic"),
    "simulate": ("RTX4090x1, H100x2", '["RTX4090x1", "H100x2"]', ("RTX4090x1", "H100x2")),
    "gpus": ("false", "false", False),
    "slots": ("2", "2", 2),
    "head_slots": ("3", "3", 3),
    "cpus": ("4", "4", 4),
    "zone": ("home", '"home"', "home"),
    "isolation": ("none", '"none"', "none"),
    "overlay": ("nebula", '"nebula"', "nebula"),
    "overlay_transport": ("tls", '"tls"', "tls"),
    "egress": ("none", '"none"', "none"),
    "runtimes_dir": ("/r", '"/r"', Path("/r")),
    "data_dir": ("/d", '"/d"', Path("/d")),
    "price": ("RTX4090=0.5", '["RTX4090=0.5"]', ("RTX4090=0.5",)),
    "region": ("eu-west,eu", '["eu-west", "eu"]', ("eu-west", "eu")),
    "max_lease": ("12h", '"12h"', "12h"),
    "schedule": (
        "Mon 1:00-2:00, Tue 1:00-2:00",
        '"Mon 1:00-2:00, Tue 1:00-2:00"',
        "Mon 1:00-2:00, Tue 1:00-2:00",
    ),
    "timezone": ("Europe/Berlin", '"Europe/Berlin"', "Europe/Berlin"),
    "idle_only": ("1", "true", True),
    "tier": ("committed", '"committed"', "committed"),
    "notice": ("10m", '"10m"', "10m"),
    "webhook": ("https://hook.example/x", '"https://hook.example/x"', "https://hook.example/x"),
    "webhook_file": (str(WEBHOOK_FILE), f'"{WEBHOOK_FILE}"', WEBHOOK_FILE),
    "yes": ("true", "true", True),
}


def test_settings_every_one_of_them_is_tried_below() -> None:
    assert set(VALUES) == set(WorkerSettings.model_fields)


@pytest.mark.parametrize("name", list(VALUES))
def test_settings_each_comes_by_file_and_variable_and_flag(
    tmp_path: Path, environment: pytest.MonkeyPatch, name: str
) -> None:
    variable, toml, understood = VALUES[name]
    environment.chdir(tmp_path)
    WEBHOOK_FILE.write_text("https://hook.example/x\n")
    path = tmp_path / "worker.toml"
    path.write_text(f"{name} = {toml}\n")
    assert getattr(read_worker_settings({}, path), name) == understood
    environment.setenv(variable_of(name), variable)
    assert getattr(read_worker_settings({}, None), name) == understood
    environment.delenv(variable_of(name))
    assert getattr(read_worker_settings({name: understood}, None), name) == understood


def test_settings_flag_outranks_variable_outranks_file(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "worker.toml"
    path.write_text('zone = "file"\nname = "file"\ncontrol_plane = "file:1"\nslots = 3\n')
    environment.setenv("ORCH_WORKER_ZONE", "variable")
    environment.setenv("ORCH_WORKER_NAME", "variable")
    environment.setenv("ORCH_URL", "variable:1")
    found = read_worker_settings({"zone": "flag", "name": None, "simulate": None}, path)
    assert (found.zone, found.name, found.control_plane, found.slots) == ("flag", "variable", "variable:1", 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("slots = 65", r"slots: .*64.*--slots or ORCH_WORKER_SLOTS"),
        ("cpus = 0", r"cpus: .*--cpus or ORCH_WORKER_CPUS"),
        ('gpus = "perhaps"', r"gpus: .*--no-gpus or ORCH_WORKER_GPUS"),
        ("control_plane = 7", r"control_plane: .*--control-plane or ORCH_URL"),
        ("shedule = 'nights'", "shedule: no such setting; did you mean schedule"),
        ("hardware_class = 'miner'", "hardware_class: no such setting"),
        ("token = 'hidden-secret'", "token: a secret has no place"),
        ("slots = ", "is no TOML"),
    ],
)
def test_settings_bad_one_is_named(
    tmp_path: Path, environment: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    path = tmp_path / "worker.toml"
    path.write_text(text)
    with pytest.raises(CliError, match=complaint) as refused:
        read_worker_settings({}, path)
    assert refused.value.exit_code == 2
    assert "hidden-secret" not in refused.value.message


def test_settings_file_that_cannot_be_one_is_refused(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(CliError, match=r"--config: cannot read .*no such file"):
        read_worker_settings({}, tmp_path / "none")
    large = tmp_path / "large"
    large.write_bytes(b"#" * (2 << 20))
    with pytest.raises(CliError, match="too long"):
        read_worker_settings({}, large)
    large.write_bytes(b"\xff\xfe")
    with pytest.raises(CliError, match="is no TOML"):
        read_worker_settings({}, large)


@given(name=st.text(), words=st.lists(st.text()), number=st.integers(0, 64), flag=st.booleans())
def test_settings_text_is_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, words: list[str], number: int, flag: bool
) -> None:
    path = tmp_path_factory.mktemp("settings") / "worker.toml"
    given_flags = {
        "name": name,
        "simulate": tuple(words),
        "slots": number,
        "gpus": flag,
        "data_dir": Path("/d"),
    }
    written = WorkerSettings.model_validate(given_flags)
    path.write_bytes(settings_text(written).encode())
    assert read_worker_settings({}, path) == written
