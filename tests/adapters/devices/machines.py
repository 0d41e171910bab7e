"""Machines laid out as files: what procfs and sysfs would show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def lay_recording(root: Path, name: str) -> Path:
    """A recorded machine's files under ``root``, its links resolvable there."""
    recording = json.loads(recorded(name))
    for path, text in recording["files"].items():
        lay_file(root, path, text)
    for path, target in recording["links"].items():
        link = root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / target)
    return root


def lay_file(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def lay_procfs(root: Path, models: Sequence[str], *, first_uuid: int = 1) -> Path:
    """NVIDIA's kernel module with these GPUs, on the buses and with the UUIDs that the stub library gives."""
    for index, model in enumerate(models):
        bus = f"0000:{index + 1:02x}:00.0"
        text = (
            f"Model: \t\t {model}\nIRQ:   \t\t 152\n"
            f"GPU UUID: \t GPU-00000000-0000-0000-0000-{index + first_uuid:012d}\n"
            f"Video BIOS: \t 95.02.18.80.5f\nBus Type: \t PCIe\nDMA Size: \t 47 bits\n"
            f"Bus Location: \t {bus}\nDevice Minor: \t {index}\nGPU Excluded:\t No\n"
        )
        lay_file(root, f"proc/driver/nvidia/gpus/{bus}/information", text)
    return root
