"""How far it is to other workers, before any cluster: this worker's own place in the overlay, and what it measures there.

One nebula with the worker's own certificate, whose interface lies in a network namespace that holds nothing but the
responder. Only workers may reach it, at one port. So the way that is measured is the one that a cluster's overlay would
find, through the same NATs, direct or relayed; and nothing of this machine can be reached by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from orchestrator.adapters import clock
from orchestrator.adapters.box.namespaces import SocketFactory
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.node_records import write_atomically
from orchestrator.adapters.overlay.config import Landmark, node_config
from orchestrator.adapters.overlay.process import SETPRIV, OverlayError, interface_name
from orchestrator.adapters.probes.echo import EchoResponder, PathPlan, measure_path
from orchestrator.adapters.probes.wire import Instruments, Target
from orchestrator.agent.housing import bare_address, kept_key, nebula_files
from orchestrator.agent.prober import path_to
from orchestrator.agent.ways import CONFIG_FILES, OverlayWay
from orchestrator.api.v1 import overlay_pb2, worker_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.agent.ports import ControlChannel

T = TypeVar("T")

log = structlog.get_logger(__name__)

FOLDER: Final = "overlay"

ECHO_PORT: Final = 7445
"""The only one that is open."""

TARGETS_MAX: Final = 16
"""More than are ever ordered: what a control plane asks for is bounded here, too."""

KNOCK: Final = PathPlan(count=4, interval_ms=500, timeout_ms=1000)
"""Three seconds in which the overlay finds its way; a relayed one needs two tries of nebula's."""

PATH: Final = PathPlan()

TEND_S: Final = 1.0
"""How late a nebula that died, or a namespace that is gone, is noticed."""

NAMESPACE_S: Final = 5.0
NAMESPACE_POLL_S: Final = 0.01


