"""What this machine offers: read from the machine, from NVML, or declared as simulated.

Reading and building are apart: `read_machine` and `read_devices` look, `build_inventory` only puts together.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from orchestrator.adapters.files import write_whole
from orchestrator.api.v1 import common_pb2
from orchestrator.core.catalogue import CPU_MODEL, GIB, MODELS, Model, find_model, nearest
from orchestrator.core.fleet import HardwareClass

DEVICES_FILE = "devices.json"
"""In the data directory: ids once made for devices that have none of their own."""

COUNT_MAX = 64
"""Devices of one machine, as the control plane bounds them."""

SIMULATED = re.compile(r"(?P<model>.+)x(?P<count>[1-9][0-9]{0,2})")
"""MODELxN, such as RTX4090x2."""

FORM_FACTOR = re.compile(r"[0-9]+GB|HBM[0-9]E?|PCIE|SXM[0-9]?|NVL")
"""Words of a driver's name that tell how a GPU is built in; any other word makes it another GPU."""

VENDOR_WORDS = frozenset({"NVIDIA", "GEFORCE", "TESLA"})


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


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver names it; ``memory_bytes`` is all it has."""

    device_id: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the supplier wants to offer. An empty ``hardware_class`` means: whatever the devices are."""

    hardware_class: str = ""
    simulate: tuple[str, ...] = ()
    slots: int = 1
    head_slots: int = 0
    cpus: int | None = None
    zone: str = ""


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


def read_devices() -> list[Gpu]:
    """The GPUs that NVML lists; none where there is no NVML, no driver or no GPU. Only reads."""
    try:
        import pynvml  # noqa: PLC0415 - absent on machines without the agent extra, which have no GPU to offer
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    gpus = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            # A GPU that fell off its bus answers nothing; the others are still there.
            with contextlib.suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                gpus.append(
                    Gpu(
                        device_id=str(pynvml.nvmlDeviceGetUUID(handle)),
                        name=str(pynvml.nvmlDeviceGetName(handle)),
                        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    )
                )
    finally:
        pynvml.nvmlShutdown()
    return gpus


def model_of(gpu: Gpu) -> Model | None:
    """The catalogue's model for a driver's name; None for a GPU that it does not list.

    A name may go on with how the GPU is built in (``H100 80GB HBM3``) and with nothing else: a laptop's RTX
    4090 is not the RTX 4090. Where one name has several sizes (``A100``) the memory decides.
    """
    words = [word for word in re.split(r"[\s-]+", gpu.name.upper()) if word and word not in VENDOR_WORDS]
    for length in range(len(words), 0, -1):
        if not all(FORM_FACTOR.fullmatch(word) for word in words[length:]):
            return None
        name = "".join(words[:length])
        model = find_model(name)
        if model is not None:
            return model
        sizes = [one for one in MODELS.values() if one.name.rpartition("-")[0] == name]
        if sizes:
            return min(sizes, key=lambda one: abs(one.memory_gb * GIB - gpu.memory_bytes))
    return None


def build_inventory(
    offer: Offer, machine: Machine, gpus: Sequence[Gpu], ids: DeviceIds
) -> common_pb2.Inventory:
    """Put the inventory together. Raises InventoryError naming what does not fit."""
    devices = _devices(offer, machine, gpus, ids)
    hardware_class = _class_of(offer, devices)
    return common_pb2.Inventory(
        hardware_class=common_pb2.HardwareClass.Value(f"HARDWARE_CLASS_{hardware_class.upper()}"),
        devices=devices,
        cpus=machine.cpus if offer.cpus is None else offer.cpus,
        memory_bytes=machine.memory_bytes,
        slots=offer.slots,
        head_slots=offer.head_slots,
        operating_system=machine.operating_system,
        architecture=machine.architecture,
        python_version=machine.python_version,
        ray_version=machine.ray_version,
        isolation="none",
        overlay="none",
        zone=offer.zone,
    )


def unlisted(offer: Offer, gpus: Sequence[Gpu]) -> list[str]:
    """GPUs that are here and not offered, each with the reason; for people to read."""
    if offer.simulate or offer.slots == 0:
        return []
    if offer.hardware_class == HardwareClass.CPU:
        return [f"{gpu.name} is not offered: class cpu has no GPUs; see --hardware-class" for gpu in gpus]
    return [
        f"{gpu.name} is not offered: the model catalogue does not list it"
        for gpu in gpus
        if not model_of(gpu)
    ]


def _devices(offer: Offer, machine: Machine, gpus: Sequence[Gpu], ids: DeviceIds) -> list[common_pb2.Device]:
    if offer.slots == 0:
        return []
    if offer.simulate:
        return _simulated(offer.simulate, ids)
    if offer.hardware_class != HardwareClass.CPU:
        real = [_real(gpu, model) for gpu in gpus if (model := model_of(gpu)) is not None]
        if real:
            return real
        if offer.hardware_class:
            raise InventoryError(
                f"hardware_class {offer.hardware_class}: no GPU of the model catalogue was found here;"
                " declare some with --simulate MODELxN, or offer the processor with --hardware-class cpu"
            )
    (device_id,) = ids.take([("cpu", CPU_MODEL)])
    processor = common_pb2.Device(
        device_id=device_id,
        kind=common_pb2.DEVICE_KIND_CPU,
        model=CPU_MODEL,
        memory_bytes=machine.memory_bytes,
    )
    return [processor]


def _real(gpu: Gpu, model: Model) -> common_pb2.Device:
    # A variant with more memory than its model is listed with is offered as what is listed.
    memory_bytes = min(gpu.memory_bytes, model.memory_gb * GIB)
    return common_pb2.Device(
        device_id=gpu.device_id,
        kind=common_pb2.DEVICE_KIND_GPU,
        model=model.name,
        memory_bytes=memory_bytes,
    )


def _simulated(texts: Sequence[str], ids: DeviceIds) -> list[common_pb2.Device]:
    models = [model for text in texts for model in parse_simulated(text)]
    if len(models) > COUNT_MAX:
        raise InventoryError(f"simulate: {len(models)} devices on one machine; at most {COUNT_MAX}")
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


def _class_of(offer: Offer, devices: Sequence[common_pb2.Device]) -> HardwareClass:
    """The class asked for, checked against the devices; else the first that offers all of them."""
    chosen = _chosen(offer.hardware_class) if offer.hardware_class else None
    models = [MODELS[device.model] for device in devices]
    for candidate in HardwareClass if chosen is None else (chosen,):
        if all(candidate in model.classes for model in models):
            # A head host has no devices and fits every class: it is one of processors.
            return candidate if models or chosen is not None else HardwareClass.CPU
    if chosen is None:
        raise InventoryError("no hardware class offers all devices of this machine; offer those of one class")
    wrong = next(model for model in models if chosen not in model.classes)
    offered = ", ".join(sorted(wrong.classes))
    raise InventoryError(f"hardware_class: a {wrong.name} is offered by class {offered}, not by {chosen}")


def _chosen(text: str) -> HardwareClass:
    try:
        return HardwareClass(text.lower())
    except ValueError:
        known = [one.value for one in HardwareClass]
        raise InventoryError(
            f"hardware_class: one of {', '.join(known)} is expected, not {text[:80]!r};"
            f" did you mean {nearest(text[:80], known)}?"
        ) from None
