"""A server that replays what a real API answered about nodes: over TLS, to whoever shows the pod's token of now.

It knows one question, `GET /api/v1/nodes/NAME`; whatever else it is asked it refuses as the API refuses what a role does
not name. `kube/README.md` says what was recorded and how.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from orchestrator.adapters.authority import Authority
from tests.tls import LOOPBACK, wall_ms


@dataclass(frozen=True)
class Recorded:
    """One answer as it came."""

    asked: str
    status: int
    headers: list[list[str]]
    body: str


RECORDED = {
    path.stem: Recorded(**json.loads(path.read_text()))
    for path in sorted((Path(__file__).parent / "kube").glob("*.json"))
}
ASKED = "/api/v1/nodes/"
NODES = {one.asked.removeprefix(ASKED): one for one in RECORDED.values() if one.status == 200}
MANAGED = RECORDED["eks"].asked.removeprefix(ASKED)
DRIP_S = 0.1
"""Between the bytes of an answer that drips: less than anybody waits for one."""
POLL_S = 0.02
"""How soon the server notices that its test is over."""
TOKEN = "eyJhbGciOiJSUzI1NiJ9.first"


class KubeApi:
    """What a pod finds: an account's folder and the variables; and what its cluster answers."""

    def __init__(self, account: Path, port: int) -> None:
        self.account = account
        self.environ = {"KUBERNETES_SERVICE_HOST": LOOPBACK, "KUBERNETES_SERVICE_PORT": str(port)}
        self.token = TOKEN
        self.refusal = 0
        """The status of the recorded refusal that every answer is from now on; 0: as it should be."""
        self.moved_to = ""
        """Where every question is sent on to."""
        self.drips = threading.Event()
        """Set: an answer comes a byte at a time, each in time, until it is cleared by the test's end."""
        self.body: bytes | None = None
        """What is answered in place of any node."""
        self.asked: list[str] = []
        self.silent = threading.Event()
        """Set: questions are heard and not answered, until it is cleared by the test's end."""
        self.ended = threading.Event()

    def of(self, node: str) -> dict[str, str]:
        """The environment of a pod on that node."""
        return {**self.environ, "ORCH_NODE_NAME": node}

    def mount(self, token: str) -> None:
        """As the kubelet does when it replaces a token."""
        (self.account / "token").write_text(token)

    def answer(self, path: str, shown: str | None) -> Recorded:
        """What was recorded for it, or for its refusal."""
        self.asked.append(path)
        if self.silent.is_set():
            self.ended.wait(60)
        if self.moved_to:
            return Recorded(path, 302, [["Location", f"{self.moved_to}{path}"]], "")
        name = unquote(path.removeprefix(ASKED))
        if self.refusal:
            return RECORDED[f"refused-{self.refusal}"]
        if shown != f"bearer {self.token}":
            return RECORDED["refused-401"]
        if not path.startswith(ASKED) or name == "forbidden":
            return RECORDED["refused-403"]
        if self.body is not None:
            return Recorded(path, 200, [["Content-Type", "application/json"]], self.body.decode())
        return NODES.get(name, RECORDED["refused-404"])


@contextmanager
def kube_api(folder: Path) -> Iterator[KubeApi]:
    """Serve on loopback with a certificate that the account's own names the authority of."""
    authority = Authority(folder / "authority", now_ms=wall_ms(), founded=False)
    key, chain = authority.server_credentials_pem(wall_ms(), (LOOPBACK,))
    pem = folder / "api.pem"
    pem.write_bytes(key + chain)
    account = folder / "serviceaccount"
    account.mkdir()
    (account / "ca.crt").write_bytes(authority.trust_bundle())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = api.answer(self.path, self.headers.get("authorization"))
            body = found.body.encode()
            self.send_response(found.status)
            for name, value in found.headers:
                # What told of that connection is told anew of this one.
                if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                self.send_body(body)

        def send_body(self, body: bytes) -> None:
            if not api.drips.is_set():
                self.wfile.write(body)
                return
            for byte in body:
                self.wfile.write(bytes([byte]))
                if api.ended.wait(DRIP_S):
                    return

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it
            """Say nothing among the tests."""

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        api = KubeApi(account, server.server_address[1])
        api.mount(TOKEN)
        serving = threading.Thread(target=server.serve_forever, args=(POLL_S,))
        serving.start()
        try:
            yield api
        finally:
            api.ended.set()
            server.shutdown()
            serving.join()
