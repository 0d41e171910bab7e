"""The gateway over HTTPS: Ray's own command against it, certificates exchanged under it, and who stays out."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from orchestrator.adapters.authority import BUNDLE_FILE, Authority
from orchestrator.adapters.https_identity import CertificateError, HttpsIdentity
from orchestrator.adapters.peers import load_certificate
from orchestrator.cli.gateway_tls import open_identity
from orchestrator.cli.serve_settings import listen_address, read_settings
from orchestrator.core.jobs import JobStatus
from orchestrator.gateway.app import Gateway, start_gateway
from orchestrator.gateway.config import GatewayConfig
from tests.gateway.fake_jobs import SECRET, TENANT, FakeJobs
from tests.gateway.ray_cli import DEADLINE_S, RayCli, finished, read_until
from tests.polling import wait_for_answer, wait_until_async
from tests.tls import wall_ms

PAST = datetime(2020, 1, 1, tzinfo=UTC)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Pair:
    """A certificate and its key in two files, as somebody else's tool renews them."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "tls.crt"
        self.key = folder / "tls.key"

    def write(self, name: str, key: Key | None = None, *, life: timedelta = timedelta(days=30)) -> None:
        """A new self-signed certificate for this machine, whose subject tells it from others."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begin = datetime.fromtimestamp(wall_ms() // 1000, UTC) if life.days else PAST
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin - timedelta(hours=1))
            .not_valid_after(begin + life)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.write_key(key, serialization.NoEncryption())

    def write_key(self, key: Key, encryption: serialization.KeySerializationEncryption) -> None:
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self.key.write_bytes(key.private_bytes(*pem, encryption))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path)
    made.write("first")
    return made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "data", now_ms=wall_ms(), founded=False)


@pytest.fixture
def own(tmp_path: Path, authority: Authority) -> HttpsIdentity:
    """What `orch serve --gateway-tls own` shows."""
    settings = read_settings({"gateway_tls": "own", "gateway_names": ("tenants.example",)}, None)
    made = open_identity(settings, listen_address("gateway", "127.0.0.1:0"), authority, tmp_path / "data")
    assert made is not None
    return made


@pytest.fixture
def ca(tmp_path: Path) -> str:
    """The file that a tenant is given."""
    return str(tmp_path / "data" / BUNDLE_FILE)


@pytest.fixture
async def secure(jobs: FakeJobs, config: GatewayConfig, own: HttpsIdentity) -> AsyncIterator[Gateway]:
    started = await start_gateway(jobs, config, host="127.0.0.1", port=0, tls=own.context)
    yield started
    await started.close()


@pytest.fixture
def ray(secure: Gateway) -> RayCli:
    return RayCli(f"https://{secure.host}:{secure.port}", SECRET)


async def shown_at(port: int, trusting: ssl.SSLContext | None = None, name: str = "localhost") -> str:
    """The subject of the certificate that a new connection is shown."""
    if trusting is None:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname=name)
    der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).subject.rfc4514_string()


# ---------------------------------------------------------------- Ray's command


async def test_ray_submit_with_the_networks_ca_uploads_tails_and_exits_truthfully(
    jobs: FakeJobs, ray: RayCli, ca: str, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "a.py").write_text("print('hello')\n")
    options = ["--verify", ca, "--submission-id", "mine", "--working-dir", "."]
    process = await ray.start("submit", *options, "--", "python", "a.py", cwd=folder)
    key = (TENANT, "mine")
    await wait_until_async(
        lambda: key in jobs.records and jobs.records[key].followers > 0,
        what="the log to be followed",
        deadline_s=DEADLINE_S,
    )
    jobs.run(*key)
    jobs.write_log(*key, b"over TLS\n")
    await read_until(process, "over TLS")
    (status, shown), (listed, _), (logged, logs) = await asyncio.gather(
        *(ray.run(*words, "--verify", ca) for words in (("status", "mine"), ("list",), ("logs", "mine")))
    )
    assert (status, listed, logged) == (0, 0, 0)
    assert "RUNNING" in shown
    assert "over TLS" in logs
    jobs.end(*key, JobStatus.SUCCEEDED, 0)
    assert (await finished(process))[0] == 0
    assert len(jobs.packages) == 1


async def test_ray_submit_gateway_closes_while_running_does_not_exit_zero(
    jobs: FakeJobs, ray: RayCli, ca: str, secure: Gateway
) -> None:
    process = await ray.start("submit", "--verify", ca, "--submission-id", "mine", "--", "true")
    key = (TENANT, "mine")
    await wait_until_async(lambda: key in jobs.records, what="the job", deadline_s=DEADLINE_S)
    jobs.run(*key)
    jobs.write_log(*key, b"still running\n")
    await read_until(process, "still running")
    await secure.close()
    assert (await finished(process))[0] != 0


async def test_ray_with_the_ca_by_variables_tails_as_well(jobs: FakeJobs, ray: RayCli, ca: str) -> None:
    known = RayCli(ray.url, SECRET, {"REQUESTS_CA_BUNDLE": ca, "SSL_CERT_FILE": ca})
    process = await known.start("submit", "--submission-id", "mine", "--", "true")
    key = (TENANT, "mine")
    await wait_until_async(lambda: key in jobs.records, what="the job", deadline_s=DEADLINE_S)
    jobs.run(*key)
    jobs.write_log(*key, b"over TLS\n")
    await read_until(process, "over TLS")
    jobs.end(*key, JobStatus.SUCCEEDED, 0)
    assert (await finished(process))[0] == 0


async def test_ray_without_the_ca_sends_nothing(jobs: FakeJobs, ray: RayCli) -> None:
    code, output = await ray.run("submit", "--", "true")
    assert code != 0
    assert "Failed to connect" in output or "CERTIFICATE_VERIFY_FAILED" in output
    assert jobs.records == {}


# ---------------------------------------------------------------- guards


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost:9", "Origin": "https://localhost:9"}, 200),
        ({"Host": "localhost:9", "Origin": "https://localhost:8"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 403),
    ],
)
async def test_guards_hold_over_https_and_a_page_in_the_clear_is_foreign(
    secure: Gateway, ca: str, headers: dict[str, str], status: int
) -> None:
    trusting = ssl.create_default_context(cafile=ca)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    async with (
        aiohttp.ClientSession(f"https://127.0.0.1:{secure.port}", headers=bearer) as session,
        session.get("/api/version", headers=headers, ssl=trusting) as response,
    ):
        assert response.status == status


async def test_plain_http_at_the_https_port_is_answered_nothing_and_logged_nowhere(
    secure: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(secure.host, secure.port)
    writer.write(f"GET /api/version HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode())
    assert b"HTTP/" not in await reader.read()
    writer.close()
    assert caplog.text == ""


def test_identity_versions_before_tls_1_2_are_not_spoken(own: HttpsIdentity) -> None:
    assert own.context.minimum_version is ssl.TLSVersion.TLSv1_2


# ---------------------------------------------------------------- exchange


async def test_exchange_shows_the_new_pair_and_drops_no_tail(jobs: FakeJobs, pair: Pair) -> None:
    identity = HttpsIdentity(pair.certificate, pair.key)
    gateway = await start_gateway(jobs, GatewayConfig(), host="127.0.0.1", port=0, tls=identity.context)
    trusting = ssl.create_default_context(cafile=pair.certificate)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    async with aiohttp.ClientSession(
        f"https://localhost:{gateway.port}", headers=bearer, connector=aiohttp.TCPConnector(ssl=trusting)
    ) as session:
        body = {"entrypoint": "true", "submission_id": "mine"}
        async with session.post("/api/jobs/", json=body) as response:
            assert response.status == 200
        jobs.run(TENANT, "mine")
        async with session.ws_connect("/api/jobs/mine/logs/tail") as tail:
            jobs.write_log(TENANT, "mine", b"before\n")
            assert "before" in await tail.receive_str(timeout=DEADLINE_S)
            assert await shown_at(gateway.port) == "CN=first"
            # A key of another kind: it replaces the old one, and does not stand beside it.
            pair.write("second", rsa.generate_private_key(65537, 2048))
            identity.refresh()
            assert await shown_at(gateway.port) == "CN=second"
            jobs.write_log(TENANT, "mine", b"after\n")
            assert "after" in await tail.receive_str(timeout=DEADLINE_S)
    await gateway.close()


async def test_exchange_half_done_keeps_the_old_pair_and_says_so_once_until_it_is_whole(
    jobs: FakeJobs, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = HttpsIdentity(pair.certificate, pair.key)
    gateway = await start_gateway(jobs, GatewayConfig(), host="127.0.0.1", port=0, tls=identity.context)
    looks = 0

    def counted_ms() -> int:
        nonlocal looks
        looks += 1
        return wall_ms()

    keeping = asyncio.create_task(identity.keep_fresh(counted_ms, every_s=0.001))
    await wait_until_async(lambda: looks > 0, what="a look", deadline_s=DEADLINE_S)
    key = pair.key.read_bytes()
    pair.write("second")
    renewed = pair.key.read_bytes()
    pair.key.write_bytes(key)
    said = ""

    async def complained() -> bool:
        nonlocal said
        said += "".join(capsys.readouterr())
        return "certificate_trouble" in said

    await wait_for_answer(complained, what="the complaint", deadline_s=DEADLINE_S)
    assert "is not the key of the first certificate" in said
    assert "shown on" in said
    assert await shown_at(gateway.port) == "CN=first"
    pair.key.write_bytes(renewed)

    async def exchanged() -> bool:
        return await shown_at(gateway.port) == "CN=second"

    await wait_for_answer(exchanged, what="the new certificate", deadline_s=DEADLINE_S)
    said += "".join(capsys.readouterr())
    assert said.count("is not the key of the first certificate") == 1
    keeping.cancel()
    await gateway.close()


async def test_keep_fresh_certificate_that_ended_is_shown_and_named_in_the_log(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    pair.write("old", life=timedelta(hours=1))
    keeping = asyncio.create_task(HttpsIdentity(pair.certificate, pair.key).keep_fresh(wall_ms))
    said = ""

    async def complained() -> bool:
        nonlocal said
        said += "".join(capsys.readouterr())
        return "ended at 2020-01-01T01:00:00" in said

    await wait_for_answer(complained, what="the complaint", deadline_s=DEADLINE_S)
    keeping.cancel()


async def test_own_certificate_follows_a_rotation_and_those_with_the_old_ca_still_find_it(
    jobs: FakeJobs, own: HttpsIdentity, authority: Authority, ca: str
) -> None:
    gateway = await start_gateway(jobs, GatewayConfig(), host="127.0.0.1", port=0, tls=own.context)
    old = ssl.create_default_context(cafile=ca)
    authority.rotate(wall_ms())
    own.refresh()
    new = ssl.create_default_context(cadata=load_bundle(authority)[0])
    for trusting in (old, new):
        for name in ("tenants.example", "localhost", "127.0.0.1"):
            assert await shown_at(gateway.port, trusting, name) == ""
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        await shown_at(gateway.port, new, "control.orchestrator")
    await gateway.close()


def load_bundle(authority: Authority) -> list[str]:
    """Each trusted generation's certificate, newest first."""
    mark = "-----BEGIN"
    return [mark + part for part in authority.trust_bundle().decode().split(mark)[1:]]


