"""Posts to strangers' URLs, against a real server: what arrives, and everything that must not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from orchestrator.adapters.webhooks import NotPublicError, Webhooks, is_public, public_socket

BODY = b'{"kind":"offline"}'


@dataclass
class Owner:
    """An owner's server on loopback; ``secret`` stands for what lies in the operator's own network."""

    port: int = 0
    got: list[bytes] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    secret: int = 0

    async def hook(self, request: web.Request) -> web.Response:
        self.got.append(await request.read())
        self.cookies.append(request.headers.get("Cookie", ""))
        return web.Response(headers={"Set-Cookie": "fill=memory"})

    async def elsewhere(self, _request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(f"http://127.0.0.1:{self.port}/secret")

    async def broken(self, _request: web.Request) -> web.Response:
        return web.Response(status=503)

    async def metadata(self, _request: web.Request) -> web.Response:
        self.secret += 1
        return web.Response()

    def url(self, host: str, path: str = "/hook") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    made = Owner()
    app = web.Application()
    app.router.add_post("/hook", made.hook)
    app.router.add_route("*", "/elsewhere", made.elsewhere)
    app.router.add_post("/broken", made.broken)
    app.router.add_route("*", "/secret", made.metadata)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = int(runner.addresses[0][1])
    yield made
    await runner.cleanup()


@asynccontextmanager
async def webhooks(*, private: bool) -> AsyncIterator[Webhooks]:
    made = Webhooks(private=private)
    try:
        yield made
    finally:
        await made.close()


async def test_post_in_a_laboratory_arrives_whole_and_keeps_no_cookie(owner: Owner) -> None:
    async with webhooks(private=True) as hooks:
        await hooks.post(owner.url("127.0.0.1"), BODY, vouched=True)
        await hooks.post(owner.url("127.0.0.1"), BODY, vouched=True)
    assert owner.got == [BODY, BODY]
    assert owner.cookies == ["", ""]


async def test_post_of_a_stranger_is_public_only_even_in_a_laboratory(owner: Owner) -> None:
    async with webhooks(private=True) as hooks:
        await hooks.post(owner.url("localhost"), BODY, vouched=True)
        with pytest.raises(ValueError, match="no public"):
            await hooks.post(owner.url("127.0.0.1"), BODY, vouched=False)
        with pytest.raises(OSError, match="cannot be reached"):
            await hooks.post(owner.url("localhost"), BODY, vouched=False)
    assert owner.got == [BODY]


@pytest.mark.parametrize("private", [True, False])
async def test_post_of_no_url_never_arrives_and_says_so(private: bool) -> None:
    async with webhooks(private=private) as hooks:
        for url in (
            "nonsense",
            "http://",
            "file:///etc/passwd",
            "http://[::1",
            "http://h:99999/",
            "ftp://h/",
        ):
            with pytest.raises(ValueError, match=r"URL|Port|host"):
                await hooks.post(url, BODY, vouched=True)


@pytest.mark.parametrize("path", ["/elsewhere", "/broken"])
async def test_post_follows_no_redirect_and_may_be_tried_again(owner: Owner, path: str) -> None:
    async with webhooks(private=True) as hooks:
        with pytest.raises(OSError, match=r"answered (307|503)"):
            await hooks.post(owner.url("127.0.0.1", path), BODY, vouched=True)
    assert owner.secret == 0


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[fe80::1%25lo]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "0.0.0.0",
        "224.0.0.1",
    ],
)
async def test_post_to_a_private_address_never_arrives(owner: Owner, host: str) -> None:
    async with webhooks(private=False) as hooks:
        with pytest.raises(ValueError, match="no public"):
            await hooks.post(owner.url(host), BODY, vouched=True)
    assert not owner.got


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "127.0.0.1.",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
    ],
)
async def test_post_to_a_private_address_in_disguise_does_not_arrive(owner: Owner, host: str) -> None:
    """Names, numbers and letters that mean 127.0.0.1 to one reader or another."""
    async with webhooks(private=False) as hooks:
        with pytest.raises((OSError, ValueError), match=r"no public address|not valid|cannot be reached"):
            await hooks.post(owner.url(host), BODY, vouched=True)
    assert not owner.got


async def test_post_to_a_name_is_refused_by_the_address_it_leads_to(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public name with a private address, as its owner may change it between any two looks."""
    asked: list[str] = []

    async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    async with webhooks(private=False) as hooks:
        with pytest.raises(OSError, match=r"127\.0\.0\.1 is no public address"):
            await hooks.post(owner.url("hook.owner.example"), BODY, vouched=True)
    assert not owner.got
    async with webhooks(private=True) as hooks:
        await hooks.post(owner.url("hook.owner.example"), BODY, vouched=True)
    assert owner.got == [BODY]
    assert asked == ["hook.owner.example"] * 2


async def test_post_to_nobody_may_be_tried_again() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with webhooks(private=True) as hooks:
            with pytest.raises(OSError, match="cannot be reached"):
                await hooks.post(f"http://127.0.0.1:{port}/", BODY, vouched=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2001:0:53aa:64c::", False),
        ("ff02::1", False),
        ("fe80::1%eth0", False),
        ("::", False),
        ("255.255.255.255", False),
    ],
)
def test_is_public_knows_addresses_inside_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["127.1", "localhost", "10.0.0.1"])
def test_public_socket_is_made_for_public_addresses_alone(host: str) -> None:
    with pytest.raises(NotPublicError):
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80)))
    public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))).close()
