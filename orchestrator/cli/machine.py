"""`orch worker`, on the machine itself: offer it, run its agent as a service, look after it, take it back."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.agent_flags import agent_directory, takes_settings
from orchestrator.cli.errors import CliError, usage_error
from orchestrator.cli.output import Output, OutputFormat, note, print_fields, print_lines
from orchestrator.cli.settings import AGENT_FILE, checked_address
from orchestrator.cli.worker import (
    AGENT_DATA_DIR,
    AGENT_FIELDS,
    read_agent,
    seen_worker,
    worker_fields,
)

if TYPE_CHECKING:
    from orchestrator.adapters.host import Host
    from orchestrator.cli.worker_settings import WorkerSettings
    from orchestrator.core.supply.terms import Terms

EXIT_CRASHED = 70
"""The agent failed in a way that nobody foresaw; unlike a refusal, its service starts it again."""

MS_PER_S = 1000

Config = Annotated[
    Path | None,
    typer.Option(envvar="ORCH_WORKER_CONFIG", help="TOML file with any of these settings, by their names."),
]
Token = Annotated[
    str | None, typer.Option(help="The join token itself; visible to others, ORCH_JOIN_TOKEN is not.")
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Everything that was asked for, checked."""

    settings: WorkerSettings
    control_plane: str
    name: str
    simulate: tuple[str, ...]
    data_dir: Path
    terms: Terms
    host: Host


def wanted_from(settings: WorkerSettings, user: str = "") -> Wanted:
    """Check all settings; ``user`` is whose home `~` means, by default that of whoever asks."""
    from orchestrator.adapters.clock import SystemClock
    from orchestrator.adapters.host import read_host
    from orchestrator.cli.join import machine_name, simulated_models, terms_of

    models = simulated_models(settings.simulate)
    if settings.slots == 0 and settings.head_slots == 0:
        raise usage_error("--slots and --head-slots: both are 0, so this machine would offer nothing")
    if settings.isolation == "none" and settings.overlay == "nebula":
        raise usage_error("--isolation none and --overlay nebula: without isolation there is no overlay")
    if settings.isolation == "none" and settings.egress == "none":
        raise usage_error(
            "--isolation none and --egress none: without isolation nothing keeps jobs off the internet"
        )
    if models and not settings.gpus:
        raise usage_error("--simulate and --no-gpus: simulated GPUs are GPUs; give one of the two")
    host = read_host(os.environ)
    now = datetime.fromtimestamp(SystemClock().now().wall_ms / MS_PER_S, UTC)
    text = str(settings.data_dir)
    return Wanted(
        settings=settings,
        control_plane=checked_address(settings.control_plane, "--control-plane"),
        name=machine_name(settings.name),
        simulate=tuple(f"{model.name}x{count}" for model, count in models),
        data_dir=Path(f"~{user}{text[1:]}" if text.startswith("~/") else text).expanduser().absolute(),
        terms=terms_of(settings, now, host.timezone),
        host=host,
    )


def secret_of(wanted: Wanted, token: str | None, token_file: Path | None) -> str | None:
    """The join token, by whatever way it comes; None where none is needed."""
    from orchestrator.cli.join import join_token

    settings = wanted.settings
    return join_token(
        token,
        token_file,
        os.environ,
        wanted.data_dir,
        settings.token_file,
        open_enrolment=settings.open_enrolment,
    )


def require_consent(wanted: Wanted, user: str, *, remember: bool) -> None:
    """Say what will run and what is shared; at a terminal ask, once. Raises CliError where it is refused."""
    from orchestrator.adapters.clock import SystemClock
    from orchestrator.cli.join import ROOT, consent_lines, has_consented, record_consent

    isolation, egress = wanted.settings.isolation, wanted.settings.egress
    for line in consent_lines(user, isolation, egress, wanted.data_dir):
        note(line)
    if wanted.host.wsl is not None:
        note(f"This is a {wanted.host.wsl} guest of Windows: it stops when Windows sleeps or shuts it down.")
    if user == ROOT and isolation == "none":
        note("warning: as root, jobs may do anything to this machine; better run this as a user of its own")
    if wanted.settings.yes or has_consented(wanted.data_dir, isolation, egress):
        return
    # Without a terminal, somebody has put the command into a script: that is the consent.
    if sys.stdin.isatty() and sys.stderr.isatty():
        if not typer.confirm("Offer this machine?", default=False, err=True):
            raise CliError("not agreed: nothing was offered and nothing was changed")
        if remember:
            record_consent(wanted.data_dir, isolation, egress, SystemClock().now().wall_ms)


