"""HOSTILE, `hostile`: what honest agents and operators notice of strangers who mean harm.

`orch serve` in a process of its own; honest agents, each with its own certificate and session, beat ten times a
second, and an operator creates tokens, each a durable commit. A flood comes from a third process. Inside the clock:
from the sending of a heartbeat or a command to its answer. Quiet and flooded stretches alternate, so that what else
runs here counts on both sides. Floods:

- ``sybils``: joins without a token, each with another key, from one address: 200 a second, 10,000 in all stretches;
- ``sybils-1k``: the same, 1,000 a second, 10,000 in each stretch;
- ``idle``: 5,000 connections that never begin their TLS handshakes, each opened anew when it is closed;
- ``deaf``: a worker with a good certificate that asks for a thousand answers a second and takes none;
- ``inventories``: joins with an inventory of 10 MB, two a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks import fleet
from benchmarks.crowd import ControlProcess, Member, prepare
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import percentile
from orchestrator.adapters import clock, peers
from orchestrator.adapters.peers import SESSION_CONTEXT
from orchestrator.agent.daemon import AGENT_VERSION
from orchestrator.api.v1 import operator_pb2, operator_pb2_grpc, worker_pb2, worker_pb2_grpc
from orchestrator.control.inventory_wire import inventory_to

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

REPETITIONS = 5
STRETCH_S = 10.0
SETTLE_S = 3.0
"""A flood is at its height by then, and its rest is gone by then."""
HONEST = 20
BEAT_S = 0.1
COMMAND_S = 0.05
ANSWER_S = 30.0

SYBILS_PER_S = 200
SYBILS_MANY_PER_S = 1_000
IDLE = 5_000
IDLE_PER_S = 2_500
DEAF_PER_S = 1_000
INVENTORY_BYTES = 10_000_000
INVENTORY_S = 0.5

RATIO_TARGET = Target(2.0, "<=", "ratio")
SSL_OPTIONS = (("grpc.ssl_target_name_override", peers.SERVER_NAME), ("grpc.enable_http_proxy", 0))


@dataclass(frozen=True, slots=True)
class Door:
    """Where a flood goes, and whom it shows itself as."""

    enrol: str
    session: str
    authorities: bytes
    number: int
    statement_key: bytes = field(repr=False)
    tls_key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)


def measure(repetitions: int = REPETITIONS, stretch_s: float = STRETCH_S) -> list[Case]:
    """A case of each flood. Raises FigureError where the control plane does not survive one."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name) / "data"
        members = prepare(folder, HONEST + 1)
        return asyncio.run(_measure(ControlProcess(folder), members, repetitions, stretch_s))


async def _measure(
    control: ControlProcess, members: list[Member], repetitions: int, stretch_s: float
) -> list[Case]:
    cases = []
    control.start()
    try:
        await control.serving()
        async with _honest(control, members[:HONEST]) as took_ms:
            for kind in FLOODS:
                quiet, flooded = [], []
                for _ in range(repetitions):
                    quiet.append(await _p99_ms(took_ms, stretch_s))
                    before = _marks(control)
                    with _flood(kind, _door(control, members[HONEST])):
                        await asyncio.sleep(SETTLE_S)
                        _check_flooded(kind, control, before)
                        flooded.append(await _p99_ms(took_ms, stretch_s))
                    await asyncio.sleep(SETTLE_S)
                    note(f"hostile, {kind}: p99 {flooded[-1]:.1f} ms, quiet {quiet[-1]:.1f} ms")
                remark = "p99 of honest heartbeats and commands; peer: the same without the flood"
                cases.append(
                    compared("HOSTILE", f"{kind}-p99", "ms", flooded, quiet, RATIO_TARGET, remark=remark)
                )
    finally:
        control.stop()
    return cases


@dataclass(frozen=True, slots=True)
class _Marks:
    """By what a flood is known to have arrived."""

    refused: float
    files: int


def _marks(control: ControlProcess) -> _Marks:
    lines = control.metrics().decode().splitlines()
    refused = (line for line in lines if line.startswith("orchestrator_refusals_total{"))
    return _Marks(sum(float(line.rpartition(" ")[2]) for line in refused), control.usage.num_fds())


