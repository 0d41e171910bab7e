"""Run inside of a box by the overlay's tests: `stream.py serve PORT` or `stream.py talk ADDRESS PORT`.

The server sends back what it gets. The talker sends a number, waits for it to come back, says so on a line of its
output, and goes on with the next a little later, for as long as the connection holds.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time

PAUSE_S = 0.05
TRY_S = 2.0
"""How long one attempt to connect lasts: the kernel's own pauses between its knocks grow to 16 s, and a tunnel that
came up in the middle of one would look as if it were down."""
CONNECT_S = 60.0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def serve(port: int) -> None:
    with socket.create_server(("0.0.0.0", port)) as listener:
        say("listening")
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65_536):
            connection.sendall(data)


def connect(address: str, port: int) -> socket.socket:
    end_s = time.monotonic() + CONNECT_S
    while True:
        try:
            return socket.create_connection((address, port), timeout=TRY_S)
        except TimeoutError:
            if time.monotonic() >= end_s:
                raise


def talk(address: str, port: int) -> None:
    with connect(address, port) as connection:
        connection.settimeout(None)
        number = 0
        while True:
            line = b"%d\n" % number
            connection.sendall(line)
            answer = b""
            while len(answer) < len(line):
                answer += connection.recv(65_536)
            say(str(number))
            number += 1
            select.select([], [], [], PAUSE_S)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        talk(sys.argv[2], int(sys.argv[3]))
