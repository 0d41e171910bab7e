"""`orch worker cordon|uncordon|drain|reclaim|terms`: having one's machine, or part of it, back.

Without WORKER these speak to the agent of this machine, through its socket; with WORKER they are an operator's, and
speak to the control plane.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import grpc
import typer

from orchestrator.adapters.clock import boottime_ms
from orchestrator.api.v1 import agent_pb2, operator_pb2, standing_pb2, terms_pb2, worker_pb2
from orchestrator.api.v1.agent_pb2_grpc import AgentServiceStub
from orchestrator.cli.agent_flags import agent_directory, takes_settings
from orchestrator.cli.client import Client, connect
from orchestrator.cli.errors import CliError, usage_error
from orchestrator.cli.output import Output, OutputFormat, note, print_fields, print_json, print_lines
from orchestrator.cli.standings import instant_ms, standing_fields, terms_fields
from orchestrator.cli.wording import yes_no
from orchestrator.cli.worker import state_text

if TYPE_CHECKING:
    from collections.abc import Iterator

Req = TypeVar("Req")
Res = TypeVar("Res")

ANSWER_S = 10.0
"""The agent is on this machine and answers from memory."""

LOOK_S = 1.0
"""Between two looks at what is left; the agent looks five times as often."""

DEADLINE_DEFAULT = "30m"
"""What a drain waits for jobs to end, before it gives them notice."""

TERMS_SETTINGS = {
    "price": "asks",
    "region": "regions",
    "max_lease": "lease_max_ms",
    "schedule": "schedule",
    "timezone": "schedule",
    "idle_only": "idle_only",
    "tier": "committed",
    "notice": "notice_ms",
    "webhook": "webhook_url",
}
"""The settings that are terms, and the field each becomes."""

Worker = Annotated[
    str | None, typer.Argument(metavar="[WORKER]", help="Id or name, for operators; default: this machine.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(envvar="ORCH_WORKER_DATA_DIR", help="This machine's agent; default: the service's."),
]
Reason = Annotated[str, typer.Option(help="Kept, and shown wherever the worker is.")]


# ---------------------------------------------------------------- the agent of this machine


class AgentClient:
    """The agent's socket, closed at the end of the `with`. Every method raises CliError."""

    def __init__(self, data_dir: Path) -> None:
        from orchestrator.agent.owner import known_socket

        self._path = known_socket(data_dir)
        if not self._path.exists():
            raise CliError(
                f"no agent of this machine answers ({self._path} is not there): is it running? `orch worker"
                " status` shows; name its directory with --data-dir, or, as an operator, give WORKER"
            )
        self._channel = grpc.insecure_channel(f"unix:{self._path}")
        self._stub = AgentServiceStub(self._channel)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def get(self) -> agent_pb2.GetAgentResponse:
        """How the agent stands."""
        return self._call(self._stub.GetAgent, agent_pb2.GetAgentRequest())

    def ask(self, wish: worker_pb2.OwnerWish) -> agent_pb2.AskResponse:
        """Say a wish. One that the network refuses for good is an error; but a reclaim is obeyed here all the same."""
        answer = self._call(self._stub.Ask, agent_pb2.AskRequest(wish=wish))
        if answer.refusal and not wish.HasField("reclaim"):
            raise CliError(answer.message)
        return answer

    def _call(self, method: grpc.UnaryUnaryMultiCallable[Req, Res], request: Req) -> Res:
        try:
            return method(request, timeout=ANSWER_S)
        except grpc.RpcError as error:
            said = (error.details() or "").strip()
            match error.code():
                case grpc.StatusCode.INVALID_ARGUMENT:
                    raise usage_error(said) from None
                case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise CliError(
                        f"the agent at {self._path} does not answer: is it running, and yours? (only its own"
                        " user may speak to it)"
                    ) from None
                case code:
                    raise CliError(f"the agent refused: {said or code.name}") from None


