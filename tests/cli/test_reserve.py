"""`orch reserve`: what it asks for, what people read, and what they may type."""

from __future__ import annotations

import json

import pytest

from orchestrator.api.v1 import reservations_pb2
from orchestrator.cli.conditions import conditions
from orchestrator.cli.errors import CliError
from orchestrator.cli.reserve import moment_ms
from tests.cli.conftest import Control, Orch
from tests.cli.control import TENANT, lines_with

HOUR_MS = 3_600_000


@pytest.fixture
def tenant(admin: Orch, monkeypatch: pytest.MonkeyPatch) -> Orch:
    """As a tenant."""
    monkeypatch.setenv("ORCH_TOKEN", TENANT)
    return admin


DECEMBER_MS = 1_796_112_000_000
"""2026-12-01T08:00Z."""


def test_reserve_create_asks_for_machines_and_a_window(tenant: Orch, control: Control) -> None:
    answer = tenant(
        *("reserve", "create", "--gpus", "8", "--model", "RTX4090", "--from", "2026-12-01T08:00Z"),
        *("--hours", "4", "--set", "max_rtt_ms=20", "--set", "orch.region=eu", "--name", "nightly"),
    )
    assert (answer.code, answer.err) == (0, "")
    (request,) = control.jobs.reserved
    assert dict(request.metadata) == {
        "orch.gpus": "8",
        "orch.gpu_model": "RTX4090",
        "orch.max_rtt_ms": "20",
        "orch.region": "eu",
    }
    assert request.begins_at.seconds * 1000 == DECEMBER_MS
    assert request.ends_at.seconds * 1000 == DECEMBER_MS + 4 * HOUR_MS
    assert (request.name, request.tenant) == ("nightly", "")
    assert request.request_id.startswith("req_")
    assert lines_with(answer.out, "wanted", "8 × RTX4090 together")
    assert lines_with(answer.out, "from", "2026-12-01 08:00:00Z")
    assert lines_with(answer.out, "devices held", "2 of 8")


def test_reserve_create_json_and_a_refusal(admin: Orch, control: Control) -> None:
    answer = admin("reserve", "create", "--name", "nightly", "--tenant", "lab", "-o", "json")
    assert json.loads(answer.out)["reservation"]["phase"] == "booked"
    assert control.jobs.reserved[0].tenant == "lab"
    answer = admin("reserve", "create", "--name", "full")
    assert (answer.code, answer.err.strip()) == (1, "orch: 4 fitting devices serve then, and 8 are asked for")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--name"),
        (("--name", "x", "--from", "tomorrow"), "--from: a time of UTC such as"),
        (("--name", "x", "--from", "2026-12-01T08:00"), "--from"),
        (("--name", "x", "--from", "2026-13-01T08:00Z"), "--from"),
        (("--name", "x", "--from", "+2w"), "--from"),
        (("--name", "x", "--hours", "many"), "--hours"),
        (("--name", "x", "--set", "max_rtt_ms"), "--set: 'max_rtt_ms' is not KEY=VALUE"),
        (("--name", "x", "--set", "=20"), "--set"),
        (("--name", "x", "--gpus", "2", "--set", "gpus=3"), "--set: orch.gpus is given twice"),
    ],
)
def test_reserve_create_bad_value_names_the_option_and_asks_nothing(
    tenant: Orch, control: Control, arguments: tuple[str, ...], word: str
) -> None:
    answer = tenant("reserve", "create", *arguments)
    assert answer.code == 2
    assert word in answer.err
    assert control.jobs.reserved == []


def test_reserve_list_show_and_cancel(tenant: Orch, control: Control) -> None:
    out = tenant("reserve", "list").out
    assert lines_with(out, "rsv_1", "nightly", "booked", "2 of 8")
    assert json.loads(tenant("reserve", "list", "-o", "json").out)["reservations"][0]["name"] == "nightly"
    assert lines_with(tenant("reserve", "show", "nightly").out, "jobs waiting", "3")
    assert lines_with(tenant("reserve", "cancel", "nightly").out, "phase", "cancelled")
    control.jobs.booked.clear()
    assert "orch reserve create" in tenant("reserve", "list").err


def test_moment_understands_utc_and_times_from_now() -> None:
    assert moment_ms("--from", "+2h", 1_000) == 1_000 + 2 * HOUR_MS
    assert moment_ms("--from", " +90m ", 0) == 90 * 60_000
    assert moment_ms("--from", "2026-12-01T08:00Z", 0) == DECEMBER_MS
    assert moment_ms("--from", "2026-12-01T09:00:00+01:00", 0) == DECEMBER_MS


def test_conditions_leave_out_what_was_not_given() -> None:
    assert conditions({"orch.gpus": None, "orch.region": "eu"}, ["gpus=2"]) == {
        "orch.region": "eu",
        "orch.gpus": "2",
    }
    with pytest.raises(CliError, match="KEY=VALUE"):
        conditions({}, ["orch.=2"])


def test_reservation_message_has_every_field_shown(tenant: Orch) -> None:
    shown = json.loads(tenant("reserve", "show", "nightly", "-o", "json").out)["reservation"]
    assert {field.name for field in reservations_pb2.Reservation.DESCRIPTOR.fields} - set(shown) <= {
        "ended_at"
    }
