"""What people read of shares, waits and prices, and what they may type."""

from __future__ import annotations

import json

import pytest

from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.amounts import MS_PER_HOUR, credits_of, decimal, percent_of_ppm, whole
from orchestrator.cli.errors import CliError
from tests.cli.conftest import Control, Orch
from tests.cli.control import TENANT, lines_with

# ---------------------------------------------------------------- tenants


def test_tenant_set_asks_for_what_is_named_only(admin: Orch, control: Control) -> None:
    answer = admin("tenant", "set", "lab", "--weight", "200", "--gpu-hours", "0.5", "--spend", "none")
    assert (answer.code, answer.err) == (0, "")
    (request,) = control.operator.asked
    assert request == operator_pb2.SetTenantRequest(
        tenant="lab",
        weight=200,
        gpu_ms_per_month=operator_pb2.QuotaLimit(at_most=1_800_000),
        microcredits_per_month=operator_pb2.QuotaLimit(),
    )
    assert not request.HasField("gpus")
    assert lines_with(answer.out, "quota", "8 GPUs, 50 credits a month")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--weight, --gpus, --gpu-hours or --spend"),
        (("--weight", "-5"), "--weight"),
        (("--weight", "none"), "--weight"),
        (("--gpus", "1.5"), "--gpus: 1.5 is finer"),
        (("--gpu-hours", "1e3"), "--gpu-hours"),
        (("--spend", "0.0000001"), "--spend: 0.0000001 is finer"),
        (("--spend", "9" * 30), "--spend"),
    ],
)
def test_tenant_set_bad_value_names_the_option_and_asks_nothing(
    admin: Orch, control: Control, arguments: tuple[str, ...], word: str
) -> None:
    answer = admin("tenant", "set", "lab", *arguments)
    assert answer.code == 2
    assert word in answer.err
    assert control.operator.asked == []


def test_tenant_show_tells_use_beside_limits_and_the_share(admin: Orch) -> None:
    out = admin("tenant", "show", "lab").out
    assert lines_with(out, "weight", "200")
    assert lines_with(out, "GPUs held", "3 of 8")
    assert lines_with(out, "GPU-hours in 2026-11", "1.5")
    assert lines_with(out, "spent in 2026-11", "12.345678 credits of 50 credits, 2 credits committed")
    assert lines_with(out, "share", "12.34 % now, 2.34 % lately, 50.00 % by its weight")
    assert lines_with(out, "jobs queued", "2")


def test_tenant_list_shows_weight_and_no_quota_as_none(admin: Orch) -> None:
    assert lines_with(admin("tenant", "list").out, "ten_1", "100", "none")


# ---------------------------------------------------------------- explanations


def test_job_explain_waiting_tells_reason_filters_and_changes(admin: Orch) -> None:
    answer = admin("job", "explain", "waiting")
    assert (answer.code, answer.err) == (0, "")
    assert lines_with(answer.out, "waits because", "waiting for 2 × RTX4090")
    assert lines_with(answer.out, "2 needed, 1 of 4 fitting are free, 1 of them together")
    assert lines_with(answer.out, "position", "behind 5 of its tenant's jobs")
    assert lines_with(answer.out, "16 times of 16: machines are kept for it")
    assert lines_with(answer.out, "starts", "when it starts is not known")
    assert lines_with(answer.out, "pauses until", "2023-11-14 22:13:20Z")
    assert lines_with(answer.out, "not a RTX4090", "7", "3")
    assert lines_with(answer.out, "  without orch.region: enough")


def test_job_explain_placed_tells_why_price_and_round_trip(admin: Orch) -> None:
    out = admin("job", "explain", "job_1").out
    assert lines_with(out, "attempt", "job_1-1, running, on clu_1")
    assert lines_with(out, "price", "0.75 credits an hour for 2 devices")
    assert lines_with(out, "round trip", "21.4 ms measured; up to 18.0 ms expected when they were chosen")
    assert lines_with(out, "round trip", "with 2 of 3 pairs measured")
    assert lines_with(
        out,
        "runner-up",
        "cellar in place of attic, 0.87 credits an hour, up to 19.0 ms: dearer by 0.12 credits an hour",
    )
    assert lines_with(out, "  chosen over cellar: nearer")
    assert "waits because" not in out


def test_job_show_tells_the_time_limit_and_when_it_is_over(admin: Orch) -> None:
    out = admin("job", "show", "job_1").out
    assert lines_with(out, "time limit", "90m, over at 2023-11-14 23:43:20Z")


def test_job_explain_without_machines_says_that(admin: Orch) -> None:
    out = admin("job", "explain", "stopped").out
    assert lines_with(out, "message", "intentionally stopped")
    assert lines_with(out, "never had machines")


