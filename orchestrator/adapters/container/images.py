"""Images on this machine: brought by their digest, and asked which Python and which Ray they have.

What a tenant names is fetched by the host, from the host's own network. So it comes from public registries that are
known by name alone: any other name could be a device of the supplier's LAN.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.container.podman import podman
from orchestrator.core.images import reference_fault, registry_of

REGISTRIES = frozenset({"docker.io", "ghcr.io", "mcr.microsoft.com", "nvcr.io", "public.ecr.aws", "quay.io"})
"""Where images are fetched from. What the owner has put into podman's storage himself may have any name."""

PULL_TIMEOUT_S = 30 * 60.0
"""Twenty gigabytes, which images with CUDA reach, at 100 Mbit/s."""

ASK_TIMEOUT_S = 60.0
"""Two seconds for a Python that starts; more where its files are read from the disk for the first time."""

FREE_BYTES_MIN = 40 * 1024**3
"""Nobody says before how large an image is unpacked; with this much left even a large one fills no disk."""

STORAGE_DIR = Path("/var/lib")
"""Podman's storage, as root, lies below."""

ASK_USER_ID = 65534
"""Nobody's: all it does is to say two versions."""

QUESTION = (
    "import json, sys; from importlib.metadata import version; "
    "print(json.dumps([sys.executable, '.'.join(map(str, sys.version_info[:3])), version('ray')]))"
)

PYTHON_MIN = (3, 10)
"""What the first program of a box runs with."""


class ImageUnavailableError(RuntimeError):
    """An image cannot be had, or is none that a node could run in; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is here, and what a node in it runs with."""

    reference: str
    python: str
    python_version: str
    ray_version: str


def provide(reference: str, runtime: str) -> Image:
    """Fetch an image unless it is here, and ask it. Blocking, perhaps for minutes.

    Raises ImageUnavailableError.
    """
    fault = reference_fault(reference)
    if fault:
        raise ImageUnavailableError(fault)
    try:
        if not _is_here(reference, runtime):
            _pull(reference, runtime)
        told = podman(runtime, ask_arguments(reference), ASK_TIMEOUT_S)
    except BoxError as error:
        raise ImageUnavailableError(f"image {reference}: {error}") from error
    return answered(reference, told)


def ask_arguments(reference: str) -> list[str]:
    """The arguments that have an image's Python say what it is: without network, rights or anything to write."""
    limits = ["--memory=1g", "--pids-limit=64", "--ulimit=nofile=1024:1024", "--ulimit=nproc=64:64"]
    rights = [
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--read-only",
        "--network=none",
        "--no-hosts",
    ]
    options = ["--rm", "--pull=never", "--systemd=false", "--http-proxy=false", "--image-volume=ignore"]
    user = f"--user={ASK_USER_ID}:{ASK_USER_ID}"
    return [
        "run",
        *options,
        *rights,
        *limits,
        user,
        "--entrypoint=python3",
        reference,
        "-I",
        "-B",
        "-c",
        QUESTION,
    ]


def answered(reference: str, told: str) -> Image:
    """What an image said of itself. Raises ImageUnavailableError for what no node can run in."""
    try:
        python, python_version, ray_version = (
            str(part) for part in json.loads(told.strip().splitlines()[-1])
        )
        version = tuple(int(part) for part in python_version.split("."))
    except (ValueError, IndexError, TypeError) as error:
        raise ImageUnavailableError(f"image {reference} does not say which Python it has: {error}") from error
    plain = PurePosixPath(python)
    if not plain.is_absolute() or ".." in plain.parts:
        raise ImageUnavailableError(f"image {reference} names {python[:80]!r} as its python3")
    if version[:2] < PYTHON_MIN:
        wanted = ".".join(map(str, PYTHON_MIN))
        raise ImageUnavailableError(f"image {reference} has Python {python_version}; {wanted} is the least")
    return Image(reference, python, python_version, ray_version)


def _is_here(reference: str, runtime: str) -> bool:
    try:
        podman(runtime, ["image", "exists", reference])
    except BoxError:
        return False
    return True


def _pull(reference: str, runtime: str) -> None:
    """Fetch it; podman holds what comes against the digest. Raises ImageUnavailableError, BoxError."""
    registry = registry_of(reference)
    if registry not in REGISTRIES:
        known = ", ".join(sorted(REGISTRIES))
        raise ImageUnavailableError(
            f"images are fetched from {known} only, not from {registry}; or have the owner load it into podman"
        )
    free_bytes = shutil.disk_usage(STORAGE_DIR).free
    if free_bytes < FREE_BYTES_MIN:
        raise ImageUnavailableError(
            f"{free_bytes // 1024**3} GiB are free below {STORAGE_DIR}; an image is fetched with "
            f"{FREE_BYTES_MIN // 1024**3} GiB at least: free some, or run podman image prune"
        )
    podman(runtime, ["pull", "--quiet", reference], PULL_TIMEOUT_S)
