"""What a Ray node and its code are started with: in a box the same on every machine, and nothing of its owner's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.node_records import NodeSpec, Role
from orchestrator.adapters.ray_node import interpreter_of, node_environment, start_command

RUNTIME = "/runtimes/aabb/bin/python"
SHARED = Path("/data/members/m-0/shared")
OWNERS = {
    "HOME": "/home/anna",
    "PATH": "/home/anna/bin:/usr/bin",
    "USER": "anna",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "ORCH_JOIN_TOKEN": "hush",
    "RAY_AUTH_TOKEN": "hush",
    "LD_LIBRARY_PATH": "/opt/anna/lib",
    "NCCL_DEBUG": "INFO",
    "LANG": "de_DE.UTF-8",
    "HTTP_PROXY": "http://anna:hush@proxy.example.org",
}
PORTS = (
    *("gcs", "dashboard", "dashboard_metric", "node_manager", "object_manager", "runtime_env_agent"),
    *("dashboard_agent_grpc", "dashboard_agent_listen", "metrics_export", "worker_min", "worker_max"),
)


def bare(role: Role = "solo") -> NodeSpec:
    ports = {name: 20_000 + number for number, name in enumerate(PORTS)}
    return NodeSpec("m-0", "c-1", role, 1, 4, {}, "127.0.0.2", ports, "host", 0, temp_dir="/tmp/t")


def boxed(role: Role = "solo", overlay_address: str = "") -> NodeSpec:
    box = BoxSpec(
        name="b1",
        user_id=0x7000_0000,
        scratch_dir="/tmp/t",
        scratch_bytes=1 << 30,
        shared_dir=str(SHARED),
        readonly_dirs=("/runtimes/aabb",),
        memory_bytes=4 << 30,
        pids_max=1_000,
        shm_bytes=1 << 30,
        egress="none",
        name_servers=(),
    )
    return replace(bare(role), interpreter=RUNTIME, box=box, overlay_address=overlay_address)


def test_boxed_environment_is_the_same_whatever_the_agents_is() -> None:
    assert node_environment(boxed(), SHARED, OWNERS) == node_environment(boxed(), SHARED, {})


def test_boxed_environment_holds_nothing_of_the_owners() -> None:
    shown = "\n".join(f"{name}={value}" for name, value in node_environment(boxed(), SHARED, OWNERS).items())
    for word in ("anna", "hush", "de_DE", "NCCL_DEBUG"):
        assert word not in shown


def test_boxed_environment_puts_the_runtime_first_and_home_into_the_scratch() -> None:
    environment = node_environment(boxed(), SHARED, OWNERS)
    assert environment["PATH"].split(":")[0] == "/runtimes/aabb/bin"
    assert environment["VIRTUAL_ENV"] == "/runtimes/aabb"
    assert environment["HOME"] == "/tmp/t/home"
    assert environment["TMPDIR"].startswith("/tmp/t/")
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(SHARED / "token")
    assert "RAY_AUTH_TOKEN" not in environment


@pytest.mark.parametrize(("address", "interface"), [("198.18.1.7/15", "overlay0"), ("", "lo")])
def test_boxed_environment_names_the_interface_that_leads_to_the_cluster(
    address: str, interface: str
) -> None:
    environment = node_environment(boxed("member", address), SHARED, OWNERS)
    assert [environment[f"{name}_SOCKET_IFNAME"] for name in ("NCCL", "GLOO")] == [interface] * 2


def test_bare_environment_takes_over_an_allowed_list_only() -> None:
    environment = node_environment(bare(), SHARED, OWNERS)
    assert (environment["HOME"], environment["NCCL_DEBUG"]) == ("/home/anna", "INFO")
    assert environment["PATH"].endswith(OWNERS["PATH"])
    assert "hush" not in "\n".join(environment.values())


def test_start_command_of_a_box_is_the_runtimes_python() -> None:
    assert interpreter_of(boxed()) == RUNTIME
    assert start_command(boxed(), SHARED / "ray_start.py")[:3] == [
        RUNTIME,
        "-P",
        str(SHARED / "ray_start.py"),
    ]
    assert interpreter_of(bare()) != RUNTIME
