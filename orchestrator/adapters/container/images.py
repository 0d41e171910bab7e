"""Images on this machine: brought by their digest, and asked which Python and which Ray they have.

What a tenant names is fetched by the host, from the host's own network. So it comes from public registries that are
known by name alone: any other name could be a device of the supplier's LAN.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.container.command import NAME_PREFIX
from orchestrator.adapters.container.container import write_profile
from orchestrator.adapters.container.podman import podman
from orchestrator.core.images import reference_fault, registry_of

REGISTRIES = frozenset({"docker.io", "ghcr.io", "mcr.microsoft.com", "nvcr.io", "public.ecr.aws", "quay.io"})
"""Where images are fetched from. What the owner has put into podman's storage himself may have any name."""

PULL_TIMEOUT_S = 30 * 60.0
"""Twenty gigabytes, which images with CUDA reach, at 100 Mbit/s."""

ASK_SECONDS_MAX = 50
"""Two seconds for a Python that starts; more where its files are read from the disk for the first time."""

ASK_TIMEOUT_S = 60.0
"""The container's monitor ends it ten seconds before podman itself is no longer waited for."""

FREE_BYTES_MIN = 40 * 1024**3
"""To begin with: nobody says before how large an image is unpacked, and most fit into this."""

FREE_BYTES_FLOOR = 10 * 1024**3
"""A fetch ends when less is left: the machine's own work needs some, and a look a second comes late by a few GiB."""

BLOBS_PREFIX = "orch-pull-"
"""Where layers lie while they come, below podman's storage; the rest is the id of the thread that fetches."""

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
        told = _ask(reference, runtime)
    except (BoxError, OSError, ValueError) as error:
        raise ImageUnavailableError(f"image {reference}: {error}") from error
    return answered(reference, told)


def here(runtime: str) -> list[str]:
    """References of the images that podman has, as tenants name them, the newest first. Blocking.

    Raises BoxError, and OSError where podman said what cannot be read.
    """
    told = podman(runtime, ["images", "--format=json"])
    try:
        found = sorted(json.loads(told), key=lambda image: -int(image["Created"]))
        names = [name for image in found for name in image.get("RepoDigests") or ()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"podman images: not understood: {error}") from error
    # What has no registry was built here, and no job can name it.
    return [name for name in names if isinstance(name, str) and not reference_fault(name)]


def ask_arguments(reference: str, name: str, seccomp_file: str) -> list[str]:
    """The arguments that have an image's Python say what it is: without network, rights or anything to write.

    The monitor ends it in time, so that it does not outlive whoever asks. No ``seccomp_file``: podman's own list.
    """
    limits = ["--memory=1g", "--memory-swap=1g", "--cpus=1", "--pids-limit=64"]
    limits += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=64:64", f"--timeout={ASK_SECONDS_MAX}"]
    rights = ["--cap-drop=all", "--security-opt=no-new-privileges", "--read-only", "--read-only-tmpfs=false"]
    rights += ["--network=none", "--no-hosts"]
    rights += [f"--security-opt=seccomp={seccomp_file}"] if seccomp_file else []
    options = ["--rm", f"--name={name}", "--pull=never", "--systemd=false", "--http-proxy=false"]
    options += ["--image-volume=ignore", "--no-healthcheck", "--log-driver=none"]
    user = f"--user={ASK_USER_ID}:{ASK_USER_ID}"
    program = ["--entrypoint=python3", reference, "-I", "-B", "-c", QUESTION]
    return ["run", *options, *rights, *limits, user, *program]


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


def _ask(reference: str, runtime: str) -> str:
    """Run the question; no container of it remains. Raises BoxError, OSError, ValueError."""
    # Two members may ask the same image at once, each in a thread of its own.
    digest = reference.rpartition(":")[2]
    name = f"{NAME_PREFIX}ask-{digest[:16]}-{threading.get_native_id()}"
    remove = ["rm", "--force", "--ignore", "--time=0", name]
    podman(runtime, remove)
    try:
        with tempfile.TemporaryDirectory(prefix="orch") as folder:
            arguments = ask_arguments(reference, name, write_profile(Path(folder)))
            return podman(runtime, arguments, ASK_TIMEOUT_S)
    except BoxError as error:
        raise BoxError(
            f"its python3 did not say within {ASK_SECONDS_MAX} s which Python and Ray it has; "
            f"try `import ray` in it, or name another image ({error})"
        ) from error
    finally:
        podman(runtime, remove)


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
    storage = Path(podman(runtime, ["info", "--format={{.Store.GraphRoot}}"]).strip())
    free_bytes = shutil.disk_usage(storage).free
    if free_bytes < FREE_BYTES_MIN:
        raise ImageUnavailableError(
            f"{free_bytes // 1024**3} GiB are free below {storage}; an image is fetched with "
            f"{FREE_BYTES_MIN // 1024**3} GiB at least: free some, or run podman image prune"
        )
    _remove_forsaken(storage)
    blobs = storage / f"{BLOBS_PREFIX}{threading.get_native_id()}"
    blobs.mkdir(mode=0o700)
    try:
        podman(
            runtime,
            ["pull", "--quiet", reference],
            PULL_TIMEOUT_S,
            watch=lambda: _hold_floor(storage, reference),
            env={"TMPDIR": str(blobs)},
        )
    except BaseException:
        # Seldom there: an image is named when all of it has come.
        with contextlib.suppress(BoxError):
            podman(runtime, ["rmi", "--force", reference])
        raise
    finally:
        shutil.rmtree(blobs, ignore_errors=True)


def _hold_floor(storage: Path, reference: str) -> None:
    """Raise ImageUnavailableError when a fetch has left too little of the disk."""
    free_bytes = shutil.disk_usage(storage).free
    if free_bytes < FREE_BYTES_FLOOR:
        raise ImageUnavailableError(
            f"image {reference} is too large for this machine: its fetch was ended when less than "
            f"{FREE_BYTES_FLOOR // 1024**3} GiB were free below {storage}; free some, or name a smaller image"
        )


def _remove_forsaken(storage: Path) -> None:
    """Delete what came for fetchers that are gone, our own thread's earlier one included."""
    for folder in storage.glob(f"{BLOBS_PREFIX}*"):
        fetcher = folder.name.removeprefix(BLOBS_PREFIX)
        if fetcher == str(threading.get_native_id()) or not Path("/proc", fetcher).exists():
            shutil.rmtree(folder, ignore_errors=True)
