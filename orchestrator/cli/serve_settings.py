"""What the operator sets for `orch serve`: by flag, else by variable, else in a file, else as core has it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from orchestrator.cli.configuration import (
    PREFIX,
    SettingPath,
    complaint,
    listed,
    read_toml,
    spelt_by_file,
    with_secrets,
)
from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import note
from orchestrator.cli.settings import DATA_DIR
from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.jobs import JobPolicy
from orchestrator.core.metering import MeteringPolicy
from orchestrator.core.nearness.grouping import GroupPolicy
from orchestrator.core.policies import Policies
from orchestrator.core.preemption import PreemptionPolicy
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import FleetPolicy

SECRETS = ("database_url",)
"""Settings that may also come by a file of their own, as a mounted secret does: each as ``NAME_file``."""

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

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    data_dir: SettingPath = DATA_DIR
    listen: str = "127.0.0.1:7443"
    session_listen: str = "127.0.0.1:7444"
    session_address: str = ""
    gateway: str = "127.0.0.1:8265"
    gateway_names: Annotated[tuple[str, ...], NoDecode] = ()
    """Names and addresses by which tenants come; from a variable, with commas between."""
    gateway_url: str = ""
    """By which tenants come, where that is not where the gateway listens: behind an Ingress, a proxy, a balancer."""
    gateway_certificate: SettingPath | None = None
    gateway_key: SettingPath | None = None
    gateway_tls: Literal["own"] | None = None
    gateway_plain: bool = False
    """Whether tokens may come in the clear from elsewhere: the operator's proxy ends TLS before."""
    metrics: str = "127.0.0.1:9464"
    metrics_token_file: SettingPath | None = None
    """The operator's own file with what Prometheus shows, read anew when it changes."""
    overlay_listen: str = ""
    """HOST:PORT over UDP of the own beacon, or none; empty: beside the sessions, where others reach those."""
    overlay_address: str = ""
    overlay_beacons: Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)] = ()
    overlay_network: str = "198.18.0.0/15"
    overlay_bridge_listen: str = ""
    """HOST:PORT over TCP of the bridge to the first beacon; empty for none."""
    overlay_bridge_address: str = ""
    runtimes_dir: SettingPath | None = None
    """An operator's own runtimes, beside those that come with the project."""
    price_file: SettingPath | None = None
    """Prices of clouds: quotes are compared with them, and machines without a price of their own follow them."""
    database_url: SecretStr | None = None
    database_url_file: SettingPath | None = None
    """A file that holds the URL, as a mounted secret does."""
    admin_token_file: SettingPath | None = None
    """A file with an operator's token, read anew when it changes, in place of the one in the data directory."""
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
    group_bound_ms: Annotated[int, Field(ge=1, le=1000)] = GroupPolicy().group_bound_ms
    preemption_notice_ms: Milliseconds = PreemptionPolicy().notice_ms
    preemption_wait_ms: Milliseconds = PreemptionPolicy().wait_ms
    preemption_run_ms_min: Milliseconds = PreemptionPolicy().run_ms_min

    @field_validator("probation_evidence", mode="before")
    @classmethod
    def _of_a_known_class(cls, evidence: object) -> EvidenceClass:
        try:
            return EvidenceClass(str(evidence).lower())
        except ValueError:
            raise ValueError(f"one of {', '.join(EvidenceClass).upper()} is expected") from None

    @field_validator("session_address")
    @classmethod
    def _of_a_host(cls, address: str) -> str:
        match = _ADDRESS.fullmatch(address)
        if address and (match is None or not 0 < int(match["port"]) <= PORT_MAX):
            # Workers keep it and would all be lost at an address that is none.
            raise ValueError(f"HOST:PORT such as orch.example:7444 is expected, not {address[:80]!r}")
        return address

    @field_validator("gateway_names", mode="before")
    @classmethod
    def _of_hosts(cls, names: object) -> object:
        names = listed(names)
        if not isinstance(names, list | tuple):
            return names
        return tuple(_host_name(str(name)) for name in names)

    @field_validator("gateway_url")
    @classmethod
    def _of_a_door(cls, url: str) -> str:
        return _door_url(url) if url else url

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

    @model_validator(mode="after")
    def _unencrypted_only_within(self) -> Self:
        host = _host_of(self.gateway_url)
        if self.gateway_url.startswith("http:") and not (self.gateway_plain or Address(host, 0).loopback):
            raise ValueError(
                "--gateway-url: tenants' tokens must not travel unencrypted; give the https:// URL of the proxy before"
                " the gateway, or say --gateway-plain"
            )
        return self

    @property
    def gateway_hosts(self) -> tuple[str, ...]:
        """Names and addresses by which tenants come, that of the URL among them."""
        named = (_host_name(_host_of(self.gateway_url)),) if self.gateway_url else ()
        return tuple(dict.fromkeys((*self.gateway_names, *named)))

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
            groups=GroupPolicy(group_bound_ms=self.group_bound_ms),
            metering=MeteringPolicy(statement_interval_ms=self.statement_interval_ms),
            preemption=PreemptionPolicy(
                notice_ms=self.preemption_notice_ms,
                wait_ms=self.preemption_wait_ms,
                run_ms_min=self.preemption_run_ms_min,
            ),
        )


