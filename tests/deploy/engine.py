"""An image engine with a store of its own: a base of Debian's packages, the project's images on it, and their containers.

Podman builds as any engine would, by the Dockerfiles alone; only the base is made here, because there is no registry to
ask. Containers have a network of their own with nothing but loopback in it, and every right and mount that the chart
gives the pod.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo.network import child_environment
from orchestrator.adapters.container.podman import BASE
from tests.deploy.pods import Pod
from tests.deploy.tools import ROOT

BASE_IMAGE = "python:3.11-slim-bookworm"
"""What the Dockerfiles begin with."""
RELEASE = "bookworm"
PACKAGES = "ca-certificates,python-is-python3,python3,python3-venv"
"""What the base has beside Debian's smallest: a Python of the version that it is named after."""

BASE_S = 300.0
"""Some 90 packages come and are unpacked within 20 s; a busy machine takes a minute and more."""
BUILD_S = 540.0
"""The agent's image takes a minute and a half, most of it Ray; a busy machine takes three."""
STEP_S = 120.0
"""A container starts within a second; the first of an image of a gigabyte may spread its layers."""

LIMITS = ("--ulimit=nofile=16384:16384", "--ulimit=nproc=4096:4096")
"""Below those of any machine: not every root may raise them."""

GIB = 1 << 30
FREE_BYTES_MIN = 6 * GIB
"""Both images, their build stages and what is fetched for them lie here at once, and are 4 GiB."""


def cannot_build() -> str:
    """Why no image can be built on this machine; empty where it can."""
    if os.geteuid() != 0:
        return "building images without a container of one's own takes root"
    missing = [program for program in ("podman", "mmdebstrap") if shutil.which(program) is None]
    if missing:
        return f"needs {' and '.join(missing)}: run `make system`"
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < FREE_BYTES_MIN:
        return f"needs {FREE_BYTES_MIN // GIB} GiB in {tempfile.gettempdir()}, which has {free // GIB}"
    return ""


