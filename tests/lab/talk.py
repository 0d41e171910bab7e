"""Small talk between hosts of a lab, for its tests: servers that name the address they see, and their callers.

Run as a script with the standard library alone; a server says `ready` once it listens, a caller answers in JSON.
usage: talk.py udp-serve IP PORT [KNOCK_IP KNOCK_PORT]   first sends one datagram there, as hole punching does
       talk.py udp-ask LOCAL_PORT COUNT WAIT_S IP:PORT…  one socket, each target in turn
       talk.py udp-watch IP:PORT                         asks again and again, a line for each answer: its second
       talk.py udp-burst COUNT SIZE_BYTES IP:PORT        how many answers came
       talk.py tcp-serve IP PORT
       talk.py tcp-ask WAIT_S IP:PORT
       talk.py tcp-send SIZE_BYTES IP:PORT               the seconds until all had arrived
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
from collections.abc import Callable

# Past the limit of unprivileged users: a burst is to be lost on the link only.
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 8 * 1024 * 1024
QUIET_S = 2.0
"""Where answers were lost, the last one has come when nothing did for so long: more than links and busy cores delay."""
WATCH_S = 0.25
"""Between two questions of one who watches: fine enough to time an outage of seconds."""


def say(answer: object) -> None:
    sys.stdout.write((answer if isinstance(answer, str) else json.dumps(answer)) + "\n")
    sys.stdout.flush()


def udp(ip: str, port: int) -> socket.socket:
    talker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    talker.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    talker.bind((ip, port))
    return talker


def target_of(text: str) -> tuple[str, int]:
    ip, _, port = text.partition(":")
    return ip, int(port)


def named(address: tuple[str, int]) -> bytes:
    return f"{address[0]}:{address[1]}".encode()


def udp_serve(ip: str, port: str, *knock: str) -> None:
    talker = udp(ip, int(port))
    if knock:
        talker.sendto(b"knock", (knock[0], int(knock[1])))
    say("ready")
    while True:
        _, caller = talker.recvfrom(65_536)
        talker.sendto(named(caller), caller)


def udp_ask(local_port: str, count: str, wait_s: str, *targets: str) -> None:
    talker = udp("", int(local_port))
    talker.settimeout(float(wait_s))
    answers = []
    for target in targets:
        seen, rtts_ms = [], []
        for _ in range(int(count)):
            start_s = time.perf_counter()
            talker.sendto(b"who am I?", target_of(target))
            try:
                seen.append(talker.recv(1024).decode())
            except TimeoutError:
                continue
            rtts_ms.append((time.perf_counter() - start_s) * 1000)
        answers.append({"seen": seen, "rtts_ms": rtts_ms})
    say(answers)


def udp_watch(target: str) -> None:
    """Seconds of the clock that all processes of a machine share; late answers to earlier questions count as well."""
    talker = udp("", 0)
    talker.settimeout(WATCH_S)
    while True:
        talker.sendto(b"there?", target_of(target))
        try:
            talker.recv(1024)
        except TimeoutError:
            continue
        say(time.monotonic())
        select.select((), (), (), WATCH_S)


def udp_burst(count: str, size_bytes: str, target: str) -> None:
    talker = udp("", 0)
    talker.connect(target_of(target))
    # The first answer comes when the way is known; no datagram of the burst is lost for want of it.
    talker.settimeout(QUIET_S)
    for _ in range(20):
        talker.send(b"?")
        try:
            talker.recv(1024)
            break
        except TimeoutError:
            continue
    for _ in range(int(count)):
        talker.send(b"x" * int(size_bytes))
    came = 0
    with contextlib.suppress(TimeoutError):
        while came < int(count) and talker.recv(1024):
            came += 1
    say(came)


def tcp_serve(ip: str, port: str) -> None:
    """Name the caller's address, read until it has said all, name it again."""
    listener = socket.create_server((ip, int(port)))
    say("ready")
    while True:
        caller, address = listener.accept()
        # A caller who leaves without listening resets the connection; the next one is answered all the same.
        with caller, contextlib.suppress(ConnectionError):
            caller.sendall(named(address))
            while caller.recv(1 << 20):
                pass
            caller.sendall(b"all here")


def tcp_ask(wait_s: str, target: str) -> None:
    try:
        with socket.create_connection(target_of(target), float(wait_s)) as talker:
            say(talker.recv(1024).decode())
    except OSError:
        say("nothing")


def tcp_send(size_bytes: str, target: str) -> None:
    with socket.create_connection(target_of(target)) as talker:
        talker.recv(1024)
        start_s = time.perf_counter()
        talker.sendall(bytes(int(size_bytes)))
        talker.shutdown(socket.SHUT_WR)
        talker.recv(1024)
        say(time.perf_counter() - start_s)


VERBS: dict[str, Callable[..., None]] = {
    "udp-serve": udp_serve,
    "udp-ask": udp_ask,
    "udp-watch": udp_watch,
    "udp-burst": udp_burst,
    "tcp-serve": tcp_serve,
    "tcp-ask": tcp_ask,
    "tcp-send": tcp_send,
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
