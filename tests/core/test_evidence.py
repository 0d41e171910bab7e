"""Classes are derived, evidence is weighed, changes are told: the rules over hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.decisions.fleet import check_inventory
from orchestrator.core.errors import RefusedError
from orchestrator.core.ids import DeviceId
from orchestrator.core.supply.catalogue import GIB, MODELS, model_of
from orchestrator.core.supply.evidence import (
    DeviceEvidence,
    DeviceVendor,
    EvidenceClass,
    MachineEvidence,
    Sighting,
    Source,
    bus_id,
)
from orchestrator.core.supply.fleet import Device, DeviceKind, HardwareClass, Inventory
from orchestrator.core.supply.hardware import (
    CHANGES_MAX,
    MINER_GPUS_MIN,
    NARROW_LANES_MAX,
    agreeing_sources,
    derive_class,
    evidence_class,
    hardware_changes,
    misfit,
    worker_evidence_class,
)
from tests.core.worlds import inventory

DRIVER_NAMES = {
    "RTX4090": "NVIDIA GeForce RTX 4090",
    "RTX3070": "NVIDIA GeForce RTX 3070",
    "RTX3090": "NVIDIA GeForce RTX 3090",
    "H100": "NVIDIA H100 80GB HBM3",
    "L4": "NVIDIA L4",
}


def shown(
    model: str = "RTX4090",
    number: int = 1,
    *,
    width: int | None = 16,
    width_max: int | None = 16,
    nvlinks: int | None = None,
) -> Device:
    """A real GPU with evidence of which two sources agree."""
    name, uuid, bus = DRIVER_NAMES[model], f"GPU-{number}", f"0000:{number:02x}:00.0"
    evidence = DeviceEvidence(
        vendor=DeviceVendor.NVIDIA,
        model=name,
        memory_bytes=MODELS[model].memory_gb * GIB,
        uuid=uuid,
        pci_bus_id=bus,
        pcie_width=width,
        pcie_width_max=width_max,
        nvlink_links=nvlinks,
        driver_version="550.54.14",
        sightings=(Sighting(Source.NVML, uuid, name, f"0000{bus}"), Sighting(Source.PROCFS, uuid, name, bus)),
    )
    return Device(
        DeviceId(uuid), DeviceKind.GPU, model, evidence.memory_bytes, simulated=False, evidence=evidence
    )


def of(device: Device, **changes: object) -> Device:
    """The same device with other evidence."""
    assert device.evidence is not None
    return replace(device, evidence=replace(device.evidence, **changes))  # type: ignore[arg-type]


def simulated(model: str, number: int = 1) -> Device:
    return Device(DeviceId(f"sim_{number}"), DeviceKind.GPU, model, GIB, simulated=True)


def offering(*devices: Device) -> Inventory:
    hardware_class, reason = derive_class(devices)
    return replace(inventory(), devices=devices, hardware_class=hardware_class, class_reason=reason)


# ---------------------------------------------------------------- the class


CASES = {
    "gaming PC": ([shown()], HardwareClass.CONSUMER, "1 × RTX4090"),
    "three on risers": (
        [shown("RTX3070", n, width=1, width_max=1) for n in range(3)],
        HardwareClass.CONSUMER,
        "fewer than 4",
    ),
    "rig": (
        [shown("RTX3070", n, width=1, width_max=1) for n in range(6)],
        HardwareClass.MINER,
        "6 of 6 hang on PCIe x1",
    ),
    "rig with one in the long slot": (
        [shown("RTX3070", 9), *(shown("RTX3070", n, width=1, width_max=16) for n in range(5))],
        HardwareClass.MINER,
        "5 of 6",
    ),
    "rig on x4": ([shown("RTX3070", n, width=4) for n in range(4)], HardwareClass.MINER, "x4 or less"),
    "half of them wide": (
        [shown("RTX3070", n, width=1 if n < 2 else 16) for n in range(4)],
        HardwareClass.CONSUMER,
        "2 of 4 on PCIe wider than x4",
    ),
    "widths unknown": (
        [shown("RTX3070", n, width=None, width_max=None) for n in range(6)],
        HardwareClass.CONSUMER,
        "not known",
    ),
    "workstation of four": (
        [shown("RTX4090", n, width=8) for n in range(4)],
        HardwareClass.CONSUMER,
        "4 of 4",
    ),
    "bridged gaming cards": (
        [shown("RTX3090", n, nvlinks=4) for n in range(2)],
        HardwareClass.CONSUMER,
        "RTX3090",
    ),
    "data centre": (
        [shown("H100", n, nvlinks=18) for n in range(8)],
        HardwareClass.DATACENTER,
        "18 or more NVLinks",
    ),
    "data centre's card on thin links": (
        [shown("L4", n, width=1) for n in range(6)],
        HardwareClass.DATACENTER,
        "data-centre",
    ),
    "mixed": (
        [shown("L4", 1), shown("RTX4090", 2)],
        HardwareClass.CONSUMER,
        "1 × L4 beside them do not lift",
    ),
    "mostly data centre": (
        [*(shown("H100", n) for n in range(7)), shown("RTX4090", 9)],
        HardwareClass.CONSUMER,
        "do not lift",
    ),
    "simulated gamer": ([simulated("RTX4090")], HardwareClass.CONSUMER, "simulated"),
    "simulated rig": ([simulated("RTX3070", n) for n in range(6)], HardwareClass.CONSUMER, "simulated"),
    "simulated centre": ([simulated("H100")], HardwareClass.DATACENTER, "H100"),
    "simulated Mac": ([simulated("M1MAX")], HardwareClass.APPLE, "Apple"),
    "old agent": ([replace(shown(), evidence=None)], HardwareClass.CONSUMER, "without evidence"),
    "nothing": ([], HardwareClass.CPU, "no device"),
}


@pytest.mark.parametrize("case", CASES)
def test_class_is_derived_with_a_reason_that_names_the_evidence(case: str) -> None:
    devices, wanted, words = CASES[case]
    hardware_class, reason = derive_class(devices)
    assert hardware_class is wanted
    assert words in reason
    check_inventory(offering(*devices))


def test_class_of_a_processor_names_it() -> None:
    processor = Device(DeviceId("cpu_1"), DeviceKind.CPU, "CPU", GIB, simulated=False)
    hardware_class, reason = derive_class([processor], MachineEvidence(processor="AMD EPYC"))
    assert hardware_class is HardwareClass.CPU
    assert "AMD EPYC" in reason


devices_drawn = st.lists(
    st.builds(
        shown,
        st.sampled_from(sorted(DRIVER_NAMES)),
        st.integers(1, 99),
        width=st.sampled_from([None, 1, 4, 8, 16]),
        width_max=st.sampled_from([None, 1, 4, 8, 16]),
        nvlinks=st.sampled_from([None, 0, 4, 18]),
    )
    | st.builds(simulated, st.sampled_from(sorted(set(MODELS) - {"CPU"})), st.integers(1, 99)),
    max_size=10,
    unique_by=lambda device: device.device_id,
)


@given(devices=devices_drawn, data=st.data())
def test_class_is_the_same_in_every_order_and_fits_its_devices(
    devices: list[Device], data: st.DataObject
) -> None:
    hardware_class, reason = derive_class(devices)
    assert derive_class(data.draw(st.permutations(devices))) == (hardware_class, reason)
    assert reason
    apples = [device for device in devices if HardwareClass.APPLE in MODELS[device.model].classes]
    # No machine holds an Apple chip beside another's GPU: such a list is refused, every other fits its class.
    assert (misfit(devices, hardware_class) is None) == (len(apples) in (0, len(devices)))


@given(devices=devices_drawn)
def test_class_miner_takes_four_gpus_of_which_most_hang_on_thin_links(devices: list[Device]) -> None:
    if derive_class(devices)[0] is HardwareClass.MINER:
        thin = [
            device
            for device in devices
            if device.evidence is not None
            and any(
                width is not None and width <= NARROW_LANES_MAX
                for width in (device.evidence.pcie_width, device.evidence.pcie_width_max)
            )
        ]
        assert len(devices) >= MINER_GPUS_MIN
        assert 2 * len(thin) > MINER_GPUS_MIN


def test_class_misfit_is_refused_though_claimed() -> None:
    for devices, claimed, field in (
        ([shown()], HardwareClass.DATACENTER, "inventory.hardware_class"),
        ([shown("H100")], HardwareClass.CONSUMER, "inventory.hardware_class"),
        ([simulated("M1MAX", 1), simulated("RTX4090", 2)], HardwareClass.APPLE, "inventory.hardware_class"),
    ):
        with pytest.raises(RefusedError) as raised:
            check_inventory(replace(inventory(), devices=tuple(devices), hardware_class=claimed))
        assert raised.value.field == field


# ---------------------------------------------------------------- what evidence is worth


def test_evidence_that_two_sources_share_is_cross_checked() -> None:
    assert evidence_class(shown()) is EvidenceClass.T2
    assert agreeing_sources(
        shown().evidence or DeviceEvidence(vendor=DeviceVendor.CPU, model="", memory_bytes=0)
    ) == (
        "nvml",
        "procfs",
    )


def _without(device: Device, source: Source) -> Device:
    assert device.evidence is not None
    return of(device, sightings=tuple(one for one in device.evidence.sightings if one.source is not source))


def _second(device: Device, **changes: object) -> Device:
    """Its second source says something else."""
    assert device.evidence is not None
    first, second = device.evidence.sightings
    return of(device, sightings=(first, replace(second, **changes)))  # type: ignore[arg-type]


WEAK = {
    "simulated": replace(shown(), simulated=True),
    "no evidence": replace(shown(), evidence=None),
    "one source": _without(shown(), Source.PROCFS),
    "the same source twice": _second(shown(), source=Source.NVML),
    "no independent source": _second(shown(), source=Source.SYSCTL),
    "another UUID": _second(shown(), uuid="GPU-7"),
    "another model": _second(shown(), model="NVIDIA GeForce RTX 4080"),
    "another bus": _second(shown(), pci_bus_id="0000:07:00.0"),
    "UUID not told": _second(shown(), uuid=""),
    "evidence of another device": replace(shown(), device_id=DeviceId("GPU-2")),
}


@pytest.mark.parametrize("case", WEAK)
def test_evidence_that_is_not_shared_is_self_reported(case: str) -> None:
    assert evidence_class(WEAK[case]) is EvidenceClass.T0


def test_evidence_of_a_worker_is_its_weakest_devices() -> None:
    weak = replace(shown("RTX4090", 2), evidence=None)
    assert worker_evidence_class([shown(), shown("RTX4090", 3)]) is EvidenceClass.T2
    assert worker_evidence_class([shown(), weak]) is EvidenceClass.T0
    assert worker_evidence_class([]) is EvidenceClass.T0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("00000000:01:00.0", "0000:01:00.0"),
        ("0000:C1:00.0", "0000:c1:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("0000:01:00", "0000:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("somewhere", "somewhere"),
        ("", ""),
    ],
)
def test_bus_id_has_one_spelling(text: str, wanted: str) -> None:
    assert bus_id(text) == wanted


CONTRADICTIONS = {
    "another model than its driver's": (replace(shown(), model="RTX5090", memory_bytes=GIB), "RTX4090"),
    "a model that is not listed": (of(shown(), model="NVIDIA GeForce RTX 4090 Laptop GPU"), "no model"),
    "more memory than it has": (of(shown(), memory_bytes=12 * GIB), "less than"),
    "MIG": (of(shown("H100"), mig_enabled=True), "nvidia-smi -mig 0"),
    "simulated": (replace(shown(), simulated=True), "simulated"),
    "a processor as a GPU": (of(shown(), vendor=DeviceVendor.CPU), "no gpu"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_inventory_that_its_own_evidence_contradicts_is_refused(case: str) -> None:
    device, words = CONTRADICTIONS[case]
    with pytest.raises(RefusedError, match=words) as raised:
        check_inventory(offering(device))
    assert raised.value.field == "inventory.devices.evidence"


@pytest.mark.parametrize(
    ("name", "memory_gb", "model"),
    [
        ("NVIDIA GeForce RTX 4090", 24, "RTX4090"),
        ("NVIDIA GeForce RTX 3080 Ti", 12, "RTX3080TI"),
        ("NVIDIA GeForce RTX 4060 Ti", 16, "RTX4060TI-16"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, "RTX4070TISUPER"),
        ("NVIDIA H100 80GB HBM3", 80, "H100"),
        ("NVIDIA H100 PCIe", 80, "H100"),
        ("NVIDIA H200", 141, "H200"),
        ("NVIDIA A100-SXM4-40GB", 40, "A100-40"),
        ("NVIDIA A100 80GB PCIe", 80, "A100-80"),
        ("Tesla V100-SXM2-32GB", 32, "V100"),
        ("Tesla T4", 15, "T4"),
        ("NVIDIA L40S", 45, "L40S"),
        ("AMD Radeon RX 7900 XTX", 24, "RX7900XTX"),
        ("AMD Instinct MI300X", 192, "MI300X"),
        ("Apple M2 Ultra", 192, "M2ULTRA"),
        ("NVIDIA L40G", 45, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("NVIDIA GeForce RTX 4090 D", 24, None),
        ("NVIDIA GeForce GTX 1660 SUPER", 6, None),
        ("", 1, None),
    ],
)
def test_model_of_a_drivers_name_is_the_catalogues_or_none(
    name: str, memory_gb: int, model: str | None
) -> None:
    found = model_of(name, memory_gb * GIB)
    assert (found.name if found is not None else None) == model


# ---------------------------------------------------------------- what has changed


def test_changes_of_nothing_are_none_though_an_idle_gpu_lowers_its_link() -> None:
    busy, idle = offering(of(shown(), pcie_generation=4)), offering(of(shown(), pcie_generation=1))
    assert busy == idle
    assert hardware_changes(busy, idle) == ()
    assert hardware_changes(busy, replace(busy, slots=4, zone="attic", ray_version="2.61.0")) == ()


def test_changes_each_get_a_sentence() -> None:
    old = offering(shown("RTX4090", 1), shown("RTX4090", 2))
    new = offering(of(shown("RTX4090", 1), driver_version="560.1", pcie_width=1), shown("RTX3070", 3))
    new = replace(new, memory_bytes=old.memory_bytes // 2)
    assert hardware_changes(old, new) == (
        "RTX4090 GPU-2 is gone",
        "RTX3070 GPU-3 is new",
        "RTX4090 GPU-1: driver version was 550.54.14 and is 560.1",
        "RTX4090 GPU-1: PCIe width was 16 and is 1",
        f"the machine's memory was {old.memory_bytes} bytes and is {new.memory_bytes}",
    )


def test_changes_of_evidence_machine_and_class_are_told() -> None:
    old = replace(offering(shown()), evidence=MachineEvidence(board_vendor="ASUS", gpus=1))
    lost = replace(old, evidence=MachineEvidence(board_vendor="ASUS", gpus=2, gpus_lost=1))
    assert hardware_changes(old, lost) == (
        "the machine: GPUs seen was 1 and is 2",
        "the machine: GPUs lost was 0 and is 1",
    )
    weaker = offering(of(_without(shown(), Source.PROCFS), ecc_enabled=True))
    assert hardware_changes(old, weaker) == (
        "RTX4090 GPU-1: ECC mode was unknown and is on",
        "RTX4090 GPU-1: agreeing sources was nvml, procfs and is nvml",
    )
    assert hardware_changes(offering(replace(shown(), evidence=None)), offering(shown())) == (
        "RTX4090 GPU-1 shows evidence",
    )


def test_changes_of_a_whole_machine_stay_readable() -> None:
    old = offering(*(shown("RTX4090", n) for n in range(30)))
    said = hardware_changes(old, offering(shown("RTX4090", 99)))
    assert len(said) == CHANGES_MAX
    assert said[-1] == "and 12 more changes"
