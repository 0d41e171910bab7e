"""Whom Prometheus is told to scrape, and what it gets there: through a real agent's session, over TLS."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.adapters.metrics.catalogue import AGENT
from orchestrator.adapters.metrics.exposition import TEXT_BYTES_MAX
from orchestrator.api.v1 import telemetry_pb2, telemetry_pb2_grpc
from orchestrator.control.discovery import TIMEOUT_HEADER, patience_of
from tests.control.agents import Served, agent_of, bearer, refused, serving
from tests.control.floods import answered
from tests.control.house import DEADLINE_S
from tests.control.scraped import NODE_IP, PAGES, RAY_TEXT, RAY_TYPE, Rig, rig_of
from tests.control.test_enrolment import offered
from tests.polling import wait_for_answer, wait_until_async


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def rig(served: Served, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_of(served, tmp_path / "agent") as made:
        yield made


def counted(served: Served, target: str, outcome: str) -> float:
    labels = {"target": target, "outcome": outcome}
    return served.house.metrics.registry.get_sample_value("orchestrator_scrapes_total", labels) or 0.0


# ---------------------------------------------------------------- lists


async def test_list_of_agents_names_this_listener_and_the_worker(rig: Rig) -> None:
    host = rig.base.removeprefix("http://")
    supplier = await rig.served.house.plane.loop.read(lambda state: state.workers[rig.worker_id].supplier_id)
    assert await rig.listed("/sd/agents") == [
        {
            "targets": [host],
            "labels": {
                "__metrics_path__": f"/scrape/agents/{rig.worker_id}",
                "instance": rig.worker_id,
                "worker": rig.worker_id,
                "supplier": supplier,
                "hardware_class": "consumer",
            },
        }
    ]


async def test_list_of_nodes_has_what_rays_dashboards_choose_by(rig: Rig) -> None:
    assert await rig.get("/sd/ray") == (200, "[]")
    member_id = await rig.node_up()

    async def is_listed() -> bool:
        return bool(await rig.listed("/sd/ray"))

    await wait_for_answer(is_listed, what="a list made anew", deadline_s=DEADLINE_S)
    (target,) = await rig.listed("/sd/ray")
    labels = target["labels"]
    assert labels["__metrics_path__"] == f"/scrape/ray/{member_id}"
    assert labels["instance"] == member_id
    assert labels["worker"] == rig.worker_id
    assert labels["hardware_class"] == "consumer"
    assert labels["ray_io_cluster"] == labels["cluster"] == member_id.rpartition("-")[0]


async def test_list_of_worker_pages_has_each_under_a_name_of_its_own(rig: Rig) -> None:
    found = [target["labels"] for target in await rig.listed("/sd/workers")]
    assert [one["__param_page"] for one in found] == [str(page) for page in range(PAGES)]
    assert {one["__metrics_path__"] for one in found} == {"/metrics/workers"}
    assert len({one["instance"] for one in found}) == PAGES


async def test_list_for_another_name_of_the_listener_has_that_name(rig: Rig) -> None:
    for host in ("metrics.example:9464", "[::1]:9464"):
        status, text = await rig.get("/sd/agents", Host=host)
        assert status == 200
        assert f'"targets":["{host}"]' in text
    assert (await rig.get("/sd/agents", Host='x"y'))[0] == 400


async def test_list_of_agents_keeps_one_that_is_away_and_leaves_out_one_that_is_too_old(
    rig: Rig, served: Served
) -> None:
    async with agent_of(served, offer=offered("old")) as old:
        await old.join()
        await old.hello()
        await answered(old)
        rig.running.cancel()
        await rig.connected(on=False)
        assert [one["labels"]["worker"] for one in await rig.listed("/sd/agents")] == [rig.worker_id]
        status, text = await rig.get(f"/scrape/agents/{old.worker_id}")
        assert (status, "cannot be scraped" in text) == (503, True)
        await answered(old)


async def test_lists_asked_for_in_a_storm_read_the_state_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = rig.served.house.plane.loop
    reads = 0
    real = loop.read

    async def counting(query: object) -> object:
        nonlocal reads
        reads += 1
        return await real(query)  # type: ignore[arg-type]  # whatever it is

    monkeypatch.setattr(loop, "read", counting)
    for _ in range(10):
        answers = await asyncio.gather(*(rig.get("/sd/agents", Host=f"name-{one}") for one in range(10)))
        assert {status for status, _ in answers} == {200}
    # The ids, and one slice of them; a list grows old in a second, and this takes a part of one.
    assert reads <= 6


# ---------------------------------------------------------------- scrapes


async def test_scrape_of_an_agent_shows_every_metric_of_the_catalogue(rig: Rig) -> None:
    await rig.node_up()
    status, text = await rig.get(f"/scrape/agents/{rig.worker_id}")
    assert status == 200
    shown = {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert {name for name, _ in shown} >= {metric.name for metric in AGENT}
    assert {name for name, _ in shown if name.startswith("orchestrator_")} == {one.name for one in AGENT}
    assert shown["orchestrator_agent_session_connected", ""] == 1
    assert shown["orchestrator_agent_sessions_total", ""] == 1
    assert shown["orchestrator_agent_members", "up"] == 1
    assert shown["orchestrator_agent_members", "failed"] == 0
    assert 0 <= shown["orchestrator_agent_heartbeat_rtt_seconds", ""] < 10
    assert shown["orchestrator_agent_disk_free_bytes", ""] > 0
    assert shown["process_resident_memory_bytes", ""] > 1e6
    assert counted(rig.served, "agent", "ok") == 1


async def test_scrape_of_a_node_shows_what_it_shows(rig: Rig) -> None:
    member_id = await rig.node_up()
    status, text = await rig.get(f"/scrape/ray/{member_id}")
    assert (status, text) == (200, RAY_TEXT.decode())
    assert rig.ray.asked == [f"GET {NODE_IP}:{rig.ray.port} /metrics"]
    rig.nodes.become(member_id, "stopped")
    await wait_until_async(
        lambda: rig.agent.nodes[member_id].phase == "stopped",
        what="its end to be seen",
        deadline_s=DEADLINE_S,
    )
    assert (await rig.get(f"/scrape/ray/{member_id}"))[0] in (404, 502)
    assert len(rig.ray.asked) == 1


async def test_scrapes_of_unknown_targets_reach_nobody(rig: Rig) -> None:
    await rig.node_up()
    for path in ("agents/wrk_nobody", "ray/clu_nobody-0", f"ray/{rig.worker_id}", "ray/..%2f..%2fetc"):
        status, _ = await rig.get(f"/scrape/{path}")
        assert status == 404, path
    assert rig.ray.asked == []


async def test_scrape_of_a_large_node_comes_whole(rig: Rig) -> None:
    member_id = await rig.node_up()
    lines = [b'ray_x{n="%d",hash="%x"} %d\n' % (n, hash((n, "x")) & 2**63 - 1, n) for n in range(60_000)]
    rig.ray.text = b"".join(lines)
    assert len(gzip.compress(rig.ray.text, 1)) > 4 * 128 * 1024
    status, text = await rig.get(f"/scrape/ray/{member_id}")
    assert status == 200
    assert text.encode() == rig.ray.text


HOSTILE: dict[str, tuple[dict[str, object], int, str]] = {
    "larger than any": ({"text": b"ray_x 1\n" * (TEXT_BYTES_MAX // 8 + 1)}, 502, "more than"),
    "a page": ({"headers": {"Content-Type": "text/html"}}, 502, "something else than text/plain"),
    "packed": ({"headers": {"Content-Type": RAY_TYPE, "Content-Encoding": "gzip"}}, 502, "something else"),
    "an error": ({"status": 500}, 502, "answered with 500"),
    "elsewhere": (
        {"status": 302, "headers": {"Location": "http://169.254.169.254/", "Content-Type": RAY_TYPE}},
        502,
        "answered with 302",
    ),
    "nobody": ({"port": 1}, 502, "did not answer"),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_scrape_of_a_node_that_answers_badly_says_why_and_the_agent_goes_on(
    rig: Rig, case: str
) -> None:
    changes, code, words = HOSTILE[case]
    member_id = await rig.node_up()
    for name, value in changes.items():
        setattr(rig.ray, name, value)
    status, text = await rig.get(f"/scrape/ray/{member_id}")
    assert status == code
    assert words in text
    assert text.startswith("refused: ")
    assert counted(rig.served, "ray", "refused") == 1
    assert (await rig.get(f"/scrape/agents/{rig.worker_id}"))[0] == 200


async def test_scrape_of_a_node_that_poses_as_the_control_plane_is_sieved(rig: Rig) -> None:
    member_id = await rig.node_up()
    rig.ray.text = RAY_TEXT + b"orchestrator_loop_lag_seconds 99\nup 0\n"
    status, text = await rig.get(f"/scrape/ray/{member_id}")
    assert status == 200
    assert text.startswith(RAY_TEXT.decode())
    assert "orchestrator_loop_lag_seconds" not in text
    assert "left out here: 2 lines" in text


async def test_scrape_of_a_node_that_never_answers_ends_when_prometheus_does(rig: Rig) -> None:
    member_id = await rig.node_up()
    rig.ray.hangs = True
    before_s = asyncio.get_running_loop().time()
    status, text = await rig.get(f"/scrape/ray/{member_id}", **{TIMEOUT_HEADER: "1.0"})
    assert status in (502, 504), text
    assert asyncio.get_running_loop().time() - before_s < 5
    assert (await rig.get(f"/scrape/agents/{rig.worker_id}"))[0] == 200


async def test_session_that_ends_during_a_scrape_ends_it_and_the_next_session_answers(rig: Rig) -> None:
    member_id = await rig.node_up()
    rig.ray.hangs = True
    asked = asyncio.create_task(rig.get(f"/scrape/ray/{member_id}"))
    await wait_until_async(lambda: bool(rig.ray.asked), what="the node to be asked", deadline_s=DEADLINE_S)
    rig.served.house.plane.sessions.reopen(rig.worker_id)
    status, text = await asked
    assert status == 503
    assert text.startswith("away: ")
    await rig.connected()
    rig.ray.hangs = False
    assert (await rig.get(f"/scrape/ray/{member_id}"))[0] == 200


async def test_scrapes_in_a_storm_are_all_answered_by_few(rig: Rig) -> None:
    answers = await asyncio.gather(*(rig.get(f"/scrape/agents/{rig.worker_id}") for _ in range(100)))
    assert {status for status, _ in answers} == {200}
    assert 1 <= counted(rig.served, "agent", "ok") <= 50


async def test_answer_without_a_session_token_is_refused(rig: Rig, served: Served) -> None:
    async with agent_of(served, offer=offered("hostile")) as hostile:
        await hostile.join()
        await hostile.hello()
        stub: telemetry_pb2_grpc.TelemetryServiceAsyncStub
        stub = telemetry_pb2_grpc.TelemetryServiceStub(hostile.channel)
        forged = telemetry_pb2.AnswerScrapeRequest(number=1, final=True)
        with refused(grpc.StatusCode.UNAUTHENTICATED, "session token"):
            await stub.AnswerScrape(iter([forged]), metadata=bearer("forged"))
        with refused(grpc.StatusCode.NOT_FOUND, "scrape"):
            await stub.AnswerScrape(iter([forged]), metadata=bearer(hostile.token))
        await answered(hostile)


@pytest.mark.parametrize(
    ("header", "patience_s"),
    [("10.000000", 9.5), ("0.4", 0.2), ("", 10), ("soon", 10), ("nan", 10), ("inf", 10), ("-1", 10)],
)
def test_patience_is_what_prometheus_waits_less_the_way_back(header: str, patience_s: float) -> None:
    assert patience_of(header) == pytest.approx(patience_s)
