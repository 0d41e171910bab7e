"""What a container is asked to be beside what a box is; plain data that JSON can carry."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.core.images import reference_fault

RUNTIMES = ("crun", "runc")
"""OCI runtimes that podman drives, the one with the smaller processes first. Either may lack what a kernel has."""

CDI_DEVICE = re.compile(r"[a-z0-9.-]+/[a-z0-9_-]+=[A-Za-z0-9_.:-]+")
"""vendor/class=name, as the Container Device Interface writes a device."""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """How a box's spec is given to podman. Holds no secret."""

    runtime: str
    """One of RUNTIMES: the one that was found to work here."""
    image: str = ""
    """NAME@sha256:…, here already; empty: the root directory is made of the host's own /usr, as a box's is."""
    cdi_devices: tuple[str, ...] = ()
    """vendor/class=name of the assigned devices where their vendor describes them; the spec's own files else."""

    def __post_init__(self) -> None:
        """Refuse what could be read as an option, or would not name one image."""
        if self.runtime not in RUNTIMES:
            raise ValueError(f"ContainerSpec.runtime {self.runtime!r}: give one of {', '.join(RUNTIMES)}")
        fault = reference_fault(self.image) if self.image else ""
        if fault:
            raise ValueError(f"ContainerSpec.image: {fault}")
        for device in self.cdi_devices:
            if not CDI_DEVICE.fullmatch(device):
                raise ValueError(f"ContainerSpec.cdi_devices {device!r}: write vendor/class=name")