@takes_settings
def join(flags: Mapping[str, Any], token: Token = None, config: Config = None) -> None:
    """Offer this machine to the network until Ctrl-C, which drains it first; a second Ctrl-C is immediate.

    Each option may also come as ORCH_WORKER_<NAME> or, by its name, from --config.
    """
    from orchestrator.cli.worker_settings import read_worker_settings

    settings = read_worker_settings(flags, config)
    wanted = wanted_from(settings)
    secret = secret_of(wanted, token, flags["token_file"])
    require_consent(wanted, wanted.host.user, remember=True)

    from orchestrator.agent.daemon import AgentConfig, run_agent

    agent = AgentConfig(
        control_plane=wanted.control_plane,
        join_token=secret,
        ca_pin=settings.ca_pin,
        name=wanted.name,
        gpus=settings.gpus,
        simulate=wanted.simulate,
        head_slots=settings.head_slots,
        slots=settings.slots,
        data_dir=wanted.data_dir,
        cpus=settings.cpus,
        zone=settings.zone,
        isolation=settings.isolation,
        overlay=settings.overlay,
        overlay_transport=settings.overlay_transport,
        egress=settings.egress,
        runtimes_dir=settings.runtimes_dir,
        terms=wanted.terms,
    )
    try:
        code = run_agent(agent)
    except Exception as error:
        raise CliError(
            f"the agent failed: {type(error).__name__}: {error}; its nodes run on until their lease ends:"
            " start it again; ORCH_DEBUG=1 shows where",
            EXIT_CRASHED,
        ) from error
    raise typer.Exit(code)


