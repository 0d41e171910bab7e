"""The system calls that nothing in a box may make, as a BPF program assembled by hand. Pure.

A deny-list: Ray, numpy, torch and CUDA use calls nobody could list, and what is refused here is what would widen
the kernel's surface for code that has no capability anyway. ptrace stays: debuggers and profilers need it, and
the PID namespace leaves only the box's own processes to trace.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

EPERM: Final = 1
ENOSYS: Final = 38
EAFNOSUPPORT: Final = 97

# linux/seccomp.h
RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_ALLOW: Final = 0x7FFF0000

# struct seccomp_data: nr, arch, instruction_pointer, args[6]; both machines are little-endian, so the low half
# of an argument stands first.
OFFSET_NR: Final = 0
OFFSET_ARCH: Final = 4
OFFSET_ARGS: Final = 16
ARG_BYTES: Final = 8

# linux/bpf_common.h
LOAD_WORD: Final = 0x20
JUMP_EQUAL: Final = 0x15
JUMP_AT_LEAST: Final = 0x35
JUMP_ANY_BIT: Final = 0x45
RETURN: Final = 0x06

X32_BIT: Final = 0x40000000
"""Marks calls of the x32 ABI, which shares x86_64's architecture number but has numbers of its own."""

CLONE_NEW_ANY: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""

CLONE_NEWTIME: Final = 0x80
"""Only `unshare` knows it; in `clone` these bits are the exit signal."""

ALLOWED_FAMILIES: Final = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. Others are attack surface, and AF_VSOCK would reach past the network
namespace to a virtual machine's host."""

TERMINAL_INJECTIONS: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: typing into somebody's terminal."""


class Machine(NamedTuple):
    """One processor architecture: its audit number and the numbers of its calls."""

    audit_arch: int
    denied: dict[str, int]
    clone: int
    unshare: int
    socket: int
    ioctl: int
    clone3: int = 435


# Calls since Linux 5.1 have one number everywhere.
COMMON_DENIED: Final = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "open_tree_attr": 467,
}

X86_64: Final = Machine(
    audit_arch=0xC000003E,
    clone=56,
    unshare=272,
    socket=41,
    ioctl=16,
    denied=COMMON_DENIED
    | {
        "uselib": 134,
        "vhangup": 153,
        "modify_ldt": 154,
        "pivot_root": 155,
        "_sysctl": 156,
        "chroot": 161,
        "acct": 163,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "sethostname": 170,
        "setdomainname": 171,
        "iopl": 172,
        "ioperm": 173,
        "create_module": 174,
        "init_module": 175,
        "delete_module": 176,
        "query_module": 178,
        "quotactl": 179,
        "nfsservctl": 180,
        "syslog": 103,
        "lookup_dcookie": 212,
        "clock_settime": 227,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "open_by_handle_at": 304,
        "clock_adjtime": 305,
        "setns": 308,
        "finit_module": 313,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
    },
)

AARCH64: Final = Machine(
    audit_arch=0xC00000B7,
    clone=220,
    unshare=97,
    socket=198,
    ioctl=29,
    denied=COMMON_DENIED
    | {
        "lookup_dcookie": 18,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "nfsservctl": 42,
        "chroot": 51,
        "vhangup": 58,
        "quotactl": 60,
        "acct": 89,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "clock_settime": 112,
        "syslog": 116,
        "reboot": 142,
        "sethostname": 161,
        "setdomainname": 162,
        "settimeofday": 170,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "swapoff": 225,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "open_by_handle_at": 265,
        "clock_adjtime": 266,
        "setns": 268,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
    },
)

MACHINES: Final = {"x86_64": X86_64, "aarch64": AARCH64}
"""By the name that `uname -m` gives."""


def program(machine_name: str) -> bytes:
    """Return the filter for `bwrap --seccomp`: an array of struct sock_filter.

    Raises ValueError for an architecture without one.
    """
    machine = MACHINES.get(machine_name)
    if machine is None:
        raise ValueError(f"no system call filter for {machine_name!r}; a box needs one of {sorted(MACHINES)}")
    code = [
        _load(OFFSET_ARCH),
        _instruction(JUMP_EQUAL, machine.audit_arch, if_true=1),
        _return(RET_KILL_PROCESS),
        _load(OFFSET_NR),
    ]
    if machine is X86_64:
        code += [_instruction(JUMP_AT_LEAST, X32_BIT, if_false=1), _return(RET_KILL_PROCESS)]
    for number in sorted(machine.denied.values()):
        code += _when_equal(number, [_return(RET_ERRNO | EPERM)])
    # What clone3 is asked for lies in memory, where no filter can look; without it libraries take clone.
    code += _when_equal(machine.clone3, [_return(RET_ERRNO | ENOSYS)])
    code += _when_equal(machine.clone, _refuse_any_bit(CLONE_NEW_ANY))
    code += _when_equal(machine.unshare, _refuse_any_bit(CLONE_NEW_ANY | CLONE_NEWTIME))
    families = [
        _instruction(JUMP_EQUAL, family, if_false=1) + _return(RET_ALLOW) for family in ALLOWED_FAMILIES
    ]
    code += _when_equal(machine.socket, [_load(_argument(0)), *families, _return(RET_ERRNO | EAFNOSUPPORT)])
    injections = [
        _instruction(JUMP_EQUAL, request, if_false=1) + _return(RET_ERRNO | EPERM)
        for request in TERMINAL_INJECTIONS
    ]
    code += _when_equal(machine.ioctl, [_load(_argument(1)), *injections, _return(RET_ALLOW)])
    return b"".join([*code, _return(RET_ALLOW)])


INSTRUCTION: Final = struct.Struct("<HBBI")
"""struct sock_filter: code, jt, jf, k."""


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Assemble one instruction; the jumps count instructions to pass over."""
    return INSTRUCTION.pack(code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    """Take a word of the call's description into the accumulator."""
    return _instruction(LOAD_WORD, offset)


def _return(verdict: int) -> bytes:
    """End the program with a verdict."""
    return _instruction(RETURN, verdict)


def _argument(index: int) -> int:
    """Return the offset of the low half of an argument, which is all the kernel reads of an int."""
    return OFFSET_ARGS + ARG_BYTES * index


def _when_equal(number: int, body: list[bytes]) -> list[bytes]:
    """Run `body`, which must end in a verdict on every path, for one call's number only."""
    length = len(b"".join(body)) // INSTRUCTION.size
    return [_instruction(JUMP_EQUAL, number, if_false=length), *body]


def _refuse_any_bit(mask: int) -> list[bytes]:
    """Refuse a call whose first argument has any bit of the mask, allow it otherwise."""
    return [
        _load(_argument(0)),
        _instruction(JUMP_ANY_BIT, mask, if_false=1),
        _return(RET_ERRNO | EPERM),
        _return(RET_ALLOW),
    ]
