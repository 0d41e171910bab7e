"""Which devices their vendor describes by the Container Device Interface, with the files that belong to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CDI_DIRS = (Path("/etc/cdi"), Path("/var/run/cdi"))
NVIDIA_KIND = "nvidia.com/gpu"

HOW_TO_DESCRIBE = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml (package nvidia-container-toolkit)"


def descriptions(folders: Iterable[Path] = CDI_DIRS) -> list[str]:
    """The texts of all descriptions on this machine."""
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return [path.read_text(errors="replace") for path in files if path.suffix in (".yaml", ".json")]


def described(device_ids: Iterable[str], texts: Iterable[str]) -> tuple[str, ...]:
    """The names for podman, one for each device; none at all where any of them is not described."""
    of_nvidia = [text for text in texts if NVIDIA_KIND in text]
    wanted = tuple(device_ids)
    if not all(any(device_id in text for text in of_nvidia) for device_id in wanted):
        return ()
    return tuple(f"{NVIDIA_KIND}={device_id}" for device_id in wanted)
