"""The token in the operator's own file: it counts as long as it stands there, and what stood there before does not.

Whoever exchanges it, by hand or by way of a mounted Secret, restarts nothing: the file is read again and again. What
cannot be used is said, once, and changes nothing: an operator who is locked out could not mend it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.adapters.keys import KeyFileError
from orchestrator.control.secrets import digest_of, pinned
from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import TOKEN_TTL_MS_MAX
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import TokenId

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.control.loop import Loop
    from orchestrator.core.state import State

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 2.0
"""Nobody who exchanges a token waits for longer, and a small file is read in some microseconds."""

RENEWAL_MS = 30 * 24 * 3_600_000
"""A token of ours with less life left is replaced at a start, so that it does not end between two; of another's that is
said."""


class AdminFile(Protocol):
    """Where the token stands. Its methods block, and raise KeyFileError or OSError."""

    @property
    def brought(self) -> bool: ...
    @property
    def text(self) -> str: ...
    def read(self) -> str: ...
    def take(self, text: str) -> None: ...
    def renew(self) -> None: ...
    def keep(self, text: str) -> None: ...


class AdminToken:
    """One per control plane. ``begin`` it once the loop runs, then ``watch``."""

    def __init__(
        self, loop: Loop, file: AdminFile, authority_pin: Callable[[], str], new_id: Callable[[str], str]
    ) -> None:
        self._loop = loop
        self._file = file
        self._authority_pin = authority_pin
        self._new_id = new_id
        self._said = ""
        """What is wrong with the file, as it was said last."""

    async def begin(self) -> None:
        """Make the token in the file count, and replace one of ours that does not any more."""
        known, left_ms = await self._loop.read(self._standing)
        if known and left_ms <= (0 if self._file.brought else RENEWAL_MS):
            await asyncio.to_thread(self._file.renew)
        elif known and left_ms <= RENEWAL_MS:
            log.warning(
                "admin_token_ends_soon", days=left_ms // (24 * 3_600_000), do="put a new one into its file"
            )
        await self._keep(self._file.text)

    def pin(self) -> None:
        """Have our own file name the newest authority, so that the token alone is enough elsewhere. Blocking."""
        try:
            exchanged = digest_of(self._file.read()) != digest_of(self._file.text)
        except (KeyFileError, OSError):
            exchanged = False
        if not exchanged:
            self._file.keep(pinned(self._file.text, self._authority_pin()))

    async def watch(self) -> None:
        """Follow the file."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                text = await asyncio.to_thread(self._file.read)
                if digest_of(text) != digest_of(self._file.text):
                    await self._keep(text)
                self._said = ""
            except RefusedError as refusal:
                if refusal.code is RefusalCode.CONFLICT:
                    self._say(refusal.message)
                elif refusal.code not in (RefusalCode.EXHAUSTED, RefusalCode.UNAVAILABLE):
                    raise
            except (KeyFileError, OSError) as error:
                self._say(str(error))

    async def _keep(self, text: str) -> None:
        """Durable before the file's last word is forgotten: what fails is tried again."""
        command = m.KeepAdminToken(TokenId(self._new_id("tok")), digest_of(text), TOKEN_TTL_MS_MAX)
        token_id = (await self._loop.submit(command)).result
        if digest_of(text) != digest_of(self._file.text):
            log.info("admin_token_exchanged", token_id=token_id)
        self._file.take(text)
        await asyncio.to_thread(self.pin)

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.warning("admin_token_file", said=what, still="the token before it counts")

    def _standing(self, state: State) -> tuple[bool, int]:
        """(whether the token is known here, how long it counts still); 0: it does not."""
        found = state.token_by_hash.get(digest_of(self._file.text))
        if found is None:
            return False, 0
        token, at_ms = state.tokens[found.token_id], state.time_ms(self._loop.now())
        return True, token.expires_at_ms - at_ms if token.state_at(at_ms) == "live" else 0
