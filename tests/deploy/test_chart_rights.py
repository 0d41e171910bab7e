"""The rights that the chart gives to agents with boxes, given to a real container: they are enough, and none to spare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.box import tiers
from orchestrator.adapters.container.podman import BASE
from tests.deploy.tools import ROOT, named, render

FOLDERS = ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "root", "opt", "var/lib/orchestrator-agent")
LINKS = ("bin", "lib", "lib64", "sbin")
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
"""What podman would raise by itself not every machine allows."""

RUN_S = 100.0

DETECT = """
import json
from orchestrator.adapters.box import tiers
from orchestrator.adapters.overlay import process
found = tiers.detect()
print(json.dumps({"tier": found.tier, "reason": found.reason, "overlay": process.available()}))
"""

LACKING = next(
    (
        reason
        for reason, holds in (
            ("needs root", os.geteuid() != 0),
            (
                "needs podman and runc: run `make system`",
                not (shutil.which("podman") and shutil.which("runc")),
            ),
            ("needs a machine that can make boxes", tiers.detect().tier == "none"),
        )
        if holds
    ),
    "",
)

pytestmark = pytest.mark.skipif(LACKING != "", reason=LACKING)


def agent_container() -> tuple[dict[str, Any], dict[str, Any]]:
    """(pod, container) of a worker that makes boxes."""
    workers = {"enabled": True, "joinTokens": {"existingSecret": "t"}}
    template = named(render({"workers": workers}), "DaemonSet", "rel-orchestrator-worker")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return template["spec"], container


def root_directory(folder: Path) -> Path:
    """A root with nothing in it but places to mount this machine's programs on."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in LINKS:
        (folder / name).symlink_to(f"usr/{name}")
    return folder


def flags_of(pod: dict[str, Any], container: dict[str, Any]) -> list[str]:
    """What the pod's rights and volumes are called by podman."""
    rights = container["securityContext"]
    flags = ["--network=none", f"--user={rights['runAsUser']}"]
    flags += ["--privileged"] if rights.get("privileged") else []
    flags += ["--read-only"] if rights["readOnlyRootFilesystem"] else []
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume, at = volumes[mount["name"]], mount["mountPath"]
        if "emptyDir" in volume:
            flags.append(f"--tmpfs={at}:rw,notmpcopyup")
        elif at == "/dev":
            flags.append(f"--volume={volume['hostPath']['path']}:{at}")
    return flags


def detected(folder: Path, pod: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
    """What an agent in such a container finds that it can do."""
    root = root_directory(folder / "root")
    shown = dict.fromkeys(("/usr", "/etc", sys.base_prefix, str(Path(sys.prefix).resolve()), str(ROOT)))
    for path in shown:
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    mounts = [f"--volume={path}:{path}:ro" for path in shown]
    words = container["command"]
    assert words[:2] == ["tini", "--"]
    assert words[-1] == "orch"
    command = [*words[2:-1], str(Path(sys.prefix).resolve() / "bin" / "python"), "-c", DETECT]
    run = [*BASE, "--runtime=runc", "run", "--rm", *flags_of(pod, container), *LIMITS, *mounts]
    done = subprocess.run(
        [*run, f"--env=PYTHONPATH={ROOT}", "--workdir=/", "--rootfs", str(root), *command],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def test_worker_with_the_charts_rights_makes_boxes_and_an_overlay(tmp_path: Path) -> None:
    pod, container = agent_container()
    found = detected(tmp_path, pod, container)
    assert found["tier"] == "box", found["reason"]
    assert found["overlay"] == ""


def test_worker_without_privilege_makes_no_boxes(tmp_path: Path) -> None:
    pod, container = agent_container()
    container["securityContext"]["privileged"] = False
    # Without it the bounding set cannot be made, either; this asks what the rest would be worth.
    container["command"] = ["tini", "--", "orch"]
    assert detected(tmp_path, pod, container)["tier"] == "none"
