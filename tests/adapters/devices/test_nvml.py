"""NVIDIA's GPUs through the real binding and a library of the test's own: each kind of machine, and each ill of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from orchestrator.adapters.devices import XidWatch, read_evidence, read_telemetry
from orchestrator.adapters.evidence_wire import device_evidence_to
from orchestrator.agent.inventory import Capabilities, DeviceIds, Machine, Offer, build_inventory, unlisted
from orchestrator.control.inventory_wire import inventory_from
from orchestrator.core.decisions.fleet import check_inventory
from orchestrator.core.supply.catalogue import GIB, model_of
from orchestrator.core.supply.evidence import EvidenceClass, Source
from orchestrator.core.supply.fleet import HardwareClass, Inventory
from orchestrator.core.supply.hardware import evidence_class, worker_evidence_class
from orchestrator.core.supply.health import DeviceHistory, FaultKind, GpuProcess, faults, remember
from tests.adapters.devices.machines import lay_file, lay_procfs
from tests.adapters.devices.nvml_library import LIBRARY, built_library, stub_environment
from tests.adapters.devices.nvml_runner import Look

BARE = Capabilities("none", "none")
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
GPU_DEVICE = Path("/dev/nvidiactl")
RUN_S = 60
MACHINE = Machine(8, 32 * GIB, "linux", "x86_64", "3.11.9", "2.60.0")
RTX4090 = "NVIDIA GeForce RTX 4090"
RTX3090 = "NVIDIA GeForce RTX 3090"
H100 = "NVIDIA H100 80GB HBM3"

Looker = Callable[..., Look]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stub library in it."""
    return built_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def look(library: Path, tmp_path: Path) -> Looker:
    """Looks at one scenario, with procfs under ``tmp_path``."""

    def run(scenario: str, folder: Path = library) -> Look:
        environment = {**os.environ, **stub_environment(folder, scenario), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.adapters.devices.nvml_runner", str(tmp_path)]
        ended = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, timeout=RUN_S, check=False
        )
        assert ended.returncode == 0, ended.stderr.decode()
        return msgspec.json.decode(ended.stdout, type=Look)

    return run


def judged(seen: Look, tmp_path: Path) -> Inventory:
    """What the control plane makes of it."""
    ids = DeviceIds(tmp_path, lambda prefix: f"{prefix}_1")
    inventory = inventory_from(build_inventory(Offer(), MACHINE, seen.reading, ids, BARE))
    check_inventory(inventory)
    return inventory


def test_nvml_healthy_gpu_tells_all_and_procfs_agrees(look: Looker, tmp_path: Path) -> None:
    lay_procfs(tmp_path, [RTX4090])
    seen = look("healthy")
    (gpu,) = seen.reading.gpus
    assert (gpu.model, gpu.memory_bytes, gpu.pci_bus_id) == (RTX4090, 24 * GIB, "0000:01:00.0")
    assert (gpu.uuid, gpu.compute_capability) == ("GPU-00000000-0000-0000-0000-000000000001", "8.9")
    assert (gpu.pcie_generation, gpu.pcie_width, gpu.pcie_width_max) == (4, 16, 16)
    assert (gpu.driver_version, gpu.power_limit_mw) == ("550.54.14", 450_000)
    assert (gpu.nvlink_links, gpu.mig_enabled, gpu.ecc_enabled) == (None, None, None)
    assert [one.source for one in gpu.sightings] == [Source.NVML, Source.PROCFS]
    inventory = judged(seen, tmp_path)
    assert inventory.hardware_class is HardwareClass.CONSUMER
    assert worker_evidence_class(inventory.devices) is EvidenceClass.T2
    (sample,) = seen.telemetry
    assert (sample.temperature_c, sample.slowdown_c, sample.utilisation_percent) == (41, 93, 0)
    assert (sample.ecc_uncorrected, sample.throttle_reasons, sample.processes) == (None, (), ())
    assert faults(sample, DeviceHistory()) == ()


