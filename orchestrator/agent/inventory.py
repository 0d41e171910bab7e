"""What this machine offers: its devices with the evidence of them, or devices declared as simulated.

Reading and building are apart: `read_machine` here and `read_evidence` of the devices' adapter look, `build_inventory`
only puts together. Which class the machine is of is not said here: the control plane derives it.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from orchestrator.adapters.devices import Reading
from orchestrator.adapters.evidence_wire import device_evidence_to, machine_evidence_to
from orchestrator.adapters.files import write_whole
from orchestrator.api.v1 import common_pb2
from orchestrator.core.supply.catalogue import CPU_MODEL, GIB, MODELS, Model, find_model, model_of, nearest
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor, MachineEvidence, NodeLabels
from orchestrator.core.supply.fleet import Isolation
from orchestrator.core.supply.hardware import DEVICES_MAX

DEVICES_FILE = "devices.json"
"""In the data directory: ids once made for devices that have none of their own."""

SIMULATED = re.compile(r"(?P<model>.+)x(?P<count>[1-9][0-9]{0,2})")
"""MODELxN, such as RTX4090x2."""

MAC_SHARE_PERCENT = 75
MAC_SMALL_SHARE_PERCENT = 66
MAC_SMALL_BYTES = 36 * GIB
"""How much of a Mac's memory Metal lets its GPU hold at once as it comes: three quarters, below 36 GB two thirds. The
rest is the system's, so a job that was promised all of it would be swapped or ended."""

AUTO = "auto"
"""The best that this machine can do."""


class InventoryError(ValueError):
    """The machine cannot be offered like this; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What every worker tells of itself, devices aside."""

    cpus: int
    memory_bytes: int
    operating_system: str
    architecture: str
    python_version: str
    ray_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the supplier wants to offer; without ``gpus`` the processor only."""

    gpus: bool = True
    simulate: tuple[str, ...] = ()
    slots: int = 1
    head_slots: int = 0
    cpus: int | None = None
    zone: str = ""
    isolation: str = AUTO
    """A tier at least, AUTO for the strongest there is; ``none`` is the consent to go without any."""
    overlay: str = AUTO
    """``none``, ``nebula``, or AUTO for the latter where this machine can."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """How this machine can keep tenants' code apart, and whether it can be part of the overlay."""

    isolation: str
    overlay: str
    remarks: tuple[str, ...] = ()
    """Why there is no isolation or no overlay, each with what the owner can do about it."""


class DeviceIds:
    """Ids for simulated devices and processors, kept in a file so that a restart brings the same devices."""

    def __init__(self, data_dir: Path, new_id: Callable[[str], str]) -> None:
        self._path = data_dir / DEVICES_FILE
        self._new_id = new_id

    def take(self, wanted: Sequence[tuple[str, str]]) -> list[str]:
        """One id for each (id prefix, model); the n-th of a model is always the same one."""
        known = self._load()
        taken: dict[str, int] = {}
        ids = []
        for prefix, model in wanted:
            number = taken.get(model, 0)
            taken[model] = number + 1
            of_model = known.setdefault(model, [])
            if number == len(of_model):
                of_model.append(self._new_id(prefix))
            ids.append(of_model[number])
        write_whole(self._path, msgspec.json.format(msgspec.json.encode(known), indent=1))
        return ids

    def _load(self) -> dict[str, list[str]]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, list[str]])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise InventoryError(
                f"{self._path} is damaged ({error}); remove it, and the devices get new ids"
            ) from None


def read_machine() -> Machine:
    """Look at this machine. Raises InventoryError where Ray is not installed."""
    try:
        ray_version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise InventoryError(
            "Ray is not installed here; install this package with its `agent` extra:"
            " ray-gpu-orchestrator[agent]"
        ) from None
    return Machine(
        cpus=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        operating_system=platform.system().lower(),
        architecture=platform.machine().lower(),
        python_version=platform.python_version(),
        ray_version=ray_version,
    )


def build_inventory(
    offer: Offer,
    machine: Machine,
    reading: Reading | None,
    ids: DeviceIds,
    capabilities: Capabilities,
    labels: NodeLabels | None = None,
) -> common_pb2.Inventory:
    """Put the inventory together; ``reading`` None where nobody looked, as for simulated devices.

    Raises InventoryError naming what does not fit.
    """
    evidence = None if reading is None else reading.machine
    if labels is not None:
        evidence = replace(evidence or MachineEvidence(), labels=labels)
    return common_pb2.Inventory(
        devices=_devices(offer, machine, reading, ids),
        cpus=machine.cpus if offer.cpus is None else offer.cpus,
        memory_bytes=machine.memory_bytes,
        slots=offer.slots,
        head_slots=offer.head_slots,
        operating_system=machine.operating_system,
        architecture=machine.architecture,
        python_version=machine.python_version,
        ray_version=machine.ray_version,
        isolation=capabilities.isolation,
        overlay=capabilities.overlay,
        zone=offer.zone,
        evidence=None if evidence is None else machine_evidence_to(evidence),
        unisolated=offer.isolation == Isolation.NONE,
        remarks=capabilities.remarks,
    )


