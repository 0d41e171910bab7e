"""The worker's certificate: kept, renewed by the boot clock, recovered when it has run out, and never lost to a crash."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters.peers import make_csr, new_tls_key, pin_of, split_chain
from orchestrator.agent import credentials as subject
from orchestrator.agent.connection import GrpcControlPlane
from orchestrator.agent.credentials import CERTIFICATE_FILE, TRUST_FILE, Credentials, keep_certificate
from orchestrator.agent.identity import Identity, Keys, Received, load_identity
from orchestrator.agent.ports import RefusedForeverError
from orchestrator.api.v1 import worker_pb2
from tests.agent.fakes import FakeChannel, FakeClock, settled
from tests.agent.scripted_server import ScriptedServer
from tests.tls import TestNetwork, wall_ms

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
KEYS = Keys(Ed25519PrivateKey.from_private_bytes(b"k" * 32), new_tls_key())
CSR = make_csr(KEYS.tls)

REFUSED = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed"
"""As gRPC says it of a server that does not accept a certificate."""


class Lab:
    """A worker that has joined at a scripted control plane, on a clock of its own."""

    def __init__(self, server: ScriptedServer, data_dir: Path) -> None:
        self.server = server
        self.network = server.network
        self.data_dir = data_dir
        self.clock = FakeClock()
        self.clock.wall_ms = wall_ms()
        self.said: list[str] = []
        self.identity = Identity(
            worker_id="wk_1",
            name="rig",
            supplier_id="sup_1",
            control_plane=server.address,
            network_id="net_1",
            session_address=f":{server.session_address.rpartition(':')[2]}",
            ca_pin=self.network.pin,
            certificate=Received(0, "", 0, proved=False),
        )
        self.keep(self.network.certificate(CSR))

    def keep(self, certificate: worker_pb2.Certificate, *, proved: bool = True) -> None:
        self.identity = keep_certificate(
            self.data_dir, self.identity, KEYS, certificate, self.clock.now(), proved=proved
        )

    def start(self) -> Credentials:
        """As after a restart: from what is on the disk."""
        identity = load_identity(self.data_dir)
        assert identity is not None
        return Credentials(self.data_dir, identity, KEYS, self.clock, self.said.append)

    def pass_time(self, span_ms: int) -> None:
        self.clock.now_ms += span_ms
        self.clock.wall_ms += span_ms

    def away_for_days(self, *, proved: bool = True) -> Credentials:
        """The certificate came days ago and has run out."""
        self.pass_time(-3 * DAY_MS)
        self.keep(self.network.certificate(CSR, issued_ms=self.clock.wall_ms), proved=proved)
        self.pass_time(3 * DAY_MS)
        return self.start()


async def refuse(credentials: Credentials, reason: str = REFUSED) -> str:
    """Tell it that connecting failed; what it makes of that."""
    with pytest.raises(ConnectionError) as error:
        await credentials.failed(reason)
    return str(error.value)


@contextlib.asynccontextmanager
async def attending(credentials: Credentials) -> AsyncIterator[FakeChannel]:
    channel = FakeChannel()
    task = asyncio.create_task(credentials.attend(channel))
    await settled()
    yield channel
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    server = ScriptedServer(tmp_path / "network")
    await server.start()
    (tmp_path / "agent").mkdir()
    yield Lab(server, tmp_path / "agent")
    await server.stop()


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(subject, "LOOK_S", 0.001)
    return iter(())


async def test_endpoint_is_the_session_listener_at_the_host_that_was_joined(lab: Lab) -> None:
    endpoint = await lab.start().endpoint()
    assert endpoint.address == lab.server.session_address
    assert "PRIVATE KEY" not in repr(endpoint)


# Renewal


@pytest.mark.parametrize("wall_error_ms", [0, -30 * DAY_MS, 30 * DAY_MS])
async def test_renewal_is_asked_for_at_half_the_life_whatever_the_wall_clock_says(
    lab: Lab, wall_error_ms: int
) -> None:
    lab.clock.wall_ms += wall_error_ms
    lab.pass_time(HOUR_MS // 2 - 10_000)
    async with attending(lab.start()) as early:
        assert early.of_kind("renew_certificate") == []
    lab.pass_time(20_000)
    async with attending(lab.start()) as late:
        assert len(late.of_kind("renew_certificate")) == 1


@pytest.mark.parametrize(
    ("wall_error_ms", "wait_ms"), [(0, HOUR_MS // 4), (-30 * DAY_MS, HOUR_MS // 2), (30 * DAY_MS, 0)]
)
async def test_renewal_after_a_reboot_comes_within_half_the_life_whatever_the_wall_clock_says(
    lab: Lab, wall_error_ms: int, wait_ms: int
) -> None:
    lab.pass_time(HOUR_MS // 4)
    lab.clock.boot, lab.clock.now_ms = "boot-2", 5_000
    lab.clock.wall_ms += wall_error_ms
    credentials = lab.start()
    if wait_ms:
        lab.pass_time(wait_ms - 10_000)
        async with attending(credentials) as early:
            assert early.of_kind("renew_certificate") == []
        lab.pass_time(20_000)
    async with attending(credentials) as late:
        assert len(late.of_kind("renew_certificate")) == 1


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize(("age_ms", "asked"), [(HOUR_MS - 10_000, 0), (HOUR_MS + 10_000, 1)])
async def test_session_begins_with_a_renewal_unless_the_certificate_is_young(
    lab: Lab, age_ms: int, asked: int, *, reboot: bool
) -> None:
    lab.keep(lab.network.certificate(CSR, life_ms=20 * HOUR_MS))
    lab.pass_time(age_ms)
    if reboot:
        lab.clock.boot, lab.clock.now_ms = "boot-2", 5_000
    credentials = lab.start()
    async with attending(credentials) as channel:
        assert len(channel.of_kind("renew_certificate")) == asked
    # The next session, on a certificate that has just come, does not ask again.
    credentials.take(
        worker_pb2.SessionResponse(
            certificate=lab.network.certificate(CSR, issued_ms=lab.clock.wall_ms, life_ms=20 * HOUR_MS)
        )
    )
    async with attending(credentials) as channel:
        assert channel.of_kind("renew_certificate") == []


async def test_renewal_is_asked_for_once_until_its_answer_is_overdue(lab: Lab, quick_looks: None) -> None:
    lab.pass_time(HOUR_MS // 2)
    async with attending(lab.start()) as channel:
        await channel.await_kind("renew_certificate")
        lab.pass_time(int(subject.LOOK_S * 1000) + 1)
        await channel.await_kind("renew_certificate", 2)
        await settled()
        assert len(channel.of_kind("renew_certificate")) == 2


async def test_renewal_that_keeps_failing_is_told_to_the_owner_until_a_certificate_comes(lab: Lab) -> None:
    lab.pass_time(HOUR_MS // 2)
    credentials = lab.start()
    for _ in range(subject.UNANSWERED_MAX):
        async with attending(credentials) as channel:
            assert len(channel.of_kind("renew_certificate")) == 1
        assert (credentials.notice, lab.said) == ("", [])
    for _ in range(2):
        async with attending(credentials):
            pass
        assert "operator" in credentials.notice
        assert len(lab.said) == 1
    credentials.take(worker_pb2.SessionResponse(certificate=lab.network.certificate(CSR)))
    assert credentials.notice == ""


async def test_renewed_certificate_is_used_by_the_next_connection_and_after_a_restart(lab: Lab) -> None:
    credentials = lab.start()
    before = await credentials.endpoint()
    renewed = lab.network.certificate(CSR)
    credentials.take(worker_pb2.SessionResponse(certificate=renewed))
    after = await credentials.endpoint()
    assert (before.chain_pem != renewed.chain, after.chain_pem) == (True, renewed.chain)
    assert (await lab.start().endpoint()).chain_pem == renewed.chain


async def test_pushed_authorities_are_trusted_and_a_certificate_of_them_is_asked_for(lab: Lab) -> None:
    credentials = lab.start()
    chain = (await credentials.endpoint()).chain_pem
    async with attending(credentials) as channel:
        assert channel.of_kind("renew_certificate") == []
        lab.network.authority.rotate(wall_ms())
        credentials.take(worker_pb2.SessionResponse(certificate=lab.network.bundle()))
        await channel.await_kind("renew_certificate")
    endpoint = await lab.start().endpoint()
    assert (endpoint.chain_pem, endpoint.trust_pem) == (chain, lab.network.authority.trust_bundle())
    assert credentials.identity.ca_pin == lab.network.pin


async def test_certificate_that_cannot_be_ours_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    credentials = lab.start()
    before = await credentials.endpoint()
    foreign = lab.network.certificate(CSR)
    foreign.chain = TestNetwork(tmp_path / "other").certificate(CSR).chain
    for bad in (
        lab.network.certificate(make_csr(new_tls_key())),
        foreign,
        worker_pb2.Certificate(trust_bundle=b"nonsense"),
        worker_pb2.Certificate(),
        worker_pb2.Certificate(chain=lab.network.certificate(CSR).chain),
    ):
        credentials.take(worker_pb2.SessionResponse(certificate=bad))
    assert await credentials.endpoint() == before
    assert await lab.start().endpoint() == before


# What a failed connection means


async def test_connection_that_just_failed_is_told_as_it_is(lab: Lab) -> None:
    assert await refuse(lab.start(), "Connection refused") == "Connection refused"


async def test_connection_ended_at_the_handshake_tells_the_certificates_time_and_the_clocks(lab: Lab) -> None:
    lab.clock.wall_ms = 0
    said = await refuse(lab.start())
    assert "this worker's certificate, valid from 2" in said
    assert "this machine's clock says 1970-01-01 00:00:00 UTC" in said


async def test_connection_to_a_server_of_another_network_names_the_pin_that_was_expected(
    lab: Lab, tmp_path: Path
) -> None:
    other = ScriptedServer(tmp_path / "other")
    await other.start()
    lab.identity = Identity(
        "wk_1",
        "rig",
        "sup_1",
        other.address,
        "net_1",
        other.session_address,
        lab.network.pin,
        lab.identity.certificate,
    )
    lab.keep(lab.network.certificate(CSR))
    control = GrpcControlPlane(lab.start())
    with pytest.raises(ConnectionError, match=f"expected a CA with pin {lab.network.pin}"):
        await control.open()
    await control.close()
    await other.stop()


async def test_connection_with_a_clock_off_by_weeks_says_set_the_clock(lab: Lab) -> None:
    credentials = lab.start()
    lab.clock.wall_ms -= 30 * DAY_MS
    assert "set the clock" in await refuse(credentials, "CERTIFICATE_VERIFY_FAILED: not yet valid")


# Recovery


async def test_certificate_that_ran_out_but_is_accepted_costs_no_recovery(lab: Lab) -> None:
    credentials = lab.away_for_days()
    await credentials.endpoint()
    credentials.accepted()
    await credentials.endpoint()
    assert lab.server.recoveries == []


async def test_certificate_that_ran_out_and_is_refused_is_recovered_and_opens_a_session(lab: Lab) -> None:
    credentials = lab.away_for_days()
    control = GrpcControlPlane(credentials)
    with pytest.raises(ConnectionError, match="ended the connection at the handshake"):
        await control.open()
    channel = await control.open()
    assert (await channel.receive()) is not None
    await control.close()
    assert len(lab.server.recoveries) == 1
    assert "4 more time(s)" in lab.said[0]


async def test_young_certificate_is_not_given_up_for_a_wall_clock_that_runs_ahead(lab: Lab) -> None:
    credentials = lab.start()
    lab.clock.wall_ms += 5 * DAY_MS
    await refuse(credentials)
    await credentials.endpoint()
    assert lab.server.recoveries == []


async def test_certificate_that_looks_valid_is_recovered_after_refusals_in_a_row(lab: Lab) -> None:
    credentials = lab.start()
    for _ in range(subject.REFUSALS_MAX):
        assert lab.server.recoveries == []
        await refuse(credentials)
        await credentials.endpoint()
    assert len(lab.server.recoveries) == 1


async def test_recovery_that_did_not_help_is_not_followed_by_another_even_after_a_restart(lab: Lab) -> None:
    credentials = lab.away_for_days()
    await refuse(credentials)
    await credentials.endpoint()
    for again in (credentials, lab.start()):
        for _ in range(subject.REFUSALS_MAX):
            await refuse(again)
        with pytest.raises(ConnectionError, match="its operator should look at its session listener"):
            await again.endpoint()
    assert len(lab.server.recoveries) == 1


async def test_recovered_certificate_that_was_accepted_may_be_recovered_again_days_later(lab: Lab) -> None:
    credentials = lab.away_for_days()
    for count in (1, 2):
        await refuse(credentials)
        await credentials.endpoint()
        credentials.accepted()
        assert len(lab.server.recoveries) == count
        lab.pass_time(2 * DAY_MS)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, RefusedForeverError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ConnectionError),
        (grpc.StatusCode.INVALID_ARGUMENT, ConnectionError),
        (grpc.StatusCode.UNAVAILABLE, ConnectionError),
    ],
)
async def test_recovery_refused_ends_the_agent_only_where_asking_again_is_pointless(
    lab: Lab, code: grpc.StatusCode, error: type[Exception]
) -> None:
    credentials = lab.away_for_days()
    lab.server.recovery_refusal = (code, "not this one")
    await refuse(credentials)
    with pytest.raises(error, match="not this one"):
        await credentials.endpoint()


# What a disk may do


@pytest.mark.parametrize("damage", [b"", b"nonsense"])
async def test_lost_certificate_is_recovered(lab: Lab, damage: bytes) -> None:
    (lab.data_dir / CERTIFICATE_FILE).write_bytes(damage)
    endpoint = await lab.start().endpoint()
    assert endpoint.chain_pem == (lab.data_dir / CERTIFICATE_FILE).read_bytes() != damage
    assert len(lab.server.recoveries) == 1


async def test_lost_authorities_are_fetched_by_the_pin_that_is_known(lab: Lab) -> None:
    (lab.data_dir / TRUST_FILE).unlink()
    assert pin_of((await lab.start().endpoint()).trust_pem) == lab.network.pin
    assert pin_of((lab.data_dir / TRUST_FILE).read_bytes()) == lab.network.pin


async def test_lost_authorities_are_not_taken_from_anybody_else(lab: Lab, tmp_path: Path) -> None:
    (lab.data_dir / TRUST_FILE).unlink()
    lab.server.trust_shown = TestNetwork(tmp_path / "other").authority.trust_bundle()
    with pytest.raises(ConnectionError, match="not the one"):
        await lab.start().endpoint()
    assert not (lab.data_dir / TRUST_FILE).exists()


async def test_crash_between_the_files_of_a_renewal_leaves_what_still_connects(lab: Lab) -> None:
    old = {name: (lab.data_dir / name).read_bytes() for name in (TRUST_FILE, CERTIFICATE_FILE)}
    lab.network.authority.rotate(wall_ms())
    lab.keep(lab.network.certificate(CSR))
    new = {name: (lab.data_dir / name).read_bytes() for name in old}
    for mixture in ({TRUST_FILE: new[TRUST_FILE], CERTIFICATE_FILE: old[CERTIFICATE_FILE]}, new):
        for name, data in mixture.items():
            (lab.data_dir / name).write_bytes(data)
        control = GrpcControlPlane(lab.start())
        await (await control.open()).close()
        await control.close()
    assert len(split_chain(new[TRUST_FILE])) == 2
    assert lab.server.recoveries == []
