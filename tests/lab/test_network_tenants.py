"""Two tenants in two slots of one rig: what the code of one finds of the other and of the supplier, and can break."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from examples.demo.network import Machine
from orchestrator.adapters.box.cgroups import BoxCgroups
from orchestrator.adapters.box.network import host_interface, table_name
from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.box.scratch import image_path
from orchestrator.adapters.ray_node import HOME_DIR
from tests.integration.network import Node
from tests.integration.tenants import REPOSITORY, Submitted, end
from tests.lab.lab import missing
from tests.lab.network import CONTROL, LISTENS, LabNetwork, LabTenant
from tests.lab.tenant.settle import BEATS_FILE, PORT, SHARED_KEY
from tests.lab.topology import CORE, METADATA_IP, LabHost
from tests.polling import wait_until

RIG = "rig"
HOSTS = (LabHost(CONTROL), LabHost(RIG, "cone", 2))
MACHINES = (Machine(RIG, "north", "consumer", "RTX4090x4", slots=4),)
"""Four places, so that each has a fifth of this machine's memory: what it is attacked with has to fit."""

SETTINGS = {"ORCH_IDLE_TEARDOWN_MS": "15000", "ORCH_PREPARE_DEADLINE_MS": "120000"}

DISK_BYTES = 2 << 30
"""The rig's whole disk for boxes: small enough to be filled within seconds."""

INTERNET = "9.9.9.9"
"""Answers in the lab's core, and is what a box may reach."""

SERVICE_PORT = 8123
"""Of what listens in the supplier's home, on the rig itself, and out there."""

MARK = "acme-was-here"

TENANTS_CODE = Path(__file__).with_name("tenant")
TALK = Path(__file__).with_name("talk.py")
LOOK = TENANTS_CODE / "look.py"

JOB_S = 200.0
"""A cluster of one machine forms in some 15 s where nothing else runs."""

ENDED_S = 90.0
"""Idle teardown, or half a minute for a cluster that does not get clean, and the end of a box with thousands of
processes."""

SPUN_S = 30.0
"""Beyond the silence that makes a worker suspect, which is 26 s."""

BEATS = 10
"""One second of the neighbour's life."""

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.ray,
    pytest.mark.timeout(600),
]


