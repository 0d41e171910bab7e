"""Rules over hardware: which class a machine is of and why, what its evidence is worth, what has changed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.errors import invalid
from orchestrator.core.supply.catalogue import MODELS, Model, model_of
from orchestrator.core.supply.evidence import (
    EVIDENCE_RANK,
    INDEPENDENT,
    DeviceVendor,
    EvidenceClass,
    Sighting,
    bus_id,
    width_of,
)
from orchestrator.core.supply.fleet import Device, DeviceKind, HardwareClass, Inventory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from orchestrator.core.supply.evidence import DeviceEvidence, MachineEvidence

DEVICES_MAX = 64
"""No machine on sale holds more; a larger list is a mistake or an attack."""

MINER_GPUS_MIN = 4
"""A board for people has slots for three GPUs; who hangs up more of them on thin links built a rig."""

NARROW_LANES_MAX = 4
"""Risers for rigs carry one lane, the small slots of boards up to four; a GPU in its proper slot has 8 or 16."""

CHANGES_MAX = 20
"""Sentences about one change: enough to see what happened to a machine of 64 devices."""

Reason = str

T = TypeVar("T")


def check_device_count(count: int) -> None:
    """Refuse what no machine holds, before anything else of it is looked at."""
    if count > DEVICES_MAX:
        raise invalid("inventory.devices", f"{count} devices on one machine; at most {DEVICES_MAX}")


def derive_class(
    devices: Sequence[Device], machine: MachineEvidence | None = None
) -> tuple[HardwareClass, Reason]:
    """The class of a machine that offers ``devices``, and the sentence that says why.

    The same for every order of the devices. A machine of several kinds gets the lowest class of them: who asks for a
    data centre must not land in a gaming PC because one card of it would fit there, and nobody gains by such a card.
    NVLink decides nothing, because consumers' cards have had bridges too; nor does the name of the chassis, which
    anybody may write.
    """
    gpus = [device for device in devices if device.kind is DeviceKind.GPU]
    if not gpus:
        if not devices:
            return HardwareClass.CPU, "no device is offered"
        name = machine.processor if machine is not None else ""
        return HardwareClass.CPU, f"no GPU is offered, only the processor{f' ({name})' if name else ''}"
    if any(_is_of(device, HardwareClass.APPLE) for device in gpus):
        return HardwareClass.APPLE, f"{_listing(gpus)}: the GPU is part of an Apple chip"
    consumer = [device for device in gpus if not _is_of(device, HardwareClass.DATACENTER)]
    centre = [device for device in gpus if _is_of(device, HardwareClass.DATACENTER)]
    if not consumer:
        return HardwareClass.DATACENTER, f"{_listing(centre)}: data-centre models{_joined(centre)}"
    mixed = f"; the {_listing(centre)} beside them do not lift the machine" if centre else ""
    seen = [device.evidence for device in consumer if device.evidence is not None and not device.simulated]
    if not seen:
        said = "simulated" if all(device.simulated for device in consumer) else "without evidence"
        return (
            HardwareClass.CONSUMER,
            f"{_listing(consumer)}, {said}: the class follows from the models{mixed}",
        )
    hardware_class, reason = _by_links(consumer, seen)
    return hardware_class, reason + mixed


def _by_links(consumer: Sequence[Device], seen: Sequence[DeviceEvidence]) -> tuple[HardwareClass, Reason]:
    """Consumers' GPUs: a rig by the links on which most of them hang, else a machine for people."""
    widths = [width for evidence in seen if (width := width_of(evidence)) is not None]
    narrow = [width for width in widths if width <= NARROW_LANES_MAX]
    listing = _listing(consumer)
    if len(consumer) >= MINER_GPUS_MIN and 2 * len(narrow) > len(consumer):
        lanes = "x1" if max(narrow) == 1 else f"x{max(narrow)} or less"
        reason = (
            f"{listing}: {len(narrow)} of {len(consumer)} hang on PCIe {lanes}, as on a mining rig's risers"
        )
        return HardwareClass.MINER, reason
    if len(consumer) < MINER_GPUS_MIN:
        return HardwareClass.CONSUMER, f"{listing}: a consumer model, fewer than {MINER_GPUS_MIN} of them"
    if not widths:
        return HardwareClass.CONSUMER, f"{listing}: consumer models whose PCIe widths are not known"
    reason = f"{listing}: consumer models, {len(widths) - len(narrow)} of {len(consumer)} on PCIe wider than"
    return HardwareClass.CONSUMER, f"{reason} x{NARROW_LANES_MAX}"