@dataclass(frozen=True)
class Engine:
    """Podman over one folder, which holds all of it."""

    folder: Path

    def run(self, *arguments: str | Path, timeout_s: float = STEP_S, check: bool = True) -> str:
        """A command's standard output. Fails the test, with what it said, where podman refuses."""
        store = [f"--root={self.folder / 'store'}", f"--runroot={self.folder / 'run'}", "--runtime=runc"]
        done = subprocess.run(
            [*BASE, *store, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            # What is fetched while building is kept below it, too.
            env=child_environment({"TMPDIR": str(self.folder / "tmp")}),
        )
        assert not check or done.returncode == 0, f"podman {arguments[0]}: {done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def build(self, image: str, digest: str, *, context: Path = ROOT, check: bool = True) -> str:
        """Build one of the project's images as its Dockerfile says, on the base of that digest."""
        arguments = [f"--build-arg={name}={value}" for name, value in given(digest).items()]
        for name, path in self.secrets().items():
            arguments.append(f"--secret=id={name},src={path}")
        return self.run(
            "build",
            *("--isolation=chroot", "--network=host", "--pull=never", "--layers=false"),
            f"--platform=linux/{architecture()}",
            *arguments,
            f"--file={ROOT / 'deploy' / 'images' / image / 'Dockerfile'}",
            f"--tag=localhost/{image}:test",
            context,
            timeout_s=BUILD_S,
            check=check,
        )

    def secrets(self) -> dict[str, Path]:
        """The machine's way to its index of packages, as the Dockerfiles take it."""
        found: dict[str, Path] = {}
        index = os.environ.get("PIP_INDEX_URL") or pip_option("global.index-url")
        pip = configparser.RawConfigParser()
        pip["global"] = {"index-url": index} if index else {}
        uv = f'[[index]]\nurl = "{index}"\ndefault = true\n' if index else ""
        bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        if bundle:
            found["certificates"] = Path(bundle).resolve()
            pip["global"]["cert"] = "/etc/ssl/certs/ca-certificates.crt"
            uv = f"system-certs = true\n{uv}"
        found["pip"], found["uv"] = self.folder / "pip.conf", self.folder / "uv.toml"
        with found["pip"].open("w", encoding="utf-8") as file:
            pip.write(file)
        found["uv"].write_text(uv, encoding="utf-8")
        return found

    def python(self, image: str, code: str) -> str:
        """What a few lines say in a container of the image: as its user, its root directory read-only, no network."""
        rights = (
            "--read-only",
            "--read-only-tmpfs=false",
            "--cap-drop=all",
            "--security-opt=no-new-privileges",
        )
        words = ("--rm", "--network=none", "--pull=never", "--entrypoint=python", f"localhost/{image}:test")
        return self.run("run", *rights, *LIMITS, *words, "-c", code)


def given(digest: str) -> Mapping[str, str]:
    """The arguments of a build."""
    return {"DIGEST": digest, "VERSION": "9.9.9", "REVISION": "f" * 40}


def architecture() -> str:
    """This machine's, as images name it."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def pip_option(name: str) -> str:
    """What pip's configuration says; empty for nothing."""
    command = [sys.executable, "-m", "pip", "config", "get", name]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


@contextmanager
def engine_with_base() -> Iterator[tuple[Engine, str]]:
    """An engine and the digest of its base; nothing of it is left afterwards. Raises CalledProcessError for no base."""
    folder = Path(tempfile.mkdtemp(prefix="orch-images-"))
    engine = Engine(folder)
    (folder / "tmp").mkdir()
    try:
        base = folder / "base.tar"
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={PACKAGES}"]
        command += [RELEASE, str(base)]
        subprocess.run(
            command, check=True, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=BASE_S
        )
        engine.run("import", "--quiet", base, f"localhost/{BASE_IMAGE}")
        base.unlink()
        yield (
            engine,
            engine.run("image", "inspect", "--format={{.Digest}}", f"localhost/{BASE_IMAGE}").strip(),
        )
    finally:
        engine.run("rm", "--all", "--force", "--time=0", check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()):
            if (at := line.split()[4]).startswith(f"{folder}/"):
                subprocess.run(["umount", at], check=False, capture_output=True)
        shutil.rmtree(folder)


@dataclass
class Container(Pod):
    """A rendered pod, run by its image, with the rights and mounts that the chart gives it; paths stay as they are."""

    engine: Engine | None = None
    image: str = ""
    beside: str = ""
    """The container whose network it shares; alone by default."""
    names: Sequence[str] = ()
    """Names that are found on loopback, as a cluster's DNS would have them."""

    def here(self, text: str) -> str:
        """Nothing has to be put differently in a container."""
        return text

    def podman(self, *arguments: str | Path, check: bool = True) -> str:
        """A command of this container's engine."""
        assert self.engine is not None
        return self.engine.run(*arguments, check=check)

    def begin(self) -> None:
        """Run it, without waiting."""
        arguments = self.container.get("command", []) + self.container["args"]
        entry = [f"--entrypoint={arguments.pop(0)}"] if "command" in self.container else []
        self.podman(
            "run",
            *("--detach", f"--name={self.name}", "--pull=never", "--systemd=false"),
            *(f"--network={f'container:{self.beside}' if self.beside else 'none'}", *self._hosts()),
            *self._rights(),
            *LIMITS,
            *self._mounts(),
            *(f"--env={name}={value}" for name, value in self.environment.items()),
            *entry,
            f"localhost/{self.image}:test",
            *arguments,
        )

    def _hosts(self) -> list[str]:
        """A file of names: podman writes none where a network is shared."""
        hosts = self.folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {' '.join(self.names)}\n", encoding="utf-8")
        return ["--no-hosts", f"--volume={hosts}:/etc/hosts:ro"]

    def _rights(self) -> list[str]:
        """As the pod's and the container's security contexts have it."""
        rights = {**self.spec["securityContext"], **self.container["securityContext"]}
        found = [f"--user={rights['runAsUser']}:{rights['runAsGroup']}"]
        found += [f"--cap-drop={name.lower()}" for name in rights.get("capabilities", {}).get("drop", [])]
        if rights.get("allowPrivilegeEscalation") is False:
            found.append("--security-opt=no-new-privileges")
        if rights["readOnlyRootFilesystem"]:
            found += ["--read-only", "--read-only-tmpfs=false"]
        return found

    def _mounts(self) -> list[str]:
        """Every volume of the pod: what it may write is the group's, what is a Secret is only the group's to read."""
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        group = self.spec["securityContext"]["fsGroup"]
        found = []
        for mount in self.container["volumeMounts"]:
            at, volume = mount["mountPath"], volumes[mount["name"]]
            if at == "/dev/shm":
                found.append("--shm-size=64m")
            elif "emptyDir" in volume:
                found.append(f"--tmpfs={at}:rw,mode=1777")
            else:
                source = self.path(at)
                own_to(source, group, 0o2770 if not mount.get("readOnly") else 0o750)
                for file in source.iterdir():
                    own_to(file, group, 0o440)
                found.append(f"--volume={source}:{at}:{'ro' if mount.get('readOnly') else 'rw'}")
        return found

    def execute(self, *words: str) -> str:
        """As `kubectl exec`."""
        return self.podman("exec", self.name, *words)

    def said(self) -> str:
        """Its log."""
        return self.podman("logs", self.name, check=False)

    def is_running(self) -> bool:
        """Whether its first process lives."""
        return self.podman("container", "inspect", "--format={{.State.Running}}", self.name).strip() == "true"

    def stop(self) -> int:
        """As Kubernetes stops a pod; the exit code."""
        self.podman("stop", f"--time={self.spec['terminationGracePeriodSeconds']}", self.name)
        return int(self.podman("container", "inspect", "--format={{.State.ExitCode}}", self.name))


def own_to(path: Path, group: int, mode: int) -> None:
    """As the kubelet does for a pod with an fsGroup."""
    os.chown(path, 0, group)
    path.chmod(mode)


def distributions(listing: str) -> dict[str, str]:
    """``name==version`` a line → name as locks write it → version."""
    pairs = (line.split("==") for line in listing.split())
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def labels_of(engine: Engine, image: str) -> dict[str, Any]:
    """What is written on an image."""
    template = "{{range $name, $value := .Config.Labels}}{{$name}}={{$value}}\n{{end}}"
    lines = engine.run("image", "inspect", f"--format={template}", f"localhost/{image}:test").splitlines()
    return dict(line.split("=", 1) for line in lines if line)
