"""One Ray node: what is known of it on disk, and the command and environment that start it.

Everything here is a pure function of a NodeSpec except the two readers and the writer of its files. Ray
itself is not imported: the keeper, which lives as long as the node, uses this module and has to stay small.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.adapters.node_records import NodeSpec
from orchestrator.adapters.overlay.process import INNER_NAME

MEMBER_ID_ENV = "ORCH_MEMBER_ID"
"""Marks every process of a node, so that a node whose keeper was killed can still be found and ended."""

MEMBER_LABEL = "orch-member"
"""Ray node label that maps a Ray node back to our member id (`ray.io/` is reserved by Ray)."""

NOTICE_FILE_ENV = "ORCH_NOTICE_FILE"
"""Names, for every process of a node, the file that says who of its cluster is about to go."""

NOTICE_FILE = "notice.json"
SCRATCH_DIR = "tmp"
"""Below the node's temp directory; TMPDIR of everything in the node."""

TOKEN_FILE = "token"  # noqa: S105 - a file name
START_SCRIPT = "ray_start.py"

SHARED_DIR = "shared"
"""Below the member's directory: what a node's processes may read of it, which are the three files above."""

RAY_START_HOOK = "__main__.adjust"
"""In START_SCRIPT, which is the main module of `ray start`."""

BOX_PATH = "/usr/local/bin:/usr/bin:/bin"

HOME_DIR = "home"
"""Below the scratch: HOME of everything in a box."""

SESSION_PATTERN = re.compile(r"session_[A-Za-z0-9_.-]+")

# What user code may inherit from the agent. An allow-list, because the agent's own environment can hold
# secrets.
INHERITED_ENV = frozenset(
    {"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "SHELL", "TZ", "USER", "VIRTUAL_ENV"}
    | {"SSL_CERT_DIR", "SSL_CERT_FILE", "CUDA_HOME", "PYTHONPYCACHEPREFIX"}
)
INHERITED_ENV_PREFIXES = ("LC_", "NCCL_", "GLOO_", "NVIDIA_")

# Health checks for links that stall: a death is declared after about 20 s of silence instead of Ray's
# default.
HEALTH_ENV = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "60",
}


def interpreter_of(spec: NodeSpec) -> str:
    """Return the Python that has the node's Ray: the runtime's, or the agent's own."""
    return spec.interpreter or sys.executable


def start_command(spec: NodeSpec, start_script: Path) -> list[str]:
    """Return the argv that starts the node's processes and returns once they are up.

    Without `--block`: the keeper is the subreaper of what is left behind, and a waiting `ray start` costs 90
    MB.
    """
    ports = spec.ports
    flags: dict[str, object] = {
        "node-ip-address": spec.node_ip,
        "node-manager-port": ports["node_manager"],
        "object-manager-port": ports["object_manager"],
        "runtime-env-agent-port": ports["runtime_env_agent"],
        "dashboard-agent-grpc-port": ports["dashboard_agent_grpc"],
        "dashboard-agent-listen-port": ports["dashboard_agent_listen"],
        "metrics-export-port": ports["metrics_export"],
        "min-worker-port": ports["worker_min"],
        "max-worker-port": ports["worker_max"],
        "num-gpus": spec.gpus,
        "num-cpus": 0 if spec.role == "head" else spec.cpus,
        "object-store-memory": spec.object_store_memory_bytes,
        "labels": ",".join(f"{key}={value}" for key, value in sorted(_labels(spec).items())),
        "temp-dir": spec.temp_dir,
    }
    if spec.is_head:
        flags |= {
            "port": ports["gcs"],
            "dashboard-host": spec.node_ip,
            "dashboard-port": ports["dashboard"],
            "include-dashboard": "true",
        }
    else:
        flags |= {"address": spec.head_gcs_address}
        # One log monitor per session directory: with two, every line an actor prints reaches the driver
        # twice.
        flags |= {} if spec.owns_temp_dir else {"include-log-monitor": "false"}
    # -P: the working directory is the node's temp directory, which user code can write to.
    command = [interpreter_of(spec), "-P", str(start_script), "start", "--disable-usage-stats"]
    # No monitor: it only feeds an autoscaler, and we are what scales here.
    command += ["--head", "--no-monitor"] if spec.is_head else []
    return command + [f"--{name}={value}" for name, value in flags.items()]


