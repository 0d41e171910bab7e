"""`orch status`: one screen, the judgement first, and an exit code for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.api.v1 import operator_pb2, overview_pb2
from orchestrator.cli.status_screen import FINDINGS_MAX, fields, verdict_line
from tests.cli.conftest import Control, Orch
from tests.cli.control import ADMIN, lines_with
from tests.cli.status_samples import CONSUMER, MINUTE_MS, gpus, status, unwell
from tests.cli.test_failures import own_environment
from tests.terminals import terminal


def test_status_well_says_so_first_and_shows_every_part(admin: Orch) -> None:
    out = admin("status").out
    assert out.startswith("well: 3 workers live, 11 GPUs of which 1 is leased, nothing waits\n")
    for label, words in (
        ("workers", "3 live · 3 consumer · 3 connected, 2 open to new work"),
        ("GPUs", "8 H100, datacenter: 8 free"),
        ("clusters", "1 ready · in 15 min: 1 formed, 0 given up"),
        ("receipts", "7, all in the ledger"),
        ("control", "version 0.1.0, term 3, up for 5 h · decisions in time"),
        ("certificates", "session 6 d, authority 3649 d"),
        ("gateway", "http://127.0.0.1:8265"),
    ):
        assert lines_with(out, label, words), (label, out)
    assert lines_with(out, "3 RTX4090, consumer: 1 leased, 2 free")


def test_status_not_well_says_what_and_what_to_do(admin: Orch, control: Control) -> None:
    control.operator.status = unwell(FINDINGS_MAX + 2)
    answer = admin("status")
    first, *rest = answer.out.splitlines()
    assert first == "not well, critical: zones held, queue stuck"
    assert rest[0].split() == ["critical", "finding", "0", "[31m"]
    assert "→ `orch job explain job_0`" in rest[1]
    assert lines_with(answer.out, "2 more: `orch status --output json`")
    assert lines_with(answer.out, "jobs", "4 waiting for 9 GPUs, the oldest for 41 min: needs 8 × H200")
    assert "\x1b" not in answer.out


@pytest.mark.parametrize(("verdict", "code"), [("well", 0), ("warning", 1), ("critical", 1), ("", 1)])
def test_status_check_exits_with_one_where_it_is_not_well(
    admin: Orch, control: Control, verdict: str, code: int
) -> None:
    control.operator.status.verdict = verdict
    assert admin("status").code == 0
    assert admin("status", "--check").code == code
    assert admin("status", "--check", "-o", "json").code == code


def test_status_json_has_every_field_whatever_its_value(admin: Orch, control: Control) -> None:
    control.operator.status = operator_pb2.GetStatusResponse()
    found = json.loads(admin("status", "-o", "json").out)
    named = {field.name for field in operator_pb2.GetStatusResponse.DESCRIPTOR.fields}
    parts = {"queue", "formations", "loop", "relay"}
    assert named - parts <= set(found) <= named


def test_status_of_an_older_control_plane_is_not_judged_and_still_shown() -> None:
    older = operator_pb2.GetStatusResponse(
        network_id="net_1", version="0.0.9", workers_by_liveness={"live": 2}
    )
    assert verdict_line(older).startswith("not judged")
    assert dict(fields(older))["workers"] == "2 live"
    assert dict(fields(older))["control"] == "version 0.0.9, term 0"


def test_status_small_network_with_findings_fits_a_terminal(control: Control, tmp_path: Path) -> None:
    control.operator.status = unwell(2)
    del control.operator.status.remarks[:]
    environment = own_environment(tmp_path, ORCH_URL=control.url, ORCH_TOKEN=ADMIN)
    with terminal("status", environment=environment) as shown:
        assert shown.wait() == 0
    lines = shown.raw.rstrip("\r\n").split("\r\n")
    assert len(lines) <= 23, "with the prompt below it, it does not fit 24 lines"


def test_status_many_kinds_of_gpus_are_counted_together() -> None:
    crowd = status()
    crowd.ClearField("gpus")
    crowd.gpus.extend(gpus(10 - number, f"M{number}", "free", CONSUMER) for number in range(6))
    crowd.devices, crowd.devices_simulated = 45, 3
    lines = [
        text for label, text in fields(crowd) if (label in ("GPUs", "") and "M" in text) or "kinds" in text
    ]
    assert lines[0] == "10 M0, consumer: 10 free"
    assert lines[-1] == "11 of 2 other kinds: 11 free (3 of 45 devices simulated)"
    assert len(lines) == 5


def test_status_outbox_and_queue_are_told_with_their_age() -> None:
    found = status()
    found.receipts_unposted, found.outbox_oldest_ms, found.leases_open = 2, 12 * MINUTE_MS, 1
    found.relay.CopyFrom(overview_pb2.RelayStanding(connections=3, connections_max=512))
    said = dict(fields(found))
    assert said["receipts"] == "7, 2 not in the ledger yet, the oldest for 12 min · 1 lease open"
    assert said["overlay"] == "none, isolation none · bridge: 3 of 512 connections"


def test_status_of_a_network_without_workers_claims_nothing_of_them() -> None:
    found = status()
    found.ClearField("workers_by_liveness")
    del found.gpus[:]
    said = dict(fields(found))
    assert said["overlay"] == "no live worker that could have one"
    assert verdict_line(found) == "well: 0 workers live, no GPUs, nothing waits"
