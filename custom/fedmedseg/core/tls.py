"""TLS as a kit's participant speaks it: what the check of the server's port and the search for a refusal share."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmedseg.core.kit import Kit

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""How every HTTP/2 client begins, with empty settings; a server that takes the connection answers with its own."""


def client_context(kit: Kit) -> ssl.SSLContext:
    """Mutual TLS with the kit's certificates.

    Raises:
        OSError: a file cannot be read (``ssl.SSLError``: or certificate and key cannot be used together).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # FLARE's certificates name participants, which need not be host names; the chain is what counts
    context.check_hostname = False
    context.load_verify_locations(kit.authority)
    context.load_cert_chain(kit.certificate, kit.key)
    if kit.scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    return context


def first_word(kit: Kit, secure: ssl.SSLSocket) -> bytes:
    """What the server says first after the handshake; empty where it hangs up.

    TLS 1.3 tells a client that its certificate is refused only once it reads: a handshake alone proves nothing.

    Raises:
        TimeoutError: the server says nothing; with another scheme than gRPC it waits for the client.
        ssl.SSLError: the server refuses the client.
        OSError: the connection broke.
    """
    if kit.scheme == "grpc":
        secure.sendall(PREFACE)
    return secure.recv(9)


def told(error: ssl.SSLError) -> str:
    """TLS's own word for what went wrong, as ``sslv3 alert certificate expired``."""
    return (error.reason or "no reason").lower().replace("_", " ")
