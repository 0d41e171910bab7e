"""What is asked of bubblewrap, nft and the kernel, as text: no box is made here."""

from __future__ import annotations

import ipaddress
import subprocess
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from orchestrator.adapters.box.cgroups import BoxCgroups, Hierarchies, find_hierarchies
from orchestrator.adapters.box.command import (
    Descriptors,
    HostParts,
    become_user,
    bubblewrap_options,
    control_devices,
    environment_script,
    inside_files,
)
from orchestrator.adapters.box.network import Surroundings, forwarding_rules, host_rules
from orchestrator.adapters.box.records import BLOCKED_NETWORKS, BoxSpec
from orchestrator.adapters.box.tools import BoxError

SPEC = BoxSpec(
    name="m7",
    user_id=200_007,
    scratch_dir="/var/lib/orch/b/m7",
    scratch_bytes=1 << 30,
    shared_dir="/var/lib/orch/shared/m7",
    readonly_dirs=("/root/runtimes/a", "/opt/python"),
    memory_bytes=1 << 30,
    pids_max=1000,
    shm_bytes=1 << 28,
    devices=("/dev/nvidia1",),
    egress="internet",
    name_servers=("9.9.9.9",),
)
PARTS = HostParts(
    links={"/bin": "usr/bin"},
    readonly=("/usr", "/etc/ssl/certs"),
    devices=("/dev/nvidia1", "/dev/nvidiactl"),
    cgroups=(("/sys/fs/cgroup/memory/orch/m7", "/sys/fs/cgroup/memory"),),
    gpu_sys_dirs=("/sys/devices/pci0000:00/0000:00:1e.0",),
    setpriv="/usr/bin/setpriv",
)
FDS = Descriptors(seccomp=10, info=11, block=12, files={"/etc/passwd": 13})
AT_HOME = Surroundings(
    connected=(ipaddress.IPv4Network("81.2.69.0/24"),),
    gateways=("81.2.69.1",),
    gatewayless=("ppp0",),
    uplinks=("wan0", "ppp0"),
)


def pairs(options: list[str], flag: str) -> dict[str, str]:
    """Destination → source of each option of one kind."""
    return {options[at + 2]: options[at + 1] for at, word in enumerate(options) if word == flag}


def test_options_bind_only_the_chosen_parts() -> None:
    options = bubblewrap_options(SPEC, PARTS, FDS)
    assert pairs(options, "--bind") == {SPEC.scratch_dir: SPEC.scratch_dir}
    assert set(pairs(options, "--dev-bind")) == {"/dev/nvidia1", "/dev/nvidiactl"}
    assert pairs(options, "--ro-bind") == {
        "/usr": "/usr",
        "/etc/ssl/certs": "/etc/ssl/certs",
        "/sys/fs/cgroup/memory": "/sys/fs/cgroup/memory/orch/m7",
        "/sys/devices/pci0000:00/0000:00:1e.0": "/sys/devices/pci0000:00/0000:00:1e.0",
        "/root/runtimes/a": "/root/runtimes/a",
        "/opt/python": "/opt/python",
        SPEC.shared_dir: SPEC.shared_dir,
    }


def test_options_leave_every_namespace_and_close_the_root() -> None:
    options = bubblewrap_options(SPEC, PARTS, FDS)
    wanted = {f"--unshare-{kind}" for kind in ("pid", "ipc", "uts", "net", "cgroup-try")}
    wanted |= {"--die-with-parent", "--new-session", "--clearenv", "--seccomp", "--block-fd", "--info-fd"}
    assert wanted <= set(options)
    assert "--share-net" not in options
    last_bind = max(at for at, word in enumerate(options) if "bind" in word)
    assert options.index("--remount-ro") > last_bind


def test_options_make_folders_on_the_way_readable_before_what_lies_in_them() -> None:
    options = bubblewrap_options(SPEC, PARTS, FDS)
    at = options.index("/root")
    assert options[at - 3 : at] == ["--perms", "0755", "--dir"]
    assert at < options.index("/root/runtimes/a")
    assert len([word for word in options if word == "/sys"]) == 1


def test_argv_gives_up_every_right_before_it_reads_the_environment() -> None:
    argv = become_user(SPEC, PARTS, "/somewhere", ["python", "-c", "x"])
    rights = argv[: argv.index("--")]
    assert {
        "--reuid=200007",
        "--regid=200007",
        "--clear-groups",
        "--bounding-set=-all",
        "--no-new-privs",
    } < set(rights)
    assert argv[-4:] == ["/somewhere", "python", "-c", "x"]


def test_environment_holds_any_value_and_refuses_odd_names() -> None:
    env = {"PLAIN": "a b", "QUOTED": "it's $HOME `id`", "LINES": "one\ntwo"}
    script = environment_script(env) + 'printf "%s|" "$PLAIN" "$QUOTED" "$LINES"'
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("|")[:-1] == list(env.values())
    for name in ("A-B", "1A", "A=B", "", "A;id"):
        with pytest.raises(ValueError, match="environment name"):
            environment_script({name: "x"})
    with pytest.raises(ValueError, match="KEY holds a NUL"):
        environment_script({"KEY": "a\0b"})


