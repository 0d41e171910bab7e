"""Running one more program in a box that is there already, with no more rights than what runs in it has.

    python -m orchestrator.adapters.box.entering NAMESPACE_PID PROGRAM ARGUMENT…

Whatever is in a box can be taken over by the tenant's code, which runs as the same user. So the program is in the
box's cgroups, without any right and under its system call filter before its first instruction; tools such as
nsenter give it the namespaces alone, and with it a way past the limits.
"""

from __future__ import annotations

import ctypes
import os
import platform
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from orchestrator.adapters.box.cgroups import PARENT, BoxCgroups
from orchestrator.adapters.box.seccomp import INSTRUCTION, program
from orchestrator.adapters.box.tools import BoxError

NAMESPACES = ("cgroup", "ipc", "uts", "net", "pid", "mnt")
"""The mounts last: until then the others are found below our own /proc."""

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SIGKILL = 9

CAPABILITIES_MAX = 64
"""The kernel keeps them in 64 bits; it refuses numbers beyond those it knows."""

ARGUMENT_COUNT_MIN = 3


class FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def inside(namespace_pid: int, argv: Sequence[str]) -> list[str]:
    """The argv that runs ``argv`` in the box that has this process. Raises BoxError when it is gone."""
    _cgroups_of(namespace_pid)
    return [sys.executable, "-P", "-m", "orchestrator.adapters.box.entering", str(namespace_pid), *argv]


def enter(namespace_pid: int, argv: Sequence[str]) -> int:
    """Run a program in the box that has this process, and return its exit code. Raises BoxError, OSError."""
    cgroups = _cgroups_of(namespace_pid)
    user_id = _user_of(cgroups.members())
    libc = ctypes.CDLL(None, use_errno=True)
    code = program(platform.machine())
    descriptors = [os.open(f"/proc/{namespace_pid}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
    for path in cgroups.entry_files:
        path.write_text("0")
    for descriptor in descriptors:
        _require(libc.setns(descriptor, 0), "setns")
        os.close(descriptor)
    os.chdir("/")
    parent_lives, held = os.pipe()
    # A PID namespace is entered by children only.
    child = os.fork()
    if child == 0:
        try:
            os.close(held)
            _become(libc, user_id, code)
            end_with_parent(libc, parent_lives)
            os.execvp(argv[0], list(argv))  # noqa: S606 - no shell is the point
        except OSError as error:
            os.write(2, f"{argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(libc: ctypes.CDLL, user_id: int, code: bytes) -> None:
    """Give up every right, for good; nobody may look into this process from here to its new program."""
    for capability in range(CAPABILITIES_MAX):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)
    _require(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    filter_program = FilterProgram(len(code) // INSTRUCTION.size, code)
    done = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_program), 0, 0)
    _require(done, "prctl(PR_SET_SECCOMP)")


def end_with_parent(libc: ctypes.CDLL, parent_lives: int) -> None:
    """Let the kernel kill this process when its parent dies; end here and now if it is dead already.

    ``parent_lives`` is the reading end of a pipe whose writing end the parent alone holds: in a PID namespace of
    its own a child's getppid() is 0 either way. A change of user takes the kernel's promise back, so this comes
    after it. Raises OSError.
    """
    _require(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if select.select([parent_lives], [], [], 0)[0]:
        os._exit(128 + SIGKILL)


def _require(result: int, call: str) -> None:
    """Raise what the kernel said of a call that failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _cgroups_of(pid: int) -> BoxCgroups:
    """The cgroups of the box that has a process. Raises BoxError when there is none."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError as error:
        raise BoxError(f"the box of process {pid} is gone: {error.strerror}") from None
    for line in lines:
        # A container's own lies deeper: orch/NAME/… of podman's choosing.
        _, found, name = line.rpartition(":")[2].partition(f"/{PARENT}/")
        if found:
            return BoxCgroups(name)
    raise BoxError(f"process {pid} is not in a box")


def _user_of(members: set[int]) -> int:
    """The one uid beside root's, which is the launcher's, among a box's processes."""
    found: set[int] = set()
    for pid in members:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        found |= {int(line.split()[1]) for line in lines if line.startswith("Uid:")}
    found -= {0}
    if len(found) != 1:
        raise BoxError(f"a box's processes have the uids {sorted(found)}; wait until what was launched runs")
    return found.pop()


def main() -> NoReturn:
    """Enter, and end as the program did."""
    if len(sys.argv) < ARGUMENT_COUNT_MIN:
        sys.exit("usage: python -m orchestrator.adapters.box.entering NAMESPACE_PID PROGRAM ARGUMENT…")
    try:
        code = enter(int(sys.argv[1]), sys.argv[2:])
    except (BoxError, OSError, ValueError) as error:
        sys.exit(f"cannot enter the box: {error}")
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