def node_environment(spec: NodeSpec, shared_dir: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the node and of all user code in it; the token is only named by its path."""
    kept = _boxed(spec) if spec.box is not None else _bare(spec, inherited)
    env = (
        kept
        | HEALTH_ENV
        | {
            MEMBER_ID_ENV: spec.member_id,
            NOTICE_FILE_ENV: str(shared_dir / NOTICE_FILE),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(shared_dir / TOKEN_FILE),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Without a monitor the per-node usage in /nodes comes straight from the GCS only under this flag.
            "RAY_enable_autoscaler_v2": "1",
            "RAY_START_HOOK": RAY_START_HOOK,
        }
    )
    if spec.temp_dir:
        # What Ray's helpers and user code leave in their scratch goes with the node.
        env["TMPDIR"] = str(Path(spec.temp_dir) / SCRATCH_DIR)
    if spec.is_head:
        env["DASHBOARD_METRIC_PORT"] = str(spec.ports["dashboard_metric"])
    return env


def _bare(spec: NodeSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """What a node without a box takes over from the agent."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name in INHERITED_ENV or name.startswith(INHERITED_ENV_PREFIXES)
    }
    # A job's `python` must be the interpreter that has this very Ray.
    interpreter_dir = str(Path(interpreter_of(spec)).parent)
    return kept | {"PATH": os.pathsep.join([interpreter_dir, inherited.get("PATH", os.defpath)])}


def _boxed(spec: NodeSpec) -> dict[str, str]:
    """The same on every machine, whatever its agent's environment is."""
    interpreter = Path(interpreter_of(spec))
    interface = INNER_NAME if spec.overlay_address else "lo"
    # An image's Python is seldom in a folder of its own.
    has_image = spec.container is not None and bool(spec.container.image)
    environment = {} if has_image else {"VIRTUAL_ENV": str(interpreter.parent.parent)}
    return environment | {
        "PATH": os.pathsep.join([str(interpreter.parent), BOX_PATH]),
        "HOME": str(Path(spec.temp_dir) / HOME_DIR),
        "USER": "tenant",
        "LOGNAME": "tenant",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Where the runtime's Python is the machine's own, its patch version may differ between members.
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
        # They choose an interface by themselves, and take the way to the internet where there is one.
        "NCCL_SOCKET_IFNAME": interface,
        "GLOO_SOCKET_IFNAME": interface,
    }


def drain_command(
    interpreter: str, gcs_address: str, node_id: str, reason: str, remaining_s: int
) -> list[str]:
    """Return the argv that tells Ray that a node will be preempted. The node goes on; nothing new is put there."""
    flags = {
        "address": gcs_address,
        "node-id": node_id,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": reason,
        "deadline-remaining-seconds": remaining_s,
    }
    command = [interpreter, "-P", "-m", "ray.scripts.scripts", "drain-node"]
    return command + [f"--{name}={value}" for name, value in flags.items()]


def drain_environment(token: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of that command; the token is not seen in its arguments."""
    kept = {name: value for name, value in inherited.items() if name in INHERITED_ENV | {"PATH", "TMPDIR"}}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}


def session_dir_of(temp_dir: str) -> str:
    """Return the session directory Ray made under `temp_dir`; empty before there is one."""
    link = Path(temp_dir) / "session_latest"
    try:
        # Only its last part counts: whatever else a link says, it leads nowhere but below.
        name = link.readlink().name
    except OSError:
        return ""
    return str(Path(temp_dir) / name) if SESSION_PATTERN.fullmatch(name) else ""


def _labels(spec: NodeSpec) -> dict[str, str]:
    """Return the Ray node labels: the caller's, and the one that names the member."""
    return spec.labels | {MEMBER_LABEL: spec.member_id}