def _is_of(device: Device, hardware_class: HardwareClass) -> bool:
    model = MODELS.get(device.model)
    return model is not None and hardware_class in model.classes


def _listing(devices: Sequence[Device]) -> str:
    """Such as ``6 × RTX3070``; in the order of the names, whatever that of the devices."""
    counts = Counter(device.model for device in devices)
    return ", ".join(f"{count} × {model}" for model, count in sorted(counts.items()))


def _joined(devices: Sequence[Device]) -> str:
    links = [device.evidence.nvlink_links or 0 for device in devices if device.evidence is not None]
    return f", each with {min(links)} or more NVLinks up" if links and min(links) > 0 else ""


def misfit(devices: Iterable[Device], hardware_class: HardwareClass) -> Model | None:
    """The first model that a machine of this class does not have; None where all fit.

    A consumer's machine may hold data-centre cards beside its own, but not nothing else.
    """
    models = [model for device in devices if (model := MODELS.get(device.model)) is not None]
    own = any(hardware_class in model.classes for model in models)
    for model in models:
        lowered = own and HardwareClass.DATACENTER in model.classes
        low = hardware_class in (HardwareClass.CONSUMER, HardwareClass.MINER)
        if hardware_class not in model.classes and not (low and lowered):
            return model
    return None


def evidence_class(device: Device) -> EvidenceClass:
    """What the evidence of one device is worth. Simulated ones have none, whatever is said of them."""
    evidence = device.evidence
    if device.simulated or evidence is None or evidence.uuid != device.device_id:
        return EvidenceClass.T0
    told = [sighting for sighting in evidence.sightings if _tells(sighting, evidence)]
    sources = {sighting.source for sighting in told}
    contradicted = len(told) < len(evidence.sightings)
    agreed = any(pair <= sources for pair in INDEPENDENT)
    return EvidenceClass.T2 if agreed and not contradicted else EvidenceClass.T0


def worker_evidence_class(devices: Sequence[Device]) -> EvidenceClass:
    """What a machine's evidence is worth: as much as its weakest device's; nothing where it offers none."""
    tiers = [evidence_class(device) for device in devices]
    return min(tiers, key=EVIDENCE_RANK.__getitem__, default=EvidenceClass.T0)


def agreeing_sources(evidence: DeviceEvidence) -> tuple[str, ...]:
    """The sources that say of a device what its evidence says, by name; for people to read."""
    return tuple(sorted({one.source.value for one in evidence.sightings if _tells(one, evidence)}))


def _tells(sighting: Sighting, evidence: DeviceEvidence) -> bool:
    """Whether a source says all of UUID, model and bus, and the same as the evidence."""
    if not (sighting.uuid and sighting.model and sighting.pci_bus_id):
        return False
    same_model = _words(sighting.model) == _words(evidence.model) or (
        (known := model_of(sighting.model, evidence.memory_bytes)) is not None
        and known is model_of(evidence.model, evidence.memory_bytes)
    )
    same_bus = bus_id(sighting.pci_bus_id) == bus_id(evidence.pci_bus_id)
    return same_model and same_bus and sighting.uuid.lower() == evidence.uuid.lower()


def _words(model: str) -> list[str]:
    return model.upper().split()


def evidence_fault(device: Device) -> str | None:
    """How a device's evidence contradicts what is offered; None where it does not, or where there is none."""
    evidence = device.evidence
    if evidence is None:
        return None
    if device.simulated:
        return "a simulated device shows no evidence"
    if evidence.mig_enabled:
        return "MIG is on, so it cannot be offered whole; turn it off with `nvidia-smi -mig 0`"
    if (device.kind is DeviceKind.CPU) != (evidence.vendor is DeviceVendor.CPU):
        return f"a device of vendor {evidence.vendor} is no {device.kind}"
    if device.kind is DeviceKind.GPU:
        known = model_of(evidence.model, evidence.memory_bytes)
        if known is None or known.name != device.model:
            is_a = "no model of the catalogue" if known is None else f"a {known.name}"
            return f"its driver names {evidence.model!r}, which is {is_a}, not a {device.model}"
        if device.memory_bytes > evidence.memory_bytes:
            return f"it has {evidence.memory_bytes} bytes, less than the {device.memory_bytes} offered"
    return None


