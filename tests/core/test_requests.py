"""The ``orch.`` keys: what is understood, and every refusal with the field at fault and what to do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.fleet import HardwareClass, Isolation
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.requests import KEYS, NOT_OFFERED, parse_requirements

POLICY = JobPolicy()


def test_request_without_orch_keys_asks_for_one_gpu_of_any_class() -> None:
    assert parse_requirements({"note": "mine", "orchid": "x"}, 0.0, POLICY) == (Requirements(), 0, 3)


@pytest.mark.parametrize(("asked", "gpus"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.0, 2), (2.1, 3)])
def test_request_entrypoint_gpus_are_the_gang_where_nothing_else_is_said(asked: float, gpus: int) -> None:
    assert parse_requirements({}, asked, POLICY)[0].gpus == gpus


def test_request_with_every_key_is_understood() -> None:
    metadata = {
        "orch.gpus": " 4 ",
        "orch.gpu_model": "NVIDIA GeForce RTX 4090",
        "orch.hardware_class": "Miner",
        "orch.min_gpu_memory_gb": "24",
        "orch.isolation": "box",
        "orch.priority": "7",
        "orch.max_attempts": "10",
    }
    assert set(metadata) == set(KEYS)
    wanted = Requirements(4, "RTX4090", HardwareClass.MINER, 24, Isolation.BOX)
    assert parse_requirements(metadata, 1.0, POLICY) == (wanted, 7, 10)


def test_request_for_cpu_work_holds_one_cpu_device() -> None:
    wanted, _, _ = parse_requirements({"orch.gpus": "0", "orch.hardware_class": "cpu"}, 0.0, POLICY)
    assert (wanted.gpus, wanted.device_count) == (0, 1)


BAD: list[tuple[dict[str, str], float, str, str]] = [
    ({"orch.gpu": "1"}, 0, "orch.gpu", "'orch.gpus'"),
    ({"orch.gpumodel": "T4"}, 0, "orch.gpumodel", "'orch.gpu_model'"),
    ({"orch.": "x"}, 0, "orch.", "did you mean"),
    ({"orch." + "x" * 500: "1"}, 0, ("orch." + "x" * 500)[:80], "did you mean"),
    *(({key: "1"}, 0, key, "not offered") for key in NOT_OFFERED),
    ({"orch.gpus": "one"}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": ""}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": "-1"}, 0, "orch.gpus", "whole number"),
    ({"orch.gpus": "1.5"}, 0, "orch.gpus", "whole number"),
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
]


@pytest.mark.parametrize(("metadata", "gpus", "field", "words"), BAD)
def test_request_that_cannot_be_meant_is_refused_by_field(
    metadata: dict[str, str], gpus: float, field: str, words: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_requirements(metadata, gpus, POLICY)
    assert (caught.value.code, caught.value.field) == (RefusalCode.INVALID, field)
    assert words in caught.value.message
    assert len(caught.value.message) < 400


@given(st.dictionaries(st.sampled_from(KEYS), st.text(max_size=20), max_size=4), st.floats())
def test_request_of_any_text_is_refused_or_within_bounds(metadata: dict[str, str], gpus: float) -> None:
    try:
        wanted, priority, attempts = parse_requirements(metadata, gpus, POLICY)
    except RefusedError:
        return
    assert 0 <= wanted.gpus <= POLICY.gang_gpus_max
    assert 0 <= priority <= 100
    assert 1 <= attempts <= POLICY.max_attempts_max
    assert gpus <= max(1, wanted.gpus)
