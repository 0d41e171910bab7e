"""The rendered settings and arguments, given to the real processes: they start, serve, join, and come back the same."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import LOOPBACK
from orchestrator.adapters.authority import Authority
from orchestrator.adapters.box import tiers
from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.overlay import process as overlay
from tests.deploy.pods import START_S, Pod
from tests.deploy.tools import render
from tests.polling import wait_until

# Several processes of ours start one after the other.
pytestmark = pytest.mark.timeout(600)

NODE = "gpu-node-1"
ADMIN = "orch_operator_" + "5e" * 32
TOKEN = "prometheus-shows-this"
SERVICE = "rel-orchestrator.net.svc"


@contextlib.contextmanager
def control_plane(
    folder: Path, values: Mapping[str, Any], extra: Mapping[str, str] | None = None
) -> Iterator[Pod]:
    """The control plane's pod, ready."""
    folder.mkdir()
    pod = Pod(render(values), "Deployment", "rel-orchestrator", folder, extra=extra or {})
    pod.take_ports()
    pod.place_files()
    pod.path("/etc/orchestrator/metrics/token").write_text(TOKEN + "\n")
    try:
        yield pod
    finally:
        assert pod.terminate() == 0, pod.said()


def started(pod: Pod) -> Pod:
    """Start it and wait as its startup and readiness probes do."""
    pod.start()
    probe = pod.container["readinessProbe"]["httpGet"]
    process = pod.process
    assert process is not None
    wait_until(
        lambda: process.poll() is not None or status_of(pod, probe["path"]) == 200,
        what=f"the control plane's {probe['path']}",
        deadline_s=START_S,
    )
    assert process.poll() is None, pod.said()
    return pod


