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
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.peers import (
    JOIN_CONTEXT,
    SESSION_CONTEXT,
    key_from_pem,
    load_certificate,
    make_csr,
    split_chain,
)
from orchestrator.agent.capabilities import found_capabilities
from orchestrator.agent.credentials import CERTIFICATE_FILE, TRUST_FILE
from orchestrator.agent.daemon import EXIT_INTERRUPTED, EXIT_LEFT, EXIT_REFUSED, EXIT_USAGE, PACKAGES_DIR
from orchestrator.agent.identity import AGENT_FILE, KEY_FILE, LOCK_FILE, TLS_KEY_FILE
from orchestrator.agent.inventory import Offer
from orchestrator.agent.journal import RECORD_FILE
from orchestrator.agent.keeper import SPEC_FILE, STOP_FILE
from orchestrator.agent.owner import SOCKET_FILE
from orchestrator.agent.standing import STANDING_FILE
from orchestrator.api.v1 import agent_pb2, standing_pb2, worker_pb2
from orchestrator.api.v1.agent_pb2_grpc import AgentServiceStub
from tests.agent.scripted_server import ScriptedServer
from tests.polling import wait_until_async
from tests.tls import TestNetwork

if TYPE_CHECKING:
    from orchestrator.api.v1.agent_pb2_grpc import AgentServiceAsyncStub

DEADLINE_S = 60.0
SECRET = "orch_supplier_0123456789"
DAY_MS = 24 * 3_600_000

RUN = """
import os, sys
from pathlib import Path
from orchestrator.adapters.box import tiers
from orchestrator.agent.daemon import AgentConfig, run_agent
from orchestrator.core.supply.terms import Ask, Terms
address, data_dir, simulate = sys.argv[1:]
if os.environ["ISOLATION"] == "box":
    tiers.TOOL_PACKAGES["no-such-program"] = "no-such-package"
sys.exit(run_agent(AgentConfig(
    control_plane=address, data_dir=Path(data_dir), name="rig",
    join_token=os.environ.get("TOKEN"), simulate=(simulate,), ca_pin=os.environ.get("PIN", ""),
    isolation=os.environ["ISOLATION"],
    terms=Terms(asks=(Ask("RTX4090", 350_000),), regions=("eu",)),
)))
"""


class Daemon:
    """One run of the agent as a process of its own."""

    def __init__(
        self, address: str, data_dir: Path, token: str | None, simulate: str, pin: str, isolation: str
    ) -> None:
        self.output = data_dir.parent / "output"
        environment = {name: value for name, value in os.environ.items() if name not in ("TOKEN", "PIN")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, address, str(data_dir), simulate],
                env=environment
                | {"PIN": pin, "ISOLATION": isolation}
                | ({"TOKEN": token} if token is not None else {}),
                stderr=output,
                stdout=output,
            )

    def said(self) -> str:
        return self.output.read_text()

    async def end(self) -> tuple[int, str]:
        """Exit code and output, with no secret in it whatever happened."""
        code = await asyncio.to_thread(self.process.wait, DEADLINE_S)
        assert SECRET not in self.said()
        assert "PRIVATE KEY" not in self.said()
        assert "Traceback" not in self.said()
        return code, self.said()

    async def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def heard(self, text: str) -> None:
        await wait_until_async(lambda: text in self.said(), what=text, deadline_s=DEADLINE_S)


