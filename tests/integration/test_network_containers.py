"""One machine whose tier is container: the same job as in a box, and one in an image of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from examples.demo.network import Machine
from orchestrator.adapters.container.tiers import detect
from tests.images import PYTHON_DIR, imported_image
from tests.integration.network import Network, running
from tests.integration.tenants import Tenant
from tests.runtimes import default_runtime, shared_folder

TIER = detect()

pytestmark = pytest.mark.skipif(
    TIER.tier != "container", reason=f"needs a machine where podman works: {TIER.reason}"
)

JOB = """
import os, ray

@ray.remote
def seen():
    status = open("/proc/self/status").read()
    return [line for line in status.splitlines() if line.startswith(("CapEff", "NoNewPrivs", "Seccomp:"))]

ray.init()
print("rights", ray.get(seen.remote()))
print("ground", "init.py" in open("/proc/1/cmdline").read(), os.getuid() >= 0x70000000, os.path.exists("/root"))
"""


class ContainerNetwork(Network):
    """Machines whose members are containers, without overlay or internet."""

    def agent_flags(self, machine: Machine) -> list[str]:
        containers = ["--isolation", "container", "--overlay", "none", "--egress", "none"]
        return ["--cpus", "1", "--runtimes-dir", str(shared_folder()), *containers]


class ContainerTenant(Tenant):
    """Asks for the stronger tier."""

    CONSENT: ClassVar[Mapping[str, str | int]] = {"isolation": "container"}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    asyncio.run(default_runtime())
    with running(ContainerNetwork(), [Machine("rig", "north", "consumer", "RTX4090x1")]) as network:
        yield network


@pytest.fixture(scope="module")
def tenant(network: Network) -> Tenant:
    return ContainerTenant(network, network.create_tenant("acme"))


def test_job_in_a_container_has_no_rights_and_no_sight_of_its_host(tenant: Tenant, scripts: Path) -> None:
    (scripts / "job.py").write_text(JOB)
    said = tenant.run("contained", "python", "job.py", working_dir=scripts)
    for line in ("CapEff:\\t0000000000000000", "NoNewPrivs:\\t1", "Seccomp:\\t2"):
        assert line in said
    assert "ground True True False" in said


IMAGE_JOB = """
import os, sys, ray

@ray.remote
def seen():
    return sys.executable, sorted(os.listdir("/usr"))

ray.init()
print("image", sys.executable, ray.get(seen.remote()))
"""


def test_job_in_an_image_has_its_python_and_nothing_of_the_host(tenant: Tenant, scripts: Path) -> None:
    runtime = asyncio.run(default_runtime())
    (scripts / "job.py").write_text(IMAGE_JOB)
    with imported_image(runtime.python.parents[1], f"orch-test-{os.getpid()}") as reference:
        job = tenant.submit("imaged", "python", "job.py", working_dir=scripts, orch={"image": reference})
        code = job.code()
    assert code == 0, job.text
    assert f"image {PYTHON_DIR}/bin/python" in job.text
    assert "['bin', 'lib', 'lib64']" in job.text