def status_of(pod: Pod, path: str, token: str = "") -> int:
    """What the metrics' door answers; 0 for nothing."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return status(f"http://{LOOPBACK}:{pod.ports['9464']}{path}", headers)
    except OSError:
        return 0


def status(url: str, headers: Mapping[str, str], trust: ssl.SSLContext | None = None) -> int:
    """The status of an answer, good or bad. Raises OSError for none."""
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=5, context=trust) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: sockets lie below it, whose paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="oc-") as made:
        yield Path(made)


def test_control_plane_as_rendered_serves_and_is_probed(tmp_path: Path) -> None:
    with control_plane(tmp_path / "c", {}) as pod:
        started(pod)
        assert status_of(pod, pod.container["livenessProbe"]["httpGet"]["path"]) == 200
        assert status_of(pod, "/metrics", TOKEN) == 200
        assert status_of(pod, "/metrics", "another") in (401, 403)
        # As NOTES.txt has it: `kubectl exec … -- orch status` needs nothing but the pod's own variables.
        assert json.loads(pod.execute("orch", "status", "--output", "json"))["network_id"]
        data = pod.path("/var/lib/orchestrator/data")
        assert (data / "ca.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")


def test_control_plane_with_everything_on_starts_with_each_setting(tmp_path: Path) -> None:
    values = {
        "controlPlane": {
            "settings": {
                "idle_teardown_ms": 90_000,
                "open_enrolment": True,
                "debug": True,
                "group_bound_ms": 15,
            },
            "adminToken": {"existingSecret": "admin"},
            "database": {"existingSecret": "database"},
        },
        "gateway": {"tls": {"mode": "secret", "existingSecret": "tls"}, "names": ["gpu.example.com"]},
        "public": {"enabled": True, "sessionAddress": "join.example.com:7444"},
        "overlay": {"address": "beacon.example.com:4242", "bridge": {"enabled": True}},
    }
    with control_plane(tmp_path / "c", values) as pod:
        pod.path("/etc/orchestrator/database/url").write_text(f"sqlite:///{tmp_path / 'external.db'}\n")
        pod.path("/etc/orchestrator/admin/token").write_text(ADMIN + "\n")
        write_certificate(pod.path("/etc/orchestrator/gateway"), tmp_path / "ca", "gpu.example.com")
        started(pod)
        assert (tmp_path / "external.db").exists()
        assert json.loads(pod.execute("orch", "status", "--output", "json"))["network_id"]
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca" / "ca.pem"))
        trust.check_hostname = False
        assert (
            status(f"https://{LOOPBACK}:{pod.ports['8265']}/api/jobs/", {"Host": "gpu.example.com"}, trust)
            == 401
        )


def write_certificate(at: Path, folder: Path, name: str) -> None:
    """A Secret of type kubernetes.io/tls as it is mounted."""
    now_ms = SystemClock().now().wall_ms
    key, chain = Authority(folder, now_ms=now_ms, founded=False).server_credentials_pem(now_ms, (name,))
    (at / "tls.key").write_bytes(key)
    (at / "tls.crt").write_bytes(chain)


def test_control_plane_behind_an_ingress_takes_its_name_in_the_clear(tmp_path: Path) -> None:
    ingress = {"enabled": True, "host": "ray.example.com"}
    with control_plane(tmp_path / "c", {"gateway": {"tls": {"mode": "plain"}, "ingress": ingress}}) as pod:
        started(pod)
        url = f"http://{LOOPBACK}:{pod.ports['8265']}/api/jobs/"
        assert status(url, {"Host": "ray.example.com"}) == 401
        assert status(url, {"Host": "elsewhere.example.com"}) == 421


def agent(folder: Path, values: Mapping[str, Any], control: Pod, kind: str, extra: Mapping[str, str]) -> Pod:
    """A worker's or head host's pod, its token in place as NOTES.txt has it made."""
    folder.mkdir()
    name, pod_name = {
        "DaemonSet": ("rel-orchestrator-worker", "rel-orchestrator-worker-x7k2p"),
        "StatefulSet": ("rel-orchestrator-head-host", "rel-orchestrator-head-host-0"),
    }[kind]
    fields = {"spec.nodeName": NODE, "metadata.name": pod_name}
    pod = Pod(render(values), kind, name, folder, fields=fields, extra=extra)
    pod.place_files()
    settings = pod.path("/etc/orchestrator/agent/worker.toml")
    settings.write_text(
        settings.read_text().replace(f"{SERVICE}:7443", f"{LOOPBACK}:{control.ports['7443']}")
    )
    assert tomllib.loads(settings.read_text())["control_plane"] == f"{LOOPBACK}:{control.ports['7443']}"
    heads = ["--head-host"] if kind == "StatefulSet" else []
    secret = control.execute("orch", "token", "create", "--role", "supplier", "--subject", "s", *heads)
    key = pod_name if kind == "StatefulSet" else NODE
    pod.path(f"/etc/orchestrator/join/{key}").write_text(secret)
    return pod


def workers_of(control: Pod) -> list[dict[str, Any]]:
    """As `orch worker list` shows them."""
    answer = json.loads(control.execute("orch", "worker", "list", "--output", "json"))
    found: list[dict[str, Any]] = answer.get("workers", [])
    return found


def is_ready(pod: Pod) -> bool:
    """As the kubelet finds out."""
    program, *words = pod.container["readinessProbe"]["exec"]["command"]
    assert program == "test"
    assert words[0] == "-S"
    return pod.path(words[1]).is_socket()


def test_worker_without_rights_as_rendered_joins_and_comes_back_the_same(tmp_path: Path) -> None:
    values = {
        "workers": {
            "enabled": True,
            "isolation": "none",
            "joinTokens": {"existingSecret": "t"},
            "settings": {"notice": "1m", "region": ["eu"], "cpus": 1},
        },
    }
    with control_plane(tmp_path / "c", values) as control:
        started(control)
        pod = agent(tmp_path / "w", values, control, "DaemonSet", {"ORCH_WORKER_GPUS": "false"})
        try:
            pod.start()
            pod.wait_for("offering ")
            wait_until(lambda: is_ready(pod), what="the agent's socket", deadline_s=START_S)
            (before,) = workers_of(control)
            assert before["name"] == NODE
            assert before["inventory"]["zone"] == NODE
            assert pod.terminate() == 0, pod.said()
            # A new pod on the same node: the token is spent, and its Secret may be gone.
            shutil.rmtree(pod.path("/etc/orchestrator/join"))
            pod.start()
            wait_until(
                lambda: pod.said().count("offering ") == 2, what="the second start", deadline_s=START_S
            )
            (after,) = workers_of(control)
            assert after["worker_id"] == before["worker_id"]
            assert pod.terminate() == 0, pod.said()
        finally:
            pod.terminate()


NO_BOXES = "" if os.geteuid() == 0 else "boxes need root"
NO_BOXES = NO_BOXES or (found.reason if (found := tiers.detect()).tier == "none" else overlay.available())


@pytest.mark.skipif(NO_BOXES != "", reason=NO_BOXES)
def test_agents_with_boxes_as_rendered_give_up_rights_and_still_make_boxes(tmp_path: Path) -> None:
    tokens = {"joinTokens": {"existingSecret": "t"}}
    values = {
        "workers": {"enabled": True, "settings": {"cpus": 1}, "nodeEvidence": False, **tokens},
        "headHosts": {"replicas": 1, "headSlots": 3, **tokens},
    }
    with control_plane(tmp_path / "c", values) as control:
        started(control)
        worker = agent(tmp_path / "w", values, control, "DaemonSet", {"ORCH_WORKER_GPUS": "false"})
        head = agent(tmp_path / "h", values, control, "StatefulSet", {})
        try:
            for pod in (worker, head):
                pod.start()
            for pod in (worker, head):
                pod.wait_for("offering ")
                assert pod.process is not None
                assert bounding_set(pod.process.pid) == KEPT
            seen = {one["name"]: one["inventory"] for one in workers_of(control)}
            assert seen[NODE]["isolation"].lower().endswith("box")
            assert seen[NODE]["overlay"] == "nebula"
            assert int(seen["rel-orchestrator-head-host-0"]["head_slots"]) == 3
        finally:
            codes = [pod.terminate() for pod in (worker, head)]
        assert codes == [0, 0], worker.said() + head.said()


def bounding_set(pid: int) -> int:
    """The rights that a process can still come by."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("CapBnd:")]
    return int(found, 16)


KEPT = sum(1 << bit for bit in (0, 1, 3, 5, 6, 7, 8, 12, 18, 19, 21))
"""chown, dac_override, fowner, kill, setgid, setuid, setpcap, net_admin, sys_chroot, sys_ptrace, sys_admin."""
