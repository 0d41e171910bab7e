"""The GPUs that NVIDIA's kernel module lists in procfs: a second word beside NVML's."""

from __future__ import annotations

from pathlib import Path

from orchestrator.adapters.devices.reading import read_text, tidy
from orchestrator.core.supply.evidence import Sighting, Source, bus_id

ROOT = Path("/")
GPUS = "proc/driver/nvidia/gpus"

MASKED = "?"
"""The kernel module shows question marks instead of a UUID that it has not read yet."""


def read_procfs(root: Path = ROOT) -> tuple[Sighting, ...]:
    """One sighting per GPU, in order of their buses; none where there is no such driver, as on WSL."""
    sightings = []
    for path in sorted(root.glob(f"{GPUS}/*/information")):
        facts = _facts(read_text(path))
        uuid = facts.get("GPU UUID", "")
        sightings.append(
            Sighting(
                Source.PROCFS,
                uuid="" if MASKED in uuid else uuid,
                model=facts.get("Model", ""),
                pci_bus_id=bus_id(facts.get("Bus Location", path.parent.name)),
            )
        )
    return tuple(sightings)


def _facts(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): tidy(value) for name, _, value in pairs}
