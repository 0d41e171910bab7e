"""What Prometheus is shown: counters fed by observers, and gauges read from the state when it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

QUICK_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""From a batch in memory to a disk in trouble."""

QUEUE_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)
"""From a warm cluster to a day without machines."""

REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300)
"""From a status to an upload over a home line; tails are as long as their jobs."""


DEVICE_GAUGES = {
    "utilization_ratio": "How busy a device is, 0 to 1.",
    "memory_used_bytes": "Memory of a device that is in use.",
    "power_watts": "What a device draws.",
    "temperature_celsius": "How hot a device is.",
    "ecc_uncorrected": "Memory errors of a device that could not be corrected, since its driver was loaded.",
    "last_xid": "The newest error code of a device's driver; 0: none.",
    "throttled": "Whether a device runs slower than it could, 0 or 1.",
}
"""Of each device of a connected worker, as its agent measured last."""


class Metrics:
    """All collectors of one control plane, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        of_worker = ("worker_id", "hardware_class")
        self._expected = Counter(
            "orchestrator_worker_expected_seconds",
            "Seconds in which a worker that joined and did not leave should have been up.",
            of_worker,
            registry=registry,
        )
        self._up = Counter(
            "orchestrator_worker_up_seconds",
            "Seconds in which a worker was heard in time.",
            of_worker,
            registry=registry,
        )
        self._workers = Gauge("orchestrator_workers", "Workers.", ("liveness",), registry=registry)
        self._clusters = Gauge("orchestrator_clusters", "Ray clusters.", ("phase",), registry=registry)
        self._jobs = Gauge("orchestrator_jobs", "Jobs that are not deleted.", ("status",), registry=registry)
        self._receipts = Counter(
            "orchestrator_receipts", "Receipts that reached a state.", ("state",), registry=registry
        )
        self._refusals = Counter(
            "orchestrator_refusals",
            "Calls and sessions that were refused, by what was called and why.",
            ("door", "code"),
            registry=registry,
        )
        self._hardware_changes = Counter(
            "orchestrator_hardware_changes", "Workers that came back with other hardware.", registry=registry
        )
        self._devices = {
            name: Gauge(f"orchestrator_device_{name}", text, ("worker_id", "device_id"), registry=registry)
            for name, text in DEVICE_GAUGES.items()
        }
        self._zones_held = Gauge(
            "orchestrator_zones_held",
            "Zones so silent at once that nobody of them is given up: suspect the control plane itself.",
            registry=registry,
        )
        self._holds = Gauge("orchestrator_worker_holds", "Workers held back.", ("kind",), registry=registry)
        self._commands = Counter("orchestrator_loop_commands", "Commands decided.", registry=registry)
        self._events = Counter("orchestrator_loop_events", "Events committed.", registry=registry)
        self._placed = Counter("orchestrator_plan_placements", "Placements planned.", registry=registry)
        self._decide = _seconds("orchestrator_loop_decide", "Deciding one batch.", QUICK_S, registry)
        self._commit = _seconds("orchestrator_loop_commit", "Making one batch durable.", QUICK_S, registry)
        self._wait = _seconds("orchestrator_loop_wait", "A batch's oldest wait.", QUICK_S, registry)
        self._plan = _seconds("orchestrator_plan", "Making one plan.", QUICK_S, registry)
        self._queue = _seconds("orchestrator_job_queue", "From submission to start.", QUEUE_S, registry)
        self._requests = Histogram(
            "orchestrator_gateway_request_seconds",
            "Answering a tenant's request; a tail counts as long as it is held.",
            ("method", "route", "status"),
            buckets=REQUEST_S,
            registry=registry,
        )

    # ------------------------------------------------------------ observers

    def batch(self, commands: int, events: int, decide_s: float, commit_s: float, waited_s: float) -> None:
        """The loop finished a batch."""
        self._commands.inc(commands)
        self._events.inc(events)
        self._decide.observe(decide_s)
        self._wait.observe(waited_s)
        if events:
            self._commit.observe(commit_s)

    def planned(self, seconds: float, placed: int, deferred: int) -> None:  # noqa: ARG002 -- the observer's shape
        """The planner made a plan."""
        self._plan.observe(seconds)
        self._placed.inc(placed)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """The gateway answered."""
        self._requests.labels(method, route, str(status)).observe(seconds)

    def hardware_changed(self) -> None:
        """A worker came back with other hardware."""
        self._hardware_changes.inc()

    def measured(self, devices: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
        """What devices of connected workers do now, by (worker, device) and the names of DEVICE_GAUGES."""
        for name, gauge in self._devices.items():
            gauge.clear()
            for (worker_id, device_id), values in devices.items():
                if name in values:
                    gauge.labels(worker_id, device_id).set(values[name])

    def refused(self, door: str, code: str) -> None:
        """A call or a session was refused."""
        self._refusals.labels(door, code).inc()

    def held(self, zones: int, workers: Mapping[str, int]) -> None:
        """What is held back now: zones, and workers by the kind of hold."""
        self._zones_held.set(zones)
        for kind, count in workers.items():
            self._holds.labels(kind).set(count)

    def job_started(self, queued_s: float) -> None:
        """A job's driver runs for the first time."""
        self._queue.observe(queued_s)

    def receipt(self, state: str) -> None:
        """A receipt was sealed, signed or posted."""
        self._receipts.labels(state).inc()

    def uptime(self, worker_id: str, hardware_class: str, expected_s: float, up_s: float) -> None:
        """Time has passed for one worker."""
        self._expected.labels(worker_id, hardware_class).inc(expected_s)
        self._up.labels(worker_id, hardware_class).inc(up_s)

    def counted(
        self, workers: Mapping[str, int], clusters: Mapping[str, int], jobs: Mapping[str, int]
    ) -> None:
        """What there is now, by state."""
        for gauge, counts in ((self._workers, workers), (self._clusters, clusters), (self._jobs, jobs)):
            for name, count in counts.items():
                gauge.labels(name).set(count)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)


def _seconds(
    name: str, documentation: str, buckets: tuple[float, ...], registry: CollectorRegistry
) -> Histogram:
    return Histogram(f"{name}_seconds", documentation, buckets=buckets, registry=registry)


class MetricsServer:
    """/metrics on a listener of its own: what it shows is the operator's, not the tenants'."""

    def __init__(self, metrics: Metrics, refresh: Callable[[], Awaitable[None]]) -> None:
        """``refresh`` sets the gauges; it is called before each answer."""
        self._metrics = metrics
        self._refresh = refresh
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen: the port, the real one where 0 was asked for. Raises OSError where it is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, handle_signals=False, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, _request: web.Request) -> web.Response:
        await self._refresh()
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