def test_inside_files_name_user_and_resolvers() -> None:
    files = inside_files(SPEC, {})
    assert b"box:x:200007:200007:" in files["/etc/passwd"]
    assert files["/etc/resolv.conf"].startswith(b"nameserver 9.9.9.9\n")


def test_control_devices_come_with_a_gpu_only() -> None:
    assert "/dev/nvidiactl" in control_devices(["/dev/nvidia0"])
    assert control_devices(["/dev/nvidiactl", "/dev/kfd"]) == ()


def test_host_rules_drop_reserved_and_connected_networks_and_pass_gateways_only() -> None:
    rules = host_rules("m7", "198.19.240.2", AT_HOME)
    blocked = next(line for line in rules.splitlines() if "ip daddr {" in line)
    listed = [
        ipaddress.IPv4Network(part.strip(" {}")) for part in blocked.split("{")[1].split("}")[0].split(",")
    ]
    for network in (*BLOCKED_NETWORKS, *AT_HOME.connected):
        assert any(network.subnet_of(other) for other in listed), network
    ways = next(line for line in rules.splitlines() if "nexthop" in line)
    assert ways.strip() == 'oifname "ppp0" accept; rt ip nexthop { 81.2.69.1 } accept; drop'


def test_host_rules_without_default_route_pass_nothing() -> None:
    nowhere = Surroundings(connected=(), gateways=(), gatewayless=(), uplinks=())
    chain = host_rules("m7", "198.19.240.2", nowhere).split("chain from_box")[1].split("chain")[0]
    assert "accept" not in chain
    assert chain.split("}")[-2].split() == ["drop", "drop"]


def test_forwarding_rules_name_what_was_turned_on() -> None:
    assert 'elements = { "eth0", "wlan0" }' in forwarding_rules(["eth0", "wlan0"])
    assert "elements" not in forwarding_rules([])


V1 = "30 25 0:26 / /sys/fs/cgroup/{0} rw,relatime - cgroup cgroup rw,{0}"
V2 = "31 25 0:27 / /sys/fs/cgroup{0} rw,relatime - cgroup2 cgroup2 rw"


def test_hierarchies_of_both_kinds_are_told_apart() -> None:
    version1 = "\n".join(V1.format(name) for name in ("memory", "pids", "cpu,cpuacct", "devices"))
    hybrid = f"{version1}\n{V2.format('/unified')}"
    assert find_hierarchies(hybrid).version == 1
    assert str(find_hierarchies(hybrid).mounts["cpu"]) == "/sys/fs/cgroup/cpu,cpuacct"
    assert find_hierarchies(V2.format("")).version == 2
    assert find_hierarchies("1 2 0:3 / / rw - ext4 /dev/sda rw").version == 0


def test_cgroups_of_version_two_hand_controllers_down_and_set_limits(tmp_path: Path) -> None:
    # Plain files in the kernel's place: they show what is written, and refuse nothing.
    for folder, enabled in ((tmp_path, "memory"), (tmp_path / "orch", "")):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids")
        (folder / "cgroup.subtree_control").write_text(enabled)
    cgroups = BoxCgroups("m7", Hierarchies(2, dict.fromkeys(("memory", "pids", "cpu"), tmp_path)))
    cgroups.create(replace(SPEC, cpus=1.5), ())
    box = tmp_path / "orch" / "m7"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +pids\n"
    assert (tmp_path / "orch" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids\n"
    written = {path.name: path.read_text().strip() for path in box.iterdir()}
    assert written == {"memory.max": str(1 << 30), "pids.max": "1000", "cpu.max": "150000 100000"}
    assert cgroups.shown_inside == ((str(box), "/sys/fs/cgroup"),)
    assert cgroups.entry_files == (box / "cgroup.procs",)


def test_cgroups_without_controllers_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset")
    (tmp_path / "cgroup.subtree_control").write_text("")
    with pytest.raises(BoxError, match="offers no memory and pids controllers; run the agent on the host"):
        BoxCgroups("m7", Hierarchies(2, {"memory": tmp_path, "pids": tmp_path})).create(SPEC, ())
    with pytest.raises(BoxError, match="mount cgroup2"):
        BoxCgroups("m7", Hierarchies(0, {})).create(SPEC, ())


def test_spec_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(SPEC), type=BoxSpec) == SPEC


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Upper"),
        ("name", "elevenchars"),
        ("name", "a/b"),
        ("user_id", 0),
        ("user_id", 999),
        ("scratch_dir", "relative"),
        ("scratch_dir", "/var/lib/orchestrator/boxes/member-17"),
        ("scratch_bytes", 1),
        ("shared_dir", "/a/../b"),
        ("shared_dir", "/a/"),
        ("readonly_dirs", ("/",)),
        ("memory_bytes", 0),
        ("pids_max", 1),
        ("shm_bytes", 0),
        ("cpus", -1.0),
        ("devices", ("/etc/passwd",)),
        ("name_servers", ("192.168.1.1",)),
        ("name_servers", ("resolver",)),
    ],
)
def test_spec_refuses_what_cannot_be_and_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"BoxSpec.{field}"):
        replace(SPEC, **{field: value})  # type: ignore[arg-type]  # wrong on purpose