@contextmanager
def own_agent(data_dir: Path | None) -> Iterator[AgentClient]:
    """This machine's agent."""
    agent = AgentClient(agent_directory(data_dir))
    try:
        yield agent
    finally:
        agent.close()


def live_agent(directory: Path) -> agent_pb2.GetAgentResponse | None:
    """What the running agent says of itself; else what it was told last, marked as not connected; else nothing."""
    from google.protobuf import json_format

    from orchestrator.agent.standing import STANDING_FILE

    try:
        agent = AgentClient(directory)
    except CliError:
        pass
    else:
        try:
            return agent.get()
        except CliError as error:
            note(str(error))
        finally:
            agent.close()
    try:
        told = json_format.Parse(
            (directory / STANDING_FILE).read_bytes(), standing_pb2.Standing(), ignore_unknown_fields=True
        )
    except (OSError, json_format.ParseError):
        return None
    return agent_pb2.GetAgentResponse(standing=told, last_error="the agent does not run")


def agent_fields(agent: agent_pb2.GetAgentResponse) -> dict[str, str]:
    """How an agent stands, a line each."""
    members = [
        f"{one.member_id} ({one.phase}{f', {one.notice}' if one.notice else ''})" for one in agent.members
    ]
    return {
        "connected": yes_no(agent.connected) + (f": {agent.last_error}" if agent.last_error else ""),
        **({"under way": agent.under_way} if agent.under_way else {}),
        "members": ", ".join(members) or "none",
        "certificate until": instant_ms(agent.certificate_not_after_unix_ms),
        **({"certificate": agent.certificate_notice} if agent.certificate_notice else {}),
        **({"isolation": agent.isolation, "overlay": agent.overlay} if agent.isolation else {}),
        **{f"remark {number}": remark for number, remark in enumerate(agent.remarks, 1)},
        **{f"runtime {one.name}": runtime_text(one) for one in agent.runtimes},
        **({"refused": agent.last_refusal} if agent.last_refusal else {}),
        **(standing_fields(agent.standing) if agent.HasField("standing") else {}),
        **(terms_fields(agent.standing.terms) if agent.HasField("standing") else {}),
    }


def runtime_text(runtime: agent_pb2.AgentRuntime) -> str:
    """Its state, and the step it is at or why it failed."""
    return f"{runtime.state} ({runtime.digest[:12]})" + (f": {runtime.detail}" if runtime.detail else "")


def _refuse_both(worker: str | None, data_dir: Path | None) -> None:
    if worker is not None and data_dir is not None and "ORCH_WORKER_DATA_DIR" not in os.environ:
        raise usage_error(
            "WORKER and --data-dir: give WORKER as an operator, or --data-dir on the machine itself"
        )