def read_settings(flags: Mapping[str, Any], file: Path | None) -> ServeSettings:
    """Flags over variables over the file over defaults. Raises a usage error that names what is wrong."""
    values = {**(read_toml(file) if file is not None else {}), **EnvSettingsSource(ServeSettings)(), **flags}
    try:
        return ServeSettings.model_validate(with_secrets(values, SECRETS, _spelt))
    except ValidationError as error:
        called = spelt_by_file(values, _spelt)
        raise usage_error(complaint(error, ServeSettings.model_fields, "orch serve", called)) from None


def warn_of_password(database_url: str | None) -> None:
    """Say that a password among the arguments is no secret."""
    try:
        parts = urlsplit(database_url or "")
    except ValueError:
        return
    if parts.password or "password=" in parts.query:
        note(
            "warning: the password in --database-url is visible to every user of this machine in its process list;"
            f" use --database-url-file or {PREFIX}DATABASE_URL"
        )


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def _spelt(name: str) -> str:
    # One flag for each of several names.
    flag = name.replace("_", "-").replace("gateway-names", "gateway-name")
    return f"--{flag.replace('overlay-beacons', 'overlay-beacon')} or {variable_of(name)}"


def _host_name(text: str) -> str:
    """A DNS name or an IP address as a certificate and a request's Host have it. Raises ValueError."""
    name = text.strip("[]").lower()
    try:
        return str(ipaddress.ip_address("" if "%" in name else name))
    except ValueError:
        if _HOST_NAME.fullmatch(name):
            return name
    raise ValueError(f"a host name or an address without a port is expected, not {text!r}")


def _door_url(text: str) -> str:
    """Scheme, host and perhaps a port, as RAY_ADDRESS takes them. Raises ValueError."""
    said = "a URL such as https://gpu.example.com is expected"
    try:
        parts = urlsplit(text.strip())
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise ValueError(said) from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(said)
    if parts.username or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(
            "scheme, host and port are expected, and nothing behind: the gateway serves at the root"
        )
    name = _host_name(host)
    shown = f"[{name}]" if ":" in name else name
    return f"{parts.scheme}://{shown}{'' if port is None else f':{port}'}"


def _host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def listen_address(name: str, text: str) -> Address:
    """Where to listen. Raises a usage error for what is no address."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > PORT_MAX:
        raise usage_error(f"--{name}: HOST:PORT such as 127.0.0.1:7443 is expected, not {text!r}")
    return Address(match["host"].strip("[]"), int(match["port"]))
