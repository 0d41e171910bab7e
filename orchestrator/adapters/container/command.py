"""How podman is called for one container. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.adapters.box.command import INSIDE_DIR, SMALL_TMPFS_BYTES
from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.container.cgroups import cgroup_parent
from orchestrator.adapters.container.records import ContainerSpec

NAME_PREFIX = "orch-"

REPORT_PATH = f"{INSIDE_DIR}/report"
"""Where the first process finds the FIFO for its reports."""

LOG_BYTES_MAX = 1024 * 1024
"""Of what is said to an output that nobody chose; a job's own output has files and a quota of its own."""

MASKED = ("/sys/class/dmi", "/sys/devices/virtual/dmi", "/sys/kernel/debug", "/sys/kernel/security")
"""Beside what podman masks by itself: serial numbers of the machine, and doors into its kernel."""

SEPARATORS = frozenset(":,\n")
"""What podman reads as the end of a path."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The hard limits of this very process: podman may lower them, and not every root may raise them."""

    open_files: int
    processes: int


@dataclass(frozen=True, slots=True)
class Ground:
    """What a container is laid out on; all are paths on the host."""

    root_dir: str
    """The root directory where there is no image: empty but for what is linked and mounted there."""
    env_file: str
    seccomp_file: str
    """Empty: podman's own list as it is."""
    log_file: str
    """Empty: nobody keeps what is said to an output that nobody chose."""
    limits: Limits
    readonly: tuple[str, ...] = ()
    """The host's own that is read inside at the same path; with an image none of it."""
    devices: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """(file on the host, where it is read inside)."""
    report_file: str = ""
    """The FIFO that the first process writes its reports to."""


def container_name(spec: BoxSpec) -> str:
    """The name under which podman knows it: no other of the machine has it."""
    return f"{NAME_PREFIX}{spec.name}"


def create_arguments(
    spec: BoxSpec, container: ContainerSpec, ground: Ground, argv: Sequence[str], cwd: str
) -> list[str]:
    """The arguments of ``podman create``. Raises ValueError for a path that podman would read as several."""
    options = ["create", f"--name={container_name(spec)}", f"--hostname={spec.name}", *_rights(spec, ground)]
    options += [*_limits(spec, ground.limits), *_mounts(spec, ground, has_image=bool(container.image))]
    options += [f"--env-file={ground.env_file}", f"--workdir={cwd}"]
    if ground.log_file:
        options += ["--log-driver=k8s-file", f"--log-opt=path={ground.log_file}"]
        options += [f"--log-opt=max-size={LOG_BYTES_MAX}"]
    else:
        options += ["--log-driver=none"]
    # Where its vendor describes a device, the description brings files and libraries along.
    for device in container.cdi_devices or ground.devices:
        options.append(f"--device={device}")
    if container.image:
        # What the image would start by itself is not asked.
        return [*options, f"--entrypoint={json.dumps([argv[0]])}", container.image, *argv[1:]]
    return [*options, "--rootfs", ground.root_dir, *argv]


def _rights(spec: BoxSpec, ground: Ground) -> list[str]:
    """Who it is and what it may: an unprivileged user for good, in namespaces of its own."""
    options = [f"--user={spec.user_id}:{spec.user_id}", "--cap-drop=all", "--read-only"]
    options += ["--security-opt=no-new-privileges", f"--security-opt=mask={':'.join(MASKED)}"]
    # With labels nothing of the host's could be read inside that was not labelled anew, /usr among it.
    options += ["--security-opt=label=disable"]
    if ground.seccomp_file:
        options += [f"--security-opt=seccomp={ground.seccomp_file}"]
    options += ["--network=none", "--ipc=private", "--pid=private", "--uts=private", "--no-hosts"]
    options += ["--pull=never", "--restart=no", "--systemd=false", "--http-proxy=false", "--no-healthcheck"]
    return [*options, "--image-volume=ignore", "--read-only-tmpfs=false"]


def _limits(spec: BoxSpec, limits: Limits) -> list[str]:
    """What it may use up."""
    options = [f"--cgroup-parent={cgroup_parent(spec.name)}", "--cgroups=no-conmon"]
    options += [f"--memory={spec.memory_bytes}b", f"--memory-swap={spec.memory_bytes}b"]
    options += [f"--pids-limit={spec.pids_max}", f"--shm-size={spec.shm_bytes}b"]
    options += [f"--cpus={spec.cpus}"] if spec.cpus else []
    processes = min(limits.processes, spec.pids_max)
    options += [f"--ulimit=nofile={limits.open_files}:{limits.open_files}"]
    return [*options, f"--ulimit=nproc={processes}:{processes}", "--ulimit=core=0:0"]


def _mounts(spec: BoxSpec, ground: Ground, *, has_image: bool) -> list[str]:
    """What it sees beside its root; sorted by podman, so that what lies deeper comes later."""
    # An image's /home may hold its Python.
    small = ("/tmp", "/run") if has_image else ("/tmp", "/run", "/home")  # noqa: S108 - the container's own
    options = [f"--tmpfs={path}:rw,nosuid,nodev,size={SMALL_TMPFS_BYTES},mode=1777" for path in small]
    readonly = (*ground.readonly, *spec.readonly_dirs, spec.shared_dir)
    binds = [(path, path, "ro") for path in readonly]
    binds += [(outside, inside, "ro") for outside, inside in ground.files]
    binds.append((spec.scratch_dir, spec.scratch_dir, "rw"))
    if ground.report_file:
        binds.append((ground.report_file, REPORT_PATH, "rw"))
    for outside, inside, access in binds:
        if SEPARATORS & {*outside, *inside}:
            raise ValueError(
                f"{outside!r}: a container's paths hold no colon, comma or line break; choose another"
            )
        options.append(f"--volume={outside}:{inside}:{access},nosuid,nodev")
    return options
