"""The one way for a test to wait on something it does not drive, such as a real process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

POLL_INTERVAL_S = 0.02
"""Short beside any wait a person would notice, long enough to leave the core to what is waited for."""


def wait_until(condition: Callable[[], bool], *, what: str, deadline_s: float) -> None:
    """Return once the condition holds; fail with `what` was awaited when `deadline_s` seconds have passed."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= end_s:
            raise AssertionError(f"waited {deadline_s:g} s in vain for {what}")
        time.sleep(POLL_INTERVAL_S)


async def wait_until_async(condition: Callable[[], bool], *, what: str, deadline_s: float) -> None:
    """The same, leaving the event loop to the code under test."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= end_s:
            raise AssertionError(f"waited {deadline_s:g} s in vain for {what}")
        await asyncio.sleep(POLL_INTERVAL_S)


async def wait_for_answer(ask: Callable[[], Awaitable[bool]], *, what: str, deadline_s: float) -> None:
    """The same, where looking is itself a call to wait for."""
    end_s = time.monotonic() + deadline_s
    while not await ask():
        if time.monotonic() >= end_s:
            raise AssertionError(f"waited {deadline_s:g} s in vain for {what}")
        await asyncio.sleep(POLL_INTERVAL_S)
