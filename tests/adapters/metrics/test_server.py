"""The metrics' door by real HTTP: who is let in, what is said before there is anything to show, and storms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orchestrator.adapters.keys import KeyFileError
from orchestrator.adapters.metrics import server as module
from orchestrator.adapters.metrics.server import Kind, MetricsServer, Share
from orchestrator.adapters.metrics.token import TokenFile, own_token_file
from orchestrator.core.errors import RefusalCode, RefusedError
from tests.polling import wait_until_async

LOOPBACK = "127.0.0.1"


@dataclass
class Shown:
    """Pages that say how often they were made."""

    count: int = 1
    made: int = 0
    failing: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def network(self) -> bytes:
        self.made += 1
        if self.failing:
            raise RefusedError(RefusalCode.UNAVAILABLE, "the control plane is stopping")
        await self.gate.wait()
        return b"network 1\n"

    def page_count(self) -> int:
        return self.count

    async def workers(self, page: int) -> bytes:
        return f"page {page}\n".encode()


@dataclass
class Door:
    server: MetricsServer
    shown: Shown
    session: aiohttp.ClientSession
    url: str
    token_file: Path
    reason: str = ""

    async def open(self, *routes: web.RouteDef) -> None:
        await self.server.open(self.shown, lambda: self.reason, routes)

    async def get(self, path: str, token: str | None = None) -> tuple[int, str]:
        """(status, text); with the right token unless another is given."""
        shown = self.token_file.read_text().strip() if token is None else token
        headers = {"Authorization": f"Bearer {shown}"} if shown else {}
        async with self.session.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    token = own_token_file(tmp_path)
    server = MetricsServer(token)
    port = await server.start(LOOPBACK, 0)
    shown = Shown()
    shown.gate.set()
    async with aiohttp.ClientSession() as session:
        yield Door(server, shown, session, f"http://{LOOPBACK}:{port}", token.path)
        await server.close()


async def test_server_before_it_is_opened_lives_and_says_why_it_is_not_ready(door: Door) -> None:
    assert await door.get("/healthz", "") == (200, "alive\n")
    status, said = await door.get("/readyz", "")
    assert (status, said.count("\n")) == (503, 1)
    assert said.startswith("starting")
    assert (await door.get("/metrics"))[0] == 503
    assert (await door.get("/metrics", ""))[0] == 401


async def test_server_opened_is_ready_until_something_fails(door: Door) -> None:
    await door.open()
    assert await door.get("/readyz", "") == (200, "ready\n")
    assert await door.get("/metrics") == (200, "network 1\n")
    door.reason = "loop has ended: the disk is full"
    assert await door.get("/readyz", "") == (503, "loop has ended: the disk is full\n")
    door.reason = ""
    door.server.stopping()
    assert await door.get("/readyz", "") == (503, "stopping\n")
    assert (await door.get("/healthz", ""))[0] == 200


@pytest.mark.parametrize("shown", ["", "wrong", "héé"])
@pytest.mark.parametrize("path", ["/metrics", "/metrics/workers", "/sd/workers", "/nothing"])
async def test_server_without_the_token_says_where_it_is(door: Door, path: str, shown: str) -> None:
    async def listed(_request: web.Request) -> web.Response:
        return web.Response(text="targets")

    await door.open(web.get("/sd/workers", listed))
    status, said = await door.get(path, shown)
    assert status == 401
    assert str(door.token_file) in said
    assert door.token_file.read_text().strip() not in said


async def test_server_routes_of_others_are_behind_the_same_token(door: Door) -> None:
    async def named(request: web.Request) -> web.Response:
        return web.Response(text=request.match_info["worker"])

    await door.open(web.get("/scrape/agents/{worker}", named))
    assert await door.get("/scrape/agents/wrk_1") == (200, "wrk_1")
    assert (await door.get("/nothing"))[0] == 404


async def test_server_token_exchanged_in_its_file_counts_at_once(door: Door) -> None:
    await door.open()
    old = door.token_file.read_text().strip()
    fresh = door.token_file.with_name("fresh")
    fresh.write_text("another-token")
    fresh.replace(door.token_file)
    assert (await door.get("/metrics", old))[0] == 401
    assert (await door.get("/metrics", "another-token"))[0] == 200


async def test_server_token_file_that_has_gone_lets_nobody_in_and_is_named(door: Door) -> None:
    await door.open()
    old = door.token_file.read_text().strip()
    door.token_file.unlink()
    status, said = await door.get("/metrics", old)
    assert status == 503
    assert f"cannot read {door.token_file}" in said
    assert (await door.get("/readyz", ""))[0] == 200


async def test_server_pages_of_workers_are_asked_for_by_number(door: Door) -> None:
    await door.open()
    assert await door.get("/metrics/workers") == (200, "page 0\n")
    door.shown.count = 3
    assert await door.get("/metrics/workers?page=2") == (200, "page 2\n")
    status, said = await door.get("/metrics/workers")
    assert status == 400
    assert "there are 3" in said
    for wrong in ("3", "-1", "one", "", "9" * 40):
        status, said = await door.get(f"/metrics/workers?page={wrong}")
        assert status == 404, wrong
        assert "0 to 2" in said


async def test_server_storm_of_scrapes_is_one_page(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    # However long the fifty take to arrive.
    monkeypatch.setattr(module, "FRESH_S", 600.0)
    await door.open()
    door.shown.gate.clear()
    asking = [asyncio.create_task(door.get("/metrics")) for _ in range(50)]
    await wait_until_async(lambda: door.shown.made > 0, what="the first scrape", deadline_s=60)
    # One that goes away takes nothing from the others.
    asking.pop().cancel()
    door.shown.gate.set()
    assert set(await asyncio.gather(*asking)) == {(200, "network 1\n")}
    assert door.shown.made == 1


async def test_server_storm_beyond_its_bound_is_held_up_and_refused(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTES_PER_S", 0.001)
    # As if each were so large.
    monkeypatch.setitem(module.SHARES, Kind.NETWORK, Share(64, 9.5, 1.0))
    monkeypatch.setattr(module, "PAUSE_S", 0.2)
    monkeypatch.setattr(Shown, "network", short)
    await door.open()
    asking = [door.get("/metrics") for _ in range(10)]
    assert {await one for one in asking} == {(200, "")}
    began_s = asyncio.get_running_loop().time()
    status, said = await door.get("/metrics")
    assert (status, said.count("\n")) == (429, 1)
    assert asyncio.get_running_loop().time() - began_s >= 0.2
    assert (await door.get("/metrics/workers"))[0] == 200, "who storms one leaves the other"
    assert (await door.get("/readyz", ""))[0] == 200


async def short(_shown: Shown) -> bytes:
    """A page of nothing."""
    return b""


@pytest.mark.parametrize(
    ("path", "kind"), [("/sd/agents", Kind.LISTS), ("/scrape/ray/mbr_1", Kind.SCRAPES), ("/no", Kind.NETWORK)]
)
async def test_server_storm_of_lists_and_scrapes_is_bounded_as_that_of_pages(
    door: Door, monkeypatch: pytest.MonkeyPatch, path: str, kind: Kind
) -> None:
    monkeypatch.setattr(module, "BYTES_PER_S", 0.001)
    monkeypatch.setitem(module.SHARES, kind, Share(64, 1_000.0, 400.0))
    monkeypatch.setattr(module, "PAUSE_S", 0.2)

    async def large(_request: web.Request) -> web.Response:
        return web.Response(text="x" * 600)

    await door.open(web.get("/sd/agents", large), web.get("/scrape/ray/{member}", large))
    # What is not there brings nothing, and counts all the same.
    answers = [(await door.get(path))[0] for _ in range(4)]
    assert answers == ([404, 404, 404, 429] if path == "/no" else [200, 200, 429, 429])
    assert (await door.get("/metrics/workers"))[0] == 200, "who storms one leaves the other"


async def test_server_storm_of_strangers_is_bounded_and_keeps_out_nobody_with_the_token(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTES_PER_S", 0.001)
    monkeypatch.setitem(module.SHARES, Kind.STRANGERS, Share(8, 1_000.0, 400.0))
    monkeypatch.setattr(module, "PAUSE_S", 0.2)
    await door.open()
    guesses = [(await door.get("/metrics", "a guess"))[0] for _ in range(4)]
    assert guesses == [401, 401, 401, 429]
    assert (await door.get("/sd/agents", ""))[0] == 429
    assert (await door.get("/metrics"))[0] == 200
    assert (await door.get("/readyz", ""))[0] == 200


async def test_server_scrapes_at_once_are_bounded_and_leave_room_for_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 6)
    monkeypatch.setitem(module.SHARES, Kind.SCRAPES, Share(2, 1e6, 1.0))
    # Longer than the test: whoever is held up gives way.
    monkeypatch.setattr(module, "PAUSE_S", 600.0)
    gate, under_way = asyncio.Event(), 0

    async def hanging(_request: web.Request) -> web.Response:
        nonlocal under_way
        under_way += 1
        await gate.wait()
        return web.Response(text="scraped")

    token = own_token_file(tmp_path)
    server = MetricsServer(token)
    port = await server.start(LOOPBACK, 0)
    await server.open(Shown(), str, [web.get("/scrape/agents/{worker}", hanging)])
    headers = {"Authorization": f"Bearer {token.path.read_text().strip()}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def ask(path: str) -> str:
            async with session.get(f"http://{LOOPBACK}:{port}{path}") as answer:
                return f"{answer.status} {await answer.text()}"

        first = [asyncio.create_task(ask(f"/scrape/agents/{number}")) for number in range(2)]
        await wait_until_async(lambda: under_way == 2, what="two scrapes", deadline_s=60)
        others = [asyncio.create_task(ask(f"/scrape/agents/{number}")) for number in range(12)]
        await wait_until_async(
            lambda: sum(one.done() for one in others) >= 8, what="those without room to end", deadline_s=60
        )
        assert under_way == 2
        async with asyncio.timeout(10):
            assert await ask("/healthz") == "200 alive\n"
            gate.set()
            assert await asyncio.gather(*first) == ["200 scraped"] * 2
        for one in others:
            one.cancel()
        ended = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(one, aiohttp.ClientError | asyncio.CancelledError) for one in ended)
    await server.close()


def test_shares_of_all_kinds_leave_connections_for_probes() -> None:
    assert sum(share.at_once for share in module.SHARES.values()) <= 0.9 * module.CONNECTIONS_MAX


async def test_server_page_that_hangs_is_given_up_and_hides_no_other(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_S_MAX", 0.2)
    await door.open()
    door.shown.gate.clear()
    status, said = await door.get("/metrics")
    assert (status, said.count("\n")) == (503, 1)
    assert "orchestrator_loop_lag_seconds" in said
    assert await door.get("/metrics/workers") == (200, "page 0\n")


async def test_server_page_that_cannot_be_made_is_one_line(door: Door) -> None:
    await door.open()
    door.shown.failing = True
    assert await door.get("/metrics") == (503, "the control plane is stopping\n")


async def test_server_connections_that_ask_nothing_end_and_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.5)
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 4)
    server = MetricsServer(own_token_file(tmp_path))
    port = await server.start(LOOPBACK, 0)
    silent = [await asyncio.open_connection(LOOPBACK, port) for _ in range(8)]
    # The first of them at once, as there is room for four; the others when their time is over.
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        async with session.get(f"http://{LOOPBACK}:{port}/healthz") as answer:
            assert answer.status == 200
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
    await server.close()


def test_own_token_file_is_made_once_and_its_owners_only(tmp_path: Path) -> None:
    first = own_token_file(tmp_path).path
    text = first.read_text()
    assert first.stat().st_mode & 0o077 == 0
    assert own_token_file(tmp_path).path.read_text() == text
    first.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        own_token_file(tmp_path)


def test_token_file_empty_or_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="none: no such file"):
        TokenFile(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(KeyFileError, match="empty is empty"):
        TokenFile(tmp_path / "empty")


@pytest.mark.parametrize(
    "held", [b"one\ntwo\n", b"one two", b"\xff\x00\x10", "gehörig".encode(), b"a" * 5000]
)
def test_token_file_that_no_header_can_show_is_named_until_it_can(tmp_path: Path, held: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(held)
    with pytest.raises(KeyFileError, match=f"{path} holds something else than one word") as refused:
        TokenFile(path)
    assert held.decode("utf-8", "replace").strip() not in str(refused.value)
    path.write_text("secret\n")
    token = TokenFile(path)
    path.write_bytes(held)
    for _ in range(2):
        with pytest.raises(KeyFileError, match="something else"):
            token.admits("Bearer secret")
    path.write_text("another\n")
    assert token.admits("Bearer another")


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer ", "Basic secret", "secret", "bearer secret"])
def test_token_file_admits_nothing_but_its_token(tmp_path: Path, shown: str) -> None:
    (tmp_path / "token").write_text("secret\n")
    token = TokenFile(tmp_path / "token")
    assert token.admits("Bearer secret")
    assert not token.admits(shown)
