"""The private scratch of one box: a file system of its own in a sparse file, so that filling it fills nothing else."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.box.tools import BoxError, run_tool

MOUNTS_FILE = Path("/proc/self/mountinfo")
IMAGE_SUFFIX = ".img"

MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E")
"""No journal and no blocks kept for root: nothing in it is to survive anything."""

MOUNT_OPTIONS = "loop,nosuid,nodev,noatime,noinit_itable"
"""`noinit_itable`: the kernel would else write the inode tables in the background, to the host's disk."""

UNMOUNT_INTERVAL_S = 0.02
UNMOUNT_LOOKS = 100
"""Two seconds for somebody's last look into it; then it is taken out of sight and goes when they leave."""


def image_path(spec: BoxSpec) -> Path:
    """Return where the file is that holds the scratch: beside the directory it is mounted on."""
    return Path(spec.scratch_dir + IMAGE_SUFFIX)


def create_scratch(spec: BoxSpec) -> None:
    """Make, format and mount it; its root belongs to the box's user. Raises BoxError; leaves nothing then."""
    image, mount_point = image_path(spec), Path(spec.scratch_dir)
    try:
        mount_point.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise BoxError(f"{mount_point} exists already; destroy the box that has it") from error
    try:
        descriptor = os.open(
            image, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.ftruncate(descriptor, spec.scratch_bytes)
        finally:
            os.close(descriptor)
        owner = f"root_owner={spec.user_id}:{spec.user_id}"
        run_tool([*MKFS, f"lazy_itable_init=1,nodiscard,{owner}", str(image)])
        run_tool(["mount", "-o", MOUNT_OPTIONS, str(image), str(mount_point)])
        mount_point.chmod(0o700)
        (mount_point / "lost+found").rmdir()
    except (OSError, BoxError) as error:
        remove_scratch(spec)
        raise BoxError(f"no scratch of {spec.scratch_bytes} bytes at {mount_point}: {error}") from error


def remove_scratch(spec: BoxSpec) -> None:
    """Unmount and delete it, as far as it is there."""
    image, mount_point = image_path(spec), Path(spec.scratch_dir)
    for look in range(UNMOUNT_LOOKS + 1):
        if not is_mounted(mount_point):
            break
        lazily = ["--lazy"] if look == UNMOUNT_LOOKS else []
        try:
            run_tool(["umount", *lazily, str(mount_point)])
        except BoxError:
            if lazily:
                raise
            time.sleep(UNMOUNT_INTERVAL_S)
    image.unlink(missing_ok=True)
    # Not the directory's content: whatever lies there now is none of ours.
    with contextlib.suppress(FileNotFoundError):
        mount_point.rmdir()


def is_mounted(mount_point: Path) -> bool:
    """Say whether anything is mounted exactly there."""
    escaped = str(mount_point).replace("\\", "\\134").replace(" ", "\\040")
    return any(line.split()[4] == escaped for line in MOUNTS_FILE.read_text().splitlines())
