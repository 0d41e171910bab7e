"""The Dockerfiles, as far as they can be judged without an engine: what they are made of, who runs them, what is in."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.box.tiers import TOOL_PACKAGES
from orchestrator.adapters.container.podman import BASE
from tests.deploy.matrix import MATRIX
from tests.deploy.tools import ROOT, named, render

IMAGES = {name: ROOT / "deploy" / "images" / name / "Dockerfile" for name in ("control-plane", "agent")}
BUILD_LOCK = ROOT / "deploy" / "images" / "build.lock"

BUILD_S = 60.0
"""Podman reads a file in a tenth of a second; its first run on a machine sets up a store."""

INSTRUCTIONS = {
    *("ARG", "FROM", "RUN", "COPY", "ENV", "LABEL", "USER", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD")
}
"""ADD is left out: it fetches and unpacks without being asked."""

LABELS = {
    f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses", "version", "revision")
}

each_image = pytest.mark.parametrize("image", IMAGES)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, continued lines joined, and the number of its stage."""

    name: str
    text: str
    stage: int


def instructions(image: str) -> list[Instruction]:
    """All of one Dockerfile. Fails the test for what is none."""
    lines = [line for line in IMAGES[image].read_text().splitlines() if line and not line.startswith("#")]
    found: list[Instruction] = []
    stage = -1
    for whole in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, text = whole.strip().partition(" ")
        assert name in INSTRUCTIONS, whole
        stage += name == "FROM"
        found.append(Instruction(name, " ".join(text.split()), stage))
    return found


def of(image: str, name: str, stage: int | None = None) -> list[str]:
    """The texts of one kind of instruction, in one stage or in all."""
    return [one.text for one in instructions(image) if one.name == name and stage in (None, one.stage)]


def last_stage(image: str) -> int:
    return instructions(image)[-1].stage


@each_image
def test_base_any_is_pinned_by_a_digest_that_must_be_given(image: str) -> None:
    assert of(image, "ARG", -1) == ["DIGEST"]
    for base in of(image, "FROM"):
        reference = base.split()[0]
        assert reference.endswith("@${DIGEST}")
        # No registry's host: where images come from is the operator's choice.
        assert "/" not in reference
    assert len(of(image, "FROM")) == 2


@pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman: run `make system`")
@each_image
def test_build_without_a_digest_stops_before_anything_is_fetched(image: str) -> None:
    command = [*BASE, "build", "--build-arg=DIGEST=", f"--file={IMAGES[image]}", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_S)
    assert done.returncode != 0
    # Every line before was read by a real builder.
    assert "STEP 1/" in done.stdout + done.stderr
    assert "invalid reference format" in done.stderr


@each_image
def test_image_runs_as_the_user_and_where_the_chart_says(image: str) -> None:
    component, home = {
        "control-plane": ("rel-orchestrator", "/var/lib/orchestrator"),
        "agent": ("rel-orchestrator-worker", "/var/lib/orchestrator-agent"),
    }[image]
    kind = "Deployment" if image == "control-plane" else "DaemonSet"
    manifests = render(MATRIX["workers-without-rights"])
    pod = named(manifests, kind, component)["spec"]["template"]["spec"]
    rights = pod["securityContext"]
    assert of(image, "USER", last_stage(image)) == [f"{rights['runAsUser']}:{rights['runAsGroup']}"]
    assert of(image, "WORKDIR", last_stage(image)) == [home]
    assert home in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    (entry,) = of(image, "ENTRYPOINT", last_stage(image))
    assert json.loads(entry) == pod["containers"][0].get("command", ["orch"])


def test_control_plane_exposes_every_port_of_its_pod() -> None:
    manifests = render(MATRIX["everything"])
    (container,) = named(manifests, "Deployment", "rel-orchestrator")["spec"]["template"]["spec"][
        "containers"
    ]
    wanted = {
        f"{port['containerPort']}/udp" if port.get("protocol") == "UDP" else str(port["containerPort"])
        for port in container["ports"]
    }
    (exposed,) = of("control-plane", "EXPOSE")
    assert set(exposed.split()) == wanted


