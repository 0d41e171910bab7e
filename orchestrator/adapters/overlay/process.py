"""The overlay's child processes: a member's nebula and its bridge, and the control plane's lighthouse.

A member's nebula runs on the host's network, with the right to configure networks and no other; only the
interface it made goes into the box. So the box holds an end of the overlay and no way to the underlay. The
interface goes with the namespace, and nebula with its parent: neither outlives what it is for.

Synchronous and of few imports, as the keeper lives as long as its node. Nothing secret is in a command line.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NEBULA = "nebula"
SETPRIV = "setpriv"
IP = "ip"
NSENTER = "nsenter"
TUN_DEVICE = Path("/dev/net/tun")

BRIDGE_MODULE = "orchestrator.adapters.overlay.bridge"

INSTALL = "apt-get install nebula iproute2 util-linux"
INNER_NAME = "overlay0"
"""What the interface is called in every box."""

NAME_PREFIX = "onb"
"""Interfaces on the host that start so are ours."""

NAME_DIGITS = 12
"""48 bits: two boxes of one machine never meet, and the name has the kernel's 15 characters."""

START_S = 10.0
"""Nebula makes its interface within 0.1 s; on a machine that swaps it may take seconds."""

STOP_S = 3.0
"""Time to say goodbye to its peers; what is left is killed, and peers notice by themselves."""

COMMAND_S = 10.0
"""One call of `ip` takes milliseconds."""

POLL_S = 0.02
"""Short beside a start."""

LOG_BYTES_MAX = 4 << 20
"""Some ten thousand handshakes: enough to see what went wrong, little on any disk."""

LOG_TAIL_BYTES = 2000
"""The last lines, of which one says why nebula ended."""

RESTART_MS_MIN = 500
"""The first pause: nebula dies by accident, and every tunnel's relay waits."""

RESTART_MS_MAX = 30_000
"""The longest pause: a configuration that cannot work costs little, and is mended within half a minute."""

SETTLED_MS = 60_000
"""Having run for this long, the next death counts as the first."""


ANSWERED = b'"msg":"Handshake message received"'
"""What nebula 1.6 logs when a packet of another host's handshake came in and was right; it logs no sooner one."""


class OverlayError(Exception):
    """Nebula or its interface did not come up; the text says why and what to do."""


def available() -> str:
    """Why no member can have an overlay here, in one sentence with the remedy; empty if one can."""
    if sys.platform != "linux":
        return "the overlay needs Linux; on other systems a worker serves clusters of one machine only"
    missing = [name for name in (NEBULA, SETPRIV, IP, NSENTER) if shutil.which(name) is None]
    if missing:
        return f"the overlay needs {', '.join(missing)}; run `{INSTALL}`"
    if os.geteuid() != 0:
        return "the overlay needs root to make its interface; start the agent as root"
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return (
            f"the overlay cannot use {TUN_DEVICE} ({error.strerror}); run `modprobe tun`, or let this container"
            " have the device"
        )
    return ""


def lighthouse_available() -> str:
    """The same for a lighthouse, which makes no interface and so needs no rights."""
    if sys.platform != "linux":
        return "the overlay's lighthouse needs Linux; name an external one, or start with overlay none"
    missing = [name for name in (NEBULA, SETPRIV) if shutil.which(name) is None]
    return f"the overlay's lighthouse needs {', '.join(missing)}; run `{INSTALL}`" if missing else ""


def interface_name(box: str) -> str:
    """What a box's interface is called while it is on the host; always the same for the same box."""
    return NAME_PREFIX + hashlib.sha256(box.encode()).hexdigest()[:NAME_DIGITS]