def test_job_explain_and_quote_serve_a_tenants_own_token(
    orch: Orch, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_URL", control.url)
    monkeypatch.setenv("ORCH_TOKEN", TENANT)
    assert orch("job", "explain", "waiting").code == 0
    assert orch("quote").code == 0


# ---------------------------------------------------------------- quotes


def test_quote_options_become_the_keys_of_a_job(admin: Orch, control: Control) -> None:
    words = (
        "--gpus 8 --model RTX4090 --gpus-per-worker 2 --hardware-class consumer --min-memory-gb 24"
        " --min-compute-capability 8.9 --region eu --max-price 0.5 --min-reliability 99 --evidence T1"
        " --tier committed --max-rtt-ms 20 --min-bandwidth-mbps 250 --pattern pipeline"
        " --isolation box --image a --hours 1.5 --currency stablecoin"
    )
    assert admin("quote", *words.split()).code == 0
    (request,) = control.jobs.quotes
    assert dict(request.metadata) == {
        "orch.gpus": "8",
        "orch.gpu_model": "RTX4090",
        "orch.gpus_per_worker": "2",
        "orch.hardware_class": "consumer",
        "orch.min_gpu_memory_gb": "24",
        "orch.min_compute_capability": "8.9",
        "orch.region": "eu",
        "orch.max_price": "0.5",
        "orch.min_reliability": "99",
        "orch.evidence": "T1",
        "orch.tier": "committed",
        "orch.max_rtt_ms": "20",
        "orch.min_bandwidth_mbps": "250",
        "orch.pattern": "pipeline",
        "orch.isolation": "box",
        "orch.image": "a",
    }
    assert (request.duration_ms, request.currency) == (5_400_000, "stablecoin")


def test_quote_by_default_says_nothing_but_an_hour(admin: Orch, control: Control) -> None:
    admin("quote")
    (request,) = control.jobs.quotes
    assert (dict(request.metadata), request.duration_ms, request.currency) == ({}, 3_600_000, "native")


def test_quote_prints_price_fees_clouds_and_reasons(admin: Orch) -> None:
    answer = admin("quote", "--gpus", "8", "--model", "RTX4090")
    assert (answer.code, answer.err) == (0, "")
    assert lines_with(answer.out, "for", "8 × RTX4090, 1.5 h")
    assert lines_with(answer.out, "available", "now")
    assert lines_with(answer.out, "0.300001 credits for one device")
    assert lines_with(answer.out, "3.681012 credits in stablecoin, of which fees 0.081 credits")
    assert lines_with(answer.out, "clouds' median", "0.45 credits per GPU-hour (cloud-a 2026-11-03)")
    assert lines_with(answer.out, "round trip", "not known")
    assert lines_with(answer.out, "31.83 % below the median of 3 clouds")


def test_quote_of_what_cannot_be_had_says_not_now(admin: Orch, control: Control) -> None:
    control.jobs.priced.available_now = False
    control.jobs.priced.diameter_us = 0
    control.jobs.priced.ClearField("cloud_median_microcredits")
    out = admin("quote").out
    assert lines_with(out, "available", "not now")
    assert lines_with(out, "round trip", "one machine")
    assert lines_with(out, "clouds' median", "–")
    assert "cloud_median_microcredits" not in json.loads(admin("quote", "-o", "json").out)["quote"]


def test_quote_bad_hours_and_refusals_are_one_line(admin: Orch, control: Control) -> None:
    answer = admin("quote", "--hours", "soon")
    assert (answer.code, control.jobs.quotes) == (2, [])
    assert "--hours" in answer.err
    refused = admin("quote", "--runtime", "defult")
    assert refused.code != 0
    assert "did you mean 'default'" in refused.err
    assert len(refused.err.splitlines()) == 1


# ---------------------------------------------------------------- amounts


@pytest.mark.parametrize(
    ("text", "unit", "amount"), [("0.5", MS_PER_HOUR, 1_800_000), ("8", 1, 8), ("0", 1_000_000, 0)]
)
def test_whole_is_exact(text: str, unit: int, amount: int) -> None:
    assert whole("--x", text, unit, "things") == amount


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1e3", "NaN", "inf", "1,5", "\u0661", "1" * 13, "0.5.1", " 1"]
)
def test_whole_of_no_number_is_a_usage_error(text: str) -> None:
    with pytest.raises(CliError, match="--x") as refusal:
        whole("--x", text, 1_000_000, "things")
    assert refusal.value.exit_code == 2


def test_amounts_are_shown_without_rounding_up() -> None:
    assert decimal(5_400_001, MS_PER_HOUR) == "1.5"
    assert credits_of(-1_500_000) == "-1.5 credits"
    assert percent_of_ppm(999_999) == "99.99 %"
