"""Pages of per-worker series as Prometheus reads them.

Written here and not by prometheus_client: a network of ten thousand workers has some hundred thousand series, which
would take it seconds. Here the labels of a worker or device are written once for all of its metrics, and a metric is
filled in at once for all of the page: a line takes a quarter of a microsecond, most of it the number's. Nothing is kept
from one scrape to the next, since most numbers are others by then.
"""

from __future__ import annotations

from itertools import islice
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.adapters.metrics.catalogue import DEVICE, PER_WORKER, WORKER
from orchestrator.adapters.metrics.registry import short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from orchestrator.adapters.metrics.catalogue import Metric
    from orchestrator.api.v1.telemetry_pb2 import DeviceSample

    Labels = tuple[str, ...]
    Values = Sequence[float | None]

NOT_AS_IT_IS = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "%": "%%"})
"""What a label's value may not hold as it is: three in a line, the last in a tail, which is yet to be filled in."""


DEVICES_PER_PAGE_MAX = 8_000
"""Sixteen of each of 500 workers: twice what servers of eight GPUs come to. Machines that say that they have more are
shown with fewer of them, and none with fewer on account of another that has more than itself."""

PAGE_BYTES_MAX = 8_000_000
"""What DEVICES_PER_PAGE_MAX and 500 workers come to where every name and number is as long as it may be. A page of
workers with eight GPUs each has a third of it."""


class WorkerRow(NamedTuple):
    """One worker. None: nobody knows, and nothing is shown."""

    worker: str
    supplier: str
    hardware_class: str
    expected_s: float
    up_s: float
    name: str = ""
    region: str = ""
    group: str = ""
    agent_version: str = ""
    certificate_s: float | None = None
    cpu_ratio: float | None = None
    memory_bytes: float | None = None
    devices: Mapping[str, DeviceSample] = MappingProxyType({})
    """By the device's number in its worker, rising from 0: its newest sample, which nobody changes."""


def page_text(rows: Iterable[WorkerRow]) -> bytes:
    """Some milliseconds for 500 workers of eight devices: not for a thread that others wait for.

    Families are in the order of the catalogue, as far as they have samples. Of devices no more than
    DEVICES_PER_PAGE_MAX are shown; a comment at the end says how many are left out.
    """
    page = list(rows)
    counts = [len(row.devices) for row in page]
    each = devices_each(counts, DEVICES_PER_PAGE_MAX)
    tails, columns = _tails(page, each), _columns(page, each)
    families = [_family(metric, tails[metric.labels], columns[short_name(metric)]) for metric in PER_WORKER]
    left_out = sum(max(0, count - each) for count in counts)
    if left_out:
        families.append(f"# left out here: {left_out} devices, all but the first {each} of a worker\n")
    return "".join(families).encode()


def devices_each(counts: Sequence[int], total_max: int) -> int:
    """The most devices of one worker that may be shown, so that all together are at most ``total_max``."""
    left, each = total_max, 0
    for position, count in enumerate(sorted(counts)):
        workers = len(counts) - position
        if (count - each) * workers > left:
            return each + left // workers
        left -= (count - each) * workers
        each = count
    return each


def shown(value: str) -> str:
    """A label's value as it stands in a tail."""
    # Four looks take a tenth of a translation, and few values need one.
    odd = "\\" in value or '"' in value or "\n" in value or "%" in value
    return value.translate(NOT_AS_IT_IS) if odd else value


def _tail(labels: Labels) -> str:
    """What stands after a metric's name: filled in with labels, it is a line that lacks only its value."""
    return "{" + ",".join(f'{label}="%s"' for label in labels) + "} %%s\n"


WHO = WORKER[:1]
PROFILE = next(metric.labels for metric in PER_WORKER if short_name(metric) == "worker_info")
TAILS = {labels: _tail(labels) for labels in (WHO, WORKER, PROFILE, DEVICE)}
"""By the names of their labels: all that metrics of workers and devices have."""


def _tails(rows: Sequence[WorkerRow], devices_max: int) -> Mapping[Labels, Sequence[str]]:
    """By the names of their labels: one for each worker, or for each of its first devices, in the order of the rows."""
    tails: dict[Labels, list[str]] = {labels: [] for labels in TAILS}
    of_device, device_tail = tails[DEVICE], TAILS[DEVICE]
    for row in rows:
        worker = shown(row.worker)
        identity = (worker, shown(row.supplier), shown(row.hardware_class))
        profile = (shown(row.name), shown(row.region), shown(row.group), shown(row.agent_version))
        for labels, words in ((WHO, (worker,)), (WORKER, identity), (PROFILE, identity + profile)):
            tails[labels].append(TAILS[labels] % words)
        for number in islice(row.devices, devices_max):
            of_device.append(device_tail % (worker, shown(number)))
    return tails


def _columns(rows: Sequence[WorkerRow], devices_max: int) -> Mapping[str, Values]:
    """By the metric's short name: the values that belong to the tails."""
    devices = [device for row in rows for device in islice(row.devices.values(), devices_max)]
    return {
        "worker_expected_seconds": [row.expected_s for row in rows],
        "worker_up_seconds": [row.up_s for row in rows],
        "worker_info": [1 if row.name or row.agent_version else None for row in rows],
        "worker_certificate_remaining_seconds": [row.certificate_s for row in rows],
        "worker_cpu_utilization_ratio": [row.cpu_ratio for row in rows],
        "worker_memory_used_bytes": [row.memory_bytes for row in rows],
        **{name: list(map(of_device, devices)) for name, of_device in OF_DEVICE.items()},
    }


def _ecc_uncorrected(device: DeviceSample) -> int | None:
    """Absent where the device does not count them."""
    return device.ecc_uncorrected if device.HasField("ecc_uncorrected") else None


def _throttled(device: DeviceSample) -> int:
    return 1 if device.throttle_reasons else 0


OF_DEVICE: Mapping[str, Callable[[DeviceSample], float | None]] = {
    "device_utilization_ratio": attrgetter("utilization_ratio"),
    "device_memory_used_bytes": attrgetter("memory_used_bytes"),
    "device_power_watts": attrgetter("power_watts"),
    "device_temperature_celsius": attrgetter("temperature_celsius"),
    "device_ecc_uncorrected": _ecc_uncorrected,
    "device_last_xid": attrgetter("last_xid"),
    "device_throttled": _throttled,
}
"""What each metric of devices shows of a sample."""


def _family(metric: Metric, tails: Sequence[str], values: Values) -> str:
    """All samples of one metric under its head; nothing where there is none."""
    if None in values:
        tails = [tail for tail, value in zip(tails, values, strict=True) if value is not None]
        values = [value for value in values if value is not None]
    if not tails:
        return ""
    # A counter's HELP and TYPE name it as its samples do: that is what format 0.0.4 knows.
    head = f"# HELP {metric.name} {metric.text}\n# TYPE {metric.name} {metric.kind.value}\n"
    return head + metric.name + metric.name.join(tails) % tuple(values)
