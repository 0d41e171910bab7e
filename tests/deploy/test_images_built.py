"""The images, really built and run: what is in them, and the chart's pods started from them with the rights they get."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.box.tiers import TOOL_PACKAGES
from tests.deploy import engine as images
from tests.deploy.engine import Container, Engine
from tests.deploy.tools import ROOT, named, render
from tests.polling import wait_until

NO_ENGINE = images.cannot_build()
pytestmark = [
    pytest.mark.skipif(NO_ENGINE != "", reason=NO_ENGINE),
    # The first test that wants an image builds it, and one wants both.
    pytest.mark.timeout(images.BASE_S + 2 * images.BUILD_S),
]

CONTROL = "rel-orchestrator"
WORKER = "rel-orchestrator-worker"
NODE = "gpu-node-1"
START_S = 60.0
"""A process of ours takes seconds to start; on two busy cores it may take a minute."""

MIB = 1 << 20
BYTES_MAX = {"control-plane": 280 * MIB, "agent": 1000 * MIB}
"""What an image may add to its base: they add 228 and 859 MiB. Most of the agent's is Ray and what Ray needs."""

INSTALLED = (
    "from importlib.metadata import distributions as d\nfor one in d(): print(one.name + '==' + one.version)"
)
PROGRAMS = """
import json, shutil, sys
print(json.dumps({name: shutil.which(name) for name in sys.argv[1:]}))
"""
WRITABLE = """
import os
found = []
for at, folders, files in os.walk("/", followlinks=False):
    folders[:] = [one for one in folders if os.path.join(at, one) not in ("/proc", "/sys", "/dev")]
    found += [path for name in files if os.lstat(path := os.path.join(at, name)).st_uid == os.getuid()]
print("\\n".join(found))
"""
READY = """
import sys, urllib.request
from urllib.error import HTTPError
try:
    print(urllib.request.urlopen("http://127.0.0.1:9464/readyz", timeout=5).status)
except HTTPError as error:
    print(error.code)
except OSError:
    print(0)
"""


@pytest.fixture(scope="session")
def base() -> Iterator[tuple[Engine, str]]:
    """An engine with its base image, for all tests here."""
    with ExitStack() as held:
        try:
            made = held.enter_context(images.engine_with_base())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no base image can be made of Debian's packages: {error.stderr[-400:]}")
        yield made


@pytest.fixture(scope="session")
def control_plane(base: tuple[Engine, str]) -> Engine:
    """With the control plane's image."""
    base[0].build("control-plane", base[1])
    return base[0]


@pytest.fixture(scope="session")
def agent(base: tuple[Engine, str]) -> Engine:
    """With the agent's image."""
    base[0].build("agent", base[1])
    return base[0]


@pytest.fixture(params=["control-plane", "agent"])
def built(request: pytest.FixtureRequest) -> tuple[Engine, str]:
    """Each image in turn."""
    name = {"control-plane": "control_plane"}.get(request.param, request.param)
    return request.getfixturevalue(name), request.param


def size_bytes(engine: Engine, reference: str) -> int:
    return int(engine.run("image", "inspect", "--format={{.Size}}", reference))


def test_image_any_is_labelled_and_adds_little_to_its_base(built: tuple[Engine, str]) -> None:
    engine, image = built
    whole = size_bytes(engine, f"localhost/{image}:test")
    added = whole - size_bytes(engine, f"localhost/{images.BASE_IMAGE}")
    assert added < BYTES_MAX[image]
    labels = images.labels_of(engine, image)
    assert labels["org.opencontainers.image.version"] == "9.9.9"
    assert labels["org.opencontainers.image.revision"] == "f" * 40


def test_image_any_has_exactly_what_the_lock_names(built: tuple[Engine, str]) -> None:
    engine, image = built
    found = images.distributions(engine.python(image, INSTALLED))
    # A package may be named once for each range of Python's versions.
    text = (ROOT / "requirements.lock").read_text()
    lock = set(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^ ;\\]+)", text, re.MULTILINE))
    del found["ray-gpu-orchestrator"]
    assert len(found) > 30
    assert found.items() - lock == set()


def test_image_any_holds_no_file_of_its_own_user_and_nothing_of_the_build(built: tuple[Engine, str]) -> None:
    engine, image = built
    assert engine.python(image, WRITABLE).split() == []
    left = "import os; print([p for p in ('/src', '/build', '/cache', '/dist') if os.path.exists(p)])"
    assert engine.python(image, left).strip() == "[]"
    given = "import os; print(os.path.exists('/etc/pip.conf'), os.path.exists('/etc/uv'))"
    assert engine.python(image, given).split() == ["False", "False"]