@dataclass
class SmallDiskNetwork(LabNetwork):
    """The rig's boxes get what they write to from a disk of its own."""

    disk: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="od-", dir="/tmp")))

    def __post_init__(self) -> None:
        options = f"size={DISK_BYTES},mode=0711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "lab-disk", self.disk], check=True)
        super().__post_init__()

    def popen(
        self, name: str, argv: Sequence[str | Path], env: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        extra = {"TMPDIR": str(self.disk)} if name == RIG else {}
        return super().popen(name, argv, {**env, **extra}, output)

    def destroy(self) -> None:
        super().destroy()
        if self.disk.exists():
            subprocess.run(["umount", "--lazy", self.disk], check=True)
            self.disk.rmdir()


@dataclass(frozen=True)
class Rig:
    """The network, and acme at home in one of the rig's slots."""

    network: LabNetwork
    acme: LabTenant
    birch: LabTenant
    home: Node

    @property
    def box(self) -> BoxSpec:
        assert self.home.spec.box is not None
        return self.home.spec.box

    @property
    def beats(self) -> int:
        """How long acme's job has gone on, in its own beats."""
        return (Path(self.box.scratch_dir) / HOME_DIR / BEATS_FILE).stat().st_size

    def is_live(self) -> bool:
        worker = self.network.worker(RIG)
        return worker.liveness == "live" and worker.connected


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with SmallDiskNetwork.open(HOSTS, MACHINES, SETTINGS) as network, services(network):
        acme, birch = (LabTenant(network, network.create_tenant(name)) for name in ("acme", "birch"))
        stay = submit(acme, "stay", "settle.py", MARK)
        acme.await_output(stay, "is at home", deadline_s=JOB_S)
        yield Rig(network, acme, birch, node_of(network, acme, "stay"))
        end(stay)


def submit(tenant: LabTenant, name: str, *command: str) -> Submitted:
    orch = {"gpus": 1, "max_attempts": 1}
    return tenant.submit(name, "python", *command, working_dir=TENANTS_CODE, orch=orch)


def node_of(network: LabNetwork, tenant: LabTenant, job: str) -> Node:
    return network.node_of(tenant.job(job).attempts[-1].cluster_id, RIG)


@contextlib.contextmanager
def services(network: LabNetwork) -> Iterator[None]:
    """Somebody who answers on every address of the rig, of its home and of the metadata service, and out there."""
    lab = network.lab
    lab.run(CORE, ["ip", "address", "add", f"{INTERNET}/32", "dev", "lo"])
    router = lab.router(RIG)
    # A datagram's answer leaves with the address that was asked only where the server is bound to it.
    servers = [("tcp-serve", place, "0.0.0.0") for place in (RIG, router, CORE)]
    servers += [("udp-serve", place, address) for place, address in datagram_servers(network)]
    started = [
        lab.popen(
            place,
            [sys.executable, "-I", "-S", TALK, verb, address, str(SERVICE_PORT)],
            stdout=subprocess.PIPE,
        )
        for verb, place, address in servers
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def datagram_servers(network: LabNetwork) -> list[tuple[str, str]]:
    """Place and address of each."""
    lab = network.lab
    at_home = [lab.lan_ip(RIG), lab.lan_device_ip(RIG), METADATA_IP]
    return [
        (CORE, INTERNET),
        *((lab.router(RIG), address) for address in at_home),
        *((RIG, address) for address in (lab.address(RIG), "127.0.0.1")),
    ]


def questions(rig: Rig) -> dict[str, Any]:
    """All that there is to be found, and by whom it could be."""
    lab, ports = rig.network.lab, rig.home.spec.ports
    at_home = [
        lab.lan_ip(RIG),
        lab.lan_device_ip(RIG),
        METADATA_IP,
        lab.address(RIG),
        *rigs_links(rig),
        "127.0.0.1",
    ]
    served = [f"{address}:{SERVICE_PORT}" for address in (INTERNET, *at_home)]
    neighbours = [box_address(rig), "127.0.0.1", rig.home.spec.node_ip]
    doors = [PORT, ports["gcs"], ports["dashboard"], ports["node_manager"], ports["object_manager"]]
    return {
        "paths": [str(path) for path in secret_paths(rig)],
        "tcp": [
            *served,
            *(f"{lab.public_ip(CONTROL)}:{port}" for port in LISTENS.values()),
            *(f"{address}:{port}" for address in neighbours for port in doors),
        ],
        "udp": [f"{address}:{SERVICE_PORT}" for _, address in datagram_servers(rig.network)],
        "mark": MARK,
        "shared_key": SHARED_KEY,
    }


def rigs_links(rig: Rig) -> list[str]:
    """The rig's own ends of its boxes' links."""
    links = json.loads(rig.network.lab.run(RIG, ["ip", "-j", "-4", "address"]).stdout)
    return [link["addr_info"][0]["local"] for link in links if link["ifname"].startswith("orch-")]


def box_address(rig: Rig) -> str:
    """Acme's end of its link."""
    (link,) = json.loads(
        rig.network.beside(rig.home, ["ip", "-j", "-4", "address", "show", "egress0"]).stdout
    )
    return str(link["addr_info"][0]["local"])


def secret_paths(rig: Rig) -> list[Path]:
    """The supplier's: its system's, its owner's, the agent's keys and socket; and all that is acme's."""
    system = [Path(name) for name in ("/etc/shadow", "/boot", "/var/lib", "/run/netns", "/sys/class")]
    owners = [Path.home(), REPOSITORY / "README.md", rig.network.control_dir / "admin-token"]
    at_rig = sorted((rig.network.folder / RIG).rglob("*"))
    # A file that is just being written has gone by the time somebody looks for it.
    agents = [path for path in at_rig if not path.is_dir() and path.suffix != ".new"]
    acmes = [rig.home.folder, Path(rig.box.shared_dir), Path(rig.box.scratch_dir), image_path(rig.box)]
    return [path for path in (*system, *owners, *agents, *acmes) if path.exists()]


def found(text: str) -> dict[str, Any]:
    """What look.py printed last."""
    seen: dict[str, Any] = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    return seen


def test_tenants_task_looking_everywhere_finds_nothing_of_the_supplier_or_of_its_neighbour(rig: Rig) -> None:
    asked = questions(rig)
    job = submit(rig.birch, "look", LOOK.name, json.dumps(asked))
    assert job.code(JOB_S) == 0, job.text
    seen = found(job.text)
    internet = [f"{INTERNET}:{SERVICE_PORT}"]
    assert (seen["tcp"], seen["udp"]) == (internet, internet)
    assert seen["paths"] == []
    assert (seen["marked"], seen["abstract"], seen["segment"], seen["home"]) == ([], False, False, [])
    assert seen["interfaces"] == ["egress0", "lo"]
    assert not [
        name for name in seen["devices"] if name.startswith(("nvidia", "sd", "vd", "loop", "kvm", "tun"))
    ]
    for strange in (MARK, "worker join", "keeper", rig.home.spec.member_id):
        assert not [
            command for command in seen["commands"] if strange in command and LOOK.name not in command
        ]
    assert not [
        line for line in seen["variables"] if any(one in line for one in rig.network.secrets.values())
    ]
    for strange in (rig.box.scratch_dir, rig.home.spec.member_id, "/root"):
        assert strange not in seen["mounts"]


def test_same_look_from_the_rig_and_from_the_neighbours_own_box_finds_what_is_there(rig: Rig) -> None:
    asked = questions(rig)
    text = json.dumps(asked)
    from_rig = found(rig.network.lab.run(RIG, [sys.executable, "-I", LOOK, text]).stdout)
    assert set(from_rig["paths"]) == set(asked["paths"])
    assert {"agent.sock", "tls-key.pem"} <= {Path(path).name for path in asked["paths"]}
    services_there = {one for one in asked["tcp"] if one.endswith(f":{SERVICE_PORT}")}
    assert set(from_rig["tcp"]) >= services_there
    assert set(from_rig["udp"]) == set(asked["udp"])
    interpreter = rig.home.spec.interpreter
    at_home = found(rig.network.inside(rig.home, [interpreter, "-I", "-c", LOOK.read_text(), text]).stdout)
    assert set(at_home["marked"]) == {"/dev/shm", "/tmp", "/home"}
    assert (at_home["abstract"], at_home["segment"]) == (True, True)
    assert [command for command in at_home["commands"] if MARK in command and "settle.py" in command]
    assert set(at_home["tcp"]) >= {
        f"{box_address(rig)}:{PORT}",
        f"{rig.home.spec.node_ip}:{rig.home.spec.ports['gcs']}",
    }


@pytest.mark.parametrize(
    ("kind", "results", "lasting_s"),
    [
        ("disk", ("ENOSPC after",), 0.0),
        # Ray ends its own workers, which may be sooner than the kernel ends the hog.
        ("memory", ("the hog ended by SIGKILL", "running low on memory"), 0.0),
        ("forks", (), 0.0),
        ("spin", (), SPUN_S),
    ],
)
def test_tenants_task_taking_all_there_is_harms_neither_agent_nor_neighbour(
    rig: Rig, kind: str, results: tuple[str, ...], lasting_s: float
) -> None:
    before = rig.beats
    job = submit(rig.birch, kind, "attack.py", kind)
    unseen: list[str] = []

    def is_met() -> bool:
        worker = rig.network.worker(RIG)
        # Without a name it is no answer: whoever asks has his own trouble with the cores.
        if worker.name and not (worker.liveness == "live" and worker.connected):
            unseen.append(worker.liveness)
        return any(one in job.text for one in results) if results else forks_refused(rig, kind) > 0

    wait_until(is_met, what=f"{kind} to meet its limit", deadline_s=JOB_S)
    met_s = time.monotonic()
    wait_until(
        lambda: is_met() and time.monotonic() - met_s >= lasting_s,
        what=f"{kind} to have lasted",
        deadline_s=JOB_S,
    )
    node = node_of(rig.network, rig.birch, kind)
    rig.network.orch("job", "stop", kind)
    reached = rig.beats
    assert reached > before
    wait_until(lambda: rig.beats >= reached + BEATS, what="the neighbour to go on", deadline_s=JOB_S)
    rig.birch.await_status(kind, "SUCCEEDED", "STOPPED", "FAILED", deadline_s=JOB_S)
    end(job)
    wait_until(lambda: not node.folder.exists(), what="its box to be gone", deadline_s=ENDED_S)
    assert unseen == []
    wait_until(rig.is_live, what="an answer about the rig", deadline_s=ENDED_S)
    rig.acme.await_status("stay", "RUNNING")


def forks_refused(rig: Rig, job: str) -> int:
    """How often the kernel has refused a process in the box of a job."""
    attempts = rig.birch.job(job).attempts
    boxes = [
        node.spec.box
        for node in rig.network.nodes()
        if node.spec.cluster_id in {one.cluster_id for one in attempts}
    ]
    events = [
        file.with_name("pids.events").read_text()
        for box in boxes
        if box is not None
        for file in BoxCgroups(box.name).entry_files
        if file.with_name("pids.events").exists()
    ]
    return sum(int(text.split()[1]) for text in events)


def test_ended_cluster_on_the_rig_leaves_nothing_and_the_other_stays(rig: Rig) -> None:
    job = submit(rig.birch, "last", "settle.py", "birch-was-here")
    rig.birch.await_output(job, "is at home", deadline_s=JOB_S)
    node = node_of(rig.network, rig.birch, "last")
    kinds = {"process", "cgroup", "mount", "interface", "table", "file"}
    assert {trace.partition(" ")[0] for trace in traces(rig, node)} == kinds
    rig.network.orch("job", "stop", "last")
    wait_until(lambda: not node.folder.exists(), what="the cluster to end", deadline_s=ENDED_S)
    assert traces(rig, node) == []
    assert {trace.partition(" ")[0] for trace in traces(rig, rig.home)} == kinds
    assert rig.acme.status("stay") == "RUNNING"
    end(job)


def traces(rig: Rig, node: Node) -> list[str]:
    """What there is on the rig of a member, in words."""
    box = node.spec.box
    assert box is not None
    lab, cgroups = rig.network.lab, BoxCgroups(box.name)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    links = json.loads(lab.run(RIG, ["ip", "-j", "link"]).stdout)
    tables = lab.run(RIG, ["nft", "list", "tables"]).stdout.splitlines()
    files = [image_path(box), Path(box.scratch_dir), Path(box.shared_dir), node.folder]
    return [
        *(f"process {pid}" for pid in processes_of(box.user_id) | cgroups.members()),
        *(f"cgroup {path.parent}" for path in cgroups.entry_files if path.exists()),
        *(f"mount {line}" for line in mounts if any(f" {path} " in line for path in files)),
        *(f"interface {link['ifname']}" for link in links if link["ifname"] == host_interface(box.name)),
        *(f"table {table}" for table in tables if table.endswith(table_name(box.name))),
        *(f"file {path}" for path in files if path.exists()),
    ]


def processes_of(user_id: int) -> set[int]:
    """All processes of one user, wherever they are."""
    found_pids = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == user_id:
                found_pids.add(int(entry.name))
    return found_pids