class _Process:
    """One child: started, told to read its files again, ended. Its output goes to a file of bounded size."""

    def __init__(self, command: Sequence[str], log: Path, capabilities: Sequence[str]) -> None:
        self._program = tuple(command)
        self._log = log
        self._capabilities = capabilities
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        return self._child.pid if self._child is not None and self.is_running() else 0

    def spawn(self) -> None:
        """Start it. It dies with the thread that calls this. Raises OverlayError."""
        try:
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        except OSError as error:
            raise OverlayError(f"{self._log} cannot be written: {error.strerror}; free some space") from None
        try:
            self._child = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                # A terminal's interrupt is for the parent, which ends its children in order.
                start_new_session=True,
            )
        except OSError as error:
            raise OverlayError(f"{SETPRIV} cannot be started ({error.strerror}); run `{INSTALL}`") from None
        finally:
            os.close(descriptor)

    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def reload(self) -> None:
        """Have it read configuration, certificate and blocklist again; live tunnels stay."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGHUP)

    def trim_log(self) -> None:
        """Start the log anew when it has become too long."""
        with contextlib.suppress(FileNotFoundError):
            if self._log.stat().st_size > LOG_BYTES_MAX:
                os.truncate(self._log, 0)

    def end(self) -> None:
        """Return when it is gone."""
        child, self._child = self._child, None
        if child is None or child.poll() is not None:
            return
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def last_words(self) -> str:
        """Why it ended, as far as its log says."""
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._log.stat().st_size - LOG_TAIL_BYTES, 0))
                lines = file.read(LOG_TAIL_BYTES).decode("utf-8", "replace").splitlines()
        except OSError:
            return f"see {self._log}"
        return _explain(lines[-1]) if lines else f"see {self._log}"

    def _command(self) -> list[str]:
        command = [SETPRIV, "--no-new-privs", "--pdeathsig", "KILL"]
        if os.geteuid() == 0:
            kept = ",".join(("-all", *(f"+{name}" for name in self._capabilities)))
            command += [f"--inh-caps={kept}", f"--bounding-set={kept}"]
        return [*command, "--", *self._program]


class NebulaNode:
    """A member's host on the overlay: nebula outside of the box, its interface inside."""

    def __init__(self, config: Path, log: Path, *, interface: str, address: str, mtu: int) -> None:
        """``interface`` and ``mtu`` as in the configuration, ``address`` as in the certificate, with prefix."""
        self._process = _Process((NEBULA, "-config", str(config)), log, ("net_admin",))
        self._interface = interface
        self._address = str(ipaddress.IPv4Interface(address))
        self._mtu = mtu

    def start(self, namespace_pid: int) -> None:
        """Have ``overlay0`` up in the network namespace of this process when it returns. Raises OverlayError.

        The thread that calls this has to live on: nebula ends with it.
        """
        fault = available()
        if fault:
            raise OverlayError(fault)
        self._process.spawn()
        try:
            self._await_interface()
            self._move_interface(namespace_pid)
        except BaseException:
            self._process.end()
            raise

    def alive(self) -> bool:
        """Whether nebula runs; it ends by itself when the box's namespace is gone."""
        return self._process.is_running()

    @property
    def pid(self) -> int:
        """Nebula's; 0 when it does not run."""
        return self._process.pid

    def reload(self) -> None:
        """Take over a renewed certificate or blocklist, after their files were replaced."""
        self._process.reload()

    def trim_log(self) -> None:
        """Hold the log's size; call it now and then."""
        self._process.trim_log()

    def stop(self) -> None:
        """End nebula, and its interface with it, wherever that is."""
        self._process.end()

    def _await_interface(self) -> None:
        """Return when nebula has done all that it does to its interface by name.

        The last of it is a route with a size of its own; moved before, the interface would be missed and nebula end.
        """
        for _ in range(round(START_S / POLL_S)):
            if not self._process.is_running():
                raise OverlayError(f"nebula did not start: {self._process.last_words()}")
            routes = _output([IP, "route", "show", "dev", self._interface])
            if f"mtu {self._mtu}" in routes:
                return
            time.sleep(POLL_S)
        raise OverlayError(
            f"nebula made no interface {self._interface} within {START_S:g} s: {self._process.last_words()}"
        )

    def _move_interface(self, namespace_pid: int) -> None:
        """Moving an interface takes its name, address and routes away; give it those of the box."""
        _run([IP, "link", "set", "dev", self._interface, "netns", str(namespace_pid)])
        script = (
            f"link set dev {self._interface} name {INNER_NAME}\n"
            f"link set dev {INNER_NAME} mtu {self._mtu}\n"
            f"address add {self._address} dev {INNER_NAME}\n"
            f"link set dev {INNER_NAME} up\n"
        )
        _run([NSENTER, f"--net=/proc/{namespace_pid}/ns/net", IP, "-batch", "-"], script)
        if not self._process.is_running():
            raise OverlayError(f"nebula ended as its interface was moved: {self._process.last_words()}")


