"""Why a control plane cannot be reached: asked once the connection has failed, since gRPC's own words do not say."""

from __future__ import annotations

import socket
import ssl

from orchestrator.adapters.peers import SERVER_NAME

PATIENCE_S = 5.0
"""Somebody waits at a terminal, and has waited once already."""


def why_unreachable(url: str, authorities: bytes, trusted_by: str) -> str:
    """One line with what to do next. ``trusted_by`` is how whom to trust was named. Blocking."""
    host, _, port = url.rpartition(":")
    at = f"the control plane at {url}"
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S)
    except (socket.gaierror, UnicodeError):
        # The latter of a name with a part that is too long for one.
        return f"cannot reach {at}: there is no host of that name; set ORCH_URL"
    except TimeoutError:
        return f"cannot reach {at}: nothing answers there; is a firewall between? set ORCH_URL"
    except OSError:
        return f"cannot reach {at}: is `orch serve` running? set ORCH_URL"
    with connection:
        try:
            with _context(authorities).wrap_socket(connection, server_hostname=SERVER_NAME):
                pass
        except ssl.SSLCertVerificationError:
            return (
                f"{at} shows a certificate of another authority than {trusted_by}, so the token was not sent: is"
                " ORCH_URL another network's, or the ca.pem an old one?"
            )
        except (ssl.SSLError, OSError):
            return (
                f"what answers at {url} does not speak TLS as a control plane does: ORCH_URL is the address of"
                " `orch serve --listen`, not of its gateway or metrics"
            )
    return f"cannot reach {at}: it answers and ends the connection; ORCH_URL is the address of `orch serve --listen`"


def _context(authorities: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authorities.decode("ascii", "replace"))
    # As gRPC has it here: the name is not the host's.
    context.set_alpn_protocols(["h2"])
    return context
