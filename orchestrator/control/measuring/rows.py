"""What is shown of one worker, and how little of that it may choose itself.

Each value of a label is a series, which Prometheus keeps for as long as it keeps anything. A worker names its devices,
its regions and its version, and may name them anew with every session: so devices are numbered, a version is that of a
release, and the rest of what it says of itself changes only so often.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.control.limits import Buckets, Limit
from orchestrator.control.services.workers import NO_TUNNELS, TUNNELS_PER_MEMBER_MAX
from orchestrator.core.supply.versions import release_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.api.v1.telemetry_pb2 import DeviceSample
    from orchestrator.control.services.workers import Sample
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker

PROFILES = Limit(burst=10, interval_ms=3_600_000)
"""Of one worker. A machine that is set up finds its regions, its group and its newest agent within an hour; after that an
owner changes his mind a few times a year, and groups are joined anew after an outage. Ten and one an hour are at most
thirty-four series a day."""


class Profile(NamedTuple):
    """Of a worker, what `worker_info` shows beside who it is."""

    name: str
    region: str
    group: str
    """Empty where it has none."""
    agent_version: str


class Profiles:
    """As they are shown: each is taken up as often as PROFILES lets it, and stays as it was in between."""

    def __init__(self) -> None:
        self._shown: dict[WorkerId, Profile] = {}
        self._changes = Buckets(PROFILES)

    def shown(self, worker_id: WorkerId, profile: Profile, at_ms: int) -> Profile:
        """What to show of a worker of which this is true. ``at_ms`` is control time."""
        before = self._shown.get(worker_id)
        if before is not None and (before == profile or not self._changes.take(worker_id, at_ms)):
            return before
        self._shown[worker_id] = profile
        return profile

    def forget(self, worker_id: WorkerId) -> None:
        """It is not known any more. One that merely left may come back, with what was shown of it."""
        self._shown.pop(worker_id, None)


def profile_of(state: State, worker: Worker) -> Profile:
    """As it is."""
    group = state.groups.of(worker.worker_id)
    return Profile(
        worker.name,
        ",".join(worker.terms.regions),
        "" if group is None or len(group.members) == 1 else str(group.number),
        release_name(worker.agent_version),
    )


def devices_of(worker: Worker, sample: Sample) -> dict[str, DeviceSample]:
    """By the device's number in the worker's inventory, from 0. Only of what the worker has: it measures nothing else."""
    measured = {device.device_id: device for device in sample.devices}
    return {
        str(number): measured[known.device_id]
        for number, known in enumerate(worker.inventory.devices)
        if known.device_id in measured
    }


def tunnels_by_way(state: State, samples: Mapping[WorkerId, Sample]) -> Counter[tuple[str, ...]]:
    """What workers say of their members' tunnels; nothing of one that says more than its members can have."""
    found: Counter[tuple[str, ...]] = Counter({(way,): 0 for way in ("direct", "relayed", "bridged")})
    for worker_id, sample in samples.items():
        told = sample.tunnels
        if told is NO_TUNNELS:
            continue
        members = len(state.members_on.get(worker_id, ()))
        if told.direct + told.relayed + told.bridged <= members * TUNNELS_PER_MEMBER_MAX:
            found["direct",] += told.direct
            found["relayed",] += told.relayed
            found["bridged",] += told.bridged
    return found
