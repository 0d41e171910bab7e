"""Files, variables and secrets: read alike for every command, wrong ones named with the nearest and never repeated."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.cli import serve_settings, worker_settings
from orchestrator.cli.errors import EXIT_USAGE, CliError
from orchestrator.cli.join import terms_of
from orchestrator.cli.serve_settings import ServeSettings, read_settings
from orchestrator.cli.settings import SECRET_BYTES_MAX
from orchestrator.cli.variables import SERVICE_NAME, known_variables
from orchestrator.cli.worker_settings import WorkerSettings, read_worker_settings, settings_text
from tests.cli.conftest import Orch

URL = "postgresql+psycopg://me:hunter2@db/x"
SECRET = "hunter2"
DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"

READERS: dict[str, Callable[[Path | None], object]] = {
    "serve": lambda file: read_settings({}, file),
    "worker": lambda file: read_worker_settings({}, file),
}

COMMANDS = ("serve", "worker join", "worker install --print")
"""Those that take settings from the environment."""

SERVICE_LINKS = {
    "ORCH_SERVICE_HOST": "10.0.0.11",
    "ORCH_SERVICE_PORT": "7443",
    "ORCH_SERVICE_PORT_GRPC": "7443",
    "ORCH_PORT": "tcp://10.0.0.11:7443",
    "ORCH_PORT_7443_TCP": "tcp://10.0.0.11:7443",
    "ORCH_PORT_7443_TCP_PROTO": "tcp",
    "ORCH_PORT_7443_TCP_PORT": "7443",
    "ORCH_PORT_7443_TCP_ADDR": "10.0.0.11",
    "ORCH_GATEWAY_SERVICE_HOST": "10.0.0.12",
    "ORCH_GATEWAY_PORT": "tcp://10.0.0.12:8265",
    "ORCH_WORKER_SERVICE_PORT_HTTP_METRICS": "9464",
    "ORCH_LIGHTHOUSE_PORT_4242_UDP": "udp://10.0.0.13:4242",
    "ORCH_LIGHTHOUSE_PORT_4242_UDP_ADDR": "10.0.0.13",
}
"""What Kubernetes gives a pod beside services called orch, orch-gateway, orch-worker and orch-lighthouse."""


def refused(read: Callable[[], object]) -> str:
    """The line of a refusal: one, of the exit code for usage, and without any secret."""
    with pytest.raises(CliError) as raised:
        read()
    assert raised.value.exit_code == EXIT_USAGE
    assert SECRET not in raised.value.message
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("reader", READERS)
def test_file_that_is_none_is_named(tmp_path: Path, environment: pytest.MonkeyPatch, reader: str) -> None:
    read = READERS[reader]
    assert "is a directory" in refused(lambda: read(tmp_path))
    assert "no such file" in refused(lambda: read(tmp_path / "absent"))
    assert "not a directory" in refused(lambda: read(Path(__file__) / "x"))
    broken = tmp_path / "broken.toml"
    for text in ("[1, 2]", 'x = "hunter2', "hunter2", "a = 1\na = 2"):
        broken.write_text(text)
        assert f"{broken} is no TOML" in refused(lambda: read(broken))
    broken.write_bytes(b'database_url = "hunter2\xff"')
    assert "byte 23 is not UTF-8" in refused(lambda: read(broken))


@pytest.mark.parametrize(
    ("reader", "text", "hint"),
    [
        ("serve", 'gatway = "127.0.0.1:1"', "gatway: no such setting; did you mean gateway?"),
        ("serve", "lease_ttl = 5", "did you mean lease_ttl_ms?"),
        ("serve", "[fleet]\nlease_ttl_ms = 5", "fleet: no such setting; did you mean"),
        ("serve", '"gate\\nway" = 1', "gate way: no such setting; did you mean gateway?"),
        ("serve", '"data-dir" = "/d"', "did you mean data_dir?"),
        ("worker", 'regions = ["eu"]', "regions: no such setting; did you mean region?"),
    ],
)
def test_key_that_is_no_setting_is_named_with_the_nearest(
    tmp_path: Path, environment: pytest.MonkeyPatch, reader: str, text: str, hint: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    said = refused(lambda: READERS[reader](file))
    assert hint in said
    assert len(said) < 200


@pytest.mark.parametrize(
    ("reader", "text", "expected"),
    [
        ("serve", "[[gateway]]", "gateway: Input should be a valid string (--gateway or ORCH_GATEWAY)"),
        ("serve", 'data_dir = ""', "data_dir: is empty"),
        ("serve", 'data_dir = "a\\u0000b"', "data_dir: is empty, or no path"),
        ("serve", 'price_file = " "', "price_file: is empty"),
        ("serve", "heartbeat_interval_ms = 1.5", "heartbeat_interval_ms: Input should be a valid integer"),
        ("serve", "overlay_beacons = [1]", "--overlay-beacon or ORCH_OVERLAY_BEACONS"),
        ("serve", 'session_address = "orch.example"', "session_address: HOST:PORT such as"),
        ("serve", f'database_url = ["{URL}"]', "database_url: Input should be a valid string"),
        ("serve", f'database_url = "{SECRET}"', "database_url: must begin with"),
        ("serve", "database_url_file = 7", "database_url_file: Input is not a valid path"),
        ("worker", 'token_file = ""', "token_file: is empty"),
        ("worker", "data_dir = []", "data_dir: Input is not a valid path"),
    ],
)
def test_value_that_does_not_do_is_named(
    tmp_path: Path, environment: pytest.MonkeyPatch, reader: str, text: str, expected: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    assert expected in refused(lambda: READERS[reader](file))


def said_before_reading(orch: Orch, command: str, folder: Path) -> list[str]:
    """Lines on standard error of a command that is refused for its file."""
    answer = orch(*command.split(), "--config", str(folder / "absent.toml"))
    assert answer.code == EXIT_USAGE
    *before, refusal = answer.err.splitlines()
    assert "no such file" in refusal
    return before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ORCH_GATWAY", "ORCH_GATEWAY"),
        ("ORCH_DATABASE_URI", "ORCH_DATABASE_URL"),
        ("ORCH_WORKR_ZONE", "ORCH_WORKER_ZONE"),
        ("ORCH_ULR", "ORCH_URL"),
        ("ORCH_JOIN_TOKEN_FILE", "ORCH_WORKER_TOKEN_FILE"),
    ],
)
def test_variable_that_nobody_reads_is_pointed_out_and_refuses_nothing(
    environment: pytest.MonkeyPatch, orch: Orch, tmp_path: Path, command: str, name: str, nearest: str
) -> None:
    environment.setenv(name, SECRET)
    said = said_before_reading(orch, command, tmp_path)
    assert said == [f"{name}: no such setting, ignored; did you mean {nearest}?"]


@pytest.mark.parametrize("command", COMMANDS)
def test_variables_of_services_in_the_namespace_are_pointed_out_to_nobody(
    environment: pytest.MonkeyPatch, orch: Orch, tmp_path: Path, command: str
) -> None:
    for name, value in SERVICE_LINKS.items():
        environment.setenv(name, value)
    assert said_before_reading(orch, command, tmp_path) == []


@pytest.mark.parametrize("reader", READERS)
def test_variables_of_services_in_the_namespace_are_not_read(
    environment: pytest.MonkeyPatch, reader: str
) -> None:
    alone = READERS[reader](None)
    for name, value in SERVICE_LINKS.items():
        environment.setenv(name, value)
    assert READERS[reader](None) == alone


def test_no_setting_is_named_as_a_service_could_name_it() -> None:
    known = known_variables()
    assert {"ORCH_DATA_DIR", "ORCH_WORKER_SLOTS", "ORCH_URL", "ORCH_DATABASE_URL_FILE"} <= known
    assert [name for name in sorted(known) if SERVICE_NAME.fullmatch(name)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_known_variables_are_pointed_out_to_nobody(
    environment: pytest.MonkeyPatch, orch: Orch, tmp_path: Path, command: str
) -> None:
    for name in known_variables():
        environment.setenv(name, "")
    assert said_before_reading(orch, command, tmp_path) == []


def test_variable_that_is_empty_is_as_if_it_were_not_set(environment: pytest.MonkeyPatch) -> None:
    unset = read_settings({}, None)
    for name in type(unset).model_fields:
        environment.setenv(f"ORCH_{name.upper()}", "")
    assert read_settings({}, None) == unset


def test_list_in_a_variable_stands_between_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ORCH_OVERLAY_BEACONS", "198.18.0.1=a.example:4242, 198.18.0.2=b.example:4242")
    assert read_settings({}, None).overlay_beacons == (
        "198.18.0.1=a.example:4242",
        "198.18.0.2=b.example:4242",
    )


# ---------------------------------------------------------------- secrets by file


def test_every_setting_that_hides_its_value_can_come_by_a_file() -> None:
    hidden = {
        name for name, field in ServeSettings.model_fields.items() if "SecretStr" in str(field.annotation)
    }
    assert hidden == set(serve_settings.SECRETS)
    assert {f"{name}_file" for name in hidden} <= set(ServeSettings.model_fields)
    assert {f"{name}_file" for name in worker_settings.SECRETS} <= set(WorkerSettings.model_fields)


def test_every_setting_that_names_a_secrets_file_is_in_the_docs() -> None:
    named = {
        variable_of(name)
        for fields, variable_of in (
            (ServeSettings.model_fields, serve_settings.variable_of),
            (WorkerSettings.model_fields, worker_settings.variable_of),
        )
        for name in fields
        if name.endswith("_file") and name != "price_file"
    }
    text = DOCS.read_text()
    assert {name for name in named if f"`{name}`" not in text} == set()


def test_database_url_comes_from_the_file_that_is_named_by_flag_variable_or_setting(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    secret, config = tmp_path / "url", tmp_path / "orch.toml"
    secret.write_text(f"{URL}\n")
    config.write_text(f'database_url_file = "{secret}"')
    by_file = read_settings({}, config)
    by_flag = read_settings({"database_url_file": secret}, None)
    environment.setenv("ORCH_DATABASE_URL_FILE", str(secret))
    by_variable = read_settings({}, None)
    for settings in (by_file, by_flag, by_variable):
        assert settings.database_url is not None
        assert settings.database_url.get_secret_value() == URL
        assert SECRET not in repr(settings)


def test_database_url_given_twice_is_refused(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ORCH_DATABASE_URL", URL)
    said = refused(lambda: read_settings({"database_url_file": tmp_path / "url"}, None))
    assert "database_url and database_url_file: give one of the two" in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"hunter2\nhunter2", "something else than one line"),
        (b"hunter2\xff", "something else than one line"),
        (b"hunter2" * SECRET_BYTES_MAX, "something else than one line"),
        (b"hunter2", "must begin with sqlite"),
    ],
)
def test_database_url_file_that_does_not_do_is_named_without_what_it_holds(
    tmp_path: Path, environment: pytest.MonkeyPatch, content: bytes | None, expected: str
) -> None:
    secret = tmp_path / "url"
    if content is not None:
        secret.write_bytes(content)
    said = refused(lambda: read_settings({"database_url_file": secret}, None))
    assert expected in said
    assert "database_url" in said
    if "must begin" not in expected:
        assert f"--database-url-file or ORCH_DATABASE_URL_FILE): cannot read {secret}" in said or (
            f"ORCH_DATABASE_URL_FILE): {secret} " in said
        )


def test_webhook_comes_from_a_file_and_is_not_written_into_the_services_settings(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    secret, kept = tmp_path / "hook", tmp_path / "agent.toml"
    secret.write_text(f"https://hook.example/{SECRET}\n")
    settings = read_worker_settings({"webhook_file": secret}, None)
    assert terms_of(settings, datetime(2026, 1, 1, tzinfo=UTC), "UTC").webhook_url.endswith(SECRET)
    kept.write_text(settings_text(settings))
    assert SECRET not in kept.read_text()
    assert read_worker_settings({}, kept) == settings