@each_image
def test_copies_each_source_is_in_the_context(image: str) -> None:
    for text in of(image, "COPY"):
        *sources, _ = [word for word in text.split() if not word.startswith("--")]
        if "--from=" in text:
            assert re.search(r"--from=build\b", text)
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert is_in_context(source), f"{source} is left out by .dockerignore"


def is_in_context(path: str) -> bool:
    """As .dockerignore has it: the last line that fits counts."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").rstrip("/")
        above = [*Path(path).parents, Path(path)]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(str(one), pattern) for one in above):
            kept = line.startswith("!")
    return kept


def test_context_holds_nothing_but_what_images_are_made_of() -> None:
    for name in (
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "deploy/helm/orchestrator/values.yaml",
        ".env",
    ):
        assert not is_in_context(name), name
    assert is_in_context("orchestrator/cli/main.py")


@each_image
def test_commands_each_is_a_shells_and_holds_every_package_to_a_hash(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in of(image, "RUN"):
        command = re.sub(r"--mount=\S+ ", "", text)
        subprocess.run(["sh", "-n", "-c", command], check=True, capture_output=True)
        for step in command.split(" && "):
            if " pip install " not in step:
                continue
            bound = ("--require-hashes", "--constraints requirements.lock", "--offline --no-deps /dist/")
            assert any(words in step for words in bound), step
            assert set(re.findall(r"--extra (\w+)", step)) <= project["optional-dependencies"].keys()
    installs = [text for text in of(image, "RUN") if "--constraints requirements.lock" in text]
    assert len(installs) == 1


@each_image
def test_commands_any_fits_every_architecture(image: str) -> None:
    text = " ".join(one.text for one in instructions(image))
    assert not re.search(r"amd64|x86_64|arm64|aarch64", text)
    # What is cached for one architecture is not taken for another.
    assert all("id=uv-${TARGETARCH}" in one for one in of(image, "RUN") if "--mount=type=cache" in one)
    assert "TARGETARCH" in of(image, "ARG", 0)


@each_image
def test_image_any_carries_its_labels_and_no_secret(image: str) -> None:
    (labels,) = of(image, "LABEL", last_stage(image))
    assert set(re.findall(r"(\S+)=\"", labels)) >= LABELS
    for text in (*of(image, "ENV"), *of(image, "ARG")):
        assert not re.search(r"token|password|secret|key", text, re.IGNORECASE)


def system_packages(image: str) -> set[str]:
    """What the image installs of Debian."""
    (command,) = [text for text in of(image, "RUN", last_stage(image)) if "apt-get install" in text]
    assert "--no-install-recommends" in command
    assert "rm -rf /var/lib/apt/lists/*" in command
    return set(command.partition("--no-install-recommends ")[2].partition(" &&")[0].split())


def test_agent_has_every_program_of_boxes_and_overlay() -> None:
    assert system_packages("agent") >= {*TOOL_PACKAGES.values(), "nebula", "tini"}


def test_control_plane_has_its_lighthouse_and_nothing_else() -> None:
    assert system_packages("control-plane") == {"nebula"}


def locked(path: Path) -> dict[str, list[str]]:
    """Name → its version and hashes."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text().splitlines():
        start = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", line)
        if start:
            name = start[1].lower()
            found[name] = [start[2]]
        elif "--hash=" in line:
            found[name].append(line.partition("--hash=")[2].split()[0])
    return found


def test_build_lock_each_package_is_hashed_and_as_in_the_whole_lock() -> None:
    build, whole = locked(BUILD_LOCK), locked(ROOT / "requirements.lock")
    assert build.keys() >= {"hatchling", "uv"}
    for name, (version, *hashes) in build.items():
        assert hashes, name
        assert name not in whole or whole[name][0] == version, "run `make lock`"
    assert "://" not in BUILD_LOCK.read_text()


def test_python_of_images_is_the_runtimes() -> None:
    runtime: dict[str, Any] = tomllib.loads(
        (ROOT / "orchestrator" / "adapters" / "runtimes" / "data" / "default.toml").read_text()
    )
    for image in IMAGES:
        assert all(base.startswith(f"python:{runtime['python']}-slim") for base in of(image, "FROM"))