class Underlay:
    """As Attendant: keeps the worker's own nebula up by what it is told, and measures what it is ordered to."""

    def __init__(self, data_dir: Path, beacon_host: str) -> None:
        """``beacon_host`` is that of a beacon which names none. Makes the key at the first start; blocking."""
        self._folder = data_dir / FOLDER
        self._beacon_host = beacon_host
        self._files = nebula_files(self._folder)
        self.public_key: Final = kept_key(self._folder)
        self._interface = interface_name(str(self._folder.resolve()))
        self._order: overlay_pb2.ProbeOrder | None = None
        self._ordered = asyncio.Event()
        # Nebula ends with the thread that starts it, so that is one which stays.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="underlay")
        self._place: _Place | None = None
        self._changing = asyncio.Lock()
        self._closed = False

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """As Attendant.take."""
        if message.HasField("probe_order"):
            self._order = message.probe_order
            self._ordered.set()

    async def attend(self, channel: ControlChannel) -> None:
        """As Attendant.attend: answer each order of this session."""
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            order = self._order
            if order is None:
                continue
            # A session may end meanwhile; what was begun here is brought to its end.
            place = await asyncio.shield(self._entered(order))
            if place is None or not order.targets:
                continue
            found = await asyncio.gather(
                *(place.measure(one, order.key) for one in list(order.targets)[:TARGETS_MAX])
            )
            report = overlay_pb2.ProbeReport(
                number=order.number, paths=[one for one in found if one is not None]
            )
            await channel.send(worker_pb2.SessionRequest(probe_report=report))

    async def run(self) -> None:
        """Keep nebula up until cancelled, then end it."""
        try:
            while True:
                await asyncio.sleep(TEND_S)
                async with self._changing:
                    try:
                        kept = self._place is None or await self._in_thread(self._place.tend)
                    except (OSError, OverlayError) as error:
                        log.warning("underlay_not_tended", reason=str(error))
                        kept = False
                    if not kept:
                        # Its network is gone, and nebula with it: all of it begins anew at the next order.
                        await self._leave()
        finally:
            async with self._changing:
                self._closed = True
                await self._leave()
            self._thread.shutdown(wait=False)

    async def _entered(self, order: overlay_pb2.ProbeOrder) -> _Place | None:
        """This worker's place as an order has it; None where it cannot be had, which is logged."""
        async with self._changing:
            if self._closed:
                return None
            try:
                await self._enter(order)
            except (OSError, ValueError, OverlayError, BoxError) as error:
                log.warning("underlay_not_measured", reason=str(error))
                await self._leave()
            return self._place

    async def _enter(self, order: overlay_pb2.ProbeOrder) -> None:
        """Raises ValueError, OSError, OverlayError, BoxError."""
        address = bare_address(order.overlay.address)
        await self._in_thread(lambda: self._write(order.overlay))
        if self._place is not None and (self._place.address, self._place.key) != (address, order.key):
            await self._leave()
        if self._place is None:
            way = OverlayWay(self._folder, interface=self._interface, address=order.overlay.address)
            place = self._place = _Place(way, address, order.key)
            await self._in_thread(place.open)
            place.answer()

    async def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            await place.silence()
            await self._in_thread(place.close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _write(self, told: overlay_pb2.OverlayMembership) -> None:
        """What nebula reads; the same again writes nothing. Raises ValueError, OSError."""
        texts = {
            self._files.authorities: told.authorities.decode(),
            self._files.certificate: told.certificate.decode(),
            self._folder / CONFIG_FILES["udp"]: node_config(
                self._files,
                interface=self._interface,
                group=told.group,
                landmarks=[self._landmark(one) for one in told.beacons],
                open_port=ECHO_PORT,
            ),
        }
        if all(path.exists() and path.read_text() == text for path, text in texts.items()):
            return
        for path, text in texts.items():
            write_atomically(path, text.encode())

    def _landmark(self, beacon: overlay_pb2.OverlayBeacon) -> Landmark:
        host, _, port = beacon.endpoint.rpartition(":")
        return Landmark(beacon.address, (f"{host or self._beacon_host}:{port}",))


class _Place:
    """A network namespace with an end of the overlay and a responder."""

    def __init__(self, way: OverlayWay, address: str, key: bytes) -> None:
        self.address = address
        self.key = key
        self._way = way
        self._holder: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._instruments: Instruments | None = None
        self._answering: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Make it. Blocking, by the thread that stays; raises OverlayError, BoxError, OSError."""
        holder = self._holder = _hold_namespace()
        self._way.start(holder.pid)
        sockets = SocketFactory(holder.pid)
        self._instruments = Instruments(clock.steady_ns, clock.random_bytes, sockets.create)
        self._socket = sockets.create(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.address, ECHO_PORT))

    def answer(self) -> None:
        """Answer other workers from now on, once it is open."""
        if self._socket is not None:
            responder = EchoResponder(self._socket, self.key, clock.steady_ns)
            self._answering = asyncio.create_task(responder.run())

    def tend(self) -> bool:
        """Keep nebula up; whether the network is there still. Blocking."""
        if self._holder is None or self._holder.poll() is not None:
            return False
        self._way.tend(self._holder.pid)
        return True

    async def measure(self, one: overlay_pb2.ProbeTarget, key: bytes) -> overlay_pb2.PathMeasured | None:
        """The way to another worker; None where this place has just gone."""
        if self._instruments is None:
            return None
        try:
            target = Target(one.worker_id, one.address, ECHO_PORT)
            found = await measure_path(target, key, self._instruments, KNOCK)
            if found.received:
                found = await measure_path(target, key, self._instruments, PATH)
        except (OSError, ValueError, BoxError) as error:
            log.info("path_not_measured", peer=one.worker_id[:80], reason=str(error))
            return None
        return path_to(found)

    async def silence(self) -> None:
        """Answer nobody any more."""
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)

    def close(self) -> None:
        """End all of it. Blocking, seconds at most."""
        if self._socket is not None:
            self._socket.close()
        self._way.stop()
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()


def _hold_namespace() -> subprocess.Popen[bytes]:
    """A child that does nothing in a network of its own, for as long as this thread lives. Raises OverlayError."""
    command = [
        SETPRIV,
        "--no-new-privs",
        "--pdeathsig",
        "KILL",
        "--",
        "unshare",
        "--net",
        "--",
        "sleep",
        "infinity",
    ]
    own = Path("/proc/thread-self/ns/net").readlink()
    holder = subprocess.Popen(
        command,
        # The agent's variables may hold a join token.
        env={"PATH": os.environ.get("PATH", os.defpath)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(round(NAMESPACE_S / NAMESPACE_POLL_S)):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{holder.pid}/ns/net").readlink() != own:
                return holder
        with contextlib.suppress(subprocess.TimeoutExpired):
            holder.wait(NAMESPACE_POLL_S)
            break
    holder.kill()
    holder.wait()
    raise OverlayError(
        "no network namespace could be made; run `apt-get install util-linux`, and start as root"
    )
