"""How `orch serve` protects its tenants' door: by others' certificate, by its own, or behind others' proxy."""

from __future__ import annotations

from pathlib import Path

from orchestrator.adapters import clock
from orchestrator.adapters.authority import Authority, AuthorityError
from orchestrator.adapters.files import write_whole
from orchestrator.adapters.https_identity import CertificateError, HttpsIdentity
from orchestrator.cli.errors import usage_error
from orchestrator.cli.serve_settings import EVERYWHERE, Address, ServeSettings

OWN_FILE = "gateway.pem"
"""Certificate and key from our own authority, beside which the key is no greater secret."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""By which this machine's own tenants come, whatever the address others use."""


def check_gateway(settings: ServeSettings, at: Address) -> None:
    """A usage error where tenants' tokens would cross a network in the clear, or a certificate had no name."""
    if not (settings.gateway_https or settings.gateway_plain or at.loopback):
        raise usage_error(
            f"--gateway: {settings.gateway} can be reached by other machines, and tenants' tokens must not travel"
            " unencrypted: give --gateway-certificate and --gateway-key; or --gateway-tls own, for a certificate"
            " of this network's authority; or, where your own reverse proxy ends TLS, --gateway-plain"
        )
    if settings.gateway_tls is not None and at.host in EVERYWHERE and not settings.gateway_hosts:
        raise usage_error(
            f"--gateway-tls own: {settings.gateway} is every address of this machine, and a certificate needs the"
            " names or addresses that tenants use: add --gateway-name for each"
        )


def open_identity(
    settings: ServeSettings, at: Address, authority: Authority, folder: Path
) -> HttpsIdentity | None:
    """What the gateway shows; None where it speaks plain HTTP. Blocking; raises a usage error."""
    if settings.gateway_certificate is not None and settings.gateway_key is not None:
        try:
            return HttpsIdentity(settings.gateway_certificate, settings.gateway_key)
        except CertificateError as error:
            raise usage_error(f"--gateway-certificate, --gateway-key: {error}") from None
    if settings.gateway_tls is None:
        return None
    bound = () if at.host in EVERYWHERE else (at.host.lower(),)
    names = tuple(dict.fromkeys((*settings.gateway_hosts, *bound, *LOOPBACK_NAMES)))
    try:
        return own_identity(authority, folder / OWN_FILE, names)
    except CertificateError as error:
        raise usage_error(f"--gateway-tls own: {error}") from None


def own_identity(authority: Authority, path: Path, names: tuple[str, ...]) -> HttpsIdentity:
    """A certificate of our own authority for these names, renewed in ``path``. Blocking; raises CertificateError."""

    def renew() -> None:
        try:
            key, chain = authority.server_credentials_pem(clock.SystemClock().now().wall_ms, names)
            if not path.exists() or path.read_bytes() != key + chain:
                write_whole(path, key + chain)
        except AuthorityError as error:
            raise CertificateError(str(error)) from error
        except OSError as error:
            raise CertificateError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None

    return HttpsIdentity(path, path, renew)


def gateway_url(settings: ServeSettings, at: Address, port: int) -> str:
    """Where the gateway listens, as a URL. Of a door at every address, the first name it goes by."""
    scheme = "https" if settings.gateway_https else "http"
    named = at.host in EVERYWHERE and settings.gateway_names
    public = Address(settings.gateway_names[0], port) if named else at
    return f"{scheme}://{public.with_port(port)}"
