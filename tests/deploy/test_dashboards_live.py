"""Every query of every panel against a real Prometheus that scrapes a network.

The network is the model fleet behind the control plane's own paths; what is scraped is exchanged in one fixture.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator

import pytest

from deploy.dashboards.exporter import STEP_S, Exporter
from deploy.dashboards.model import Fleet
from deploy.local.prometheus import Prometheus, operators_configuration
from tests.deploy.dashboards import NAMES, queries, read
from tests.deploy.seeing import Seen, rules
from tests.polling import wait_until

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus: `make system` installs it"),
    pytest.mark.timeout(300),
]

TOKEN = "only-for-this-test"

PASS_S = 240.0
"""Of the model's time between two scrapes: an hour, with its receipts, is over in fifteen seconds."""

WINDOW_S = 25
"""Of real time that is looked at; the model lives through more than an hour and a half in it."""

LIVED_S = 7_200.0
"""Of the model's time before the first scrape: what is seldom has happened once."""

DEADLINE_S = 90.0
"""For some thirty scrapes, each a second apart, of sixty targets."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("prometheus")
    token = folder / "token"
    token.write_text(TOKEN, encoding="utf-8")
    fleet = Fleet()
    for _ in range(round(LIVED_S / STEP_S)):
        fleet.step(STEP_S)
    with contextlib.ExitStack() as running:
        exporter = running.enter_context(Exporter(fleet, TOKEN, PASS_S))
        made = operators_configuration(exporter.address, token, rules(folder), interval="1s")
        prometheus = running.enter_context(Prometheus(folder, made))
        enough = f"min(count_over_time(orchestrator_build_info[{WINDOW_S}s])) >= {WINDOW_S - 1}"
        wait_until(lambda: bool(prometheus.now(enough)), what="scrapes", deadline_s=DEADLINE_S)
        end_s = time.time() - 1
        yield Seen(prometheus, end_s - WINDOW_S, end_s)


@pytest.mark.parametrize("name", NAMES)
def test_queries_of_a_live_network_answer_with_data(seen: Seen, name: str) -> None:
    assert not [str(query) for query in queries(name) if not query.annotates and not seen.shows(query)]


@pytest.mark.parametrize("name", NAMES)
def test_annotations_of_a_network_that_went_on_are_none(seen: Seen, name: str) -> None:
    assert not [str(query) for query in queries(name) if query.annotates and seen.answer(query)]


@pytest.mark.parametrize("name", NAMES)
def test_queries_before_there_was_a_network_answer_with_nothing(seen: Seen, name: str) -> None:
    """A panel must not show 0 where nobody looked."""
    before = Seen(seen.prometheus, seen.begin_s - 7_200, seen.begin_s - 3_600)
    for query in queries(name):
        assert not before.answer(query), f"data out of nothing: {query}"


def test_queries_of_one_class_and_supplier_leave_out_the_others(seen: Seen) -> None:
    for query in queries("fleet"):
        for series in seen.answer(query, hardware_class="miner", supplier="(sup_0003|sup_0004)"):
            assert series["metric"].get("hardware_class", "miner") == "miner", str(query)
            assert series["metric"].get("supplier", "sup_0003") in {"sup_0003", "sup_0004"}, str(query)


@pytest.mark.parametrize("name", NAMES)
def test_variables_offer_what_the_network_has(seen: Seen, name: str) -> None:
    offered = {
        variable["name"]: seen.prometheus.values_of(
            variable["name"], variable["query"]["query"].removeprefix("label_values(").split(",")[0]
        )
        for variable in read(name)["templating"]["list"]
        if variable["type"] == "query"
    }
    assert all(offered.values()), offered
