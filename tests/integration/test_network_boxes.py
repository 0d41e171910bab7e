"""One machine that makes boxes: what a job installs for itself goes on top of its runtime, and stays in its box."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from examples.demo.network import Machine
from orchestrator.adapters.box.tiers import detect
from tests.integration.network import Network, running
from tests.integration.scraped import check_scrapes
from tests.integration.tenants import Tenant
from tests.polling import wait_until
from tests.runtimes import default_runtime, shared_folder

TIER = detect()

pytestmark = pytest.mark.skipif(
    TIER.tier == "none", reason=f"needs a machine that can make boxes: {TIER.reason}"
)

STATUS_S = 60.0
"""It is known with the first welcome; the command itself takes a second or two."""

WHEEL = "tiny-1.0-py3-none-any.whl"
IN_WORKING_DIR = f"${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{WHEEL}"

JOB = """
import sys
import numpy, ray, tiny

@ray.remote
def elsewhere():
    import tiny
    return tiny.WORD

ray.init()
print("driver", tiny.WORD, "task", ray.get(elsewhere.remote()), "numpy", bool(numpy.__version__))
print("own environment", sys.prefix != sys.base_prefix)
"""


class BoxedNetwork(Network):
    """Machines in boxes, without overlay or internet."""

    def agent_flags(self, machine: Machine) -> list[str]:
        boxes = ["--isolation", "box", "--overlay", "none", "--egress", "none"]
        return ["--cpus", "1", "--runtimes-dir", str(shared_folder()), *boxes]


class BoxedTenant(Tenant):
    """Consents to nothing: a box is what a job gets that says nothing."""

    CONSENT: ClassVar[Mapping[str, str | int]] = {}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    asyncio.run(default_runtime())
    with running(BoxedNetwork(), [Machine("rig", "north", "consumer", "RTX4090x1")]) as network:
        yield network


@pytest.fixture(scope="module")
def tenant(network: Network) -> Tenant:
    return BoxedTenant(network, network.create_tenant("acme"))


def write_wheel(path: Path) -> None:
    """A package of one module, as any installer takes it."""
    files = {
        "tiny.py": "WORD = 'tiny and mine'\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(text)))
    rows.writerow(("tiny-1.0.dist-info/RECORD", "", ""))
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, "tiny-1.0.dist-info/RECORD": record.getvalue()}.items():
            wheel.writestr(name, text)


def test_worker_status_shows_the_default_runtime_before_any_job(network: Network) -> None:
    def shown() -> str:
        return network.orch("worker", "status", "--data-dir", str(network.folder / "rig"))[1]

    wait_until(lambda: "runtime default" in shown(), what="the runtime to be looked at", deadline_s=STATUS_S)
    fields = {line.split("  ")[0]: line for line in shown().splitlines()}
    assert "ready" in fields["runtime default"]
    assert "box" in fields["isolation"]
    assert "one-machine clusters only" in fields["remark 1"]


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_job_wheel_of_its_working_dir_is_installed_in_its_box_without_internet(
    tenant: Tenant, scripts: Path, installer: str
) -> None:
    (scripts / "job.py").write_text(JOB)
    write_wheel(scripts / WHEEL)
    runtime_env = json.dumps({installer: [IN_WORKING_DIR]})
    code, said = tenant.ray(
        *("submit", "--submission-id", f"with-{installer}", "--working-dir", str(scripts)),
        *("--runtime-env-json", runtime_env, "--", "python", "job.py"),
    )
    assert code == 0, said
    assert "driver tiny and mine task tiny and mine numpy True" in said
    assert "own environment True" in said


def test_job_after_another_finds_nothing_of_what_that_installed(tenant: Tenant, scripts: Path) -> None:
    (scripts / "job.py").write_text("import tiny")
    code, said = tenant.ray("submit", "--working-dir", str(scripts), "--", "python", "job.py")
    assert code != 0
    assert "No module named 'tiny'" in said


def test_ray_node_in_a_box_is_scraped_in_its_own_network(network: Network, tenant: Tenant) -> None:
    shown = check_scrapes(network, tenant, "scraped")
    assert "ray_node_cpu_utilization" in shown
