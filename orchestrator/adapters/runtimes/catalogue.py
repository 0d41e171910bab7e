"""What runtimes there are: those that come with the project, and an operator's own.

A runtime called NAME is two files in one folder. ``NAME.toml`` says ``python`` (minor version), ``ray`` (version) and
``packages`` (what is asked for, by hand); ``NAME.lock`` is what that resolved to, with hashes.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from orchestrator.adapters.runtimes.lock_text import LockError, package_name, read_lock
from orchestrator.receipts.canonical import canonical_bytes

RuntimeDigest = NewType("RuntimeDigest", str)
"""64 hexadecimal digits: what every member of a cluster must have alike."""

DEFAULT_NAME = "default"
"""The runtime of a job that names none."""

SCHEMA = 1
"""Of the description that is digested; another number makes other digests of everything."""

DATA = Path(__file__).with_name("data")

PACKAGES_MAX = 500
"""Asked for by hand: a list longer than anybody reads is a mistake."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_PYTHON = re.compile(r"3\.(?:0|[1-9][0-9]?)")
_RAY = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_KEYS = frozenset(("python", "ray", "packages"))


class CatalogueError(ValueError):
    """A runtime's files are wrong; names the file and the field, and says what to write."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime as it is described; ``python`` is a minor version such as 3.11."""

    name: str
    python: str
    ray_version: str
    lock: bytes
    packages: tuple[str, ...]

    @property
    def digest(self) -> RuntimeDigest:
        """Of what is installed alone: two names for one thing are one thing on every machine."""
        description = canonical_bytes(
            {
                "lock_sha256": hashlib.sha256(self.lock).hexdigest(),
                "python": self.python,
                "ray": self.ray_version,
                "schema": SCHEMA,
            }
        )
        return RuntimeDigest(hashlib.sha256(description).hexdigest())

    @property
    def locked(self) -> tuple[str, ...]:
        """Every package with its version, as ``name==version``, in order."""
        versions = read_lock(self.lock)
        return tuple(f"{name}=={one}" for name in sorted(versions) for one in sorted(versions[name]))


def bundled() -> tuple[Runtime, ...]:
    """The runtimes that come with the project, by name."""
    return load_directory(DATA)


def catalogue(directory: Path | None) -> tuple[Runtime, ...]:
    """The bundled runtimes and those of an operator's folder, by name. Raises CatalogueError."""
    ours = bundled()
    theirs = () if directory is None else load_directory(directory)
    taken = {one.name for one in ours}
    for one in theirs:
        if one.name in taken:
            raise CatalogueError(
                f"{directory}/{one.name}.toml: name: {one.name} comes with the project; choose another"
            )
    return tuple(sorted((*ours, *theirs), key=lambda one: one.name))


def load_directory(directory: Path) -> tuple[Runtime, ...]:
    """Every runtime in a folder, by name. Raises CatalogueError."""
    try:
        names = sorted(one.name for one in directory.iterdir())
    except OSError as error:
        raise CatalogueError(f"{directory}: cannot be read: {error.strerror}; name a folder") from None
    described = [name.removesuffix(".toml") for name in names if name.endswith(".toml")]
    for name in names:
        if name.endswith(".lock") and name.removesuffix(".lock") not in described:
            raise CatalogueError(f"{directory / name}: has no {name.removesuffix('.lock')}.toml beside it")
    return tuple(_load(directory, name) for name in described)


def _load(directory: Path, name: str) -> Runtime:
    path, lock_path = directory / f"{name}.toml", directory / f"{name}.lock"
    if _NAME.fullmatch(name) is None:
        raise CatalogueError(
            f"{path}: name: a runtime's name is at most 64 of a-z, 0-9, '.', '_' and '-'; rename the file"
        )
    fields = _fields(path)
    python = _text(path, fields, "python", _PYTHON, "a minor version such as 3.11")
    ray_version = _text(path, fields, "ray", _RAY, "a full version such as 2.60.0")
    packages = _packages(path, fields)
    lock = _bytes(lock_path)
    try:
        versions = read_lock(lock)
    except LockError as error:
        raise CatalogueError(f"{lock_path}: {error}") from None
    if versions.get("ray", frozenset()) != frozenset((ray_version,)):
        raise CatalogueError(f"{lock_path}: ray: must be locked as ray=={ray_version}, as {path.name} says")
    for one in packages:
        if package_name(one) not in versions:
            raise CatalogueError(f"{lock_path}: {one} of {path.name} is not locked; resolve the lock again")
    return Runtime(name, python, ray_version, lock, packages)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CatalogueError(f"{path}: cannot be read: {error.strerror}") from None


def _fields(path: Path) -> dict[str, object]:
    try:
        fields: dict[str, object] = tomllib.loads(_bytes(path).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{path}: is not TOML: {error}") from None
    for key in sorted(fields.keys() - _KEYS):
        raise CatalogueError(f"{path}: {key}: no such field; there are {', '.join(sorted(_KEYS))}")
    return fields


def _text(path: Path, fields: dict[str, object], key: str, pattern: re.Pattern[str], what: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise CatalogueError(f"{path}: {key}: must be {what}, in quotes")
    return value


def _packages(path: Path, fields: dict[str, object]) -> tuple[str, ...]:
    value = fields.get("packages")
    if not isinstance(value, list) or not 0 < len(value) <= PACKAGES_MAX:
        raise CatalogueError(f"{path}: packages: must be a list of 1 to {PACKAGES_MAX} requirements")
    packages: list[str] = []
    for one in value:
        if not isinstance(one, str) or package_name(one) is None or "://" in one or "@" in one:
            raise CatalogueError(f"{path}: packages: each must be a requirement such as ray[default]==2.60.0")
        packages.append(one)
    return tuple(packages)
