"""Shows the model fleet as a control plane shows a real one: the same paths, targets and token.

Each scrape of /metrics lets the model's time pass, so a Prometheus that scrapes every second sees hours in a minute.
"""

from __future__ import annotations

import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from deploy.dashboards.model import Fleet
from deploy.dashboards.model_machines import Worker
from deploy.dashboards.series import Sample, text

STEP_S = 15.0
"""The model's own step: a state does not last shorter."""


class Exporter:
    """The model behind a port of this machine, while the context lasts."""

    def __init__(self, fleet: Fleet, token: str, pass_s: float) -> None:
        """``pass_s``: how much of the model's time passes between two scrapes of /metrics."""
        self._fleet = fleet
        self._token = token
        self._pass_s = pass_s
        self._lock = threading.Lock()
        self._agents: dict[str, tuple[Worker, list[Sample]]] = {}
        self._nodes: dict[str, tuple[str, Worker, list[Sample]]] = {}
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = exporter.answer(
                    self.path, self.headers.get("Authorization", ""), self.headers["Host"]
                )
                self.send_response(status)
                kind = "application/json" if self.path.startswith("/sd/") else "text/plain; version=0.0.4"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base's
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, authorization: str, host: str) -> tuple[HTTPStatus, bytes]:
        """Status and body of a path."""
        if authorization != f"Bearer {self._token}":
            return HTTPStatus.UNAUTHORIZED, b""
        with self._lock:
            body = self._page(path.split("?", maxsplit=1)[0], host)
        return (HTTPStatus.NOT_FOUND, b"") if body is None else (HTTPStatus.OK, body.encode())

    def _page(self, path: str, host: str) -> str | None:
        match path.strip("/").split("/"):
            case ["metrics"]:
                for _ in range(round(self._pass_s / STEP_S)):
                    self._fleet.step(STEP_S)
                self._agents = {worker.worker: (worker, shown) for worker, shown in self._fleet.agents()}
                self._nodes = {
                    member: (cluster, worker, shown)
                    for member, cluster, worker, shown in self._fleet.ray_nodes()
                }
                return text(self._fleet.network(time.time()))
            case ["metrics", "workers"]:
                return text(self._fleet.workers())
            case ["sd", "workers"]:
                return json.dumps([_target(host, "/metrics/workers", __param_page="0")])
            case ["sd", "agents"]:
                found = [
                    _target(host, f"/scrape/agents/{name}", **worker.target, instance=name)
                    for name, (worker, _) in self._agents.items()
                ]
                return json.dumps(found)
            case ["sd", "ray"]:
                found = [
                    _target(
                        host,
                        f"/scrape/ray/{name}",
                        **worker.target,
                        instance=name,
                        cluster=of,
                        ray_io_cluster=of,
                    )
                    for name, (of, worker, _) in self._nodes.items()
                ]
                return json.dumps(found)
            case ["scrape", "agents", name] if name in self._agents:
                return text(self._agents[name][-1])
            case ["scrape", "ray", name] if name in self._nodes:
                return text(self._nodes[name][-1])
            case _:
                return None


def _target(host: str, path: str, **labels: str) -> dict[str, object]:
    return {"targets": [host], "labels": {"__metrics_path__": path, **labels}}
