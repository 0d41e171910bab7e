"""How the things of the protos read on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.api.v1 import common_pb2, jobs_pb2, operator_pb2
from orchestrator.core.supply.fleet import Isolation

MS_PER_S = 1000


def hardware_class_name(value: int) -> str:
    """`consumer` for HARDWARE_CLASS_CONSUMER; a number for a class newer than this program."""
    return _enum_name(common_pb2.HardwareClass.items(), value, "HARDWARE_CLASS_")


def job_status_name(value: int) -> str:
    """Ray's own word, such as SUCCEEDED."""
    return _enum_name(jobs_pb2.JobStatus.items(), value, "JOB_STATUS_").upper()


def token_role_name(value: int) -> str:
    """operator, tenant or supplier."""
    return _enum_name(operator_pb2.TokenRole.items(), value, "TOKEN_ROLE_")


def instant(value: Timestamp) -> str:
    """UTC to the second; nothing for an instant that has not come."""
    if not value.seconds and not value.nanos:
        return ""
    return datetime.fromtimestamp(value.seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def seconds_text(duration_ms: int) -> str:
    """Milliseconds as seconds, exactly."""
    return f"{duration_ms // MS_PER_S}.{duration_ms % MS_PER_S:03d} s"


def model_text(model: str, *, simulated: bool) -> str:
    """A device's model, never without saying that it does not exist."""
    return f"{model} (simulated)" if simulated else model


def devices_text(devices: Iterable[common_pb2.Device]) -> str:
    """What a worker has, equal devices counted: `2× RTX4090 (simulated)`."""
    counts: dict[str, int] = {}
    for device in devices:
        name = model_text(device.model, simulated=device.simulated)
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(name if count == 1 else f"{count}× {name}" for name, count in counts.items())


def isolation_text(inventory: common_pb2.Inventory) -> str:
    """The tier; where there is none, whether the owner agreed to that."""
    if inventory.isolation != Isolation.NONE:
        return inventory.isolation
    return f"{inventory.isolation} ({'with' if inventory.unisolated else 'without'} the owner's consent)"


def device_names(workers: Iterable[operator_pb2.Worker]) -> dict[str, str]:
    """Device id → its model as shown."""
    return {
        device.device_id: model_text(device.model, simulated=device.simulated)
        for worker in workers
        for device in worker.inventory.devices
    }


def counts_text(counts: Mapping[str, int]) -> str:
    """`3 live, 1 lost`, in a fixed order."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) or "none"


def yes_no(value: bool) -> str:
    """A flag in words."""
    return "yes" if value else "no"


def _enum_name(items: Iterable[tuple[str, int]], value: int, prefix: str) -> str:
    found = {number: name for name, number in items}.get(value)
    return str(value) if found is None else found.removeprefix(prefix).lower()