def _check_flooded(kind: str, control: ControlProcess, before: _Marks) -> None:
    """Raises FigureError where there is no sign of the flood: quiet would be compared with quiet."""
    now = _marks(control)
    arrived = (
        now.refused > before.refused
        if "sybils" in kind or kind == "inventories"
        else now.files > before.files
    )
    if not arrived:
        raise FigureError(f"the flood of {kind} did not arrive")


async def _p99_ms(took_ms: list[float], stretch_s: float) -> float:
    took_ms.clear()
    await asyncio.sleep(stretch_s)
    if not took_ms:
        raise FigureError("nobody honest was answered; see whether the control plane still runs")
    return percentile(took_ms, 0.99)


# ---------------------------------------------------------------- the honest


@contextlib.asynccontextmanager
async def _honest(control: ControlProcess, members: list[Member]) -> AsyncIterator[list[float]]:
    """Agents and an operator at work; the list takes what each answer took, in ms."""
    took_ms: list[float] = []
    authorities = _authorities(control)
    address = control.endpoints["session"]
    tasks = [asyncio.create_task(_agent(member, address, authorities, took_ms)) for member in members]
    tasks.append(asyncio.create_task(_operator(control, authorities, took_ms)))
    try:
        yield took_ms
        for task in tasks:
            if task.done():
                task.result()
    except grpc.aio.AioRpcError as error:
        raise FigureError(f"an honest caller was turned away: {error.details()}") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _authorities(control: ControlProcess) -> bytes:
    return Path(control.endpoints["ca_file"]).read_bytes()


async def _agent(member: Member, address: str, authorities: bytes, took_ms: list[float]) -> None:
    door = Door("", address, authorities, member.number, b"", member.tls_key_pem, member.chain_pem)
    async with _channel(door) as channel:
        stream: Any = await _session(channel, member.number, member.statement_key.sign)
        sequence = 0
        while True:
            sequence += 1
            sent_s = time.monotonic()
            await stream.write(_beat(sequence))
            while (answer := await stream.read()).heartbeat_ack.sequence != sequence:
                if answer.HasField("farewell"):
                    raise FigureError(f"an honest agent was sent away: {answer.farewell.reason}")
            took_ms.append((time.monotonic() - sent_s) * 1000)
            await asyncio.sleep(BEAT_S)


async def _operator(control: ControlProcess, authorities: bytes, took_ms: list[float]) -> None:
    admin = (control.folder / "admin-token").read_text().strip()
    metadata = (("authorization", f"Bearer {admin}"),)
    request = operator_pb2.CreateTokenRequest(role=operator_pb2.TOKEN_ROLE_SUPPLIER, subject="supplier-0")
    trusting = grpc.ssl_channel_credentials(authorities)
    async with grpc.aio.secure_channel(control.endpoints["grpc"], trusting, options=SSL_OPTIONS) as channel:
        stub: Any = operator_pb2_grpc.OperatorServiceStub(channel)
        while True:
            sent_s = time.monotonic()
            await stub.CreateToken(request, metadata=metadata, timeout=ANSWER_S)
            took_ms.append((time.monotonic() - sent_s) * 1000)
            await asyncio.sleep(COMMAND_S)


def _channel(door: Door, *options: tuple[str, int]) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(door.authorities, door.tls_key_pem, door.chain_pem)
    # Without a pool of its own, one channel would speak over another's connection, with its certificate.
    every = (*SSL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), *options)
    return grpc.aio.secure_channel(door.session, credentials, options=every)


async def _session(channel: grpc.aio.Channel, number: int, sign: Callable[[bytes], bytes]) -> Any:
    """A welcomed session."""
    stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
    stream = stub.Session()
    challenge = (await stream.read()).challenge
    worker_id = fleet.worker_id_of(number)
    hello = worker_pb2.Hello(
        worker_id=worker_id,
        signature=sign(SESSION_CONTEXT + challenge.nonce + worker_id.encode()),
        inventory=inventory_to(fleet.inventory(number)),
        agent_version=AGENT_VERSION,
        session_number=int(time.monotonic() * 1000),
    )
    await stream.write(worker_pb2.SessionRequest(hello=hello))
    answer = await stream.read()
    if not answer.HasField("welcome"):
        raise FigureError(f"no session: {answer.farewell.reason}")
    return stream


