"""The owner's socket: what `orch worker cordon`, `reclaim` and the like say to the agent of this machine.

A unix socket that only the agent's own user can open, so no token is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import grpc
import grpc.aio
import structlog

from orchestrator.adapters.files import write_whole
from orchestrator.adapters.terms_wire import terms_from
from orchestrator.agent.wishes import kind_of
from orchestrator.api.v1 import agent_pb2, standing_pb2, worker_pb2
from orchestrator.api.v1.agent_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from orchestrator.core.decisions.terms import NOTICE_MS_MAX, check_terms
from orchestrator.core.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.agent.ports import AgentClock
    from orchestrator.agent.wishes import Wishes

    Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger(__name__)

SOCKET_FILE = "agent.sock"
SOCKET_PATH_FILE = "agent.sock.path"
"""Where the socket is, if its directory's path is too long for one."""

SOCKET_PATH_BYTES_MAX = 107
"""What the kernel takes for a unix socket's path."""

SHORT_ROOT = Path("/tmp")  # noqa: S108 - short is the point; the folder in it is checked to be the user's own

REASON_CHARACTERS_MAX = 200
"""As much as the network keeps."""

ACK_S = 4.0
"""The network answers a wish within a round trip and a commit; the owner's command waits ten seconds for all."""

CLOSE_S = 0.5
"""For answers under way when the agent ends."""


class AgentView(Protocol):
    """The agent as its owner sees it."""

    @property
    def connected(self) -> bool: ...

    @property
    def last_error(self) -> str:
        """Why there is no session; empty while one is open."""

    def shown_members(self) -> Sequence[agent_pb2.AgentMember]: ...


@dataclass(frozen=True, slots=True)
class About:
    """Who the agent is. What may change is asked for."""

    worker_id: str
    name: str
    agent_version: str
    standing: Callable[[], standing_pb2.Standing | None]
    notice_ms: Callable[[], int]
    """What a reclaim gives by the owner's terms."""
    not_after_ms: Callable[[], int]
    """When the certificate runs out; 0: there is none."""
    certificate_notice: Callable[[], str] = lambda: ""
    """What is wrong with its renewal; empty: nothing."""
    isolation: str = "none"
    overlay: str = "none"
    remarks: tuple[str, ...] = ()
    """Why there is no isolation or no overlay."""
    runtimes: Callable[[], Sequence[agent_pb2.AgentRuntime]] = tuple
    """What became of the runtimes that were asked for here."""


class OwnerService(AgentServiceServicer):
    """AgentService."""

    def __init__(
        self, about: About, agent: AgentView, wishes: Wishes, clock: AgentClock, ack_s: float = ACK_S
    ) -> None:
        """``ack_s`` is how long a wish waits for the network's word before it is answered without."""
        self._ack_s = ack_s
        self._about = about
        self._agent = agent
        self._wishes = wishes
        self._clock = clock

    async def GetAgent(  # noqa: N802 -- the proto's name
        self, _request: agent_pb2.GetAgentRequest, _context: Context
    ) -> agent_pb2.GetAgentResponse:
        """How the agent stands."""
        return agent_pb2.GetAgentResponse(
            worker_id=self._about.worker_id,
            name=self._about.name,
            agent_version=self._about.agent_version,
            connected=self._agent.connected,
            standing=self._about.standing(),
            members=self._agent.shown_members(),
            certificate_not_after_unix_ms=self._about.not_after_ms(),
            last_error="" if self._agent.connected else self._agent.last_error,
            under_way=self._under_way(),
            last_refusal=self._wishes.last_refusal,
            certificate_notice=self._about.certificate_notice(),
            isolation=self._about.isolation,
            overlay=self._about.overlay,
            remarks=self._about.remarks,
            runtimes=self._about.runtimes(),
        )

    async def Ask(  # noqa: N802 -- the proto's name
        self, request: agent_pb2.AskRequest, context: Context
    ) -> agent_pb2.AskResponse:
        """Take a wish; its meaning is checked here, so that a mistake is told to whoever made it."""
        wish = request.wish
        problem = _problem(wish)
        if problem:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        try:
            number = self._wishes.make(wish, wish.reclaim.notice_ms or self._about.notice_ms())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            await _refuse(context, grpc.StatusCode.INTERNAL, f"the wish could not be kept: {reason}")
        sent = self._agent.connected
        said = await self._wishes.answer(number, self._ack_s) if sent else None
        message = self._answer(kind_of(wish), said, sent=sent)
        return agent_pb2.AskResponse(sent=sent, message=message, refusal=said or "")

    def _answer(self, kind: str, said: str | None, *, sent: bool) -> str:
        match kind:
            case "reclaim" | "busy":
                now = self._under_way()
            case "cordon":
                now = "nothing new is placed here; what runs goes on"
            case "terms":
                now = "these terms hold for whatever is placed from now on"
            case _:
                now = "the machine is offered again"
        if said:
            obeyed = f"{now}; but " if kind == "reclaim" else ""
            return f"{obeyed}the network refuses: {said}"
        if sent:
            return (
                now
                if said is not None
                else f"{now}; the network has not confirmed it yet, and is asked again"
            )
        kept = "the network cannot be reached and hears of it at the next session"
        return f"{now}; {kept}" + ("; the end is kept here all the same" if kind == "reclaim" else "")

    def _under_way(self) -> str:
        reclaim = self._wishes.reclaim()
        if reclaim is None:
            return ""
        members = len(self._agent.shown_members())
        if not members:
            return "the machine is given back: nothing of the network's runs here"
        left_ms = max(0, reclaim.deadline_boottime_ms - self._clock.boottime_ms())
        when = f"end in {-(-left_ms // 1000)} s at the latest" if left_ms else "are being ended"
        return f"the machine is being given back: {members} member(s) {when}"


