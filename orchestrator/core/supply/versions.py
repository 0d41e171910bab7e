"""Which agents this control plane works with: a window of versions, and a grace for those that fall out of it."""

from __future__ import annotations

import re

from orchestrator.core.errors import RefusalCode, RefusedError, invalid

OLDEST = (0, 1)
"""Agents from this (major, minor) on are fully supported."""

NEWEST = (0, 2)
"""This release. An agent of a later one may rely on what is not here."""

_VERSION = re.compile(r"(?P<major>[0-9]{1,4})\.(?P<minor>[0-9]{1,4})(?:\..*)?")


def release_of(version: str) -> tuple[int, int]:
    """(major, minor) of a version. Raises RefusedError for what is none."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise invalid("hello.agent_version", f"{version[:40]!r} is no version; install a released agent")
    return int(match["major"]), int(match["minor"])


def check_version(version: str) -> None:
    """Refuse an agent that is newer than this: it is asked to come back, for the control plane may be upgraded."""
    if release_of(version) > NEWEST:
        newest = ".".join(str(part) for part in NEWEST)
        message = (
            f"agent {version} is newer than this control plane, which knows agents up to {newest}:"
            f" install agent {newest}, or ask the operator to upgrade"
        )
        raise RefusedError(RefusalCode.UNAVAILABLE, message, "hello.agent_version")


def is_outdated(version: str) -> bool:
    """Whether an agent has fallen out of the supported window."""
    return release_of(version) < OLDEST


def release_name(version: str) -> str:
    """``MAJOR.MINOR`` of a supported agent, ``outdated`` for any older one and ``""`` where it is not known yet.

    However many versions agents say that they are of, these are as many as there were supported releases.
    """
    if not version:
        return ""
    if is_outdated(version):
        return "outdated"
    return ".".join(str(part) for part in release_of(version))


def upgrade_notice(version: str, days_left: int) -> str:
    """What its owner is told."""
    oldest = ".".join(str(part) for part in OLDEST)
    end = f"it gets no new work in {days_left} days" if days_left > 0 else "it gets no new work"
    return f"agent {version} is older than {oldest}, the oldest supported: {end}; run `orch worker upgrade`"
