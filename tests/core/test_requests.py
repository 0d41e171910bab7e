"""The ``orch.`` keys: what is understood, and every refusal with the field at fault and what to do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.jobs import JobConditions, JobPolicy, Pattern, Requirements
from orchestrator.core.requests import KEYS, parse_conditions
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import HardwareClass, Isolation

POLICY = JobPolicy()


PLAIN, TORCH = "aa" * 32, "bb" * 32
OFFERING = JobPolicy(runtimes=(("plain-3.11", PLAIN), ("torch-3.11", TORCH)))


def test_request_without_orch_keys_asks_for_one_gpu_of_any_class_in_a_box() -> None:
    wanted = Requirements(isolation=Isolation.BOX)
    assert parse_conditions({"note": "mine", "orchid": "x"}, 0.0, POLICY) == JobConditions(wanted)


@pytest.mark.parametrize("tier", Isolation)
def test_request_isolation_is_the_weakest_that_serves_and_none_is_consent(tier: Isolation) -> None:
    assert parse_conditions({"orch.isolation": tier.value}, 0.0, POLICY).requirements.isolation is tier


@pytest.mark.parametrize("named", ["torch-3.11", " torch-3.11 ", TORCH, TORCH[:12]])
def test_request_runtime_is_named_by_name_digest_or_its_beginning(named: str) -> None:
    assert parse_conditions({"orch.runtime": named}, 0.0, OFFERING).requirements.runtime == TORCH


@pytest.mark.parametrize("tier", [{}, {"orch.isolation": "none"}, {"orch.isolation": "container"}])
@pytest.mark.parametrize("registry", ["docker.io", "localhost", "registry.example.org:5000"])
def test_request_image_takes_a_container_whatever_else_would_serve(
    tier: dict[str, str], registry: str
) -> None:
    image = f"{registry}/team/image@sha256:{'ab' * 32}"
    wanted = parse_conditions({"orch.image": f" {image} ", **tier}, 0.0, POLICY).requirements
    assert (wanted.image, wanted.isolation) == (image, Isolation.CONTAINER)


def test_request_image_and_runtime_contradict_each_other() -> None:
    with pytest.raises(RefusedError, match=r"leave orch\.image or orch\.runtime out") as raised:
        parse_conditions(
            {"orch.image": f"docker.io/t/i@sha256:{'ab' * 32}", "orch.runtime": TORCH}, 0.0, OFFERING
        )
    assert raised.value.field == "orch.image"


def test_request_without_a_runtime_leaves_the_choice_to_the_network() -> None:
    assert parse_conditions({}, 0.0, OFFERING).requirements.runtime == ""
    assert (OFFERING.default_runtime, POLICY.default_runtime) == (PLAIN, "")


@pytest.mark.parametrize("named", ["torch-3.12", TORCH[:11], "b", "", "B" * 12])
def test_request_runtime_that_nobody_offers_names_the_nearest(named: str) -> None:
    with pytest.raises(RefusedError, match="did you mean") as raised:
        parse_conditions({"orch.runtime": named}, 0.0, OFFERING)
    assert (raised.value.code, raised.value.field) == (RefusalCode.INVALID, "orch.runtime")


def test_request_runtime_where_none_is_offered_is_refused_with_what_to_do() -> None:
    with pytest.raises(RefusedError, match=r"leave orch\.runtime out") as raised:
        parse_conditions({"orch.runtime": "torch-3.11"}, 0.0, POLICY)
    assert raised.value.field == "orch.runtime"


@pytest.mark.parametrize(("asked", "gpus"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.0, 2)])
def test_request_entrypoint_gpus_are_the_gang_where_nothing_else_is_said(asked: float, gpus: int) -> None:
    assert parse_conditions({}, asked, POLICY).requirements.gpus == gpus


def test_request_with_every_key_is_understood() -> None:
    metadata = {
        "orch.gpus": " 4 ",
        "orch.gpu_model": "NVIDIA GeForce RTX 4090",
        "orch.hardware_class": "Miner",
        "orch.min_gpu_memory_gb": "24",
        "orch.isolation": "container",
        "orch.runtime": "torch-3.11",
        "orch.gpus_per_worker": "2",
        "orch.min_compute_capability": "8.9",
        "orch.region": "eu-west",
        "orch.max_price": "0.45",
        "orch.min_reliability": "97.5",
        "orch.evidence": "T2",
        "orch.tier": "committed",
        "orch.max_rtt_ms": "20",
        "orch.pattern": "pipeline",
        "orch.priority": "7",
        "orch.max_attempts": "10",
        "orch.min_bandwidth_mbps": "100",
        "orch.time_limit": "90m",
        "orch.reservation": " tuesday ",
    }
    # An image stands in place of a runtime.
    assert set(metadata) == set(KEYS) - {"orch.image"}
    wanted = Requirements(
        4,
        "RTX4090",
        HardwareClass.MINER,
        24,
        Isolation.CONTAINER,
        TORCH,
        gpus_per_worker=2,
        min_compute_capability=809,
        region="eu-west",
        max_price=450_000,
        min_reliability_bp=9_750,
        min_evidence=EvidenceClass.T2,
        committed=True,
        max_rtt_ms=20,
        pattern=Pattern.PIPELINE,
        min_bandwidth_mbps=100,
    )
    assert parse_conditions(metadata, 1.0, OFFERING) == JobConditions(
        wanted, 7, 10, time_limit_ms=5_400_000, reservation="tuesday"
    )


def test_only_a_job_that_says_so_gives_way_to_others() -> None:
    assert parse_conditions({"orch.tier": "interruptible"}, 0.0, POLICY).interruptible
    assert not parse_conditions({"orch.tier": "committed"}, 0.0, POLICY).interruptible
    assert not parse_conditions({}, 0.0, POLICY).interruptible


def test_request_for_cpu_work_holds_one_cpu_device() -> None:
    wanted = parse_conditions({"orch.gpus": "0", "orch.hardware_class": "cpu"}, 0.0, POLICY).requirements
    assert (wanted.gpus, wanted.device_count) == (0, 1)


BAD: list[tuple[dict[str, str], float, str, str]] = [
    ({"orch.gpu": "1"}, 0, "orch.gpu", "'orch.gpus'"),
    ({"orch.gpumodel": "T4"}, 0, "orch.gpumodel", "'orch.gpu_model'"),
    ({"orch.": "x"}, 0, "orch.", "did you mean"),
    ({"orch." + "x" * 500: "1"}, 0, ("orch." + "x" * 500)[:80], "did you mean"),
    ({"orch.gpus": "6", "orch.gpus_per_worker": "4"}, 0, "orch.gpus_per_worker", "cannot be shared out by 4"),
    ({"orch.gpus": "0", "orch.gpus_per_worker": "1"}, 0, "orch.gpus", "contradicts GPUs per worker"),
    ({"orch.min_compute_capability": "eight"}, 0, "orch.min_compute_capability", "such as 8.9"),
    ({"orch.min_compute_capability": "8"}, 0, "orch.min_compute_capability", "such as 8.9"),
    ({"orch.region": "EU West"}, 0, "orch.region", "lower-case letters"),
    ({"orch.max_price": "0"}, 0, "orch.max_price", "above 0"),
    ({"orch.max_price": "0.0000001"}, 0, "orch.max_price", "at most six decimals"),
    ({"orch.max_price": "-1"}, 0, "orch.max_price", "is not a price"),
    ({"orch.max_price": "NaN"}, 0, "orch.max_price", "is not a price"),
    ({"orch.max_price": "1e3"}, 0, "orch.max_price", "is not a price"),
    ({"orch.min_reliability": "100.01"}, 0, "orch.min_reliability", "from 0 to 100"),
    ({"orch.min_reliability": "most"}, 0, "orch.min_reliability", "from 0 to 100"),
    ({"orch.evidence": "t9"}, 0, "orch.evidence", "did you mean"),
    ({"orch.tier": "comitted"}, 0, "orch.tier", "'committed'"),
    ({"orch.pattern": "allreduce"}, 0, "orch.pattern", "'all-reduce'"),
    ({"orch.max_rtt_ms": "0"}, 0, "orch.max_rtt_ms", "from 1 to 5000"),
    ({"orch.max_rtt_ms": "1000000000"}, 0, "orch.max_rtt_ms", "at most 9 digits"),
    ({"orch.max_rtt_ms": "99999"}, 0, "orch.max_rtt_ms", "from 1 to 5000"),
    ({"orch.max_rtt_ms": "-5"}, 0, "orch.max_rtt_ms", "whole number"),
    ({"orch.max_rtt_ms": "NaN"}, 0, "orch.max_rtt_ms", "whole number"),
    ({"orch.gpus": "one"}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": ""}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": "-1"}, 0, "orch.gpus", "whole number"),
    (
        {"orch.gpus": "0.5"},
        0,
        "orch.gpus",
        "@ray.remote(num_gpus=0.5) shares one",
    ),
    ({"orch.gpus": ".5"}, 0, "orch.gpus", "tenants get whole GPUs"),
    ({"orch.gpus": "1.5"}, 0, "orch.gpus", "ask for a whole number"),
    ({"orch.gpus": "2", "orch.gpus_per_worker": "0.5"}, 0, "orch.gpus_per_worker", "tenants get whole GPUs"),
    ({"orch.gpus": "0.5.5"}, 0, "orch.gpus", "is not a whole number"),
    ({}, 2.1, "entrypoint_num_gpus", "whole ones only"),
    ({"orch.gpus": "4"}, 1.5, "entrypoint_num_gpus", "whole ones only"),
    ({"orch.gpus": "NaN"}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": "inf"}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": "1e3"}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": "٣"}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": "9" * 5_000}, 0, "orch.gpus", "at most 9 digits"),
    ({"orch.gpus": "65"}, 0, "orch.gpus", "largest gang of 64"),
    ({}, 65, "orch.gpus", "largest gang of 64"),
    ({}, math.nan, "entrypoint_num_gpus", "not a count"),
    ({}, math.inf, "entrypoint_num_gpus", "not a count"),
    ({}, -1, "entrypoint_num_gpus", "not a count"),
    ({}, 1e300, "entrypoint_num_gpus", "not a count"),
    ({"orch.gpus": "2"}, math.nan, "entrypoint_num_gpus", "not a count"),
    ({"orch.gpus": "2"}, -1, "entrypoint_num_gpus", "not a count"),
    ({"orch.gpus": "2"}, math.inf, "entrypoint_num_gpus", "not a count"),
    ({"orch.gpus": "2"}, 3, "entrypoint_num_gpus", "contradicts orch.gpus=2"),
    ({"orch.gpus": "0"}, 0.5, "entrypoint_num_gpus", "contradicts orch.gpus=0"),
    ({"orch.gpu_model": "RTX4099"}, 0, "orch.gpu_model", "'RTX4090'"),
    ({"orch.gpu_model": ""}, 0, "orch.gpu_model", "unknown GPU model"),
    ({"orch.gpu_model": "CPU"}, 0, "orch.gpu_model", "unknown GPU model"),
    ({"orch.hardware_class": "datacentre"}, 0, "orch.hardware_class", "'datacenter'"),
    ({"orch.isolation": "boxes"}, 0, "orch.isolation", "'box'"),
    ({"orch.image": "docker.io/team/image:latest"}, 0, "orch.image", "by its digest"),
    ({"orch.image": "image@sha256:" + "ab" * 32}, 0, "orch.image", "registry included"),
    ({"orch.image": "docker.io/team/image:1@sha256:" + "ab" * 32}, 0, "orch.image", "without a tag"),
    ({"orch.image": "docker.io/team/image@sha256:" + "ab" * 31}, 0, "orch.image", "64 hex digits"),
    ({"orch.image": "--help/x@sha256:" + "ab" * 32}, 0, "orch.image", "is no image"),
    ({"orch.gpus": "0", "orch.gpu_model": "T4"}, 0, "orch.gpus", "contradicts"),
    ({"orch.gpus": "0", "orch.min_gpu_memory_gb": "8"}, 0, "orch.gpus", "contradicts"),
    ({"orch.gpus": "0", "orch.hardware_class": "miner"}, 0, "orch.hardware_class", "class cpu"),
    ({"orch.hardware_class": "cpu"}, 0, "orch.hardware_class", "no GPUs"),
    ({"orch.gpu_model": "T4", "orch.min_gpu_memory_gb": "17"}, 0, "orch.min_gpu_memory_gb", "16 GB"),
    ({"orch.gpu_model": "H100", "orch.hardware_class": "consumer"}, 0, "orch.hardware_class", "datacenter"),
    ({"orch.min_gpu_memory_gb": "193"}, 0, "orch.min_gpu_memory_gb", "at most 192"),
    (
        {"orch.min_gpu_memory_gb": "33", "orch.hardware_class": "consumer"},
        0,
        "orch.min_gpu_memory_gb",
        "of class consumer",
    ),
    ({"orch.priority": "101"}, 0, "orch.priority", "above 100"),
    ({"orch.max_attempts": "0"}, 0, "orch.max_attempts", "from 1 to 10"),
    ({"orch.max_attempts": "11"}, 0, "orch.max_attempts", "from 1 to 10"),
    ({"orch.min_bandwidth_mbps": "0"}, 0, "orch.min_bandwidth_mbps", "from 1 to"),
    ({"orch.min_bandwidth_mbps": "1000001"}, 0, "orch.min_bandwidth_mbps", "from 1 to"),
    ({"orch.min_bandwidth_mbps": "1e3"}, 0, "orch.min_bandwidth_mbps", "whole number"),
    ({"orch.min_compute_capability": "999999999.9"}, 0, "orch.min_compute_capability", "MAJOR.MINOR"),
    ({"orch.reservation": "   "}, 0, "orch.reservation", "is empty"),
    ({"orch.time_limit": "forever"}, 0, "orch.time_limit", "90m, 12h or 2d"),
    ({"orch.time_limit": "59s"}, 0, "orch.time_limit", "of a minute"),
    ({"orch.time_limit": "367d"}, 0, "orch.time_limit", "to 366 days"),
    ({"orch.time_limit": "-2h"}, 0, "orch.time_limit", "is not a time"),
]


@pytest.mark.parametrize(("metadata", "gpus", "field", "words"), BAD)
def test_request_that_cannot_be_meant_is_refused_by_field(
    metadata: dict[str, str], gpus: float, field: str, words: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_conditions(metadata, gpus, POLICY)
    assert (caught.value.code, caught.value.field) == (RefusalCode.INVALID, field)
    assert words in caught.value.message
    assert len(caught.value.message) < 400


@given(st.dictionaries(st.sampled_from(KEYS), st.text(max_size=20), max_size=4), st.floats())
def test_request_of_any_text_is_refused_or_within_bounds(metadata: dict[str, str], gpus: float) -> None:
    try:
        asked = parse_conditions(metadata, gpus, POLICY)
    except RefusedError:
        return
    assert 0 <= asked.requirements.gpus <= POLICY.gang_gpus_max
    assert 0 <= asked.priority <= 100
    assert 1 <= asked.max_attempts <= POLICY.max_attempts_max
    assert gpus <= max(1, asked.requirements.gpus)