async def _refuse(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")


def _problem(wish: worker_pb2.OwnerWish) -> str:
    """What is wrong with a wish; empty where nothing is."""
    match kind_of(wish):
        case "":
            return "wish: this agent does not know such a wish; install a newer one"
        case "busy" | "idle":
            return "wish: whether the owner is busy is the agent's own to say"
        case "terms":
            try:
                check_terms(terms_from(wish.terms))
            except RefusedError as error:
                return error.message
    reason = wish.cordon.reason or wish.reclaim.reason
    if len(reason) > REASON_CHARACTERS_MAX or not (reason.isprintable()):
        return f"reason: one line of at most {REASON_CHARACTERS_MAX} characters is expected"
    if wish.reclaim.notice_ms > NOTICE_MS_MAX:
        return f"notice_ms: at most {NOTICE_MS_MAX} ms"
    return ""


# ---------------------------------------------------------------- the socket


def socket_path(data_dir: Path) -> Path:
    """Where the agent of a directory listens: in it, or in a short folder of the user's own."""
    inside = data_dir.absolute() / SOCKET_FILE
    if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES_MAX:
        return inside
    name = hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
    return SHORT_ROOT / f"orch-{os.getuid()}-{name}" / SOCKET_FILE


def forget_socket(data_dir: Path) -> None:
    """Remove what an agent that was killed left: whoever looks for the socket takes it for one that serves."""
    with contextlib.suppress(OSError):
        socket_path(data_dir).unlink(missing_ok=True)


def known_socket(data_dir: Path) -> Path:
    """Where an agent may be listening, as it has noted itself."""
    try:
        return Path((data_dir / SOCKET_PATH_FILE).read_text().strip())
    except OSError:
        return data_dir.absolute() / SOCKET_FILE


@contextlib.asynccontextmanager
async def listening(data_dir: Path, service: AgentServiceServicer) -> AsyncIterator[Path]:
    """Serve at the socket while the body runs. Raises OSError where it cannot be made."""
    path = _place(data_dir)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_AgentServiceServicer_to_server(service, server)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise OSError(f"cannot listen at {path}: {error}") from None
    finally:
        os.umask(mask)
    path.chmod(0o600)
    await server.start()
    try:
        yield path
    finally:
        await server.stop(CLOSE_S)
        path.unlink(missing_ok=True)


def _place(data_dir: Path) -> Path:
    """The socket's path, free of what an earlier agent left; whoever holds the directory's lock owns it."""
    path, note = socket_path(data_dir), data_dir / SOCKET_PATH_FILE
    if path.parent == data_dir.absolute():
        note.unlink(missing_ok=True)
    else:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        status = path.parent.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(f"{path.parent} belongs to someone else or is open to others; remove it")
        write_whole(note, f"{path}\n".encode())
    path.unlink(missing_ok=True)
    return path
