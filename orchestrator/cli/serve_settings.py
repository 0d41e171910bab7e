"""What the operator sets for `orch serve`: by flag, else by variable, else in a file, else as core has it."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import note
from orchestrator.cli.settings import DATA_DIR
from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.evidence import EvidenceClass
from orchestrator.core.fleet import FleetPolicy
from orchestrator.core.jobs import JobPolicy
from orchestrator.core.metering import MeteringPolicy
from orchestrator.core.state import Policies

PREFIX = "ORCH_"

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
PORT_MAX = 65_535

_HOST_NAME = re.compile(r"(?=.{1,253}$)(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
"""DNS's bounds, in small letters."""

DATABASES = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg", "postgresql+psycopg2")
"""Those for which the store has statements, with drivers that block."""

DAY_MS = 24 * 3_600_000

Milliseconds = Annotated[int, Field(ge=10, le=DAY_MS)]
"""From what a simulation uses to a day; beyond either a policy means nothing."""


EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 -- recognised, not bound


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 lets the system choose."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def reachable_at(self, bound: str) -> str:
        """What to tell others of where it is bound: of every address, the one they came by."""
        return f":{bound.rpartition(':')[2]}" if self.host in EVERYWHERE else bound

    def with_port(self, port: int) -> str:
        """HOST:PORT with the port that was bound."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class ServeSettings(BaseSettings):
    """Every number of ``Policies`` that an operator may turn keeps its name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    data_dir: Path = DATA_DIR
    listen: str = "127.0.0.1:7443"
    session_listen: str = "127.0.0.1:7444"
    session_address: str = ""
    gateway: str = "127.0.0.1:8265"
    gateway_names: Annotated[tuple[str, ...], NoDecode] = ()
    """Names and addresses by which tenants come; from a variable, with commas between."""
    gateway_certificate: Path | None = None
    gateway_key: Path | None = None
    gateway_tls: Literal["own"] | None = None
    gateway_plain: bool = False
    """Whether tokens may come in the clear from elsewhere: the operator's proxy ends TLS before."""
    metrics: str = "127.0.0.1:9464"
    overlay_listen: str = ""
    """HOST:PORT over UDP of the own beacon, or none; empty: beside the sessions, where others reach those."""
    overlay_address: str = ""
    overlay_beacons: tuple[str, ...] = ()
    overlay_network: str = "198.18.0.0/15"
    overlay_bridge_listen: str = ""
    """HOST:PORT over TCP of the bridge to the first beacon; empty for none."""
    overlay_bridge_address: str = ""
    runtimes_dir: Path | None = None
    """An operator's own runtimes, beside those that come with the project."""
    price_file: Path | None = None
    """Prices of clouds: quotes are compared with them, and machines without a price of their own follow them."""
    database_url: SecretStr | None = None
    private_webhooks: bool = False
    """Whether owners whom an operator vouched for may have alerts sent to private addresses."""
    open_enrolment: bool = False
    probation_ms: Milliseconds = FleetPolicy().probation_ms
    probation_evidence: EvidenceClass = FleetPolicy().probation_evidence
    debug: bool = False
    heartbeat_interval_ms: Milliseconds = FleetPolicy().heartbeat_interval_ms
    suspect_after_ms: Milliseconds = FleetPolicy().suspect_after_ms
    lease_ttl_ms: Milliseconds = FleetPolicy().lease_ttl_ms
    lost_after_ms: Milliseconds = FleetPolicy().lost_after_ms
    statement_interval_ms: Milliseconds = MeteringPolicy().statement_interval_ms
    prepare_deadline_ms: Milliseconds = ClusterPolicy().prepare_deadline_ms
    head_deadline_ms: Milliseconds = ClusterPolicy().head_deadline_ms
    join_deadline_ms: Milliseconds = ClusterPolicy().join_deadline_ms
    idle_teardown_ms: Milliseconds = ClusterPolicy().idle_teardown_ms
    gang_gpus_max: Annotated[int, Field(ge=1, le=4096)] = JobPolicy().gang_gpus_max

    @field_validator("probation_evidence", mode="before")
    @classmethod
    def _of_a_known_class(cls, evidence: object) -> EvidenceClass:
        try:
            return EvidenceClass(str(evidence).lower())
        except ValueError:
            raise ValueError(f"one of {', '.join(EvidenceClass).upper()} is expected") from None

    @field_validator("gateway_names", mode="before")
    @classmethod
    def _of_hosts(cls, names: object) -> object:
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",") if name.strip()]
        if not isinstance(names, list | tuple):
            return names
        return tuple(_host_name(str(name)) for name in names)

    @field_validator("database_url")
    @classmethod
    def _of_a_known_database(cls, url: SecretStr | None) -> SecretStr | None:
        scheme = "" if url is None else url.get_secret_value().partition("://")[0]
        if url is not None and scheme not in DATABASES:
            # Not shown: without its scheme a URL may be nothing but a password.
            raise ValueError(
                "must begin with sqlite:/// or postgresql+psycopg://; other databases do not serve"
            )
        return url

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if (
            not 2 * self.heartbeat_interval_ms
            <= self.suspect_after_ms
            < self.lease_ttl_ms
            < self.lost_after_ms
        ):
            raise ValueError(
                "2 × heartbeat_interval_ms <= suspect_after_ms < lease_ttl_ms < lost_after_ms must hold:"
                " one lost heartbeat means nothing, and a lost worker's nodes end before it is replaced"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_tenants(self) -> Self:
        if (self.gateway_certificate is None) != (self.gateway_key is None):
            raise ValueError("--gateway-certificate and --gateway-key go together: give both, or neither")
        ways = (self.gateway_certificate is not None, self.gateway_tls is not None, self.gateway_plain)
        if sum(ways) > 1:
            raise ValueError(
                "give one of --gateway-certificate with --gateway-key, --gateway-tls own and --gateway-plain"
            )
        return self

    @property
    def gateway_https(self) -> bool:
        """Whether tenants are answered with TLS."""
        return self.gateway_certificate is not None or self.gateway_tls is not None

    @property
    def policies(self) -> Policies:
        """As core takes them."""
        return Policies(
            fleet=FleetPolicy(
                heartbeat_interval_ms=self.heartbeat_interval_ms,
                suspect_after_ms=self.suspect_after_ms,
                lease_ttl_ms=self.lease_ttl_ms,
                lost_after_ms=self.lost_after_ms,
                open_enrolment=self.open_enrolment,
                probation_ms=self.probation_ms,
                probation_evidence=self.probation_evidence,
            ),
            clusters=ClusterPolicy(
                prepare_deadline_ms=self.prepare_deadline_ms,
                head_deadline_ms=self.head_deadline_ms,
                join_deadline_ms=self.join_deadline_ms,
                idle_teardown_ms=self.idle_teardown_ms,
            ),
            jobs=JobPolicy(gang_gpus_max=self.gang_gpus_max),
            metering=MeteringPolicy(statement_interval_ms=self.statement_interval_ms),
        )


def read_settings(flags: Mapping[str, Any], file: Path | None) -> ServeSettings:
    """Flags over variables over the file over defaults. Raises a usage error that names what is wrong."""
    values = {**_from_file(file), **EnvSettingsSource(ServeSettings)(), **flags}
    try:
        return ServeSettings.model_validate(values)
    except ValidationError as error:
        raise usage_error(_explained(error)) from None


def warn_of_password(database_url: str | None) -> None:
    """Say that a password among the arguments is no secret."""
    try:
        parts = urlsplit(database_url or "")
    except ValueError:
        return
    if parts.password or "password=" in parts.query:
        note(
            "warning: the password in --database-url is visible to every user of this machine in its process list;"
            f" use {PREFIX}DATABASE_URL or --config"
        )


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise usage_error(f"--config: cannot read {path}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise usage_error(f"--config: {path} is no TOML: {error}") from None


def _explained(error: ValidationError) -> str:
    """One line: the setting, its three spellings' common name, and what is wrong; never its value."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(ServeSettings.model_fields))
        return f"{name}: no such setting; known are {known}"
    # One flag for each of several names.
    flag = name.replace("_", "-").replace("gateway-names", "gateway-name")
    return f"{name}: {message} (--{flag} or {PREFIX}{name.upper()})" if name else message


def _host_name(text: str) -> str:
    """A DNS name or an IP address as a certificate and a request's Host have it. Raises ValueError."""
    name = text.strip("[]").lower()
    try:
        return str(ipaddress.ip_address("" if "%" in name else name))
    except ValueError:
        if _HOST_NAME.fullmatch(name):
            return name
    raise ValueError(f"a host name or an address without a port is expected, not {text!r}")


def listen_address(name: str, text: str) -> Address:
    """Where to listen. Raises a usage error for what is no address."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > PORT_MAX:
        raise usage_error(f"--{name}: HOST:PORT such as 127.0.0.1:7443 is expected, not {text!r}")
    return Address(match["host"].strip("[]"), int(match["port"]))
