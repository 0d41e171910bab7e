"""Joining over real TLS: whom the agent trusts, and what it never says to anybody else."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.adapters.peers import (
    RECOVER_CONTEXT,
    load_certificate,
    new_tls_key,
    pin_of,
    read_csr,
    split_chain,
)
from orchestrator.adapters.terms_wire import terms_to
from orchestrator.adapters.trust import TrustError, clock_fault, fetch_trust, read_leaf
from orchestrator.agent.connection import Endpoint
from orchestrator.agent.identity import Keys, StartError
from orchestrator.agent.joining import (
    Applicant,
    JoinRefusedError,
    JoinToken,
    enrol,
    join,
    known_pin,
    parse_join_token,
    recover,
)
from orchestrator.api.v1 import common_pb2, terms_pb2, worker_pb2
from orchestrator.core.supply.terms import Terms, Tier, WeekWindow
from tests.agent.scripted_server import ScriptedServer
from tests.tls import TestNetwork, wall_ms

DAY_MS = 24 * 3_600_000
SECRET = "orch_supplier_0123456789"
KEYS = Keys(Ed25519PrivateKey.from_private_bytes(b"k" * 32), new_tls_key())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer(tmp_path / "network")
    await made.start()
    yield made
    await made.stop()


def applicant(address: str) -> Applicant:
    return Applicant(address, "rig", common_pb2.Inventory(cpus=4), "1", terms_pb2.Terms(regions=["eu"]))


def methods(server: ScriptedServer) -> list[str]:
    return [name for name, _ in server.calls]


async def test_enrol_with_the_right_pin_sends_the_secret_alone_and_a_request_of_its_own_key(
    server: ScriptedServer,
) -> None:
    token = parse_join_token(server.network.token(SECRET))
    said: list[str] = []
    answer, pin = await enrol(applicant(server.address), KEYS, token, token.pin, wall_ms(), said.append)
    assert (answer.worker_id, pin, said) == ("wk_1", server.network.pin, [])
    (request,) = server.joins
    assert request.join_token == SECRET
    assert read_csr(request.tls_csr) == KEYS.tls.public_key()
    assert request.terms.regions == ["eu"]
    assert methods(server) == ["GetTrust", "Join"]


async def test_enrol_again_with_the_same_token_and_keys_asks_for_the_same_thing(
    server: ScriptedServer,
) -> None:
    token = parse_join_token(server.network.token(SECRET))
    for _ in range(2):
        await enrol(applicant(server.address), KEYS, token, token.pin, wall_ms(), print)
    first, second = server.joins
    assert first.request_id == second.request_id


async def test_enrol_at_a_control_plane_of_another_network_sends_it_no_join(
    server: ScriptedServer, tmp_path: Path
) -> None:
    token = parse_join_token(TestNetwork(tmp_path / "other").token(SECRET))
    with pytest.raises(StartError, match=f"expected a CA with pin {token.pin}") as refused:
        await enrol(applicant(server.address), KEYS, token, token.pin, wall_ms(), print)
    assert server.network.pin in str(refused.value)
    assert SECRET not in str(refused.value)
    assert methods(server) == ["GetTrust"]


async def test_enrol_at_one_who_shows_the_right_ca_but_is_not_of_it_sends_him_no_join(
    server: ScriptedServer, tmp_path: Path
) -> None:
    impostor = ScriptedServer(tmp_path / "impostor")
    await impostor.start()
    impostor.trust_shown = server.network.authority.trust_bundle()
    token = parse_join_token(server.network.token(SECRET))
    with pytest.raises(StartError, match="could not prove to be of it"):
        await enrol(applicant(impostor.address), KEYS, token, token.pin, wall_ms(), print)
    await impostor.stop()
    assert methods(impostor) == ["GetTrust"]


async def test_enrol_with_a_token_made_before_the_ca_was_rotated_still_joins(server: ScriptedServer) -> None:
    token = parse_join_token(server.network.token(SECRET))
    server.network.authority.rotate(wall_ms())
    await enrol(applicant(server.address), KEYS, token, token.pin, wall_ms(), print)
    assert len(server.joins) == 1


async def test_enrol_without_any_pin_names_the_one_it_trusts_from_now_on(server: ScriptedServer) -> None:
    said: list[str] = []
    _, pin = await enrol(applicant(server.address), KEYS, JoinToken(), "", wall_ms(), said.append)
    assert pin == server.network.pin
    assert pin in said[0]
    assert server.joins[0].join_token == ""


async def test_enrol_at_the_session_listener_says_that_it_is_the_wrong_address(
    server: ScriptedServer,
) -> None:
    with pytest.raises(StartError, match="is this the address for joining"):
        await enrol(applicant(server.session_address), KEYS, JoinToken(), "", wall_ms(), print)


async def test_enrol_at_a_server_without_tls_says_so() -> None:
    plain = grpc.aio.server()
    port = plain.add_insecure_port("127.0.0.1:0")
    await plain.start()
    with pytest.raises(StartError, match="no TLS is spoken"):
        await enrol(applicant(f"127.0.0.1:{port}"), KEYS, JoinToken(), "", wall_ms(), print)
    await plain.stop(None)


async def test_enrol_at_nobody_says_so() -> None:
    with pytest.raises(StartError, match=r"cannot reach the control plane at 127\.0\.0\.1:1"):
        await enrol(applicant("127.0.0.1:1"), KEYS, JoinToken(), "", wall_ms(), print)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(grpc.StatusCode.PERMISSION_DENIED, True), (grpc.StatusCode.INVALID_ARGUMENT, False)],
)
async def test_enrol_refused_says_why_and_where_tokens_come_from_if_that_helps(
    server: ScriptedServer, code: grpc.StatusCode, *, remedy: bool
) -> None:
    server.refuse = (code, "this token is used")
    token = parse_join_token(server.network.token(SECRET))
    with pytest.raises(StartError, match="this token is used") as refused:
        await enrol(applicant(server.address), KEYS, token, token.pin, wall_ms(), print)
    assert ("orch token create" in str(refused.value)) is remedy


@pytest.mark.parametrize("days", [-4, 400])
async def test_fetch_trust_with_a_clock_off_by_days_says_set_the_clock(
    server: ScriptedServer, days: int
) -> None:
    with pytest.raises(TrustError, match=r"this machine's clock says .*: set the clock"):
        await fetch_trust(server.address, "", wall_ms() + days * DAY_MS)
    assert methods(server) == []


async def test_fetch_trust_names_the_ca_of_the_pin_among_several(server: ScriptedServer) -> None:
    old_pin = server.network.pin
    server.network.authority.rotate(wall_ms())
    assert pin_of(await fetch_trust(server.address, old_pin, wall_ms())) == old_pin
    assert pin_of(await fetch_trust(server.address, "", wall_ms())) == server.network.pin


async def test_fetch_trust_of_what_is_no_authority_is_refused(server: ScriptedServer) -> None:
    server.trust_shown = split_chain(server.network.authority.server_credentials_pem(wall_ms())[1])[0]
    with pytest.raises(TrustError, match="is no control plane"):
        await fetch_trust(server.address, "", wall_ms())


async def test_read_leaf_is_the_certificate_that_the_server_shows(server: ScriptedServer) -> None:
    leaf = await read_leaf(server.address)
    shown = server.network.authority.server_credentials_pem(wall_ms())[1]
    assert load_certificate(leaf) == load_certificate(shown)
    assert clock_fault(leaf, wall_ms()) is None


async def test_join_nobody_there_is_a_connection_error(server: ScriptedServer) -> None:
    trust = server.network.authority.trust_bundle()
    with pytest.raises(ConnectionError):
        await join(Endpoint("127.0.0.1:1", trust), worker_pb2.JoinRequest())


async def test_recover_signs_the_nonce_the_worker_and_the_request(server: ScriptedServer) -> None:
    answer = await recover(server.network.endpoint(server.address), "wk_1", KEYS)
    assert answer.recoveries_left == 4
    (request,) = server.recoveries
    digest = hashlib.sha256(request.tls_csr).digest()
    KEYS.statement.public_key().verify(request.proof, RECOVER_CONTEXT + b"fresh" + b"wk_1" + digest)


@pytest.mark.parametrize(
    ("code", "for_good"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),
        (grpc.StatusCode.INVALID_ARGUMENT, False),
    ],
)
async def test_recover_refused_tells_whether_asking_again_may_help(
    server: ScriptedServer, code: grpc.StatusCode, *, for_good: bool
) -> None:
    server.recovery_refusal = (code, "not again")
    with pytest.raises(JoinRefusedError, match="not again") as refused:
        await recover(server.network.endpoint(server.address), "wk_1", KEYS)
    assert refused.value.for_good is for_good


async def test_recover_too_often_in_a_minute_may_be_tried_later(server: ScriptedServer) -> None:
    server.refuse = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many recoveries from this address")
    with pytest.raises(JoinRefusedError) as refused:
        await recover(server.network.endpoint(server.address), "wk_1", KEYS)
    assert not refused.value.for_good


@pytest.mark.parametrize(
    "text", ["", SECRET, f"{SECRET}.", f".{'x' * 43}", f"{SECRET}.{'x' * 42}", f"{SECRET}.{'x' * 44}"]
)
def test_join_token_that_was_cut_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(StartError, match="cut short") as refused:
        parse_join_token(text)
    assert SECRET not in str(refused.value)


def test_join_token_is_split_at_its_last_dot_and_hides_its_secret() -> None:
    token = parse_join_token(f" a.b.{'x' * 43}\n")
    assert (token.secret, token.pin) == ("a.b", "x" * 43)
    assert "a.b" not in repr(token)


def test_known_pin_of_flag_and_token_must_agree() -> None:
    assert known_pin(JoinToken("s", "x" * 43), "") == "x" * 43
    assert known_pin(JoinToken(), "y" * 43) == "y" * 43
    assert known_pin(JoinToken("s", "x" * 43), "x" * 43) == "x" * 43
    with pytest.raises(StartError, match="name two CAs"):
        known_pin(JoinToken("s", "x" * 43), "y" * 43)
    with pytest.raises(StartError, match="--ca-pin"):
        known_pin(JoinToken(), "short")


def test_terms_to_says_zero_for_no_limit_and_names_the_tier() -> None:
    plain = terms_to(Terms())
    assert (plain.lease_max_ms, plain.committed, list(plain.schedule)) == (0, False, [])
    strict = terms_to(
        Terms(lease_max_ms=5, tier=Tier.COMMITTED, idle_only=True, schedule=(WeekWindow(1, 2),), notice_ms=7)
    )
    assert (strict.lease_max_ms, strict.committed, strict.idle_only, strict.notice_ms) == (5, True, True, 7)
    assert strict.schedule == [terms_pb2.WeekWindow(start_minute=1, end_minute=2)]