# ---------------------------------------------------------------- what has changed

_DEVICE_FACTS: tuple[tuple[str, Callable[[DeviceEvidence], object]], ...] = (
    ("driver's name", lambda one: one.model),
    ("memory in bytes", lambda one: one.memory_bytes),
    ("driver version", lambda one: one.driver_version),
    ("PCI bus", lambda one: bus_id(one.pci_bus_id)),
    ("PCIe width", lambda one: one.pcie_width),
    ("widest PCIe", lambda one: one.pcie_width_max),
    ("PCIe generation", lambda one: one.pcie_generation_max),
    ("NVLinks", lambda one: one.nvlink_links),
    ("MIG mode", lambda one: one.mig_enabled),
    ("MIG instances", lambda one: ", ".join(one.mig_profiles)),
    ("power limit in mW", lambda one: one.power_limit_mw),
    ("ECC mode", lambda one: one.ecc_enabled),
    ("agreeing sources", lambda one: ", ".join(agreeing_sources(one))),
)

_MACHINE_FACTS: tuple[tuple[str, Callable[[MachineEvidence], object]], ...] = (
    ("system", lambda one: f"{one.system_vendor} {one.system_product}".strip()),
    ("board", lambda one: f"{one.board_vendor} {one.board_product}".strip()),
    ("processor", lambda one: one.processor),
    ("GPUs seen", lambda one: one.gpus),
    ("GPUs lost", lambda one: one.gpus_lost),
    ("virtualisation", lambda one: one.virtualisation),
)


def hardware_changes(old: Inventory, new: Inventory) -> tuple[str, ...]:
    """What is another machine than before, one sentence each; what the owner merely offers otherwise is none."""
    before = {device.device_id: device for device in old.devices}
    after = {device.device_id: device for device in new.devices}
    said = [f"{before[one].model} {one} is gone" for one in before if one not in after]
    said += [f"{after[one].model} {one} is new" for one in after if one not in before]
    for device_id, device in after.items():
        if device_id in before:
            said += _device_changes(before[device_id], device)
    if old.memory_bytes != new.memory_bytes:
        said.append(f"the machine's memory was {old.memory_bytes} bytes and is {new.memory_bytes}")
    if old.evidence is not None and new.evidence is not None:
        said += _differences("the machine", old.evidence, new.evidence, _MACHINE_FACTS)
    if old.hardware_class is not new.hardware_class:
        said.append(f"the class was {old.hardware_class} and is {new.hardware_class}")
    if len(said) > CHANGES_MAX:
        said = [*said[: CHANGES_MAX - 1], f"and {len(said) - CHANGES_MAX + 1} more changes"]
    return tuple(said)


def _device_changes(old: Device, new: Device) -> list[str]:
    name = f"{new.model} {new.device_id}"
    if old.model != new.model:
        return [f"{name} was a {old.model}"]
    if old.evidence is None or new.evidence is None:
        said = []
        if old.memory_bytes != new.memory_bytes:
            said.append(f"{name}: memory was {old.memory_bytes} bytes and is {new.memory_bytes}")
        if (old.evidence is None) != (new.evidence is None):
            said.append(f"{name} {'shows' if old.evidence is None else 'no longer shows'} evidence")
        return said
    return _differences(name, old.evidence, new.evidence, _DEVICE_FACTS)


def _differences(name: str, old: T, new: T, facts: Iterable[tuple[str, Callable[[T], object]]]) -> list[str]:
    return [
        f"{name}: {label} was {_shown(fact(old))} and is {_shown(fact(new))}"
        for label, fact in facts
        if fact(old) != fact(new)
    ]


def _shown(value: object) -> str:
    match value:
        case None | "":
            return "unknown"
        case True:
            return "on"
        case False:
            return "off"
        case _:
            return str(value)
