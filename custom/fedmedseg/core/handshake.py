"""Why a server refuses a site's connection: a handshake of our own, as FLARE's drivers tell Python nothing of theirs.

gRPC's core writes what goes wrong in TLS to the process's standard error alone (`fuel/f3/drivers/grpc_driver.py` of
FLARE 2.9.0 sees a channel that is not ready), and the server raises no event for a client it never met.
"""

from __future__ import annotations

import socket
import ssl
from datetime import datetime

from fedmedseg.core.findings import Finding, Level
from fedmedseg.core.kit import Kit
from fedmedseg.core.kit_checks import certificate_chain, certificate_dates, certificate_key, today
from fedmedseg.core.tls import PREFACE, client_context, first_word, told

TIMEOUT = 3.0
"""Seconds to wait for the server's word."""


def refusal(kit: Kit, *, timeout: float = TIMEOUT, now: datetime | None = None) -> str:
    """Why ``kit``'s server refuses its connection, in words without path or address; empty where it does not.

    A server that cannot be reached, or is silent, refuses nothing. What the kit's own certificates show is told with a
    refusal: TLS says little to the one it turns away.
    """
    try:
        connection = socket.create_connection((kit.host, kit.port), timeout=timeout)
    except OSError:
        return ""
    with connection:
        connection.settimeout(timeout)
        try:
            why = _clear(connection) if kit.security == "clear" else _secure(kit, connection)
        except TimeoutError:
            # it took the connection and waits for more
            return ""
    own = [look.found for look in _own_faults(kit, now or today())]
    if own and not why:
        # FLARE's server closes a connection whose certificate is another participant's only after the handshake
        why = "the server does not answer, and this kit is at fault"
    return "; ".join([why, *own]) if why else ""


def _clear(connection: socket.socket) -> str:
    try:
        connection.sendall(PREFACE)
        answer = connection.recv(9)
    except TimeoutError:
        raise
    except OSError:
        answer = b""
    # the fourth byte of an HTTP/2 frame's head is its kind: 4 is settings
    return "" if len(answer) > 3 and answer[3] == 4 else "the server takes no connection without TLS"


def _secure(kit: Kit, connection: socket.socket) -> str:
    try:
        context = client_context(kit)
    except OSError:
        return "TLS cannot begin: the kit's certificate and key cannot be used together"
    try:
        with context.wrap_socket(connection, server_hostname=kit.server or kit.host) as secure:
            if not first_word(kit, secure):
                return "the server hung up after the TLS handshake"
    except ssl.SSLCertVerificationError as error:
        return f"TLS: this site refuses the server's certificate ({error.verify_message})"
    except TimeoutError:
        raise
    except ssl.SSLError as error:
        return f"TLS: the server refuses this site ({told(error)})"
    except OSError:
        return "the server hung up in the TLS handshake"
    return ""


def _own_faults(kit: Kit, now: datetime) -> list[Finding]:
    looks = (certificate_dates(kit, now=now), certificate_chain(kit), certificate_key(kit))
    return [look for look in looks if look.level is Level.FAIL]
