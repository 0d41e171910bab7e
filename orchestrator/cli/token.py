"""`orch token`: secrets that let tenants submit, suppliers join and operators look."""

from __future__ import annotations

import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.adapters.clock import new_id
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import connect
from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import Output, OutputFormat, note, print_fields, print_json, print_table
from orchestrator.cli.wording import instant, token_role_name

app = typer.Typer(no_args_is_help=True, help="Tokens of tenants, suppliers and operators.")

OWNER_ONLY = 0o600
SECONDS_PER = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
# Longer than any token should live, and far within what the wire holds.
TTL_SECONDS_MAX = 3650 * 86_400

_TTL = re.compile(r"(?P<count>[0-9]{1,9})(?P<unit>[smhd]?)")


class Role(StrEnum):
    """What a token is good for."""

    OPERATOR = "operator"
    TENANT = "tenant"
    SUPPLIER = "supplier"


ROLES = {
    Role.OPERATOR: operator_pb2.TOKEN_ROLE_OPERATOR,
    Role.TENANT: operator_pb2.TOKEN_ROLE_TENANT,
    Role.SUPPLIER: operator_pb2.TOKEN_ROLE_SUPPLIER,
}


@app.command()
def create(
    role: Annotated[
        Role, typer.Option(help="tenant submits jobs, supplier joins one machine, operator runs all.")
    ],
    subject: Annotated[
        str, typer.Option(help="Name of the tenant, or of the supplier (made at its first token).")
    ] = "",
    head_host: Annotated[
        bool,
        typer.Option(
            "--head-host", help="Let the supplier's machine carry the heads of other people's clusters."
        ),
    ] = False,
    ttl: Annotated[str, typer.Option(help="Life, such as 900, 90m, 24h or 7d; 0: the role's default.")] = "0",
    secret_file: Annotated[
        Path | None, typer.Option(help="Write the secret to this new file, readable by its owner only.")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Create a token. Its secret is printed once, alone on standard output, and never again."""
    if role is not Role.OPERATOR and not subject.strip():
        raise usage_error(f"--subject: name the {role.value} that the token is for")
    if head_host and role is not Role.SUPPLIER:
        raise usage_error("--head-host: only a supplier's token makes a head host")
    request = operator_pb2.CreateTokenRequest(
        request_id=new_id("req"),
        role=ROLES[role],
        subject=subject,
        ttl_seconds=parse_ttl(ttl),
        head_host=head_host,
    )
    descriptor = None if secret_file is None else open_new(secret_file)
    with connect() as client:
        answer = client.call(client.operator.CreateToken, request)
    if descriptor is not None:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(answer.secret + "\n")
        answer.secret = ""
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    token = answer.token
    expiry = instant(token.expires_at)
    note(
        f"{token.token_id} for {token_role_name(token.role)} {token.subject_id}"
        + (f" until {expiry}" if expiry else "")
    )
    if secret_file is None:
        note("the secret, shown this once:")
        sys.stdout.write(answer.secret + "\n")


@app.command("list")
def list_(output: Output = OutputFormat.TABLE) -> None:
    """List tokens, without their secrets."""
    with connect() as client:
        answer = client.call(client.operator.ListTokens, operator_pb2.ListTokensRequest())
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            token.token_id,
            f"{token_role_name(token.role)}{', head host' if token.head_host else ''}",
            token.subject_id,
            token.state,
            instant(token.created_at),
            instant(token.expires_at),
        )
        for token in answer.tokens
    ]
    print_table(
        ("TOKEN", "ROLE", "SUBJECT", "STATE", "CREATED", "EXPIRES"),
        rows,
        "no tokens: create one with `orch token create --role tenant --subject NAME`",
    )


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="The token's id, as `orch token list` shows it.")],
    output: Output = OutputFormat.TABLE,
) -> None:
    """Revoke a token: whoever holds its secret is refused from now on."""
    with connect() as client:
        answer = client.call(client.operator.RevokeToken, operator_pb2.RevokeTokenRequest(token_id=token_id))
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_fields({"token": answer.token.token_id, "state": answer.token.state})


def parse_ttl(text: str) -> int:
    """Seconds of a duration such as `90m`. Raises a usage error."""
    match = _TTL.fullmatch(text.strip().lower())
    seconds = int(match["count"]) * SECONDS_PER[match["unit"]] if match else -1
    if not 0 <= seconds <= TTL_SECONDS_MAX:
        raise usage_error(
            f"--ttl: a life such as 900, 90m, 24h or 7d (at most ten years) is expected, not {text!r}"
        )
    return seconds


def open_new(path: Path) -> int:
    """A new file of the owner's only, opened before the secret exists so that none is lost."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    except FileExistsError:
        raise usage_error(f"--secret-file: {path} exists; name a new file") from None
    except OSError as error:
        raise usage_error(f"--secret-file: cannot write {path}: {(error.strerror or '').lower()}") from None
