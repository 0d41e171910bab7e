"""How bubblewrap is called for one box: a root directory made of chosen parts, and a first process with no rights.

Pure. No user namespace: its uid would still be one of the host's, and a host that allows none to ordinary users
can have boxes all the same. Bubblewrap runs as root, keeps three capabilities to the end, and `setpriv` spends
them on becoming the box's user for good. Process 1 is bubblewrap's own: still root's, so that the launcher, which
has given up its rights too, may end it (a signal of death from a process that is neither of one's user nor privileged
is lost), and so that nothing in the box may touch it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.adapters.box.records import BoxSpec

INSIDE_DIR = "/run/orch"
"""What the box needs of ours inside: files of root's, in a directory of root's."""

INIT_FILE = f"{INSIDE_DIR}/init.py"
INIT_CONFIG_FILE = f"{INSIDE_DIR}/init.json"
ENVIRONMENT_FILE = f"{INSIDE_DIR}/environment"

SMALL_TMPFS_BYTES = 64 * 1024 * 1024
"""Of /tmp, /run and /home each: room for sockets and settings; what is large goes to the scratch."""

ETC_PATHS = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/os-release",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
"""The host's own that may be read inside: public on any machine, and libraries stumble without them."""

SYS_PATHS = ("/sys/devices/system/cpu", "/sys/devices/system/node")
"""The processors' topology, which Ray, torch and NCCL read."""

NVIDIA_GPU = re.compile(r"/dev/nvidia\d+")
NVIDIA_CONTROL_DEVICES = (
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
)
"""Shared by all GPUs; they open none by themselves."""

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

AS_USER = 'set -e; cd "$1"; shift; . "$0"; exec "$@"'
"""The environment is read only once root's rights are gone: a loader's variable in it would act on `setpriv`. And
root without its rights could not enter the user's own directory."""


@dataclass(frozen=True, slots=True)
class HostParts:
    """What was found on the host that goes into a box's root directory."""

    links: Mapping[str, str]
    """Top-level names that are links on a merged /usr, and where they lead: /bin → usr/bin."""
    readonly: tuple[str, ...]
    """/usr, what of /bin and its like is a directory, and what exists of ETC_PATHS and SYS_PATHS."""
    devices: tuple[str, ...]
    """The assigned device files, with what control devices they need."""
    cgroups: tuple[tuple[str, str], ...]
    """(the box's own cgroup on the host, where it is shown inside): so that Ray sees its memory limit."""
    gpu_sys_dirs: tuple[str, ...]
    """The assigned GPUs' own directories below /sys/devices."""
    setpriv: str


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Open descriptors that bubblewrap reads or writes, by number."""

    seccomp: int
    info: int
    block: int
    files: Mapping[str, int]
    """Path inside → descriptor with the content."""


class _RootDirectory:
    """The options that make up the root directory; folders on the way to each part come before it.

    Bubblewrap would make them by itself, but some versions for root alone.
    """

    def __init__(self) -> None:
        self.options: list[str] = []
        self._there = {"/"}

    def lay(self, path: str, option: list[str]) -> None:
        """Put something at a path; what comes later lies over what came before."""
        for folder in reversed([str(parent) for parent in PurePosixPath(path).parents]):
            if folder not in self._there:
                self.options += ["--perms", "0755", "--dir", folder]
                self._there.add(folder)
        self.options += [*option, path]
        self._there.add(path)


def bubblewrap_options(spec: BoxSpec, parts: HostParts, fds: Descriptors) -> list[str]:
    """Return the options of one box, the command excepted."""
    options = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--unshare-cgroup-try"]
    options += ["--die-with-parent", "--new-session", "--hostname", spec.name]
    options += ["--cap-drop", "ALL"]
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
        options += ["--cap-add", capability]
    root = _RootDirectory()
    root.lay("/proc", ["--proc"])
    root.lay("/dev", ["--dev"])
    for path, size_bytes in (
        ("/tmp", SMALL_TMPFS_BYTES),  # noqa: S108 - the box's own
        ("/run", SMALL_TMPFS_BYTES),
        ("/home", SMALL_TMPFS_BYTES),
        ("/dev/shm", spec.shm_bytes),  # noqa: S108 - the box's own
    ):
        root.lay(path, ["--size", str(size_bytes), "--perms", "1777", "--tmpfs"])
    for path in parts.readonly:
        root.lay(path, ["--ro-bind", path])
    for name, target in (*parts.links.items(), ("/var/tmp", "/tmp"), ("/var/run", "/run")):  # noqa: S108 - the same
        root.lay(name, ["--symlink", target])
    for outside, inside in parts.cgroups:
        root.lay(inside, ["--ro-bind", outside])
    for path in parts.gpu_sys_dirs:
        root.lay(path, ["--ro-bind", path])
        root.lay(f"/sys/bus/pci/devices/{PurePosixPath(path).name}", ["--symlink", path])
    for path in parts.devices:
        root.lay(path, ["--dev-bind", path])
    for path in spec.readonly_dirs:
        root.lay(path, ["--ro-bind", path])
    root.lay(spec.scratch_dir, ["--bind", spec.scratch_dir])
    root.lay(spec.shared_dir, ["--ro-bind", spec.shared_dir])
    for path, descriptor in fds.files.items():
        root.lay(path, ["--perms", "0444", "--ro-bind-data", str(descriptor)])
    options += root.options
    options += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", "/", "--clearenv"]
    options += ["--seccomp", str(fds.seccomp), "--info-fd", str(fds.info), "--block-fd", str(fds.block)]
    return options


def become_user(spec: BoxSpec, parts: HostParts, cwd: str, argv: Sequence[str]) -> list[str]:
    """Return the argv that gives up every right, reads the environment and then is `argv`, in `cwd`."""
    identity = [f"--reuid={spec.user_id}", f"--regid={spec.user_id}", "--clear-groups"]
    rights = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    shell = ["/bin/sh", "-c", AS_USER, ENVIRONMENT_FILE, cwd]
    return [parts.setpriv, *identity, *rights, "--", *shell, *argv]


def inside_files(spec: BoxSpec, env: Mapping[str, str]) -> dict[str, bytes]:
    """Return path inside → content of the small files that are written for this box alone."""
    user = spec.user_id
    servers = "".join(f"nameserver {server}\n" for server in spec.name_servers)
    texts = {
        "/etc/passwd": f"root:x:0:0::/nonexistent:/usr/sbin/nologin\nbox:x:{user}:{user}::/home:/bin/sh\n",
        "/etc/group": f"root:x:0:\nbox:x:{user}:\n",
        "/etc/hosts": f"127.0.0.1 localhost {spec.name}\n::1 localhost\n",
        "/etc/hostname": f"{spec.name}\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "/etc/resolv.conf": f"{servers}options timeout:2 attempts:2\n",
        ENVIRONMENT_FILE: environment_script(env),
    }
    return {path: text.encode() for path, text in texts.items()}


def environment_script(env: Mapping[str, str]) -> str:
    """Return the environment as lines for a shell. Raises ValueError for a name that a shell cannot hold."""
    lines: list[str] = []
    for name, value in env.items():
        if not ENV_NAME.fullmatch(name):
            raise ValueError(f"environment name {name!r}: use letters, digits and '_' only")
        if "\0" in value:
            raise ValueError(f"environment variable {name} holds a NUL byte; remove it")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    return "".join(lines)


def control_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Return the device files that come along with these."""
    return NVIDIA_CONTROL_DEVICES if any(NVIDIA_GPU.fullmatch(device) for device in devices) else ()