class Lab:
    """A scripted control plane, a data directory, and the daemons that were started."""

    def __init__(self, server: ScriptedServer, data_dir: Path) -> None:
        self.server = server
        self.data_dir = data_dir
        self.daemons: list[Daemon] = []

    @property
    def token(self) -> str:
        return self.server.network.token(SECRET)

    def start(
        self,
        *,
        token: str | None = None,
        address: str = "",
        simulate: str = "RTX4090x1",
        pin: str = "",
        isolation: str = "none",
    ) -> Daemon:
        to = address or self.server.address
        self.daemons.append(Daemon(to, self.data_dir, token, simulate, pin, isolation))
        return self.daemons[-1]

    async def refused(self, **options: str) -> str:
        """The one line of a daemon that would not start."""
        code, said = await self.start(**options).end()
        assert code == EXIT_USAGE
        assert said.count("\n") == 1
        return said

    async def stay_away_for_days(self) -> None:
        """Join, leave, and let the certificate run out on the disk."""
        daemon = self.start(token=self.token)
        await self.connected(daemon)
        await daemon.interrupt()
        await daemon.end()
        csr = make_csr(key_from_pem((self.data_dir / TLS_KEY_FILE).read_bytes()))
        old = self.server.network.certificate(csr, issued_ms=SystemClock().now().wall_ms - 3 * DAY_MS)
        (self.data_dir / CERTIFICATE_FILE).write_bytes(old.chain)
        identity = json.loads((self.data_dir / AGENT_FILE).read_bytes())
        identity["certificate"] |= {
            "renew_boottime_ms": 0,
            "renew_after_unix_ms": old.renew_after_unix_ms,
        }
        (self.data_dir / AGENT_FILE).write_text(json.dumps(identity))

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
    server = ScriptedServer(tmp_path / "network")
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


async def test_daemon_offers_the_isolation_that_this_machine_can_do_and_says_what_it_lacks(lab: Lab) -> None:
    here = found_capabilities(Offer())
    daemon = lab.start(token=lab.token, isolation="auto")
    await lab.connected(daemon)
    (joined,) = lab.server.joins
    offered = joined.inventory
    assert (offered.isolation, offered.overlay, offered.unisolated) == (here.isolation, here.overlay, False)
    assert tuple(offered.remarks) == here.remarks
    assert all(remark in daemon.said() for remark in here.remarks)


async def test_daemon_asked_for_isolation_that_is_not_possible_does_not_start(lab: Lab) -> None:
    said = await lab.refused(token=lab.token, isolation="box")
    assert "--isolation box: this machine can do none at most: " in said
    assert lab.server.joins == []


async def test_daemon_first_run_joins_and_a_second_is_the_same_worker_without_a_token(lab: Lab) -> None:
    first = lab.start(token=lab.token)
    await lab.connected(first)
    await first.interrupt()
    code, said = await first.end()
    assert (code, "joined as worker wk_1" in said) == (EXIT_LEFT, True)
    assert "left: everything is given back" in said
    (joined,) = lab.server.joins
    key = Ed25519PublicKey.from_public_bytes(joined.statement_public_key)
    digests = (hashlib.sha256(SECRET.encode()).digest(), hashlib.sha256(joined.tls_csr).digest())
    key.verify(joined.proof, JOIN_CONTEXT + b"".join(digests))
    assert (joined.worker_name, joined.join_token) == ("rig", SECRET)
    assert joined.terms.asks[0].microcredits_per_gpu_hour == 350_000
    kept = json.loads((lab.data_dir / AGENT_FILE).read_bytes())
    assert kept.pop("certificate")["proved"] is True
    assert kept == {
        "worker_id": "wk_1",
        "name": "rig",
        "supplier_id": "sup_1",
        "control_plane": lab.server.address,
        "network_id": "net_1",
        "session_address": f":{lab.server.session_address.rpartition(':')[2]}",
        "ca_pin": lab.server.network.pin,
    }
    for name in (AGENT_FILE, KEY_FILE, TLS_KEY_FILE, CERTIFICATE_FILE, TRUST_FILE):
        assert permissions(lab.data_dir / name) == 0o600
    again = lab.start()
    await lab.connected(again, 2)
    await again.interrupt()
    assert (await again.end())[0] == EXIT_LEFT
    assert len(lab.server.joins) == 1
    assert [hello.session_number for hello in lab.server.hellos] == [1, 2]
    assert abs(lab.server.hellos[0].wall_ms - SystemClock().now().wall_ms) < DAY_MS
    assert len({hello.inventory.devices[0].device_id for hello in lab.server.hellos}) == 1
    key.verify(lab.server.hellos[1].signature, SESSION_CONTEXT + b"nonce" + b"wk_1")


