"""`orch worker join` from outside: what it writes, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchestrator.agent.agent import SESSION_CONTEXT
from orchestrator.agent.daemon import EXIT_INTERRUPTED, EXIT_LEFT, EXIT_REFUSED, EXIT_USAGE
from orchestrator.agent.identity import AGENT_FILE, KEY_FILE, LOCK_FILE
from orchestrator.agent.journal import RECORD_FILE
from orchestrator.agent.keeper import SPEC_FILE, STOP_FILE
from tests.agent.scripted_server import ScriptedServer
from tests.polling import wait_until_async

DEADLINE_S = 30.0
TOKEN = "orch_supplier_0123456789"

RUN = """
import os, sys
from pathlib import Path
from orchestrator.agent.daemon import AgentConfig, run_agent
address, data_dir, simulate = sys.argv[1:]
sys.exit(run_agent(AgentConfig(
    control_plane=address, data_dir=Path(data_dir), name="rig",
    join_token=os.environ.get("TOKEN"), simulate=(simulate,),
)))
"""


class Daemon:
    """One run of the agent as a process of its own."""

    def __init__(self, address: str, data_dir: Path, token: str | None, simulate: str) -> None:
        self.output = data_dir.parent / "output"
        environment = {name: value for name, value in os.environ.items() if name != "TOKEN"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, address, str(data_dir), simulate],
                env=environment | ({"TOKEN": token} if token is not None else {}),
                stderr=output,
                stdout=output,
            )

    def said(self) -> str:
        return self.output.read_text()

    async def end(self) -> tuple[int, str]:
        """Exit code and output, with no secret in it whatever happened."""
        code = await asyncio.to_thread(self.process.wait, DEADLINE_S)
        assert TOKEN not in self.said()
        assert "Traceback" not in self.said()
        return code, self.said()

    async def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


class Lab:
    """A scripted control plane, a data directory, and the daemons that were started."""

    def __init__(self, server: ScriptedServer, data_dir: Path) -> None:
        self.server = server
        self.data_dir = data_dir
        self.daemons: list[Daemon] = []

    def start(self, *, token: str | None = None, address: str = "", simulate: str = "RTX4090x1") -> Daemon:
        self.daemons.append(Daemon(address or self.server.address, self.data_dir, token, simulate))
        return self.daemons[-1]

    async def refused(self, **options: str) -> str:
        """The one line of a daemon that would not start."""
        code, said = await self.start(**options).end()
        assert code == EXIT_USAGE
        assert said.count("\n") == 1
        return said

    async def connected(self, daemon: Daemon, number: int = 1) -> None:
        await wait_until_async(
            lambda: len(self.server.hellos) >= number or daemon.process.poll() is not None,
            what="the session",
            deadline_s=DEADLINE_S,
        )
        assert daemon.process.poll() is None, daemon.said()
        await wait_until_async(
            lambda: "session_open" in daemon.said(), what="the welcome", deadline_s=DEADLINE_S
        )


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    server = ScriptedServer()
    server.drains = True
    await server.start()
    made = Lab(server, tmp_path / "agent")
    yield made
    for daemon in made.daemons:
        daemon.process.kill()
        daemon.process.wait()
    await server.stop()


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_daemon_first_run_joins_and_a_second_is_the_same_worker_without_a_token(lab: Lab) -> None:
    first = lab.start(token=TOKEN)
    await lab.connected(first)
    await first.interrupt()
    code, said = await first.end()
    assert (code, "joined as worker wk_1" in said) == (EXIT_LEFT, True)
    assert "left: everything is given back" in said
    (joined,) = lab.server.joins
    key = Ed25519PublicKey.from_public_bytes(joined.statement_public_key)
    key.verify(joined.proof, hashlib.sha256(TOKEN.encode()).digest())
    assert (joined.worker_name, joined.join_token) == ("rig", TOKEN)
    assert json.loads((lab.data_dir / AGENT_FILE).read_bytes()) == {
        "worker_id": "wk_1",
        "name": "rig",
        "supplier_id": "sup_1",
        "control_plane": lab.server.address,
        "network_id": "net_1",
    }
    assert permissions(lab.data_dir / KEY_FILE) == 0o600
    again = lab.start()
    await lab.connected(again, 2)
    await again.interrupt()
    assert (await again.end())[0] == EXIT_LEFT
    assert len(lab.server.joins) == 1
    assert len({hello.inventory.devices[0].device_id for hello in lab.server.hellos}) == 1
    key.verify(lab.server.hellos[1].signature, SESSION_CONTEXT + b"nonce" + b"wk_1")


async def test_daemon_without_a_token_and_never_joined_says_where_one_comes_from(lab: Lab) -> None:
    assert "orch token create --role supplier" in await lab.refused()


async def test_daemon_used_token_is_refused_with_the_reason(lab: Lab) -> None:
    lab.server.refuse = (grpc.StatusCode.PERMISSION_DENIED, "this token is used; ask for a new one")
    said = await lab.refused(token=TOKEN)
    assert "ask for a new one (made by `orch token create --role supplier`)" in said
    assert not (lab.data_dir / AGENT_FILE).exists()


async def test_daemon_join_to_nobody_says_so(lab: Lab) -> None:
    assert "cannot reach the control plane at 127.0.0.1:1" in await lab.refused(
        token=TOKEN, address="127.0.0.1:1"
    )


async def test_daemon_unknown_model_is_refused_with_the_nearest(lab: Lab) -> None:
    assert "did you mean RTX4090x1?" in await lab.refused(token=TOKEN, simulate="RTX4091x1")


async def test_daemon_data_directory_that_is_a_file_is_named(lab: Lab) -> None:
    lab.data_dir.write_text("")
    assert str(lab.data_dir) in await lab.refused(token=TOKEN)


async def test_daemon_second_on_one_data_directory_is_refused(lab: Lab) -> None:
    lab.data_dir.mkdir()
    with (lab.data_dir / LOCK_FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another agent runs on" in await lab.refused(token=TOKEN)


@pytest.mark.parametrize("name", [AGENT_FILE, KEY_FILE, RECORD_FILE])
async def test_daemon_damaged_file_is_named(lab: Lab, name: str) -> None:
    first = lab.start(token=TOKEN)
    await lab.connected(first)
    await first.interrupt()
    await first.end()
    (lab.data_dir / name).write_text("{")
    said = await lab.refused()
    assert str(lab.data_dir / name) in said


async def test_daemon_key_that_others_can_read_is_refused(lab: Lab) -> None:
    lab.data_dir.mkdir()
    key = lab.data_dir / KEY_FILE
    key.write_text("00" * 32)
    key.chmod(0o644)
    assert "chmod 600" in await lab.refused(token=TOKEN)


async def test_daemon_lost_key_of_a_joined_worker_is_not_replaced_in_silence(lab: Lab) -> None:
    lab.data_dir.mkdir()
    (lab.data_dir / AGENT_FILE).write_text("{}")
    assert KEY_FILE in await lab.refused(token=TOKEN)
    assert not (lab.data_dir / KEY_FILE).exists()


async def test_daemon_second_interrupt_ends_at_once_and_asks_nodes_to_stop(lab: Lab) -> None:
    lab.server.drains = False
    daemon = lab.start(token=TOKEN)
    await lab.connected(daemon)
    await lab.server.stop()
    member_dir = lab.data_dir / "members" / "m-0"
    member_dir.mkdir(parents=True)
    await daemon.interrupt()
    await wait_until_async(lambda: "draining" in daemon.said(), what="the drain", deadline_s=DEADLINE_S)
    await daemon.interrupt()
    assert (await daemon.end())[0] == EXIT_INTERRUPTED
    assert (member_dir / STOP_FILE).exists()
    assert not (member_dir / SPEC_FILE).exists()


async def test_daemon_refused_for_good_says_why_and_asks_nodes_to_stop(lab: Lab) -> None:
    lab.server.farewell = "no worker 'wk_1' is registered; join first"
    member_dir = lab.data_dir / "members" / "m-0"
    member_dir.mkdir(parents=True)
    code, said = await lab.start(token=TOKEN).end()
    assert code == EXIT_REFUSED
    assert "no worker 'wk_1' is registered" in said
    assert (member_dir / STOP_FILE).exists()
