"""Where a boxed member lives: the numbers of its box, what its nebula reads, and which files its devices are."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.adapters.box.records import BoxSpec, Egress
from orchestrator.adapters.container import cdi, images, tiers
from orchestrator.adapters.container.images import Image
from orchestrator.adapters.container.records import ContainerSpec
from orchestrator.adapters.node_records import NodeOrder, OverlayBeacon, OverlayEntry, Role
from orchestrator.adapters.overlay.certificates import new_key
from orchestrator.adapters.runtimes import Provisioned, RuntimeDigest
from orchestrator.agent.grounds import OVERLAY_DIR
from orchestrator.agent.housing import (
    FIRST_USER_ID,
    HEAD_MEMORY_BYTES,
    SCRATCH_BYTES_MAX,
    USER_IDS,
    Housing,
    Room,
    bare_address,
    box_name,
    nvidia_files,
)
from tests.agent.test_runtimes import Machine

GIB = 1024**3
READY = Provisioned(RuntimeDigest("aa" * 32), Path("/r/bin/python"), "3.11.9", ("/r", "/outside"), 1)
ENTRY = OverlayEntry(
    address="198.18.1.7/15",
    certificate="-----CERTIFICATE-----\n",
    authorities="-----AUTHORITIES-----\n",
    group="cluster-c1",
    beacons=(OverlayBeacon("198.18.0.1", "192.0.2.1:4242", ""),),
    blocked=("ab" * 32,),
)
BRIDGE_PORT = 20_000

SCRATCH = Path(tempfile.gettempdir()) / "orch-s"
"""Short, as Ray's sockets below it want it; nothing here makes it."""