async def test_daemon_without_a_token_where_strangers_may_not_join_says_where_one_comes_from(
    lab: Lab,
) -> None:
    lab.server.refuse = (grpc.StatusCode.PERMISSION_DENIED, "this network takes workers by join token only")
    code, said = await lab.start(pin=lab.server.network.pin).end()
    assert code == EXIT_USAGE
    assert "by join token only (made by `orch token create --role supplier`)" in said


async def test_daemon_without_token_or_pin_trusts_at_first_sight_and_remembers_whom(lab: Lab) -> None:
    daemon = lab.start()
    await lab.connected(daemon)
    assert f"the pin of its CA is {lab.server.network.pin}" in daemon.said()
    (joined,) = lab.server.joins
    digests = (hashlib.sha256(b"").digest(), hashlib.sha256(joined.tls_csr).digest())
    key = Ed25519PublicKey.from_public_bytes(joined.statement_public_key)
    key.verify(joined.proof, JOIN_CONTEXT + b"".join(digests))
    assert json.loads((lab.data_dir / AGENT_FILE).read_bytes())["ca_pin"] == lab.server.network.pin


async def test_daemon_wrong_pin_is_refused_before_anything_is_sent(lab: Lab, tmp_path: Path) -> None:
    other = TestNetwork(tmp_path / "other")
    for said in (await lab.refused(token=other.token(SECRET)), await lab.refused(pin=other.pin)):
        assert f"expected a CA with pin {other.pin}, found {lab.server.network.pin}" in said
    assert {name for name, _ in lab.server.calls} == {"GetTrust"}


@pytest.mark.parametrize(
    "token", [SECRET, f"{SECRET}.", f"{SECRET}.abc", f"{SECRET}.{'x' * 42}", f".{'x' * 43}"]
)
async def test_daemon_truncated_token_is_refused_before_any_connection(lab: Lab, token: str) -> None:
    assert "the join token is cut short" in await lab.refused(token=token, address="127.0.0.1:1")


async def test_daemon_used_token_is_refused_with_the_reason(lab: Lab) -> None:
    lab.server.refuse = (grpc.StatusCode.PERMISSION_DENIED, "this token is used; ask for a new one")
    said = await lab.refused(token=lab.token)
    assert "ask for a new one (made by `orch token create --role supplier`)" in said
    assert not (lab.data_dir / AGENT_FILE).exists()


async def test_daemon_join_to_nobody_says_so(lab: Lab) -> None:
    assert "cannot reach the control plane at 127.0.0.1:1" in await lab.refused(
        token=lab.token, address="127.0.0.1:1"
    )


async def test_daemon_unknown_model_is_refused_with_the_nearest(lab: Lab) -> None:
    assert "did you mean RTX4090x1?" in await lab.refused(token=lab.token, simulate="RTX4091x1")


async def test_daemon_data_directory_that_is_a_file_is_named(lab: Lab) -> None:
    lab.data_dir.write_text("")
    assert str(lab.data_dir) in await lab.refused(token=lab.token)