def test_nvml_alone_is_not_cross_checked(look: Looker, tmp_path: Path) -> None:
    """A library that anybody may put in the way of the real one earns no trust by itself."""
    inventory = judged(look("healthy"), tmp_path)
    assert worker_evidence_class(inventory.devices) is EvidenceClass.T0


def test_nvml_contradicted_by_procfs_is_not_cross_checked(look: Looker, tmp_path: Path) -> None:
    lay_procfs(tmp_path, ["NVIDIA GeForce RTX 3060"])
    assert worker_evidence_class(judged(look("healthy"), tmp_path).devices) is EvidenceClass.T0
    lay_procfs(tmp_path, [RTX4090], first_uuid=7)
    assert worker_evidence_class(judged(look("healthy"), tmp_path).devices) is EvidenceClass.T0


def test_nvml_masked_procfs_uuid_counts_as_not_told(look: Looker, tmp_path: Path) -> None:
    text = (
        f"Model: {RTX4090}\nGPU UUID: GPU-????????-????-????-????-????????????\nBus Location: 0000:01:00.0\n"
    )
    lay_file(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", text)
    seen = look("healthy")
    assert seen.reading.gpus[0].sightings[1].uuid == ""
    assert worker_evidence_class(judged(seen, tmp_path).devices) is EvidenceClass.T0


def test_nvml_hot_gpu_is_a_fault_only_when_it_stays_hot(look: Looker) -> None:
    (sample,) = look("hot").telemetry
    assert (sample.temperature_c, sample.utilisation_percent, sample.power_mw) == (94, 100, 440_000)
    assert sample.throttle_reasons == ("power_cap", "hw_thermal")
    assert sample.processes == (GpuProcess(900, None), GpuProcess(4711, 18 * GIB))
    assert sample.memory_used_bytes == 20 * GIB
    history = DeviceHistory()
    for _ in range(3):
        assert faults(sample, history) == ()
        history = remember(history, sample)
    (fault,) = faults(sample, history)
    assert fault.kind is FaultKind.THERMAL
    assert "94 °C" in fault.text


def test_nvml_xid_events_come_once_with_the_gpus_uuid(look: Looker) -> None:
    seen = look("xid")
    uuid = seen.reading.gpus[0].uuid
    assert seen.xids == ((uuid, 31), (uuid, 48))
    assert seen.xids_later == ()
    (sample,) = seen.telemetry
    assert (sample.ecc_corrected, sample.ecc_uncorrected) == (5, 2)


@pytest.mark.parametrize("scenario", ["lost", "lost-handle"])
def test_nvml_lost_gpu_is_a_fault_by_its_bus_and_the_other_is_offered(
    look: Looker, tmp_path: Path, scenario: str
) -> None:
    lay_procfs(tmp_path, [RTX3090, RTX3090])
    seen = look(scenario)
    (gpu,) = seen.reading.gpus
    assert gpu.pci_bus_id == "0000:01:00.0"
    (fault,) = seen.reading.faults
    assert fault.kind is FaultKind.LOST
    assert "0000:02:00.0" in fault.text
    assert (seen.reading.machine.gpus, seen.reading.machine.gpus_lost) == (2, 1)
    alive, gone = seen.telemetry
    assert (alive.lost, gone.lost, gone.pci_bus_id) == (False, True, "0000:02:00.0")
    assert gone.uuid == "GPU-00000000-0000-0000-0000-000000000002"
    assert [one.kind for one in faults(gone, DeviceHistory())] == [FaultKind.LOST]
    assert unlisted(Offer(), seen.reading) == [fault.text]
    assert len(judged(seen, tmp_path).devices) == 1


def test_nvml_lost_gpu_without_procfs_is_named_by_its_index(look: Looker) -> None:
    (fault,) = look("lost-handle").reading.faults
    assert "index 1" in fault.text


def test_nvml_eight_h100_are_a_data_centre_with_their_nvlinks(look: Looker, tmp_path: Path) -> None:
    lay_procfs(tmp_path, [H100] * 8)
    seen = look("8xh100")
    assert [(gpu.nvlink_links, gpu.nvlink_peers) for gpu in seen.reading.gpus] == [(18, 4)] * 8
    inventory = judged(seen, tmp_path)
    assert inventory.hardware_class is HardwareClass.DATACENTER
    assert "8 × H100" in inventory.class_reason
    assert "18" in inventory.class_reason
    assert worker_evidence_class(inventory.devices) is EvidenceClass.T2


def test_nvml_mig_is_shown_by_its_profiles_and_not_offered_whole(look: Looker, tmp_path: Path) -> None:
    seen = look("mig")
    (gpu,) = seen.reading.gpus
    assert (gpu.mig_enabled, gpu.mig_profiles) == (True, ("3g.40gb", "1g.10gb"))
    assert seen.telemetry[0].utilisation_percent is None
    (remark,) = unlisted(Offer(), seen.reading)
    assert "nvidia-smi -mig 0" in remark
    assert judged(seen, tmp_path).hardware_class is HardwareClass.CPU


def test_nvml_rig_of_six_on_risers_is_a_miner(look: Looker, tmp_path: Path) -> None:
    lay_procfs(tmp_path, ["NVIDIA GeForce RTX 3070"] * 6)
    inventory = judged(look("rig"), tmp_path)
    assert inventory.hardware_class is HardwareClass.MINER
    assert "6 × RTX3070" in inventory.class_reason
    assert "x1" in inventory.class_reason
    assert all(evidence_class(device) is EvidenceClass.T2 for device in inventory.devices)


def test_nvml_absent_leaves_the_processor(look: Looker, tmp_path: Path) -> None:
    lay_file(
        tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: fpu hypervisor\n"
    )
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    lay_file(damaged, LIBRARY, "no library")
    # Where there is a real driver, its library is found behind an empty folder, and not behind a damaged file.
    absent = damaged if GPU_DEVICE.exists() else empty
    for seen in (look("absent", absent), look("absent", damaged), look("no-driver")):
        assert (seen.reading.gpus, seen.reading.faults, seen.telemetry, seen.xids) == ((), (), (), ())
        assert seen.reading.processor.model == "Some CPU @ 3 GHz"
        assert seen.reading.machine.virtualisation == "unknown hypervisor"
        inventory = judged(seen, tmp_path)
        assert inventory.hardware_class is HardwareClass.CPU
        assert "Some CPU" in inventory.class_reason


def test_nvml_without_the_binding_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_evidence(tmp_path, "Linux").gpus == ()
    assert read_telemetry(tmp_path) == ()
    watch = XidWatch()
    assert watch.poll() == ()
    watch.close()
    assert watch.poll() == ()


@pytest.mark.gpu
def test_nvml_real_gpus_show_evidence_telemetry_and_a_class(tmp_path: Path) -> None:
    reading = read_evidence()
    assert reading.gpus
    for gpu in reading.gpus:
        assert gpu.uuid.startswith("GPU-")
        assert gpu.memory_bytes > GIB
        assert gpu.driver_version
        assert gpu.compute_capability
        assert gpu.pci_bus_id.count(":") == 2
        assert len(device_evidence_to(gpu).sightings) == len(gpu.sightings) >= 1
    samples = {sample.uuid: sample for sample in read_telemetry()}
    assert set(samples) >= {gpu.uuid for gpu in reading.gpus}
    assert all(sample.temperature_c is None or sample.temperature_c > 0 for sample in samples.values())
    listed = [gpu for gpu in reading.gpus if model_of(gpu.model, gpu.memory_bytes) is not None]
    assert listed, [gpu.model for gpu in reading.gpus]
    ids = DeviceIds(tmp_path, lambda prefix: f"{prefix}_1")
    inventory = inventory_from(build_inventory(Offer(), MACHINE, reading, ids, BARE))
    assert inventory.class_reason
    watch = XidWatch()
    assert watch.poll() == ()
    watch.close()
