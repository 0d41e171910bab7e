"""What scrapes a metrics listener: once after the other for a figure, or `python -m benchmarks.metrics_client`, a storm.

As a storm it reads URL paths from its arguments, asks for them on many connections as fast as it is answered until its
standard input ends, and prints how many answers it had.
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 16
"""Of a storm: as many Prometheus servers as no network has."""

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Scraped:
    """All pages once: ``own_cpu_s`` is what the asking itself took."""

    seconds: float
    own_cpu_s: float
    size_bytes: int
    series: int


def scrape(address: str, token: str, paths: list[str]) -> Scraped:
    """Ask for each path, one after the other, on one connection. Blocking; raises OSError."""
    began_s, cpu_s = time.perf_counter(), time.thread_time()
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    pages = [_asked(connection, token, path) for path in paths]
    connection.close()
    seconds, own_cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
    series = sum(not line.startswith(b"#") for page in pages for line in page.splitlines())
    return Scraped(seconds, own_cpu_s, sum(len(page) for page in pages), series)


def _asked(connection: http.client.HTTPConnection, token: str, path: str) -> bytes:
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise OSError(f"{path} answered {answer.status}: {body[:200]!r}")
    return body


def storm(address: str, token: str, paths: list[str]) -> int:
    """Until standard input ends: how many answers there were."""
    over, answers = threading.Event(), [0] * CONNECTIONS

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
        while not over.is_set():
            try:
                _asked(connection, token, paths[(number + answers[number]) % len(paths)])
            except OSError:
                continue
            answers[number] += 1
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return sum(answers)


if __name__ == "__main__":
    place, token_file, *asked = sys.argv[1:]
    secret = Path(token_file).read_text(encoding="ascii").strip()
    sys.stdout.write(f"{storm(place, secret, asked)}\n")