async def test_daemon_second_on_one_data_directory_is_refused(lab: Lab) -> None:
    lab.data_dir.mkdir()
    with (lab.data_dir / LOCK_FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another agent runs on" in await lab.refused(token=lab.token)


@pytest.mark.parametrize("name", [AGENT_FILE, KEY_FILE, TLS_KEY_FILE, RECORD_FILE])
async def test_daemon_damaged_file_is_named(lab: Lab, name: str) -> None:
    first = lab.start(token=lab.token)
    await lab.connected(first)
    await first.interrupt()
    await first.end()
    (lab.data_dir / name).write_text("{")
    said = await lab.refused()
    assert str(lab.data_dir / name) in said


@pytest.mark.parametrize("name", [KEY_FILE, TLS_KEY_FILE])
async def test_daemon_key_that_others_can_read_is_refused(lab: Lab, name: str) -> None:
    lab.data_dir.mkdir()
    key = lab.data_dir / name
    key.write_text("00" * 32)
    key.chmod(0o644)
    assert "chmod 600" in await lab.refused(token=lab.token)


async def test_daemon_lost_key_of_a_joined_worker_is_not_replaced_in_silence(lab: Lab) -> None:
    lab.data_dir.mkdir()
    (lab.data_dir / AGENT_FILE).write_text("{}")
    assert KEY_FILE in await lab.refused(token=lab.token)
    assert not (lab.data_dir / KEY_FILE).exists()


async def test_daemon_second_interrupt_ends_at_once_and_asks_nodes_to_stop(lab: Lab) -> None:
    lab.server.drains = False
    daemon = lab.start(token=lab.token)
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
    code, said = await lab.start(token=lab.token).end()
    assert code == EXIT_REFUSED
    assert "no worker 'wk_1' is registered" in said
    assert (member_dir / STOP_FILE).exists()


async def test_daemon_hang_up_steps_aside_and_touches_no_node(lab: Lab) -> None:
    daemon = lab.start(token=lab.token)
    await lab.connected(daemon)
    member_dir = lab.data_dir / "members" / "m-0"
    member_dir.mkdir(parents=True)
    daemon.process.send_signal(signal.SIGHUP)
    code, said = await daemon.end()
    assert (code, "stepped aside" in said) == (EXIT_LEFT, True)
    assert list(member_dir.iterdir()) == []
    assert lab.server.leavings == []
    again = lab.start()
    await lab.connected(again, 2)
    assert lab.server.hellos[1].session_number == 2


async def test_daemon_certificate_that_ran_out_is_recovered_and_the_session_opens(lab: Lab) -> None:
    await lab.stay_away_for_days()
    daemon = lab.start()
    await lab.connected(daemon, 2)
    (recovery,) = lab.server.recoveries
    assert recovery.worker_id == "wk_1"
    assert "that can be done 4 more time(s)" in daemon.said()
    assert load_certificate((lab.data_dir / CERTIFICATE_FILE).read_bytes()) == load_certificate(
        lab.server.shown[-1]
    )


async def test_daemon_recovery_refused_for_good_ends_with_the_servers_words(lab: Lab) -> None:
    await lab.stay_away_for_days()
    lab.server.recovery_refusal = (grpc.StatusCode.PERMISSION_DENIED, "mines on tenants' time")
    code, said = await lab.start().end()
    assert code == EXIT_REFUSED
    assert "mines on tenants' time; another --data-dir and a new join token" in said
    assert len(lab.server.hellos) == 1


async def test_daemon_certificate_is_renewed_over_the_session_and_shown_by_the_next_one(lab: Lab) -> None:
    lab.server.join_certificate = {"renew_ratio": 1.0}
    daemon = lab.start(token=lab.token)
    await daemon.heard("certificate_renewed")
    assert len(lab.server.renewals) == 1
    renewed = (lab.data_dir / CERTIFICATE_FILE).read_bytes()
    assert lab.server.shown[0] != renewed
    await daemon.interrupt()
    await daemon.end()
    await lab.connected(lab.start(), 2)
    assert [load_certificate(one) for one in lab.server.shown[1:]] == [load_certificate(renewed)]


async def test_daemon_rotated_ca_is_trusted_at_once_and_a_certificate_of_it_asked_for(lab: Lab) -> None:
    rotated = lab.server.network
    old_pin = rotated.pin
    first = lab.start(token=lab.token)
    await lab.connected(first)
    await first.interrupt()
    await first.end()
    rotated.authority.rotate(SystemClock().now().wall_ms)
    lab.server.pushes.put_nowait(worker_pb2.SessionResponse(certificate=rotated.bundle()))
    second = lab.start()
    await second.heard("certificate_renewed")
    assert split_chain((lab.data_dir / TRUST_FILE).read_bytes()) == split_chain(
        rotated.authority.trust_bundle()
    )
    await second.interrupt()
    await second.end()
    rotated.authority.retire()
    assert json.loads((lab.data_dir / AGENT_FILE).read_bytes())["ca_pin"] == rotated.pin != old_pin
    await lab.connected(lab.start(), 3)
    assert lab.server.recoveries == []


async def test_daemon_says_what_lies_ready_in_its_data_directory(lab: Lab) -> None:
    package = hashlib.sha256(b"package").hexdigest()
    (lab.data_dir / PACKAGES_DIR).mkdir(parents=True)
    (lab.data_dir / PACKAGES_DIR / f"{package}.zip").write_bytes(b"package")
    daemon = lab.start(token=lab.token)
    await lab.connected(daemon)
    await wait_until_async(lambda: bool(lab.server.cached), what="the report", deadline_s=DEADLINE_S)
    assert lab.server.cached == [worker_pb2.CachedReport(packages=[package])]
    await daemon.interrupt()
    assert (await daemon.end())[0] == EXIT_LEFT


async def test_daemon_standing_is_kept_and_told_once(lab: Lab) -> None:
    standing = standing_pb2.Standing(
        holds=[standing_pb2.WorkerHold(kind="probation", reason="new here")],
        alerts=[standing_pb2.OwnerAlert(number=3, kind="offline", text="away for an hour")],
        upgrade_notice="upgrade within 30 days",
        reliability_bp=9_000,
    )
    for _ in range(2):
        lab.server.pushes.put_nowait(worker_pb2.SessionResponse(standing=standing))
        standing.reliability_bp += 1
    daemon = lab.start(token=lab.token)
    await wait_until_async(
        lambda: '"reliability_bp": 9001' in text_of(lab.data_dir / STANDING_FILE),
        what="the second standing",
        deadline_s=DEADLINE_S,
    )
    assert permissions(lab.data_dir / STANDING_FILE) == 0o600
    for line in (
        "held (probation): new here",
        "alert 3 (offline): away for an hour",
        "upgrade within 30 days",
    ):
        assert daemon.said().count(line) == 1


async def test_daemon_owner_is_heard_at_his_socket_and_his_wish_reaches_the_network(lab: Lab) -> None:
    daemon = lab.start(token=lab.token)
    await lab.connected(daemon)
    path = lab.data_dir / SOCKET_FILE
    await wait_until_async(path.exists, what="the socket", deadline_s=DEADLINE_S)
    assert permissions(path) == 0o600
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        stub: AgentServiceAsyncStub = AgentServiceStub(channel)
        shown = await stub.GetAgent(agent_pb2.GetAgentRequest())
        assert (shown.name, shown.connected) == ("rig", True)
        assert shown.certificate_not_after_unix_ms > SystemClock().now().wall_ms
        wish = worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(reason="mine", notice_ms=9_000))
        answer = await stub.Ask(agent_pb2.AskRequest(wish=wish))
    assert (answer.sent, answer.message) == (
        True,
        "the machine is given back: nothing of the network's runs here",
    )
    await wait_until_async(lambda: bool(lab.server.wishes), what="the wish", deadline_s=DEADLINE_S)
    assert lab.server.wishes[0].reclaim.reason == "mine"
    assert 0 < lab.server.wishes[0].reclaim.notice_ms <= 9_000
    await daemon.interrupt()
    code, _ = await daemon.end()
    assert code == EXIT_LEFT
    assert not path.exists()


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def test_daemon_that_cannot_join_leaves_no_socket_of_one_that_was_killed(lab: Lab) -> None:
    lab.data_dir.mkdir(mode=0o700)
    left = lab.data_dir / "agent.sock"
    left.touch()
    code, _ = await lab.start(token="cut short").end()
    assert code == 2
    assert not left.exists()