def unlisted(offer: Offer, reading: Reading | None) -> list[str]:
    """GPUs that are here and not offered, each with the reason; for people to read."""
    if offer.simulate or offer.slots == 0 or reading is None:
        return []
    if not offer.gpus:
        return [f"{gpu.model} is not offered: only the processor is" for gpu in reading.gpus]
    remarks = [fault.text for fault in reading.faults]
    for gpu in reading.gpus:
        reason = _refusal(gpu)
        if reason is not None:
            remarks.append(f"{gpu.model or 'a GPU without a name'} is not offered: {reason}")
    return remarks


def _refusal(gpu: DeviceEvidence) -> str | None:
    """Why a GPU cannot be offered; None where it can."""
    if model_of(gpu.model, gpu.memory_bytes) is None:
        return "the model catalogue does not list it"
    if gpu.mig_enabled:
        return "MIG is on, and slices are not offered; turn it off with `nvidia-smi -mig 0`"
    return None


def _devices(
    offer: Offer, machine: Machine, reading: Reading | None, ids: DeviceIds
) -> list[common_pb2.Device]:
    if offer.slots == 0:
        return []
    if offer.simulate:
        return _simulated(offer.simulate, ids)
    offered = [gpu for gpu in reading.gpus if _refusal(gpu) is None] if reading is not None else []
    if offer.gpus and offered:
        if len(offered) > DEVICES_MAX:
            raise InventoryError(f"{len(offered)} GPUs on one machine; at most {DEVICES_MAX} can be offered")
        return _real(offered, ids)
    (device_id,) = ids.take([("cpu", CPU_MODEL)])
    processor = common_pb2.Device(
        device_id=device_id,
        kind=common_pb2.DEVICE_KIND_CPU,
        model=CPU_MODEL,
        memory_bytes=machine.memory_bytes,
    )
    if reading is not None:
        processor.evidence.CopyFrom(device_evidence_to(reading.processor))
    return [processor]


def _real(gpus: Sequence[DeviceEvidence], ids: DeviceIds) -> list[common_pb2.Device]:
    # A card without a number of its own is known by its place in this machine, which is as long as it stays there.
    unnumbered = [gpu for gpu in gpus if not gpu.uuid]
    made = iter(
        ids.take([("gpu", f"{gpu.model} at {gpu.pci_bus_id}") for gpu in unnumbered]) if unnumbered else []
    )
    return [
        common_pb2.Device(
            device_id=gpu.uuid or next(made),
            kind=common_pb2.DEVICE_KIND_GPU,
            model=model.name,
            memory_bytes=_offered_bytes(gpu, model),
            evidence=device_evidence_to(gpu),
        )
        for gpu in gpus
        if (model := model_of(gpu.model, gpu.memory_bytes)) is not None
    ]


def _offered_bytes(gpu: DeviceEvidence, model: Model) -> int:
    """What a job may count on. A variant with more than its model is listed with is offered as what is listed."""
    memory_bytes = min(gpu.memory_bytes, model.memory_gb * GIB)
    if gpu.vendor is not DeviceVendor.APPLE:
        return memory_bytes
    share = MAC_SMALL_SHARE_PERCENT if memory_bytes < MAC_SMALL_BYTES else MAC_SHARE_PERCENT
    return memory_bytes * share // 100


def _simulated(texts: Sequence[str], ids: DeviceIds) -> list[common_pb2.Device]:
    models = [model for text in texts for model in parse_simulated(text)]
    if len(models) > DEVICES_MAX:
        raise InventoryError(f"simulate: {len(models)} devices on one machine; at most {DEVICES_MAX}")
    device_ids = ids.take([("sim", model.name) for model in models])
    return [
        common_pb2.Device(
            device_id=device_id,
            kind=common_pb2.DEVICE_KIND_GPU,
            model=model.name,
            memory_bytes=model.memory_gb * GIB,
            simulated=True,
        )
        for device_id, model in zip(device_ids, models, strict=True)
    ]


def parse_simulated(text: str) -> list[Model]:
    """The models that MODELxN declares. Raises InventoryError with the nearest known name."""
    match = SIMULATED.fullmatch(text.strip())
    if match is None:
        raise InventoryError(f"simulate: MODELxN such as RTX4090x1 is expected, not {text[:80]!r}")
    model = find_model(match["model"])
    if model is None or model.name == CPU_MODEL:
        known = [name for name in MODELS if name != CPU_MODEL]
        hint = f"{nearest(match['model'][:80], known)}x{match['count']}"
        raise InventoryError(f"simulate: unknown model {match['model'][:80]!r}; did you mean {hint}?")
    return [model] * int(match["count"])
