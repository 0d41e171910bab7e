"""What a cluster's labels say of a machine, held against what the machine has shown. What was shown counts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.core.supply.catalogue import GIB, model_of
from orchestrator.core.supply.evidence import DeviceVendor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.core.supply.evidence import DeviceEvidence, MachineEvidence, NodeLabels
    from orchestrator.core.supply.fleet import Inventory

SHARING = re.compile(r"-(?:SHARED|MIG-.+)$", re.IGNORECASE)
"""What NVIDIA's labeller appends where a GPU is shared or cut up: it says nothing of the product."""

NAMED_GB = re.compile(r"(?<![0-9])([0-9]{1,4})GB", re.IGNORECASE)

MAKERS = frozenset({"AMD", "NVIDIA"})

Reason = str


def contradictions(
    labels: NodeLabels, gpus: Sequence[DeviceEvidence], machine: MachineEvidence
) -> tuple[Reason, ...]:
    """Where the labels say otherwise than what was measured, one sentence each. Nothing follows from them but words.

    ``gpus``: those that showed themselves. A label that says less than what was seen is a contradiction; one that says
    more GPUs is not, because a pod sees only those it was given.
    """
    said = []
    product = labels.gpu_product
    if product and not gpus:
        said.append(
            f"the node's label says {product}, and no GPU is seen here: does the pod ask for GPUs, and does its"
            " runtime show them?"
        )
    elif product and not any(_names(product, gpu) for gpu in gpus):
        seen = ", ".join(sorted({gpu.model for gpu in gpus}))
        said.append(f"the node's label says {product}, the driver says {seen}; the driver's word counts")
    if labels.gpu_count is not None and machine.gpus > labels.gpu_count:
        said.append(
            f"the node's label says {labels.gpu_count} GPUs, {machine.gpus} were seen; what was seen counts"
        )
    return tuple(said)


def inventory_contradictions(inventory: Inventory) -> tuple[Reason, ...]:
    """The same of a whole inventory; simulated devices show nothing that a label could contradict."""
    machine = inventory.evidence
    if machine is None or machine.labels is None or any(device.simulated for device in inventory.devices):
        return ()
    shown = [device.evidence for device in inventory.devices if device.evidence is not None]
    gpus = [evidence for evidence in shown if evidence.vendor is not DeviceVendor.CPU]
    if machine.gpus and not gpus:
        # They are there and not offered, and then not described either.
        return ()
    return contradictions(machine.labels, gpus, machine)


def _names(product: str, gpu: DeviceEvidence) -> bool:
    """Whether a label's product and a driver's name may mean the same GPU."""
    label = SHARING.sub("", product)
    if _words(label) == _words(gpu.model):
        return True
    named = NAMED_GB.search(label)
    memory_bytes = int(named[1]) * GIB if named is not None else gpu.memory_bytes
    known = model_of(label.replace("_", " "), memory_bytes)
    return known is not None and known is model_of(gpu.model, gpu.memory_bytes)


def _words(text: str) -> list[str]:
    """A name without its maker's, which some labels leave out: ``a10g`` is an NVIDIA A10G."""
    return [word for word in re.split(r"[\s_-]+", text.upper()) if word not in MAKERS]