def test_agent_image_has_every_program_that_it_calls(agent: Engine) -> None:
    wanted = [
        *TOOL_PACKAGES,
        "nebula",
        "nebula-cert",
        "tini",
        "chown",
        "test",
        "losetup",
        "umount",
        "uv",
        "ray",
    ]
    code = f"import sys; sys.argv[1:] = {wanted!r}{PROGRAMS}"
    found = json.loads(agent.python("agent", code))
    assert [name for name, path in found.items() if path is None] == []


def test_control_plane_image_has_its_lighthouse(control_plane: Engine) -> None:
    code = f"import sys; sys.argv[1:] = ['nebula', 'nebula-cert', 'setpriv', 'orch']{PROGRAMS}"
    found = json.loads(control_plane.python("control-plane", code))
    assert [name for name, path in found.items() if path is None] == []


def test_build_with_a_package_of_another_hash_is_refused(base: tuple[Engine, str], tmp_path: Path) -> None:
    engine, digest = base
    lock = (ROOT / "requirements.lock").read_text()
    begin = lock.index("\nrfc8785==")
    changed = re.sub(r"(?<=sha256:)[0-9a-f]{64}", "0" * 64, lock[begin : lock.index("\n", begin + 300)])
    (tmp_path / "requirements.lock").write_text(lock[:begin] + changed + lock[begin + len(changed) :])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "deploy" / "images").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "images" / "build.lock", tmp_path / "deploy" / "images")
    said = engine.build("control-plane", digest, context=tmp_path, check=False)
    assert "Hash mismatch for `rfc8785" in said


def pod_of(
    kind: str, name: str, values: dict[str, Any], folder: Path, engine: Engine, **more: Any
) -> Container:
    folder.mkdir()
    image = "agent" if kind == "DaemonSet" else "control-plane"
    pod = Container(
        render(values), kind, name, folder, fields={"spec.nodeName": NODE}, engine=engine, image=image, **more
    )
    pod.place_files()
    return pod


@pytest.fixture
def control(control_plane: Engine, tmp_path: Path) -> Iterator[Container]:
    """The control plane's pod, ready."""
    pod = pod_of("Deployment", CONTROL, {}, tmp_path / "control", control_plane)
    pod.path("/etc/orchestrator/metrics/token").write_text("prometheus-shows-this\n")
    pod.begin()
    try:
        wait_until(
            lambda: not pod.is_running() or pod.execute("python", "-c", READY).strip() == "200",
            what="the control plane's /readyz",
            deadline_s=START_S,
        )
        assert pod.is_running(), pod.said()
        yield pod
    finally:
        control_plane.run("rm", "--force", "--time=0", pod.name)


def test_control_plane_from_its_image_serves_as_the_chart_runs_it(control: Container) -> None:
    assert control.execute("id", "-u", "-n").strip() == "orch"
    assert json.loads(control.execute("orch", "status", "--output", "json"))["network_id"]
    with pytest.raises(AssertionError, match="Read-only file system"):
        control.execute("touch", "/opt/orch/here")
    assert control.stop() == 0, control.said()


def test_agent_from_its_image_says_which_token_it_lacks_then_joins(
    control: Container, agent: Engine, tmp_path: Path
) -> None:
    values = {
        "workers": {
            "enabled": True,
            "isolation": "none",
            "joinTokens": {"existingSecret": "t"},
            "settings": {"cpus": 1},
        }
    }
    extra = {"ORCH_WORKER_GPUS": "false"}
    service = f"{CONTROL}.net.svc"
    pod = pod_of(
        "DaemonSet", WORKER, values, tmp_path / "worker", agent, extra=extra, beside=CONTROL, names=[service]
    )
    assert f'"{service}:7443"' in named(pod.manifests, "ConfigMap", WORKER)["data"]["worker.toml"]
    try:
        pod.begin()
        wait_until(lambda: not pod.is_running(), what="the agent without a token to end", deadline_s=START_S)
        assert f"/etc/orchestrator/join/{NODE}" in pod.said()
        agent.run("rm", "--force", "--time=0", pod.name)
        secret = control.execute("orch", "token", "create", "--role", "supplier", "--subject", "s")
        pod.path(f"/etc/orchestrator/join/{NODE}").write_text(secret)
        pod.begin()
        wait_until(
            lambda: "offering " in pod.said() or not pod.is_running(),
            what="the agent's offer",
            deadline_s=START_S,
        )
        assert "offering " in pod.said(), pod.said()
        listed = json.loads(control.execute("orch", "worker", "list", "--output", "json"))["workers"]
        assert [one["name"] for one in listed] == [NODE]
        assert pod.stop() == 0, pod.said()
    finally:
        agent.run("rm", "--force", "--ignore", "--time=0", pod.name)