# ---------------------------------------------------------------- bad pairs


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("missing", "cannot read .*tls.key: no such file"),
        ("folder", "cannot read .*tls.key: is a directory"),
        ("no certificate", "tls.crt holds no certificate in PEM form"),
        ("no key", "tls.key holds no private key in PEM form"),
        ("encrypted", "tls.key is encrypted"),
        ("another's", "tls.key is not the key of the first certificate"),
        ("weak", "OpenSSL does not take .*tls.crt with .*tls.key: EE_KEY_TOO_SMALL"),
    ],
)
def test_identity_pair_that_will_not_do_is_named_without_its_content(
    pair: Pair, fault: str, expected: str
) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    match fault:
        case "missing":
            pair.key.unlink()
        case "folder":
            pair.key.unlink()
            pair.key.mkdir()
        case "no certificate":
            pair.certificate.write_bytes(pair.key.read_bytes())
        case "no key":
            pair.key.write_bytes(pair.certificate.read_bytes())
        case "encrypted":
            pair.write_key(other, serialization.BestAvailableEncryption(b"hush"))
        case "another's":
            pair.write_key(other, serialization.NoEncryption())
        case "weak":
            pair.write("weak", rsa.generate_private_key(65537, 1024))
    with pytest.raises(CertificateError, match=expected) as caught:
        HttpsIdentity(pair.certificate, pair.key)
    assert "\n" not in str(caught.value)


def test_identity_both_in_one_file_is_taken(pair: Pair) -> None:
    pair.certificate.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    assert load_certificate(pair.certificate.read_bytes()) is not None
    HttpsIdentity(pair.certificate, pair.certificate)