def _say(answer: agent_pb2.AskResponse, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_lines([answer.message])


def _show(answer: Any, output: OutputFormat) -> None:
    """An operator's answer."""
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_lines([f"{answer.worker.name} ({answer.worker.worker_id}): {state_text(answer.worker)}"])
        print_lines([f"  {hold.kind}: {hold.reason}" for hold in answer.worker.standing.holds])


# ---------------------------------------------------------------- cordon and uncordon


def cordon(
    worker: Worker = None,
    device: Annotated[str, typer.Option(help="Only this device; for operators.")] = "",
    reason: Reason = "",
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give a machine nothing new; what runs there goes on."""
    _refuse_both(worker, data_dir)
    if worker is None:
        if device:
            raise usage_error("--device: only an operator cordons a single device; give WORKER")
        with own_agent(data_dir) as agent:
            _say(agent.ask(worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason=reason))), output)
        return
    with connect() as client:
        request = operator_pb2.CordonWorkerRequest(worker=worker, reason=reason, device_id=device)
        _show(client.call(client.operator.CordonWorker, request), output)


def uncordon(
    worker: Worker = None,
    device: Annotated[str, typer.Option(help="Only this device; for operators.")] = "",
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Offer a machine again, after a cordon or a reclaim; an operator's word also readmits one that was shut out."""
    _refuse_both(worker, data_dir)
    if worker is None:
        if device:
            raise usage_error("--device: only an operator gives a single device free; give WORKER")
        with own_agent(data_dir) as agent:
            _say(agent.ask(worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon())), output)
        return
    with connect() as client:
        request = operator_pb2.UncordonWorkerRequest(worker=worker, device_id=device)
        _show(client.call(client.operator.UncordonWorker, request), output)


# ---------------------------------------------------------------- drain and reclaim


@dataclass(frozen=True, slots=True)
class Left:
    """What a machine still has of the network's."""

    members: int
    devices: int
    text: str


@dataclass(frozen=True, slots=True)
class Hand:
    """How to ask about one machine, whoever asks."""

    cordon: Callable[[str], Any]
    reclaim: Callable[[str, int], Any]
    look: Callable[[], Left]


def _own_hand(agent: AgentClient) -> Hand:
    def look() -> Left:
        answer = agent.get()
        devices = sum(len(member.device_ids) for member in answer.members)
        what = f"{len(answer.members)} member(s) on {devices} device(s)"
        return Left(len(answer.members), devices, f"{what}; {answer.under_way}" if answer.under_way else what)

    return Hand(
        lambda reason: agent.ask(worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason=reason))),
        lambda reason, notice_ms: agent.ask(
            worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(reason=reason, notice_ms=notice_ms))
        ),
        look,
    )


def _operators_hand(client: Client, worker: str) -> Hand:
    def look() -> Left:
        known = client.call(client.operator.GetWorker, operator_pb2.GetWorkerRequest(worker=worker)).worker
        return Left(known.devices_held, known.devices_held, f"{known.devices_held} device(s) held")

    return Hand(
        lambda reason: client.call(
            client.operator.CordonWorker, operator_pb2.CordonWorkerRequest(worker=worker, reason=reason)
        ),
        lambda reason, notice_ms: client.call(
            client.operator.ReclaimWorker,
            operator_pb2.ReclaimWorkerRequest(worker=worker, reason=reason, notice_ms=notice_ms),
        ),
        look,
    )


@contextmanager
def _hand(worker: str | None, data_dir: Path | None) -> Iterator[Hand]:
    _refuse_both(worker, data_dir)
    if worker is None:
        with own_agent(data_dir) as agent:
            yield _own_hand(agent)
    else:
        with connect() as client:
            yield _operators_hand(client, worker)


def _wait(look: Callable[[], Left], done: Callable[[Left], bool], patience_ms: int | None) -> bool:
    """Look until it is done, with a remark at each change; False where patience ended first."""
    begun_ms, said = boottime_ms(), ""
    while True:
        left = look()
        if done(left):
            return True
        if left.text != said:
            said = left.text
            note(said)
        if patience_ms is not None and boottime_ms() - begun_ms >= patience_ms:
            return False
        time.sleep(LOOK_S)


def _duration_ms(text: str, name: str) -> int:
    from orchestrator.cli.join import duration_ms

    return duration_ms(text, name)


def _finish(result: Mapping[str, Any], text: str, output: OutputFormat) -> None:
    import json

    print_lines([json.dumps(result) if output is OutputFormat.JSON else text])


