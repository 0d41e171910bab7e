"""The settings of an agent as flags, declared once for every command that takes them; and which agent is meant."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.worker import AGENT_DATA_DIR

Text = str | None
Texts = list[str] | None

IsolationFlag = Annotated[
    Text,
    typer.Option(
        metavar="auto|none|box|container",
        help="How tenants' code is kept apart from this machine; default: auto, the strongest it can do. none:"
        " you agree that nothing keeps it apart.",
    ),
]
OverlayFlag = Annotated[
    Text,
    typer.Option(
        metavar="auto|none|nebula",
        help="The network between machines of one cluster; default: auto, nebula where this machine can. none:"
        " it serves clusters of one machine only.",
    ),
]
OverlayTransport = Annotated[
    Text,
    typer.Option(
        metavar="auto|udp|tls",
        help="How the overlay leaves your network; default: auto, UDP, and where none gets out TLS to the control"
        " plane.",
    ),
]
EgressFlag = Annotated[
    Text,
    typer.Option(
        metavar="internet|none",
        help="What tenants' code may reach beside its own cluster; default: the internet, never your network.",
    ),
]
RuntimesDir = Annotated[
    Path | None,
    typer.Option(help="Where runtimes are built; agents of one machine may share it. [in --data-dir]"),
]
Webhook = Annotated[
    Text,
    typer.Option(
        help="URL that is told of trouble. Other users of this machine see it in the process list;"
        " --webhook-file, ORCH_WORKER_WEBHOOK or --config hides it."
    ),
]
WebhookFile = Annotated[Path | None, typer.Option(help="File that holds the URL of --webhook.")]


ControlPlane = Annotated[
    Text,
    typer.Option(help="The control plane's HOST:PORT; by variable ORCH_URL; default: 127.0.0.1:7443."),
]
TokenFile = Annotated[Path | None, typer.Option(help="File that holds the join token.")]
OpenEnrolment = Annotated[
    bool | None, typer.Option("--open-enrolment", help="Join without a token, as a stranger.")
]
CaPin = Annotated[Text, typer.Option(help="The pin of the network's CA, for joining without a token.")]
Name = Annotated[Text, typer.Option(help="How to call this machine; default: its host name.")]
Simulate = Annotated[
    Texts,
    typer.Option(metavar="MODELxN", help="Pretend to have N such GPUs, shown as simulated. Repeatable."),
]
Gpus = Annotated[bool | None, typer.Option("--gpus/--no-gpus", help="Offer the GPUs, as by default, or not")]
Slots = Annotated[int | None, typer.Option(help="Members that may run here at once; default: 1.")]
HeadSlots = Annotated[
    int | None, typer.Option(help="Ray heads to carry for clusters of several machines; default: 0.")
]
Cpus = Annotated[int | None, typer.Option(help="Processors to offer; default: all.")]
Zone = Annotated[Text, typer.Option(help="Machines with the same zone share a fate, such as an uplink.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Where the agent keeps its keys and state; default: ~/.orchestrator/agent."),
]
Price = Annotated[
    Texts,
    typer.Option(
        metavar="MODEL=CREDITS",
        help="Ask for a GPU-hour of a model, or `auto`, as by default. Repeatable.",
    ),
]
Region = Annotated[Texts, typer.Option(help="A region that this machine counts to. Repeatable.")]
MaxLease = Annotated[Text, typer.Option(help="The longest lease, such as 12h; default: no limit.")]
Schedule = Annotated[
    Text,
    typer.Option(
        help="When to work: `nights` or `Mon-Fri 18:00-08:00, Sat-Sun 00:00-24:00`; default: always."
    ),
]
Timezone = Annotated[Text, typer.Option(help="The schedule's time zone; default: this machine's.")]
IdleOnly = Annotated[
    bool | None,
    typer.Option("--idle-only/--not-idle-only", help="Stop when you use the GPUs yourself; default: not."),
]
Tier = Annotated[Text, typer.Option(help="interruptible, as by default, or committed.")]
Notice = Annotated[Text, typer.Option(help="What a job gets when you take the machine back; default: 30s.")]
Yes = Annotated[bool | None, typer.Option("--yes", help="Agree without being asked.")]


def _flags(
    control_plane: ControlPlane = None,
    token_file: TokenFile = None,
    open_enrolment: OpenEnrolment = None,
    ca_pin: CaPin = None,
    name: Name = None,
    simulate: Simulate = None,
    gpus: Gpus = None,
    slots: Slots = None,
    head_slots: HeadSlots = None,
    cpus: Cpus = None,
    zone: Zone = None,
    isolation: IsolationFlag = None,
    overlay: OverlayFlag = None,
    overlay_transport: OverlayTransport = None,
    egress: EgressFlag = None,
    runtimes_dir: RuntimesDir = None,
    data_dir: DataDir = None,
    price: Price = None,
    region: Region = None,
    max_lease: MaxLease = None,
    schedule: Schedule = None,
    timezone: Timezone = None,
    idle_only: IdleOnly = None,
    tier: Tier = None,
    notice: Notice = None,
    webhook: Webhook = None,
    webhook_file: WebhookFile = None,
    yes: Yes = None,
) -> None:
    """Hold the flags of every setting, by its name, once for all commands that take them."""


def takes_settings(command: Callable[..., None], names: Collection[str] | None = None) -> Callable[..., None]:
    """Put the flags of settings before a command's own; it gets them as one mapping, its first argument.

    Without ``names`` these are all of them.
    """
    every = inspect.signature(_flags, eval_str=True).parameters
    shared = {name: one for name, one in every.items() if names is None or name in names}
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*shared.values(), *own)]

    def wrapped(**given: Any) -> None:
        # Only now: help needs none of it.
        from orchestrator.cli.variables import point_out_unknown

        point_out_unknown(os.environ)
        command({name: given.pop(name) for name in shared}, **given)

    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
    wrapped.__dict__["__signature__"] = inspect.Signature(parameters)
    return wrapped


def agent_directory(data_dir: Path | None) -> Path:
    """The directory of this machine's agent: as named, else the installed service's, else the default."""
    from orchestrator.cli import service

    if data_dir is not None:
        return data_dir.expanduser()
    manager = service.found_manager(None)
    default = AGENT_DATA_DIR.expanduser()
    return default if manager is None else service.data_dir_of(manager.scope, default)
