"""AMD's GPUs from recorded sysfs trees, with and without AMD's own library."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.adapters.devices import read_evidence
from orchestrator.adapters.devices.amd import read_amd, read_library
from orchestrator.agent.inventory import Capabilities, DeviceIds, Machine, Offer, build_inventory, unlisted
from orchestrator.control.inventory_wire import inventory_from
from orchestrator.core.decisions.fleet import check_inventory
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.evidence import DeviceVendor, EvidenceClass, Sighting, Source
from orchestrator.core.supply.fleet import HardwareClass, Inventory
from orchestrator.core.supply.hardware import worker_evidence_class
from tests.adapters.devices.machines import lay_file, lay_recording

BARE = Capabilities("none", "none")
MACHINE = Machine(16, 64 * GIB, "linux", "x86_64", "3.11.9", "2.60.0")
UUID = "GPU-2f1c8a4be07d5563"
BUS = "0000:03:00.0"


@pytest.fixture
def gaming(tmp_path: Path) -> Path:
    return lay_recording(tmp_path / "machine", "amd_rx7900xtx.json")


def judged(root: Path, data_dir: Path) -> Inventory:
    ids = DeviceIds(data_dir, lambda prefix: f"{prefix}_1")
    inventory = inventory_from(build_inventory(Offer(), MACHINE, read_evidence(root, "Linux"), ids, BARE))
    check_inventory(inventory)
    return inventory


def fake_library(
    monkeypatch: pytest.MonkeyPatch, market_name: str, serial: str = "0x2F1C8A4BE07D5563"
) -> None:
    """AMD's module as far as it is used; one handle of two tells nothing."""

    class AmdSmiException(Exception):
        pass

    def tell(handle: str, answer: object) -> object:
        if handle == "mute":
            raise AmdSmiException
        return answer

    module = ModuleType("amdsmi")
    about = {"market_name": market_name, "asic_serial": serial, "device_id": 0x744C}
    functions = {
        "AmdSmiException": AmdSmiException,
        "amdsmi_init": lambda: None,
        "amdsmi_shut_down": lambda: None,
        "amdsmi_get_processor_handles": lambda: ["mute", "card"],
        "amdsmi_get_gpu_device_bdf": lambda handle: tell(handle, BUS),
        "amdsmi_get_gpu_asic_info": lambda handle: tell(handle, about),
    }
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "amdsmi", module)


def test_amd_card_is_read_from_sysfs(gaming: Path) -> None:
    gpu, integrated = read_amd(gaming, dict).gpus
    assert (gpu.vendor, gpu.model, gpu.uuid) == (DeviceVendor.AMD, "AMD Radeon RX 7900 XTX", UUID)
    assert (gpu.pci_bus_id, gpu.memory_bytes, gpu.power_limit_mw) == (BUS, 25_753_026_560, 339_000)
    assert (gpu.pcie_generation, gpu.pcie_width, gpu.pcie_width_max) == (4, 16, 16)
    assert gpu.driver_version == "linux 6.8.0-45-generic"
    assert (integrated.model, integrated.uuid) == ("AMD 164e revision c1", "")


def test_amd_card_is_offered_and_the_processors_own_is_not(gaming: Path, tmp_path: Path) -> None:
    inventory = judged(gaming, tmp_path)
    (device,) = inventory.devices
    assert (device.device_id, device.model) == (UUID, "RX7900XTX")
    assert inventory.hardware_class is HardwareClass.CONSUMER
    assert worker_evidence_class(inventory.devices) is EvidenceClass.T0
    assert inventory.evidence is not None
    assert inventory.evidence.board_product == "ROG STRIX X670E-E GAMING WIFI"
    assert (inventory.evidence.gpus, inventory.evidence.virtualisation) == (2, "")
    (remark,) = unlisted(Offer(), read_evidence(gaming, "Linux"))
    assert remark.startswith("AMD 164e revision c1 is not offered")


def test_amd_library_that_agrees_makes_it_cross_checked(
    gaming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_library(monkeypatch, "Radeon RX 7900 XTX")
    assert read_library() == {BUS: Sighting(Source.AMDSMI, UUID, "Radeon RX 7900 XTX", BUS)}
    assert worker_evidence_class(judged(gaming, tmp_path).devices) is EvidenceClass.T2


@pytest.mark.parametrize(
    ("market_name", "serial"),
    [("Radeon RX 7900 GRE", "0x2F1C8A4BE07D5563"), ("Radeon RX 7900 XTX", "0x1")],
)
def test_amd_library_that_contradicts_does_not(
    gaming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, market_name: str, serial: str
) -> None:
    fake_library(monkeypatch, market_name, serial)
    assert worker_evidence_class(judged(gaming, tmp_path).devices) is EvidenceClass.T0


def test_amd_rig_is_known_by_the_links_behind_the_cards_own_bridges(tmp_path: Path) -> None:
    root = lay_recording(tmp_path / "rig", "amd_rig_6800xt.json")
    assert [(gpu.model, gpu.pcie_width) for gpu in read_amd(root, dict).gpus] == [
        ("AMD Radeon RX 6800 XT", 1)
    ] * 6
    inventory = judged(root, tmp_path)
    assert inventory.hardware_class is HardwareClass.MINER
    assert "6 of 6" in inventory.class_reason


def test_amd_card_without_a_number_keeps_an_id_by_its_place(gaming: Path, tmp_path: Path) -> None:
    (gaming / "sys/class/drm/card1/device/unique_id").unlink()
    ids = [judged(gaming, tmp_path).devices[0].device_id for _ in range(2)]
    assert ids == ["gpu_1", "gpu_1"]
    assert worker_evidence_class(judged(gaming, tmp_path).devices) is EvidenceClass.T0


def test_amd_damaged_files_are_no_evidence(gaming: Path) -> None:
    device = "sys/class/drm/card1/device"
    for name in ("current_link_width", "unique_id", "revision", "uevent", "current_link_speed"):
        lay_file(gaming, f"{device}/{name}", "\x00rubbish" * 9)
    gpu = read_amd(gaming, dict).gpus[0]
    assert (gpu.model, gpu.uuid, gpu.pcie_width, gpu.pcie_generation) == (
        "AMD 744c revision 00",
        "",
        None,
        None,
    )
    assert gpu.pci_bus_id == BUS
