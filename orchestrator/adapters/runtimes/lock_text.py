"""A runtime's lock: requirements, each of one version and with hashes, and nothing that names a place.

What a lock may say is what makes it safe to share: the bytes alone decide what is installed, whichever index or
mirror hands it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LOCK_BYTES_MAX = 4 << 20
"""Some hundred times the default's: a lock of ten thousand packages fits, a wrong file does not."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(
    rf"(?P<name>{_NAME})\s*(?:\[[A-Za-z0-9,._ -]*\])?\s*==\s*(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"\s*(?:;(?P<marker>[^;]*))?",
)
_HASH = re.compile(r"--hash=(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")
_SEPARATORS = re.compile(r"[-_.]+")
_FIRST_NAME = re.compile(rf"\s*({_NAME})")


class LockError(ValueError):
    """The text is no lock; says where and why."""


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return _SEPARATORS.sub("-", name).lower()


def package_name(requirement: str) -> str | None:
    """The normal name that a requirement such as ``ray[default]==2.60.0`` begins with."""
    found = _FIRST_NAME.match(requirement)
    return normal(found[1]) if found else None


def read_lock(lock: bytes) -> dict[str, frozenset[str]]:
    """Normal name to the versions locked, of which markers choose one. Raises LockError with the line."""
    if len(lock) > LOCK_BYTES_MAX:
        raise LockError(f"has {len(lock)} bytes; a lock has at most {LOCK_BYTES_MAX}")
    try:
        text = lock.decode("utf-8")
    except UnicodeDecodeError:
        raise LockError("is not text in UTF-8") from None
    versions: dict[str, frozenset[str]] = {}
    for number, line in _logical_lines(text):
        name, version = _read_line(number, line)
        versions[name] = versions.get(name, frozenset()) | {version}
    if not versions:
        raise LockError("names no package")
    return versions


def _read_line(number: int, line: str) -> tuple[str, str]:
    """Name and version. Never repeats the line: an address in it may hold a password."""
    requirement, *hashes = re.split(r"\s+(?=--)", line)
    if line.startswith("-"):
        raise LockError(
            f"line {number}: an option; a lock holds requirements alone, no index and no -e or -r"
        )
    if "://" in line or "@" in line or line.startswith((".", "/")):
        raise LockError(f"line {number}: an address or a path; name a released version: name==version")
    found = _REQUIREMENT.fullmatch(requirement.strip())
    if found is None:
        raise LockError(f"line {number}: not of the form name==version [; marker] --hash=sha256:…")
    if not hashes:
        raise LockError(f"line {number}: {found['name']} has no hash; resolve it again with hashes")
    if any(_HASH.fullmatch(one.strip()) is None for one in hashes):
        raise LockError(f"line {number}: {found['name']} has an option that is no --hash=sha256:…")
    return normal(found["name"]), found["version"]


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Requirements with their continuation lines joined, each with the number of its first line; no comments."""
    parts: list[str] = []
    first = 1
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if not parts:
            first = number
        parts.append(line.removesuffix("\\").strip())
        if line.endswith("\\"):
            continue
        joined = " ".join(part for part in parts if part)
        parts = []
        if joined:
            yield first, joined
    joined = " ".join(part for part in parts if part)
    if joined:
        yield first, joined
