"""Who is calling: bearer tokens in a call's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.control.authority import peer_of
from orchestrator.control.secrets import digest_of
from orchestrator.core.decisions.operators import authenticate
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.supply.fleet import Token, TokenRole

if TYPE_CHECKING:
    import grpc.aio

    from orchestrator.control.authority import Peer
    from orchestrator.control.loop import Loop
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.ids import WorkerId

    Context = grpc.aio.ServicerContext[Any, Any]

SCHEME = "bearer"

SECRET_CHARACTERS_MAX = 512
"""Several times the length of any token issued; longer ones are not worth a look."""

MISSING = "no token came with the call: set ORCH_TOKEN, or ORCH_TOKEN_FILE to the admin token's file"


def bearer(context: Context) -> str:
    """The token in a call's metadata; UNAUTHENTICATED where there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
            scheme, _, secret = text.partition(" ")
            secret = secret.strip()
            if scheme.lower() == SCHEME and secret and len(secret) <= SECRET_CHARACTERS_MAX:
                return secret
    raise RefusedError(RefusalCode.UNAUTHENTICATED, MISSING)


class Access:
    """Tokens of people, by what the state says; tokens of workers' sessions, by who is connected."""

    def __init__(self, loop: Loop, sessions: Sessions) -> None:
        self._loop = loop
        self._sessions = sessions

    async def token(self, context: Context) -> Token:
        """The live token of the call, whatever its role."""
        digest = digest_of(bearer(context))
        return await self._loop.read(
            lambda state: authenticate(state, digest, state.time_ms(self._loop.now()))
        )

    async def operator(self, context: Context) -> Token:
        """Only an operator may."""
        return _with_role(await self.token(context), TokenRole.OPERATOR)

    async def tenant_or_operator(self, context: Context) -> Token:
        """A tenant sees its own, an operator all."""
        return _with_role(await self.token(context), TokenRole.OPERATOR, TokenRole.TENANT)

    def worker(self, context: Context) -> WorkerId:
        """The worker whose session's token this is, on a connection that shows the same worker."""
        worker_id = self._sessions.worker_of(bearer(context))
        if self.peer(context).worker_id != worker_id:
            raise RefusedError(RefusalCode.FORBIDDEN, "this session token is another worker's")
        return worker_id

    def connected(self, worker_id: WorkerId) -> bool:
        """Whether a worker that was let in still has a session."""
        return self._sessions.is_connected(worker_id)

    def peer(self, context: Context) -> Peer:
        """The worker whose certificate the connection shows."""
        return peer_of(context.auth_context(), self._loop.network_id)


def _with_role(token: Token, *roles: TokenRole) -> Token:
    if token.role not in roles:
        wanted = " or ".join(_a(role) for role in roles)
        message = f"this call needs the token of {wanted}; this one is {_a(token.role)}'s"
        raise RefusedError(RefusalCode.FORBIDDEN, message)
    return token


def _a(role: TokenRole) -> str:
    """The role with its article."""
    return f"an {role.value}" if role is TokenRole.OPERATOR else f"a {role.value}"