def _beat(sequence: int) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=sequence))


# ---------------------------------------------------------------- floods, in a process of their own


def _door(control: ControlProcess, member: Member) -> Door:
    return Door(
        control.endpoints["grpc"],
        control.endpoints["session"],
        _authorities(control),
        member.number,
        member.statement_key.private_bytes_raw(),
        member.tls_key_pem,
        member.chain_pem,
    )


@contextlib.contextmanager
def _flood(kind: str, door: Door) -> Iterator[None]:
    """For as long as this lasts."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_pour, args=(theirs, kind, door), daemon=True)
    process.start()
    theirs.close()
    ours.recv()
    try:
        yield
    finally:
        process.kill()
        process.join()
        ours.close()


def _pour(pipe: Connection, kind: str, door: Door) -> None:
    pipe.send(None)
    asyncio.run(FLOODS[kind](door))


async def _sybils(door: Door, per_s: int = SYBILS_PER_S) -> None:
    """Refused ones are not tried again; the pace holds whatever the answers take."""
    async with _stranger(door) as stub:
        base = worker_pb2.JoinRequest(
            worker_name="sybil", proof=bytes(64), inventory=inventory_to(fleet.inventory(0))
        )
        await _paced(lambda: stub.Join(_sybil(base), timeout=ANSWER_S), 1 / per_s)


def _sybil(base: worker_pb2.JoinRequest) -> worker_pb2.JoinRequest:
    request = worker_pb2.JoinRequest()
    request.CopyFrom(base)
    request.statement_public_key = clock.random_bytes(32)
    return request


async def _inventories(door: Door) -> None:
    async with _stranger(door) as stub:
        request = worker_pb2.JoinRequest(join_token="orch_supplier_none", worker_name="large")  # noqa: S106 -- none
        request.inventory.zone = "x" * INVENTORY_BYTES
        await _paced(lambda: stub.Join(request, timeout=ANSWER_S), INVENTORY_S)


async def _idle(door: Door) -> None:
    host, _, port = door.enrol.rpartition(":")

    async def stay() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, int(port))
                with contextlib.closing(writer):
                    await reader.read()

    staying = []
    for _ in range(IDLE):
        staying.append(asyncio.create_task(stay()))
        await asyncio.sleep(1 / IDLE_PER_S)
    await asyncio.gather(*staying)


async def _deaf(door: Door) -> None:
    key = Ed25519PrivateKey.from_private_bytes(door.statement_key)
    async with _channel(door, ("grpc.http2.lookahead_bytes", 1_024), ("grpc.http2.bdp_probe", 0)) as channel:
        stream = await _session(channel, door.number, key.sign)
        sequence = 0
        while True:
            sequence += 1
            await stream.write(_beat(sequence))
            await asyncio.sleep(1 / DEAF_PER_S)


@contextlib.asynccontextmanager
async def _stranger(door: Door) -> AsyncIterator[Any]:
    trusting = grpc.ssl_channel_credentials(door.authorities)
    async with grpc.aio.secure_channel(door.enrol, trusting, options=SSL_OPTIONS) as channel:
        yield worker_pb2_grpc.EnrolServiceStub(channel)


async def _paced(call: Callable[[], Any], every_s: float) -> None:
    """Begin a call each ``every_s``; how it ends does not matter."""
    under_way: set[asyncio.Task[None]] = set()

    async def one() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call()

    next_s = time.monotonic()
    while True:
        task = asyncio.create_task(one())
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        next_s += every_s
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))


FLOODS: dict[str, Callable[[Door], Coroutine[Any, Any, None]]] = {
    "sybils": _sybils,
    "sybils-1k": partial(_sybils, per_s=SYBILS_MANY_PER_S),
    "idle": _idle,
    "deaf": _deaf,
    "inventories": _inventories,
}
