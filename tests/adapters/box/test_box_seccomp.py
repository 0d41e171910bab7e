"""The system call filter, run by a small BPF machine of the test's own."""

from __future__ import annotations

import struct

import pytest

from orchestrator.adapters.box.seccomp import (
    AARCH64,
    MACHINES,
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    X32_BIT,
    X86_64,
    Machine,
    program,
)

EPERM, ENOSYS, EAFNOSUPPORT = (RET_ERRNO | number for number in (1, 38, 97))


def verdict(code: bytes, number: int, audit_arch: int, *arguments: int) -> int:
    """What the kernel would answer to one call."""
    data = struct.pack("<iIQ6Q", number, audit_arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    instructions = list(struct.iter_unpack("<HBBI", code))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = instructions[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x06:
                return int(value)
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x45:
                position += if_true if accumulator & value else if_false
            case _:
                raise AssertionError(f"operation {operation:#x}")


@pytest.fixture(params=sorted(MACHINES))
def machine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(machine_name: str) -> Machine:
    return MACHINES[machine_name]


def test_filter_denied_call_is_refused_with_eperm(machine_name: str, machine: Machine) -> None:
    code = program(machine_name)
    answers = {name: verdict(code, number, machine.audit_arch) for name, number in machine.denied.items()}
    assert answers == dict.fromkeys(machine.denied, EPERM)


def test_filter_ordinary_call_is_allowed(machine_name: str, machine: Machine) -> None:
    code = program(machine_name)
    special = {
        machine.clone,
        machine.clone3,
        machine.unshare,
        machine.socket,
        machine.ioctl,
        *machine.denied.values(),
    }
    ordinary = set(range(440)) - special
    assert {verdict(code, number, machine.audit_arch) for number in ordinary} == {RET_ALLOW}


def test_filter_fits_what_the_kernel_loads(machine_name: str) -> None:
    assert len(program(machine_name)) % 8 == 0
    assert len(program(machine_name)) // 8 <= 4096


@pytest.mark.parametrize(
    "flags", [0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
)
def test_filter_new_namespace_is_refused_however_asked(
    machine_name: str, machine: Machine, flags: int
) -> None:
    code = program(machine_name)
    for call in (machine.clone, machine.unshare):
        assert verdict(code, call, machine.audit_arch, flags | 0x11) == EPERM
    assert verdict(code, machine.clone3, machine.audit_arch) == ENOSYS


def test_filter_thread_and_process_are_allowed(machine_name: str, machine: Machine) -> None:
    code = program(machine_name)
    for flags in (0x003D0F00, 0x01200011, 0x4111, 0x11):
        assert verdict(code, machine.clone, machine.audit_arch, flags) == RET_ALLOW
    assert verdict(code, machine.unshare, machine.audit_arch, 0x400) == RET_ALLOW
    assert verdict(code, machine.unshare, machine.audit_arch, 0x80) == EPERM


def test_filter_socket_family_is_one_of_four(machine_name: str, machine: Machine) -> None:
    code = program(machine_name)
    allowed = [
        family
        for family in range(64)
        if verdict(code, machine.socket, machine.audit_arch, family) == RET_ALLOW
    ]
    assert allowed == [1, 2, 10, 16]
    assert verdict(code, machine.socket, machine.audit_arch, 40) == EAFNOSUPPORT


def test_filter_terminal_injection_is_refused_and_other_ioctl_allowed(
    machine_name: str, machine: Machine
) -> None:
    code = program(machine_name)
    answers = [
        verdict(code, machine.ioctl, machine.audit_arch, 0, request) for request in (0x5412, 0x541C, 0x5401)
    ]
    assert answers == [EPERM, EPERM, RET_ALLOW]


def test_filter_foreign_architecture_is_killed(machine_name: str, machine: Machine) -> None:
    i386 = 0x40000003
    other = AARCH64 if machine is X86_64 else X86_64
    for audit_arch in (i386, other.audit_arch):
        assert verdict(program(machine_name), 1, audit_arch) == RET_KILL_PROCESS


def test_filter_x32_call_is_killed() -> None:
    assert verdict(program("x86_64"), X32_BIT | 1, X86_64.audit_arch) == RET_KILL_PROCESS
    assert verdict(program("x86_64"), -1, X86_64.audit_arch) == RET_KILL_PROCESS


def test_filter_for_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        program("riscv64")