class _Tended:
    """A child without any rights that is started again whenever it dies."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._process = _Process(command, log, ())
        self._started_ms = 0
        self._next_start_ms = 0
        self._pause_ms = 0
        self._wanted = False
        self.starts = 0
        """How often it was started; more than one means that it died."""

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        return self._process.pid

    def start(self, now_ms: int) -> None:
        """Start it, and have `tend` keep it up. Raises OverlayError if the machine lacks what it needs.

        The thread that calls this and `tend` has to live on: the child ends with it.
        """
        self._wanted = True
        self._spawn(now_ms)

    def tend(self, now_ms: int) -> None:
        """Start it again when it is due; call this every second or so, with a clock that only goes on."""
        self._process.trim_log()
        if not self._wanted or self._process.is_running():
            return
        if self._next_start_ms <= self._started_ms:
            settled = now_ms - self._started_ms >= SETTLED_MS
            doubled_ms = 0 if settled else 2 * self._pause_ms
            self._pause_ms = min(max(doubled_ms, RESTART_MS_MIN), RESTART_MS_MAX)
            self._next_start_ms = now_ms + self._pause_ms
        if now_ms >= self._next_start_ms:
            self._spawn(now_ms)

    def alive(self) -> bool:
        """Whether it runs at this moment."""
        return self._process.is_running()

    def fault(self) -> str:
        """Why it does not run, in its own words; empty if it does."""
        return "" if self._process.is_running() else self._process.last_words()

    def stop(self) -> None:
        """End it for good."""
        self._wanted = False
        self._process.end()

    def _spawn(self, now_ms: int) -> None:
        self.starts += 1
        self._started_ms = self._next_start_ms = now_ms
        self._process.spawn()


class NebulaLighthouse(_Tended):
    """The control plane's own lighthouse and relay."""

    def __init__(self, config: Path, log: Path) -> None:
        super().__init__((NEBULA, "-config", str(config)), log)

    def start(self, now_ms: int) -> None:
        fault = lighthouse_available()
        if fault:
            raise OverlayError(fault)
        super().start(now_ms)

    def reload(self) -> None:
        """Take over a renewed certificate or blocklist, after their files were replaced."""
        self._process.reload()


class BridgeChild(_Tended):
    """The bridge beside a member's nebula, where no UDP gets out; ``config`` as `bridge.write_config` makes it."""

    def __init__(self, config: Path, log: Path) -> None:
        super().__init__((sys.executable, "-m", BRIDGE_MODULE, str(config)), log)


def is_answered(log: Path) -> bool:
    """Whether any handshake that the nebula with this log began was ever answered. Raises no error."""
    with contextlib.suppress(OSError):
        return ANSWERED in log.read_bytes()
    return False


def _explain(line: str) -> str:
    """A line of nebula's log in words; anything else as it is."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict):
        return line
    return ": ".join(str(record[key]) for key in ("msg", "error") if record.get(key))


def _run(command: Sequence[str], script: str = "") -> None:
    """Raises OverlayError with what the command said."""
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, check=False, timeout=COMMAND_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OverlayError(f"{command[0]} could not be run: {error}") from None
    if done.returncode:
        raise OverlayError(f"{' '.join(command)} failed: {done.stderr.strip()[-LOG_TAIL_BYTES:]}")


def _output(command: Sequence[str]) -> str:
    """What it printed; nothing if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
