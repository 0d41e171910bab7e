"""What Prometheus shows to be let in: a token in a file, made here, or brought by the operator and read anew."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from orchestrator.adapters.clock import new_secret
from orchestrator.adapters.files import write_whole
from orchestrator.adapters.keys import FILE_BYTES_MAX, OTHERS, KeyFileError, one_word

if TYPE_CHECKING:
    from pathlib import Path

METRICS_TOKEN_FILE = "metrics-token"  # noqa: S105 -- a file's name
METRICS_PREFIX = "orch_metrics"

SCHEME = "Bearer "


class TokenFile:
    """One token. The file is looked at with each question: whoever exchanges it needs no restart."""

    def __init__(self, path: Path) -> None:
        """Raises KeyFileError where it cannot be read now. Blocking, for as long as a small file takes."""
        self.path = path
        self._seen: tuple[int, ...] = ()
        self._token = b""
        self._read()

    def admits(self, authorization: str) -> bool:
        """Whether a request's ``Authorization`` shows the token. Raises KeyFileError where nobody can know."""
        self._read()
        shown = authorization.removeprefix(SCHEME) if authorization.startswith(SCHEME) else ""
        return hmac.compare_digest(shown.strip().encode("utf-8", "surrogateescape"), self._token)

    def _read(self) -> None:
        try:
            found = self.path.stat()
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen == self._seen:
                return
            # Looked at again in any case, until it can be used.
            self._seen = ()
            with self.path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            self._seen = ()
            raise KeyFileError(f"cannot read {self.path}: {(error.strerror or '').lower()}") from None
        token = one_word(data, str(self.path))
        if not token:
            raise KeyFileError(f"{self.path} is empty; it must hold the token that Prometheus shows")
        self._seen, self._token = seen, token.encode()


def own_token_file(folder: Path) -> TokenFile:
    """The token in the data directory, made at the first start. Blocking; raises KeyFileError or OSError."""
    path = folder / METRICS_TOKEN_FILE
    if not path.exists():
        write_whole(path, f"{new_secret(METRICS_PREFIX)}\n".encode())
    if path.stat().st_mode & OTHERS:
        raise KeyFileError(f"{path} can be read by others; run `chmod 600 {path}`")
    return TokenFile(path)
