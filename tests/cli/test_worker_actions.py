"""`orch worker show|revoke|class|policy` and `orch authority`: what operators see and what they send."""

from __future__ import annotations

import json

import pytest

from orchestrator.api.v1 import common_pb2, operator_pb2, standing_pb2, telemetry_pb2, terms_pb2
from orchestrator.cli.standings import sample_rows, span_text, standing_fields, terms_fields
from orchestrator.cli.worker_actions import labels_fields
from tests.cli.conftest import Control, Orch
from tests.cli.control import lines_with
from tests.cli.samples import REMARK


def test_show_has_the_worker_its_devices_and_their_measurements(admin: Orch, control: Control) -> None:
    answer = admin("worker", "show", "attic")
    assert (answer.code, answer.err) == (0, "")
    assert control.operator.asked == [operator_pb2.GetWorkerRequest(worker="attic")]
    assert lines_with(answer.out, "worker", "wrk_1")
    assert lines_with(answer.out, "reliability", "%")
    assert lines_with(answer.out, "patience", "the network's")
    assert lines_with(answer.out, "isolation", "box")
    assert lines_with(answer.out, "remarks", REMARK)
    assert lines_with(answer.out, "NUMBER", "DEVICE", "MODEL")
    assert any(line.startswith("0  ") for line in lines_with(answer.out, "dev_1", "RTX4090 (simulated)"))
    assert lines_with(answer.out, "dev_1", "50%", "61 °C", "220 of 0 W")
    assert lines_with(answer.out, "cellar", "42.5 ms", "5 %", "ago")


def test_show_has_a_nodes_labels_as_the_clusters_word_and_what_they_contradict() -> None:
    assert labels_fields(common_pb2.Inventory()) == {}
    labels = common_pb2.NodeLabels(node="rack3-u12", region="eu-west-1", gpu_product="Tesla-T4", gpu_count=2)
    evidence = common_pb2.MachineEvidence(labels=labels)
    told = common_pb2.Inventory(evidence=evidence, label_contradictions=["says T4", "says 2"])
    assert labels_fields(told) == {
        "node's labels": "rack3-u12, region eu-west-1, GPU 2 × Tesla-T4 (the cluster's word, not checked)",
        "contradicted 1": "says T4",
        "contradicted 2": "says 2",
    }


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("worker show attic", "worker"),
        ("worker revoke attic --yes", "worker"),
        ("worker class attic miner --reason risers", "worker"),
        ("worker policy attic --lost-after 2m", "worker"),
        ("worker cordon attic", "worker"),
        ("worker reclaim attic", "worker"),
        ("authority show", "authorities"),
        ("authority rotate", "authorities"),
        ("authority retire", "authorities"),
    ],
)
def test_output_json_prints_one_object(admin: Orch, command: str, key: str) -> None:
    answer = admin(*command.split(), "-o", "json")
    assert (answer.code, answer.err) == (0, "")
    assert key in json.loads(answer.out)


def test_revoke_without_consent_does_nothing(admin: Orch, control: Control) -> None:
    assert admin("worker", "revoke", "attic").code != 0
    assert control.operator.asked == []
    assert admin("worker", "revoke", "attic", "--yes", "--reason", "lies").code == 0
    assert control.operator.asked == [operator_pb2.RevokeWorkerRequest(worker="attic", reason="lies")]


def test_class_is_set_with_a_reason_and_taken_back(admin: Orch, control: Control) -> None:
    assert admin("worker", "class", "attic", "Miner", "--reason", "risers").code == 0
    assert admin("worker", "class", "attic", "--rule").code == 0
    assert [one.hardware_class for one in control.operator.asked] == [
        common_pb2.HARDWARE_CLASS_MINER,
        common_pb2.HARDWARE_CLASS_UNSPECIFIED,
    ]


def test_policy_is_sent_whole_and_default_takes_it_back(admin: Orch, control: Control) -> None:
    flags = ["--lost-after", "2m", "--replace", "--reconcile", "replacement"]
    assert admin("worker", "policy", "attic", *flags).code == 0
    assert admin("worker", "policy", "attic", "--lost-after", "default").code == 0
    first, second = (one.lease_policy for one in control.operator.asked)
    assert (first.lost_after_ms, first.replace, first.reconcile) == (120_000, True, "replacement")
    assert second.lost_after_ms == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("class attic", "CLASS or --rule"),
        ("class attic miner --rule --reason x", "CLASS or --rule"),
        ("class attic miner", "--reason: say why"),
        ("class attic minner --reason x", "did you mean miner?"),
        ("policy attic --lost-after soon", "--lost-after: a duration"),
        ("policy attic --lost-after 8d", "--lost-after: at most 7d"),
        ("policy attic --lost-after 2m --reconcile orignal", "did you mean original?"),
    ],
)
def test_mistakes_are_told_by_flag_and_nothing_is_sent(
    admin: Orch, control: Control, command: str, words: str
) -> None:
    answer = admin("worker", *command.split())
    assert answer.code == 2
    assert words in answer.err
    assert control.operator.asked == []


def test_authority_show_names_the_newest_first_and_who_has_yet_to_follow(admin: Orch) -> None:
    answer = admin("authority", "show")
    assert [line.split()[1] for line in answer.out.splitlines()[1:]] == ["newest-pin", "older-pin"]
    assert "1 worker(s) have no certificate of the newest" in answer.err


def test_authority_retire_passes_force_on(admin: Orch, control: Control) -> None:
    assert admin("authority", "retire", "--force").code == 0
    assert admin("authority", "retire").code == 0
    assert [one.force for one in control.operator.asked] == [True, False]


def test_standing_reads_as_sentences() -> None:
    standing = standing_pb2.Standing(
        holds=[standing_pb2.WorkerHold(kind="flapping", reason="came and went", until_unix_ms=60_000)],
        device_holds=[standing_pb2.DeviceHold(device_id="gpu-1", reason="xid: XID 79")],
        reliability_bp=8_765,
        reliability_reasons=["3 leases kept", "1 lost"],
        alerts=[standing_pb2.OwnerAlert(kind="offline", text="silent for 5 minutes", at_unix_ms=1_000)],
        clock_notice="the clock is off",
    )
    fields = standing_fields(standing)
    assert fields["hold 1"] == "flapping: came and went (since  until 1970-01-01 00:01:00Z)"
    assert fields["hold 2"].startswith("device gpu-1: xid: XID 79")
    assert (fields["reliability"], fields["because 2"]) == ("87.65 %", "1 lost")
    assert fields["alert 1"] == "offline: silent for 5 minutes (1970-01-01 00:00:01Z)"
    assert fields["clock"] == "the clock is off"


def test_terms_that_say_nothing_read_as_the_defaults() -> None:
    fields = terms_fields(terms_pb2.Terms())
    assert (fields["price"], fields["schedule"], fields["longest lease"]) == ("auto", "always", "no limit")


@pytest.mark.parametrize(
    ("duration_ms", "text"), [(0, "0ms"), (1_500, "1500ms"), (90_000, "90s"), (86_400_000, "1d")]
)
def test_span_is_exact_in_its_largest_unit(duration_ms: int, text: str) -> None:
    assert span_text(duration_ms) == text


def test_sample_shows_absent_counts_as_nothing_and_zero_as_zero() -> None:
    counted = telemetry_pb2.DeviceSample(device_id="a", ecc_uncorrected=0, last_xid=79)
    silent = telemetry_pb2.DeviceSample(device_id="b")
    first, second = sample_rows([counted, silent])
    assert (first[6], first[7]) == ("0", "79")
    assert (second[6], second[7]) == ("", "")