def drain(
    worker: Worker = None,
    deadline: Annotated[
        str, typer.Option(help="How long jobs may go on; then they get notice, as by `reclaim`.")
    ] = DEADLINE_DEFAULT,
    reason: Reason = "",
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give a machine nothing new and wait until it holds no devices. Ctrl-C ends only the waiting."""
    patience_ms = _duration_ms(deadline, "--deadline")
    with _hand(worker, data_dir) as hand:
        hand.cordon(reason)
        reclaimed = not _wait(hand.look, lambda left: not left.devices, patience_ms)
        if reclaimed:
            note(f"still held after {deadline}: what runs there gets notice now")
            hand.reclaim(reason, 0)
            _wait(hand.look, lambda left: not left.devices, None)
    text = "drained: no device is held; `orch worker uncordon` offers the machine again"
    _finish({"drained": True, "reclaimed": reclaimed}, text, output)


def reclaim(
    worker: Worker = None,
    notice: Annotated[str, typer.Option(help="Notice to jobs, such as 30s; default: as the terms say.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until the machine is free.")] = False,
    reason: Reason = "",
    data_dir: DataDir = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give a machine back to its owner: notice to its jobs, then their end. Obeyed here even without the network."""
    notice_ms = _duration_ms(notice, "--notice") if notice else 0
    with _hand(worker, data_dir) as hand:
        answer = hand.reclaim(reason, notice_ms)
        if not wait:
            (_say if worker is None else _show)(answer, output)
            return
        _wait(hand.look, lambda left: not left.members, None)
    text = "the machine is free; `orch worker uncordon` offers it again"
    _finish({"free": True}, text, output)


# ---------------------------------------------------------------- terms


def terms(flags: Mapping[str, Any], data_dir: DataDir = None, output: Output = OutputFormat.TABLE) -> None:
    """Show this machine's terms, or change those that are given, for whatever is placed from now on.

    `--webhook -` reads the URL from standard input, because other users see arguments in the process list.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("webhook") == "-":
        given["webhook"] = sys.stdin.readline().strip()
    with own_agent(data_dir) as agent:
        known = agent.get()
        if not known.HasField("standing"):
            raise CliError(
                "the network has not told this machine its terms yet"
                + (f" ({known.last_error})" if known.last_error else "")
                + "; try again once it is connected"
            )
        current = known.standing.terms
        if not given:
            if output is OutputFormat.JSON:
                print_json(current)
            else:
                print_fields(terms_fields(current))
            return
        wanted = changed_terms(current, given)
        _say(agent.ask(worker_pb2.OwnerWish(terms=wanted)), output)


def changed_terms(current: terms_pb2.Terms, given: Mapping[str, Any]) -> terms_pb2.Terms:
    """The current terms with what was given put in its place. Raises a usage error that names the flag."""
    from datetime import UTC, datetime

    from orchestrator.adapters.clock import SystemClock
    from orchestrator.adapters.host import read_host
    from orchestrator.adapters.terms_wire import terms_to
    from orchestrator.cli.join import terms_of
    from orchestrator.cli.worker_settings import WorkerSettings, read_worker_settings

    # Tier and notice are judged together, so whichever was not given is what it is now.
    beside = {
        "tier": "committed" if current.committed else "interruptible",
        "notice": f"{current.notice_ms}ms"
        if current.notice_ms
        else WorkerSettings.model_fields["notice"].default,
    }
    if "timezone" in given and "schedule" not in given:
        raise usage_error("--timezone: says how --schedule is meant; give both")
    settings = read_worker_settings({**beside, **given}, None)
    now = datetime.fromtimestamp(SystemClock().now().wall_ms / 1000, UTC)
    made = terms_to(terms_of(settings, now, read_host(os.environ).timezone))
    wanted = terms_pb2.Terms()
    wanted.CopyFrom(current)
    for name in {TERMS_SETTINGS[name] for name in given}:
        wanted.ClearField(name)  # type: ignore[arg-type]  # one of the names above
        part = terms_pb2.Terms()
        part.CopyFrom(made)
        for other in {field.name for field in made.DESCRIPTOR.fields} - {name}:
            part.ClearField(other)  # type: ignore[arg-type]  # one of the message's own names
        wanted.MergeFrom(part)
    return wanted


def register(app: typer.Typer) -> None:
    """Add these commands to those of all workers."""
    for command in (cordon, uncordon, drain, reclaim):
        app.command(command.__name__)(command)
    app.command("terms")(takes_settings(terms, frozenset(TERMS_SETTINGS)))