def housing(**changes: object) -> Housing:
    made = Housing(
        Room(memory_bytes=100 * GIB, places=4), Machine().runtimes, beacon_host="control.example.org"
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


IMAGE = f"docker.io/team/image@sha256:{'ab' * 32}"
IN_IMAGE = NodeOrder(
    "m-0", "c-1", "solo", 1, 4, device_ids=("GPU-1", "simulated"), isolation="container", image=IMAGE
)
DESCRIPTION = "kind: nvidia.com/gpu\ndevices:\n- name: GPU-1\n"


def order(role: Role = "member", *device_ids: str) -> NodeOrder:
    return NodeOrder("m-0", "c-1", role, len(device_ids), 4, device_ids=device_ids, isolation="box")


def spec_of(made: Housing, folder: Path, wanted: NodeOrder | None = None) -> BoxSpec:
    member_dir = folder / "members" / "m-0"
    member_dir.mkdir(parents=True, exist_ok=True)
    return made.box(wanted or order(), member_dir, member_dir / "shared", SCRATCH, READY)


@pytest.fixture
def member_dir(tmp_path: Path) -> Path:
    made = tmp_path / "members" / "m-0"
    (made / OVERLAY_DIR).mkdir(parents=True)
    return made


# ------------------------------------------------------------ the box


def test_box_shares_the_machine_among_all_places(tmp_path: Path) -> None:
    spec = spec_of(housing(), tmp_path)
    assert spec.memory_bytes == 20 * GIB
    assert spec.shm_bytes == 8 * GIB
    assert 0 < spec.scratch_bytes <= SCRATCH_BYTES_MAX
    assert spec.readonly_dirs == ("/r", "/outside")
    assert spec.scratch_dir == str(SCRATCH)


def test_box_scratch_is_a_share_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free_bytes, scratch_bytes in ((100 * GIB, 20 * GIB), (10**15, SCRATCH_BYTES_MAX)):
        monkeypatch.setattr("shutil.disk_usage", lambda _path, free=free_bytes: _Usage(free))
        assert spec_of(housing(), tmp_path).scratch_bytes == scratch_bytes


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_box_of_a_head_takes_no_more_than_a_head_needs(tmp_path: Path) -> None:
    assert spec_of(housing(), tmp_path, order("head")).memory_bytes == HEAD_MEMORY_BYTES
    small = housing(room=Room(memory_bytes=8 * GIB, places=4))
    assert spec_of(small, tmp_path, order("head")).memory_bytes < HEAD_MEMORY_BYTES
    # A one-machine cluster's head has the job in its box.
    assert spec_of(housing(), tmp_path, order("solo")).memory_bytes == 20 * GIB


def test_box_of_each_member_has_a_user_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    users = {spec_of(housing(), tmp_path / name).user_id for name in ("m1", "m2", "m3", "m1")}
    assert len(users) == 3
    assert all(FIRST_USER_ID <= user_id < FIRST_USER_ID + USER_IDS for user_id in users)


def test_box_leaves_a_part_of_the_processors_to_the_machine(tmp_path: Path) -> None:
    for cpus, limit in ((0, 0.0), (1, 1.0), (10, 9.0)):
        room = Room(memory_bytes=8 * GIB, places=1, cpus=cpus)
        assert spec_of(housing(room=room), tmp_path).cpus == limit


def test_box_opens_the_files_of_its_own_devices_only(tmp_path: Path) -> None:
    made = housing(device_files={"g0": ("/dev/nvidia0",), "g1": ("/dev/nvidia1",)})
    assert spec_of(made, tmp_path, order("member", "g1", "simulated")).devices == ("/dev/nvidia1",)
    assert spec_of(made, tmp_path, order("head")).devices == ()


@pytest.mark.parametrize(("egress", "servers"), [("internet", True), ("none", False)])
def test_box_without_internet_resolves_no_names(tmp_path: Path, egress: Egress, servers: bool) -> None:
    spec = spec_of(housing(room=Room(GIB * 8, 1, egress=egress)), tmp_path)
    assert (spec.egress, bool(spec.name_servers)) == (egress, servers)


def test_box_name_is_the_members_own_and_lasts(tmp_path: Path) -> None:
    names = {box_name(tmp_path / name) for name in ("m-0", "m-1", "m-2")}
    assert len(names) == 3
    assert box_name(tmp_path / "m-1") == box_name(tmp_path / "." / "m-1")


# ------------------------------------------------------------ its key


def test_overlay_key_is_made_once_and_stays(member_dir: Path) -> None:
    first = housing().overlay_key(member_dir)
    assert len(first) == 32
    assert housing().overlay_key(member_dir) == first
    folder = member_dir / OVERLAY_DIR
    assert new_key((folder / "key").read_bytes()).public_bytes == first
    assert [stat.S_IMODE((folder / name).stat().st_mode) for name in ("key", "key.pem")] == [0o600] * 2


def test_overlay_key_of_another_member_is_another_one(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    assert len({housing().overlay_key(folder) for folder in folders}) == 2


# ------------------------------------------------------------ entering the overlay


def written(member_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (member_dir / OVERLAY_DIR).iterdir()}


def changed_at(member_dir: Path) -> dict[str, tuple[int, int]]:
    """What tells one writing of a file from another: it is replaced, not rewritten."""
    found = {path.name: path.stat() for path in (member_dir / OVERLAY_DIR).iterdir()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def test_enter_writes_certificates_and_a_config_that_names_all(member_dir: Path) -> None:
    housing().enter(member_dir, ENTRY, BRIDGE_PORT)
    files = written(member_dir)
    assert sorted(files) == ["authorities.pem", "certificate.pem", "config.json"]
    assert files["certificate.pem"] == ENTRY.certificate
    assert files["authorities.pem"] == ENTRY.authorities
    for word in ("cluster-c1", "192.0.2.1:4242", "198.18.0.1", "ab" * 32, "certificate.pem", "key.pem"):
        assert word in files["config.json"]


def test_enter_the_same_again_writes_nothing(member_dir: Path) -> None:
    made = housing()
    made.enter(member_dir, ENTRY, BRIDGE_PORT)
    before = changed_at(member_dir)
    made.enter(member_dir, ENTRY, BRIDGE_PORT)
    assert changed_at(member_dir) == before


def test_enter_renewed_certificate_replaces_it_and_the_config_last(member_dir: Path) -> None:
    made = housing()
    made.enter(member_dir, ENTRY, BRIDGE_PORT)
    before = changed_at(member_dir)
    made.enter(member_dir, replace(ENTRY, certificate="-----RENEWED-----\n"), BRIDGE_PORT)
    after = changed_at(member_dir)
    assert written(member_dir)["certificate.pem"] == "-----RENEWED-----\n"
    assert after["authorities.pem"] == before["authorities.pem"]
    # Its words are the same, but its change is what the keeper looks at.
    assert after["config.json"] != before["config.json"]
    assert after["config.json"][1] >= after["certificate.pem"][1]


def test_enter_somebody_shut_out_changes_the_config_alone(member_dir: Path) -> None:
    made = housing()
    made.enter(member_dir, ENTRY, BRIDGE_PORT)
    before = changed_at(member_dir)
    made.enter(member_dir, replace(ENTRY, blocked=(*ENTRY.blocked, "cd" * 32)), BRIDGE_PORT)
    after = changed_at(member_dir)
    assert {name for name in after if after[name] != before[name]} == {"config.json"}
    assert "cd" * 32 in written(member_dir)["config.json"]


def test_enter_beacon_that_names_no_host_is_at_the_control_planes(member_dir: Path) -> None:
    nameless = replace(ENTRY, beacons=(OverlayBeacon("198.18.0.1", ":4242", ""),))
    housing().enter(member_dir, nameless, BRIDGE_PORT)
    assert "control.example.org:4242" in written(member_dir)["config.json"]


def test_enter_with_bridges_offers_both_ways(member_dir: Path) -> None:
    bridged = replace(
        ENTRY, beacons=(OverlayBeacon("198.18.0.1", "192.0.2.1:4242", ":443"),), bridge_token="hush"
    )
    housing().enter(member_dir, bridged, BRIDGE_PORT)
    files = written(member_dir)
    assert f"127.0.0.1:{BRIDGE_PORT}" in files["bridged.json"]
    assert "192.0.2.1:4242" in files["config.json"]
    assert "control.example.org" in files["bridge-0.json"]
    assert files["bridge-token"] == "hush"
    assert not any("hush" in text for name, text in files.items() if name != "bridge-token")
    assert stat.S_IMODE((member_dir / OVERLAY_DIR / "bridge-token").stat().st_mode) == 0o600


def test_enter_over_tls_only_where_there_is_no_bridge_says_what_to_do(member_dir: Path) -> None:
    with pytest.raises(ValueError, match="--overlay-bridge-listen"):
        housing(transport="tls").enter(member_dir, ENTRY, BRIDGE_PORT)
    assert written(member_dir) == {}


@pytest.mark.parametrize(("text", "bare"), [("198.18.1.7/15", "198.18.1.7"), ("198.18.1.7", "198.18.1.7")])
def test_bare_address_has_no_prefix(text: str, bare: str) -> None:
    assert bare_address(text) == bare


@pytest.mark.parametrize("text", ["", "198.18.1/15", "host", "198.18.1.7/40"])
def test_bare_address_of_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        bare_address(text)


# ------------------------------------------------------------ device files


def procfs(folder: Path, cards: Iterable[tuple[str, str]]) -> Path:
    for bus_id, minor in cards:
        card = folder / bus_id
        card.mkdir(parents=True)
        (card / "information").write_text(
            f"Model: \t\t NVIDIA RTX 4090\nIRQ:   \t\t 42\nBus Location: \t {bus_id}\nDevice Minor: \t {minor}\n"
        )
    return folder


def test_nvidia_files_go_by_the_drivers_minor_number_not_by_order(tmp_path: Path) -> None:
    proc = procfs(tmp_path / "gpus", [("0000:01:00.0", "1"), ("0000:c1:00.0", "0")])
    # NVML writes the domain with eight digits and capitals.
    assert nvidia_files({"a": "00000000:01:00.0", "b": "00000000:C1:00.0"}, proc) == {
        "a": ("/dev/nvidia1",),
        "b": ("/dev/nvidia0",),
    }


def test_nvidia_files_of_an_unknown_card_or_a_strange_minor_are_none(tmp_path: Path) -> None:
    proc = procfs(tmp_path / "gpus", [("0000:01:00.0", "1 x"), ("0001:01:00.0", "3")])
    found = nvidia_files({"a": "00000000:01:00.0", "b": "00000000:02:00.0", "c": "00000001:01:00.0"}, proc)
    assert found == {"c": ("/dev/nvidia3",)}


def test_nvidia_files_without_a_driver_are_none(tmp_path: Path) -> None:
    assert nvidia_files({"a": "00000000:01:00.0"}, tmp_path / "absent") == {}


# ------------------------------------------------------------ containers


@pytest.fixture
def containers(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine where podman works, and whose vendor has described a GPU."""
    monkeypatch.setattr(tiers, "trial", lambda: tiers.Trial("runc", ""))
    monkeypatch.setattr(cdi, "descriptions", lambda: [DESCRIPTION])
    return monkeypatch


def test_box_is_no_container_and_nothing_is_tried_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "trial", lambda: pytest.fail("nobody has to look"))
    assert housing().container(order()) is None


def test_container_has_the_image_and_the_described_devices(containers: pytest.MonkeyPatch) -> None:
    made = housing(device_files={"GPU-1": ("/dev/nvidia0",)})
    assert made.container(IN_IMAGE) == ContainerSpec("runc", IMAGE, ("nvidia.com/gpu=GPU-1",))


def test_container_gets_device_files_where_nothing_is_described_and_an_image_gets_none(
    containers: pytest.MonkeyPatch,
) -> None:
    containers.setattr(cdi, "descriptions", list)
    made = housing(device_files={"GPU-1": ("/dev/nvidia0",)})
    assert made.container(replace(IN_IMAGE, image="")) == ContainerSpec("runc")
    with pytest.raises(ValueError, match="nvidia-ctk cdi generate"):
        made.container(IN_IMAGE)
    assert made.container(replace(IN_IMAGE, device_ids=("simulated",))) == ContainerSpec("runc", IMAGE)


def test_container_where_none_works_is_refused_with_the_reason(containers: pytest.MonkeyPatch) -> None:
    containers.setattr(tiers, "trial", lambda: tiers.Trial("", "podman is not installed"))
    with pytest.raises(ValueError, match="cannot be given: podman is not installed"):
        housing().container(IN_IMAGE)


def test_image_in_a_box_is_refused() -> None:
    with pytest.raises(ValueError, match="takes isolation container"):
        housing().container(replace(IN_IMAGE, isolation="box"))


async def test_image_is_what_a_node_runs_with_and_comes_with_no_folder_of_the_host(
    containers: pytest.MonkeyPatch,
) -> None:
    containers.setattr(
        images, "provide", lambda image, runtime: Image(image, "/opt/python3", "3.12.1", runtime)
    )
    ready = await housing().image(IN_IMAGE)
    assert (ready.python, ready.readonly_dirs, ready.digest) == (Path("/opt/python3"), (), "ab" * 32)
