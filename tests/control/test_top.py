"""`orch top` and `orch status` against a real `orch serve` with a real agent, which goes away and comes back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.api.v1 import operator_pb2
from tests.control.serving import START_S, Serve, environment, serving
from tests.polling import wait_until
from tests.terminals import ALTERNATE_OFF, ALTERNATE_ON, ORCH, terminal

DEADLINE_S = 60.0


def operators(serve: Serve) -> dict[str, str]:
    return {
        **environment(),
        "ORCH_URL": serve.endpoints["grpc"],
        "ORCH_TOKEN_FILE": serve.endpoints["admin_token_file"],
    }


@contextmanager
def joined(serve: Serve, folder: Path) -> Iterator[None]:
    """An agent with two simulated GPUs, as its owner starts it."""
    stub, metadata = serve.operator()
    request = operator_pb2.CreateTokenRequest(role=operator_pb2.TOKEN_ROLE_SUPPLIER, subject="north")
    token_file = folder / "join.token"
    token_file.touch(mode=0o600)
    token_file.write_text(stub.CreateToken(request, metadata=metadata).secret)
    command = [ORCH, "worker", "join", "--control-plane", serve.endpoints["grpc"], "--name", "attic"]
    command += ["--token-file", str(token_file), "--isolation", "none", "--simulate", "RTX4090x2"]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [*command, "--data-dir", str(folder / "agent")],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        agent.kill()
        agent.wait()


def ports(serve: Serve) -> list[str]:
    """To be found again where it was."""
    at = serve.endpoints
    return ["--listen", at["grpc"], "--session-listen", at["session"]]


def look(serve: Serve) -> dict[str, Any]:
    command = [ORCH, "top", "--once", "-o", "json"]
    answer = subprocess.run(command, env=operators(serve), capture_output=True, check=True, timeout=START_S)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def test_top_real_control_plane_that_is_killed_and_comes_back_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    with serving(folder) as serve:
        places = ports(serve)
        with (
            joined(serve, tmp_path),
            terminal("top", "--interval", "0.5", environment=operators(serve), columns=100) as shown,
        ):
            shown.wait_for("well", "attic", "consumer", "live", "0 of 2")
            serve.kill()
            shown.wait_for("no answer for", "attic")
            with serving(folder, *places) as again:
                wait_until(
                    lambda: not shown.shows("no answer for") and shown.shows("attic", "live"),
                    what="the restarted control plane on the screen",
                    deadline_s=DEADLINE_S,
                )
                (one,) = look(again)["workers"]
                assert (one["name"], one["gpus"], one["gpu_model"]) == ("attic", 2, "RTX4090")
                assert 0 < one["uptime_ratio"] <= 1, (
                    "a worker that was known has its uptime from the start on"
                )
                status = subprocess.run(
                    [ORCH, "status", "--check"],
                    env=operators(again),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert status.returncode == 0, status.stdout + status.stderr
                assert status.stdout.startswith("well: 1 worker live, 2 GPUs of which 0 are leased")
                shown.type("\x03")
                assert shown.wait() == 0
                assert shown.modes() == shown.modes_before
                assert shown.raw.rfind(ALTERNATE_OFF) > shown.raw.rfind(ALTERNATE_ON)
