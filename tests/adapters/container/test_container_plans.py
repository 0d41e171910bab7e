"""What podman is told, and what is understood of images: nothing here starts anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.container import cdi
from orchestrator.adapters.container.cgroups import cgroup_mounts
from orchestrator.adapters.container.command import Ground, Limits, create_arguments
from orchestrator.adapters.container.container import environment_lines
from orchestrator.adapters.container.images import ImageUnavailableError, answered, ask_arguments, provide
from orchestrator.adapters.container.records import ContainerSpec
from orchestrator.adapters.container.syscalls import profile

MIB = 1024 * 1024
IMAGE = f"docker.io/team/image@sha256:{'ab' * 32}"

SPEC = BoxSpec(
    name="abc1",
    user_id=231_000,
    scratch_dir="/tmp/orch-abc1",
    scratch_bytes=64 * MIB,
    shared_dir="/srv/shared",
    readonly_dirs=("/srv/runtime",),
    memory_bytes=512 * MIB,
    pids_max=64,
    shm_bytes=32 * MIB,
)
GROUND = Ground(
    root_dir="/d/root",
    env_file="/d/environment",
    seccomp_file="/d/seccomp.json",
    log_file="/d/box.log",
    limits=Limits(open_files=1000, processes=5000),
    readonly=("/usr", "/etc/localtime"),
    devices=("/dev/nvidia0",),
    files=(("/d/inside-0", "/etc/passwd"),),
    report_file="/d/report",
)
ARGV = ("/srv/runtime/bin/python3", "-I", "init.py")

LIST_OF_PODMAN: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
    "syscalls": [
        {"names": ["read", "mount", "clone", "clone3", "unshare", "setns"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": None},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["kexec_load", "swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ],
}


def arguments(container: ContainerSpec, spec: BoxSpec = SPEC, ground: Ground = GROUND) -> list[str]:
    return create_arguments(spec, container, ground, ARGV, "/tmp/orch-abc1")


def allowed(name: str) -> list[dict[str, Any]]:
    rules = json.loads(profile(json.dumps(LIST_OF_PODMAN)))["syscalls"]
    return [rule for rule in rules if name in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW"]


# ------------------------------------------------------------ the command


def test_command_leaves_no_right_and_no_network_of_the_host() -> None:
    told = arguments(ContainerSpec("runc"))
    for option in (
        "--user=231000:231000",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--security-opt=seccomp=/d/seccomp.json",
        "--network=none",
        "--pid=private",
        "--ipc=private",
        "--read-only",
        "--read-only-tmpfs=false",
        "--pull=never",
    ):
        assert option in told
    assert not any(
        option.startswith(("--privileged", "--cap-add", "--env=", "--env-host")) for option in told
    )


def test_command_bounds_memory_with_swap_processes_and_only_what_this_process_may_pass_on() -> None:
    told = arguments(ContainerSpec("runc"), replace(SPEC, cpus=1.5))
    assert f"--memory={512 * MIB}b" in told
    assert f"--memory-swap={512 * MIB}b" in told
    assert "--pids-limit=64" in told
    assert "--cpus=1.5" in told
    assert "--cgroup-parent=/orch/abc1" in told
    assert "--ulimit=nofile=1000:1000" in told
    assert "--ulimit=nproc=64:64" in told


def test_command_makes_nothing_but_the_scratch_and_the_reports_writable() -> None:
    volumes = [
        one.partition("=")[2].split(":") for one in arguments(ContainerSpec("runc")) if "--volume=" in one
    ]
    writable = {inside for _, inside, options in volumes if options.startswith("rw")}
    assert writable == {"/tmp/orch-abc1", "/run/orch/report"}
    assert all(options.endswith(",nosuid,nodev") for _, _, options in volumes)
    assert {inside for _, inside, _ in volumes} >= {"/usr", "/srv/runtime", "/srv/shared", "/etc/passwd"}


def test_command_without_image_starts_from_an_empty_root() -> None:
    assert arguments(ContainerSpec("crun"))[-5:] == ["--rootfs", "/d/root", *ARGV]


def test_command_with_image_takes_its_root_but_not_its_entrypoint_nor_its_home_away() -> None:
    told = arguments(ContainerSpec("runc", IMAGE), ground=replace(GROUND, readonly=()))
    assert told[-4:] == ['--entrypoint=["/srv/runtime/bin/python3"]', IMAGE, *ARGV[1:]]
    assert "--rootfs" not in told
    assert not any(option.startswith("--tmpfs=/home") for option in told)


@pytest.mark.parametrize(
    ("described", "devices"),
    [((), ["--device=/dev/nvidia0"]), (("nvidia.com/gpu=GPU-1",), ["--device=nvidia.com/gpu=GPU-1"])],
)
def test_command_takes_the_vendors_description_in_place_of_device_files(
    described: tuple[str, ...], devices: list[str]
) -> None:
    told = arguments(ContainerSpec("runc", cdi_devices=described))
    assert [option for option in told if option.startswith("--device")] == devices


@pytest.mark.parametrize("path", ["/srv/a:b", "/srv/a,rw"])
def test_command_path_that_podman_would_read_as_several_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="choose another"):
        arguments(ContainerSpec("runc"), replace(SPEC, shared_dir=path))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"runtime": "/bin/sh"}, "runtime"),
        ({"runtime": "runc", "image": "docker.io/team/image:latest"}, "image"),
        ({"runtime": "runc", "image": f"--privileged@sha256:{'ab' * 32}"}, "image"),
        ({"runtime": "runc", "cdi_devices": ("/dev/sda",)}, "cdi_devices"),
    ],
)
def test_spec_that_could_mean_something_else_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"ContainerSpec.{field}"):
        ContainerSpec(**changes)


def test_environment_is_one_line_each_and_refuses_what_is_not() -> None:
    assert environment_lines({"A": "b c", "D": "="}) == "A=b c\nD==\n"
    with pytest.raises(ValueError, match="'A'"):
        environment_lines({"A": "b\nLD_PRELOAD=/x"})


# ------------------------------------------------------------ system calls, cgroups, devices


def test_profile_takes_out_what_boxes_refuse_and_keeps_the_rest() -> None:
    for name in ("mount", "setns", "bpf", "clone3", "swapon"):
        assert allowed(name) == []
    assert allowed("read")


def test_profile_has_no_new_namespaces_other_families_or_calls_of_32_bits() -> None:
    for name in ("clone", "unshare"):
        (rule,) = allowed(name)
        assert rule["args"][0]["op"] == "SCMP_CMP_MASKED_EQ"
        assert rule["args"][0]["value"] & 0x10000000, "a user namespace is a new one"
    assert {rule["args"][0]["value"] for rule in allowed("socket")} == {1, 2, 10, 16}
    told = json.loads(profile(json.dumps(LIST_OF_PODMAN)))
    assert told["archMap"] == [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}]


@pytest.mark.parametrize("text", ["{}", "[]", '{"syscalls": [{}], "archMap": []}'])
def test_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="system calls"):
        profile(text)


def test_cgroups_are_found_in_every_hierarchy_of_either_version() -> None:
    lines = [
        "30 29 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw",
        "31 30 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        "32 30 0:3 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio",
        "33 30 0:4 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    ]
    found = [path.name for path in cgroup_mounts("\n".join(lines))]
    assert found == ["memory", "blkio", "unified"]


def test_devices_are_named_only_where_each_of_them_is_described() -> None:
    text = "kind: nvidia.com/gpu\ndevices:\n- name: GPU-1\n- name: GPU-2\n"
    assert cdi.described(["GPU-1"], [text]) == ("nvidia.com/gpu=GPU-1",)
    assert cdi.described(["GPU-1", "GPU-3"], [text]) == ()
    assert cdi.described(["GPU-1"], ["kind: else.com/gpu\nname: GPU-1"]) == ()
    assert cdi.described([], []) == ()


def test_descriptions_of_a_machine_without_any_are_none(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text("kind: nvidia.com/gpu")
    (tmp_path / "notes.txt").write_text("kind: nvidia.com/gpu")
    assert cdi.descriptions([tmp_path, tmp_path / "missing"]) == ["kind: nvidia.com/gpu"]


# ------------------------------------------------------------ images


def test_image_says_which_python_and_ray_it_has() -> None:
    image = answered(IMAGE, 'a warning\n["/opt/bin/python3", "3.12.4", "2.60.0"]\n')
    assert (image.python, image.python_version, image.ray_version) == ("/opt/bin/python3", "3.12.4", "2.60.0")


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("", "does not say"),
        ("[]", "does not say"),
        ('["python3", "3.12.4", "2.60.0"]', "'python3'"),
        ('["/opt/../python3", "3.12.4", "2.60.0"]', "as its python3"),
        ('["/opt/bin/python3", "3.9.1", "2.60.0"]', "3.10 is the least"),
    ],
)
def test_image_that_no_node_can_run_in_is_refused_with_the_reason(told: str, reason: str) -> None:
    with pytest.raises(ImageUnavailableError, match=reason):
        answered(IMAGE, told)


def test_image_is_asked_without_network_rights_or_anything_to_write() -> None:
    told = ask_arguments(IMAGE, "orch-ask-1", "/d/seccomp.json")
    assert {"--network=none", "--cap-drop=all", "--read-only", "--pull=never"} <= set(told)
    assert "--security-opt=seccomp=/d/seccomp.json" in told
    assert told.index(IMAGE) > told.index("--entrypoint=python3")


def test_image_is_asked_with_a_bound_on_time_cpu_memory_and_processes() -> None:
    told = ask_arguments(IMAGE, "orch-ask-1", "")
    assert {"--name=orch-ask-1", "--timeout=50", "--cpus=1", "--memory=1g", "--pids-limit=64"} <= set(told)
    assert not any("seccomp" in option for option in told)


def test_image_named_by_a_tag_is_not_even_looked_for() -> None:
    with pytest.raises(ImageUnavailableError, match="by its digest"):
        provide("docker.io/team/image:latest", "runc")
