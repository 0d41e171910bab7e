"""What a pod of the chart would run, run on this machine: the rendered arguments, variables and files.

Paths of containers become paths below a folder, ports become free ones of loopback; everything else is as rendered.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.ports import LOOPBACK, free_ports
from examples.demo.network import BIN, child_environment
from tests.deploy.tools import named
from tests.polling import wait_until

START_S = 120.0
"""A process of ours takes seconds to start; on two busy cores it may take a minute."""

STOP_S = 60.0
"""An agent without work leaves within seconds of being told to."""

NOT_HERE = "tini"
"""Collects what others leave behind; no machine but a container lacks that."""


@dataclass
class Pod:
    """One container of a rendered pod. ``fields`` are what the downward API would say."""

    manifests: Sequence[Mapping[str, Any]]
    kind: str
    name: str
    folder: Path
    fields: Mapping[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    """Port of the container, as text → port of this machine."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Variables that the machine, not the chart, makes necessary."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """The pod."""
        found: dict[str, Any] = named(self.manifests, self.kind, self.name)["spec"]["template"]["spec"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        """Its only container."""
        (found,) = self.spec["containers"]
        return dict(found)

    @property
    def log(self) -> Path:
        """What it said, over all its lives."""
        return self.folder / "log"

    def path(self, within: str) -> Path:
        """Where a path of the container is on this machine."""
        return self.folder / within.lstrip("/")

    def take_ports(self) -> None:
        """Have a free port for each that the container opens."""
        wanted = [str(port["containerPort"]) for port in self.container["ports"]]
        self.ports = dict(zip(wanted, free_ports(len(wanted)), strict=True))

    def place_files(self) -> None:
        """Every ConfigMap that is mounted, with the rendered content; volumes are folders."""
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in self.container["volumeMounts"]:
            at = self.path(mount["mountPath"])
            if mount["mountPath"] in ("/dev", "/dev/shm", "/tmp", "/run"):
                continue
            at.mkdir(parents=True, exist_ok=True)
            config = volumes.get(mount["name"], {}).get("configMap")
            if config is not None:
                for name, text in named(self.manifests, "ConfigMap", config["name"])["data"].items():
                    (at / name).write_text(self.here(text), encoding="utf-8")

    def here(self, text: str) -> str:
        """Paths and addresses of a container as they are on this machine."""
        for within in ("/var/lib/", "/etc/orchestrator/"):
            text = text.replace(within, f"{self.folder}{within}")
        for container_port, port in self.ports.items():
            text = re.sub(rf"0\.0\.0\.0:{container_port}\b", f"{LOOPBACK}:{port}", text)
        return text

    @property
    def environment(self) -> dict[str, str]:
        """The container's variables; those that read a Secret have to be among ``extra``."""
        found: dict[str, str] = {}
        for variable in self.container["env"]:
            source = variable.get("valueFrom", {})
            if "fieldRef" in source:
                found[variable["name"]] = self.fields[source["fieldRef"]["fieldPath"]]
            elif "value" in variable:
                text = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable["value"])
                found[variable["name"]] = text if text == "/tmp" else self.here(text)
        return {**found, **self.extra}

    @property
    def command(self) -> list[str]:
        """What it runs; the image's entry point where the chart names no other."""
        words = [*self.container.get("command", ("orch",)), *self.container["args"]]
        if words[0] == NOT_HERE and shutil.which(NOT_HERE) is None:
            words = words[2:]
        return [self.here(str(BIN / "orch") if word == "orch" else word) for word in words]

    def start(self) -> None:
        """Run it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(self.environment),
                start_new_session=True,
            )

    def execute(self, *words: str) -> str:
        """As `kubectl exec`: a command in the container; its standard output. Raises CalledProcessError."""
        command = [str(BIN / words[0]) if words[0] == "orch" else words[0], *words[1:]]
        environment = child_environment({**self.environment, **self.urls})
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    @property
    def urls(self) -> dict[str, str]:
        """The port at which `orch` looks by default is not ours here."""
        return {"ORCH_URL": f"{LOOPBACK}:{self.ports['7443']}"} if "7443" in self.ports else {}

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_for(self, words: str) -> None:
        """Until its log has these words; fails with the log where it ends before."""
        process = self.process
        assert process is not None
        wait_until(
            lambda: words in self.said() or process.poll() is not None,
            what=f"{self.name} to say {words!r}",
            deadline_s=START_S,
        )
        assert words in self.said(), self.said()

    def terminate(self) -> int:
        """As Kubernetes stops a pod; the exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
