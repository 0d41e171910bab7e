"""Where the control plane is and with which token to speak to it, from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cli.errors import usage_error

DEFAULT_URL = "127.0.0.1:7443"
DATA_DIR = Path("~/.orchestrator")
ADMIN_FILE = "admin-token"
CA_FILE = "ca.pem"
AGENT_FILE = "agent.json"
"""What an agent knows of itself, in its data directory; present once it has joined."""
# A token of ours has under 100 characters; what is longer is some other file.
TOKEN_CHARACTERS_MAX = 4096
SECRET_BYTES_MAX = 4096
"""A token of ours, or the URL of a database with its password: what is longer is some other file."""

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_TOKEN = re.compile(r"[!-~]+")
_PORT_MAX = 65535


@dataclass(frozen=True, slots=True)
class Settings:
    """An address as HOST:PORT, a bearer token, which no representation shows, and whom to trust there.

    ``ca_file`` None: whom the token's pin names.
    """

    url: str
    token: str = field(repr=False)
    ca_file: Path | None = None


def settings_from(environ: Mapping[str, str]) -> Settings:
    """ORCH_URL with ORCH_TOKEN, else ORCH_TOKEN_FILE, else the admin token of this machine's `orch serve`."""
    url = url_from(environ)
    token = token_from(environ)
    if token is None:
        raise usage_error(
            "no token: set ORCH_TOKEN or ORCH_TOKEN_FILE (`orch serve` writes the operator's to"
            f" admin-token in its data directory; looked in {default_token_path(environ)})"
        )
    return Settings(url=url, token=token, ca_file=ca_file_from(environ))


def url_from(environ: Mapping[str, str]) -> str:
    """The control plane's HOST:PORT."""
    return checked_address(environ.get("ORCH_URL", "").strip() or DEFAULT_URL, "ORCH_URL")


def token_from(environ: Mapping[str, str]) -> str | None:
    """The first token configured; None where there is none at all."""
    value = environ.get("ORCH_TOKEN", "")
    if value.strip():
        return checked_token(value, "ORCH_TOKEN")
    path = environ.get("ORCH_TOKEN_FILE", "")
    if path.strip():
        return read_token(Path(path).expanduser(), "ORCH_TOKEN_FILE")
    default = default_token_path(environ)
    return read_token(default, str(default)) if default.is_file() else None


def ca_file_from(environ: Mapping[str, str]) -> Path | None:
    """ORCH_CA_FILE, else the trust bundle that `orch serve` keeps beside its admin token; None for neither."""
    path = environ.get("ORCH_CA_FILE", "")
    if path.strip():
        return Path(path).expanduser()
    if environ.get("ORCH_TOKEN", "").strip():
        return None
    token_file = environ.get("ORCH_TOKEN_FILE", "").strip()
    token_path = Path(token_file).expanduser() if token_file else default_token_path(environ)
    beside = token_path.parent / CA_FILE
    return beside if beside.is_file() else None


def default_token_path(environ: Mapping[str, str]) -> Path:
    """The admin token in the default data directory of `orch serve`."""
    home = environ.get("HOME")
    directory = Path(home) / DATA_DIR.name if home else DATA_DIR.expanduser()
    return directory / ADMIN_FILE


def checked_address(text: str, name: str) -> str:
    """HOST:PORT, refused by ``name`` otherwise."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) <= _PORT_MAX:
        raise usage_error(
            f"{name}: HOST:PORT such as {DEFAULT_URL} is expected, without a scheme, not {text!r}"
        )
    return text


def read_token(path: Path, name: str) -> str:
    """The token in a file, named in errors by ``name``; never echoed."""
    return checked_token(read_secret(path, name), name)


def read_secret(path: Path, name: str) -> str:
    """The one line of text in a file, such as a mounted secret; errors name the setting and the file, never the text."""
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise usage_error(f"{name}: cannot read {path}: {reason}") from None
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = "\0"
    if not text:
        raise usage_error(f"{name}: {path} is empty; put the secret there")
    if len(data) > SECRET_BYTES_MAX or not text.isprintable():
        raise usage_error(
            f"{name}: {path} holds something else than one line of text; put the secret alone there"
        )
    return text


def checked_token(text: str, name: str) -> str:
    """Visible ASCII without spaces, so that it fits a header; the value is never echoed."""
    token = text.strip()
    if not token:
        raise usage_error(f"{name}: is empty; put the token there")
    if len(token) > TOKEN_CHARACTERS_MAX or not _TOKEN.fullmatch(token):
        raise usage_error(f"{name}: a token is one word of visible ASCII characters; copy it again")
    return token