@takes_settings
def install(
    flags: Mapping[str, Any],
    token: Token = None,
    config: Config = None,
    system: Annotated[
        bool | None,
        typer.Option("--system/--user", help="For the machine, or for you; default: --system as root."),
    ] = None,
    run_as: Annotated[
        str,
        typer.Option(
            help="User of the agent, with --system; default: root, which boxes take. With --isolation none the jobs'"
            " user too; default then: who called sudo."
        ),
    ] = "",
    show: Annotated[bool, typer.Option("--print", help="Print the unit and change nothing.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Run the agent as a systemd service that starts with the machine, with the settings given here.

    They are kept in a file beside the join token, readable by the agent's user only; install again to change them.
    """
    from orchestrator.adapters.systemd import Scope
    from orchestrator.cli import service
    from orchestrator.cli.worker_settings import read_worker_settings

    settings = read_worker_settings(flags, config)
    root = os.geteuid() == 0
    scope = Scope.SYSTEM if system or (system is None and root) else Scope.USER
    owner = service.owner_of(scope, run_as, settings.isolation, os.environ)
    wanted = wanted_from(settings, owner.name if scope is Scope.SYSTEM else "")
    plan = service.plan_of(scope, owner, settings.isolation)
    if show:
        sys.stdout.write(plan.unit_text(wanted.terms.notice_ms))
        return
    manager = service.manager_of(scope)
    service.require_manager(manager, wanted.host)
    secret = secret_of(wanted, token, flags["token_file"])
    service.check_secret(secret, wanted.data_dir)
    require_consent(wanted, owner.name, remember=scope is Scope.USER)
    with service.explained():
        plan.write(kept_settings(wanted, plan.token_file if secret else None), secret)
        manager.install(plan.unit_text(wanted.terms.notice_ms))
        state = manager.state()
    service.report(manager, state, output, config_file=str(plan.config_file))
    for hint in service.hints(manager, owner, settings.isolation, Path(__file__)):
        note(hint)


def kept_settings(wanted: Wanted, token_file: Path | None) -> str:
    """What the service reads: everything that was given here, and what it could not find out again."""
    from orchestrator.cli.worker_settings import settings_text

    found: dict[str, Any] = {
        "control_plane": wanted.control_plane,
        "name": wanted.name,
        "data_dir": wanted.data_dir,
        "token_file": token_file,
    }
    if wanted.settings.schedule and not wanted.settings.timezone:
        found["timezone"] = wanted.host.timezone
    return settings_text(wanted.settings.model_copy(update=found))


System = Annotated[
    bool | None,
    typer.Option(
        "--system/--user", help="The machine's service or yours; default: the one that is installed."
    ),
]


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
    system: System = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show what the installed agent wrote."""
    from orchestrator.cli import service

    manager = service.installed_manager(system)
    command = manager.journal(lines, follow=follow, as_json=output is OutputFormat.JSON)
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError:
        raise CliError(
            f"{command[0]} is not installed here; the agent's log is where systemd keeps logs"
        ) from None
    raise typer.Exit(code)


def upgrade(
    to: Annotated[
        str, typer.Option("--to", help="Install this version first; default: what is installed.")
    ] = "",
    system: System = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Restart the installed agent, on a new version where one is named; keepers and running nodes go on."""
    from orchestrator.cli import service

    manager = service.installed_manager(system)
    service.require_right(manager, "upgrade")
    if to:
        service.install_version(to)
    with service.explained():
        manager.restart()
        state = manager.state()
    service.report(manager, state, output)
    note("only the agent was started again: keepers and running nodes were not touched")


def uninstall(
    drain: Annotated[
        bool,
        typer.Option("--drain/--no-drain", help="Wait until what runs has been given back, as by default."),
    ] = True,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove keys and state too: this machine is a stranger again.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Purge without being asked.")] = False,
    system: System = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Stop the installed agent, as Ctrl-C would, and remove its service."""
    from orchestrator.cli import service

    manager = service.installed_manager(system)
    service.require_right(manager, "uninstall")
    directory = service.data_dir_of(manager.scope, AGENT_DATA_DIR.expanduser())
    if purge and not drain:
        raise usage_error("--purge and --no-drain: what is owed to you is lost; let it drain first")
    if purge:
        service.check_purge(directory)
        if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise usage_error(f"--purge: removes {directory} for good; add --yes to mean it")
        if not yes and not typer.confirm(
            f"Remove {directory} with its keys for good?", default=False, err=True
        ):
            raise CliError("not agreed: nothing was changed")
    note(
        "draining: what runs here is given back first"
        if drain
        else "stopping at once: nodes end within seconds"
    )
    with service.explained():
        if not drain:
            # The stop that follows is the second signal, which the agent takes as: now.
            service.hurry(manager)
        manager.stop()
        left_with = manager.state().exit_code
        service.remove(manager)
    if purge:
        service.purge(directory, left_with)
    result = {"unit": manager.unit, "scope": manager.scope.value, "removed": True, "purged": purge}
    if output is OutputFormat.JSON:
        print_lines([json.dumps(result)])
        return
    kept = f"{directory} was removed" if purge else f"keys and state stay in {directory}"
    print_lines([f"{manager.unit} is removed; {kept}"])


def status(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="ORCH_WORKER_DATA_DIR",
            help="The agent's directory; default: the service's, else the usual one.",
        ),
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show this machine's agent: its service, what it knows, and what the network sees where a token is at hand."""
    from google.protobuf import json_format

    from orchestrator.adapters.host import read_host
    from orchestrator.cli import owner, service

    host = read_host(os.environ)
    manager = service.found_manager(None)
    directory = agent_directory(data_dir)
    unit = None if manager is None else service.state_or_note(manager)
    # A service whose agent has not joined yet has something to show all the same.
    waiting = data_dir is None and manager is not None and not (directory / AGENT_FILE).exists()
    known = None if waiting else read_agent(directory)
    live = None if known is None else owner.live_agent(directory)
    # A running agent tells its owner all that the network says of it; without one, an operator's token may help.
    told_by_agent = live is not None and bool(live.worker_id)
    seen = None if known is None or told_by_agent else seen_worker(known["worker_id"])
    if output is OutputFormat.JSON:
        told, network = (
            message
            and json_format.MessageToDict(
                message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for message in (live, seen)
        )
        shown = {
            "agent": known,
            "live": told,
            "unit": None if unit is None else dataclasses.asdict(unit),
            "wsl": None if host.wsl is None else host.wsl.value,
            "network": network,
        }
        print_lines([json.dumps(shown)])
        return
    print_fields({name.replace("_", " "): known[name] for name in AGENT_FIELDS} if known else {})
    print_fields(
        {
            "service": "not installed" if manager is None else service.state_text(manager, unit),
            **({} if host.wsl is None else {"host": f"{host.wsl} guest of Windows"}),
            **({} if live is None else owner.agent_fields(live)),
            **({} if seen is None else worker_fields(seen)),
        }
    )
    if known is None:
        note("the agent has not joined yet; `orch worker logs` shows why")


def register(app: typer.Typer) -> None:
    """Add the commands of this machine to those of all workers."""
    for command in (join, install, status, logs, upgrade, uninstall):
        app.command(command.__name__)(command)
