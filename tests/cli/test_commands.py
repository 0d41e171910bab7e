"""Each noun against a real gRPC server: what people read and what programs read."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from orchestrator.api.v1 import common_pb2, operator_pb2
from orchestrator.cli.wording import isolation_text
from tests.cli.conftest import Control, Orch
from tests.cli.control import SECRET, lines_with
from tests.cli.samples import REMARK


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("status", "network_id"),
        ("worker list", "workers"),
        ("worker leave attic", "worker"),
        ("tenant list", "tenants"),
        ("tenant create lab", "tenant"),
        ("tenant show lab", "gpus_held"),
        ("tenant set lab --weight 200", "tenant"),
        ("token list", "tokens"),
        ("token create --role supplier --subject north", "secret"),
        ("token revoke tok_1", "token"),
        ("job list", "jobs"),
        ("job show job_1", "job"),
        ("job explain waiting", "wait"),
        ("job explain job_1", "placement"),
        ("quote --gpus 8 --model RTX4090", "quote"),
        ("job stop job_1", "stopped"),
        ("cluster list", "clusters"),
        ("cluster show clu_1", "cluster"),
        ("group list", "groups"),
        ("group plot", "points"),
        ("runtime list", "runtimes"),
        ("runtime show default", "runtime"),
        ("receipt list", "receipts"),
        ("receipt show rct_1", "schema"),
        ("ledger balance", "balances"),
    ],
)
def test_output_json_every_command_prints_one_object(admin: Orch, command: str, key: str) -> None:
    answer = admin(*command.split(), "--output", "json")
    assert (answer.code, answer.err) == (0, "")
    assert key in json.loads(answer.out)


def test_output_json_empty_list_and_zero_are_present(admin: Orch) -> None:
    assert json.loads(admin("token", "list", "-o", "json").out) == {"tokens": []}
    assert json.loads(admin("status", "-o", "json").out)["devices"] == 0


def test_status_remarks_of_workers_are_counted_and_beside_the_result(admin: Orch) -> None:
    answer = admin("status")
    assert "2 workers: no isolation, so no job comes here" in answer.err
    assert "1 worker: serves one-machine" in answer.err
    assert "no job comes here" not in answer.out


def test_ledger_balance_beyond_doubles_is_exact(admin: Orch) -> None:
    balances = json.loads(admin("ledger", "balance", "-o", "json").out)["balances"]
    assert [entry["credits"] for entry in balances] == [str(2**53 + 1), "0"]
    assert lines_with(admin("ledger", "balance").out, "tenant:abc", f"-{2**53 + 1}")


def test_worker_list_simulated_device_is_shown_as_such(admin: Orch) -> None:
    assert lines_with(
        admin("worker", "list").out,
        "attic",
        "north",
        "consumer",
        "RTX4090 (simulated)",
        "live",
        "box",
        "none",
    )


def test_worker_list_says_what_keeps_a_machine_from_more(admin: Orch) -> None:
    assert f"attic: {REMARK}" in admin("worker", "list").err


@pytest.mark.parametrize(
    ("inventory", "text"),
    [
        (common_pb2.Inventory(isolation="container"), "container"),
        (common_pb2.Inventory(isolation="none", unisolated=True), "none (with the owner's consent)"),
        (common_pb2.Inventory(isolation="none"), "none (without the owner's consent)"),
    ],
)
def test_isolation_text_tells_consent_where_there_is_none(inventory: common_pb2.Inventory, text: str) -> None:
    assert isolation_text(inventory) == text


def test_cluster_show_simulated_device_is_shown_as_such(admin: Orch) -> None:
    assert lines_with(admin("cluster", "show", "clu_1").out, "clu_1-1", "RTX4090 (simulated)", "T2")


def test_cluster_show_tells_how_its_members_reach_each_other(admin: Orch) -> None:
    out = admin("cluster", "show", "clu_1").out
    assert lines_with(out, "all-reduce", "2.50 Gbit/s bus bandwidth (ring, 4096 KiB over 3 members)")
    assert lines_with(out, "attic", "clu_1-0", "21.4 ms", "25.0 ms", "0.9 ms", "5 %", "34.8 Mbit/s")
    (silent,) = lines_with(out, "attic", "clu_1-9", "100 %")
    assert "ms" not in silent
    assert json.loads(admin("cluster", "show", "clu_1", "-o", "json").out)["bus"]["method"] == "ring"


def test_cluster_show_tells_the_delivery_certificate_by_rank(admin: Orch) -> None:
    out = admin("cluster", "show", "clu_1").out
    figures = ("21.4 ms", "412.0 Mbit/s", "3.1 ms", "34.8 Mbit/s", "2.50 Gbit/s")
    assert lines_with(out, "0", "attic", "GPU-5f1c RTX4090", "T2", *figures)
    (unmeasured,) = lines_with(out, "1", "shed", "T0")
    assert "ms" not in unmeasured
    assert "bit/s" not in unmeasured
    first, second = json.loads(admin("cluster", "show", "clu_1", "-o", "json").out)["certificate"]
    assert (first["devices"][0]["uuid"], first["rtt_us"]) == ("GPU-5f1c", "21400")
    assert "bandwidth_bits_per_s" not in second


def test_job_show_prints_attempts_members_and_why(admin: Orch) -> None:
    out = admin("job", "show", "raysubmit_1").out
    assert lines_with(out, "status", "RUNNING")
    assert lines_with(out, "attempt 1", "job_1-1", "clu_1")
    assert lines_with(out, "clu_1-1", "attic", "dev_1 (simulated)")
    assert lines_with(out, "chosen over cellar: nearer")


def test_tenant_list_hostile_name_cannot_steer_the_terminal(admin: Orch) -> None:
    out = admin("tenant", "list").out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
    assert "[bold]" in out


def test_token_create_prints_only_the_secret_on_standard_output(admin: Orch, control: Control) -> None:
    answer = admin("token", "create", "--role", "supplier", "--subject", "north", "--ttl", "90m")
    assert answer.out == SECRET + "\n"
    assert SECRET not in answer.err
    asked = control.operator.created[0]
    assert (asked.role, asked.subject, asked.ttl_seconds) == (operator_pb2.TOKEN_ROLE_SUPPLIER, "north", 5400)
    assert asked.request_id.startswith("req_")


def test_token_create_to_file_is_owner_only_and_not_printed(admin: Orch, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    answer = admin("token", "create", "--role", "operator", "--secret-file", str(path))
    assert path.read_text() == SECRET + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in answer.out + answer.err


def test_token_create_to_existing_file_asks_for_no_token(
    admin: Orch, control: Control, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    path.write_text("precious")
    answer = admin("token", "create", "--role", "operator", "--secret-file", str(path))
    assert answer.code == 2
    assert path.read_text() == "precious"
    assert not control.operator.created


@pytest.mark.parametrize("ttl", ["soon", "-1", "1w", "99999999999", "1.5h", ""])
def test_token_create_bad_ttl_is_refused_before_asking(admin: Orch, control: Control, ttl: str) -> None:
    answer = admin("token", "create", "--role", "operator", f"--ttl={ttl}")
    assert answer.code == 2
    assert "--ttl" in answer.err
    assert not control.operator.created


def test_token_create_without_subject_names_the_option(admin: Orch) -> None:
    answer = admin("token", "create", "--role", "tenant")
    assert answer.code == 2
    assert "--subject" in answer.err


def test_job_logs_follow_broken_stream_goes_on_where_it_broke(admin: Orch, control: Control) -> None:
    control.jobs.break_after = 7
    answer = admin("job", "logs", "job_1", "--follow")
    assert answer.code == 0
    assert answer.out.startswith("epoch 1\n")
    assert answer.out.count("epoch") == 2
    assert control.jobs.offsets == [0, 7]


def test_job_logs_without_follow_broken_stream_fails(admin: Orch, control: Control) -> None:
    control.jobs.break_after = 7
    answer = admin("job", "logs", "job_1")
    assert answer.code == 1
    assert "restarting" in answer.err


def test_token_list_empty_says_what_to_do(admin: Orch) -> None:
    answer = admin("token", "list")
    assert (answer.code, answer.out) == (0, "")
    assert "orch token create" in answer.err


def test_worker_status_shows_own_and_the_network_s_view(admin: Orch, tmp_path: Path) -> None:
    known = {"worker_id": "wrk_1", "name": "attic", "supplier_id": "sup_1", "control_plane": "127.0.0.1:1"}
    (tmp_path / "agent.json").write_text(json.dumps(known))
    answer = admin("worker", "status", "--data-dir", str(tmp_path))
    assert answer.code == 0
    assert lines_with(answer.out, "control plane", "127.0.0.1:1")
    assert lines_with(answer.out, "devices", "RTX4090 (simulated)")


def test_worker_status_without_token_shows_what_is_local(orch: Orch, tmp_path: Path) -> None:
    known = {"worker_id": "wrk_1", "name": "attic", "supplier_id": "sup_1", "control_plane": "127.0.0.1:1"}
    (tmp_path / "agent.json").write_text(json.dumps(known))
    answer = orch("worker", "status", "--data-dir", str(tmp_path), "-o", "json")
    assert json.loads(answer.out)["agent"] == known
    assert "ORCH_TOKEN" in answer.err


@pytest.mark.parametrize("content", ["", "[]", '{"worker_id": 7}'])
def test_worker_status_damaged_file_says_what_to_do(orch: Orch, tmp_path: Path, content: str) -> None:
    (tmp_path / "agent.json").write_text(content)
    answer = orch("worker", "status", "--data-dir", str(tmp_path))
    assert answer.code == 1
    assert "join again" in answer.err


def test_token_create_unknown_role_is_named_in_plain_words(admin: Orch) -> None:
    answer = admin("token", "create", "--role", "king")
    assert answer.code == 2
    assert answer.err.startswith("orch: Invalid value for '--role': 'king' is not one of")
