"""Checks of a startup kit: certificates, the server's port, the class allow-list, the privacy scopes."""

from __future__ import annotations

import socket
import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST, OPTIONAL_AT_SERVER, list_problems, without_optional
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Finding, failed, passed, warned
from fedmedseg.core.kit import Kit, read_json, site_resources
from fedmedseg.core.scopes import choices, privacy_policy, problems, scope_names
from fedmedseg.core.tls import client_context, first_word, told

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.x509 import Certificate

RENEW_DAYS = 30
"""A certificate that ends sooner is to be renewed now."""
TIMEOUT = 3.0
"""Seconds to wait for the server."""
ASK = "ask the federation's network administrator for a new kit"


def certificate_dates(kit: Kit, *, now: datetime) -> Finding:
    """Whether ``now`` lies in the validity of the participant's and of the root certificate. WARN 30 days before."""
    check, remaining = "certificate dates", []
    for name, path in (("certificate", kit.certificate), ("root certificate", kit.authority)):
        certificate = load_certificate(path)
        if certificate is None:
            return failed(check, f"the {name} cannot be read", ASK)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now < start:
            return failed(
                check,
                f"the {name} is valid from {start:%Y-%m-%d %H:%M} UTC, and this clock says {now:%Y-%m-%d %H:%M}",
                "set this machine's clock; if it is right, wait or ask for a new kit",
            )
        if now > end:
            return failed(check, f"the {name} ended on {end:%Y-%m-%d}", f"renew it: {ASK}")
        remaining.append((end - now, name, end))
    left, name, end = min(remaining)
    text = f"the {name} ends first, on {end:%Y-%m-%d}, in {left.days} days"
    if left < timedelta(days=RENEW_DAYS):
        return warned(check, text, f"renew it now: {ASK}")
    return passed(check, text)


def certificate_key(kit: Kit) -> Finding:
    """Whether the private key belongs to the certificate, is of this participant, and is readable by its owner only."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import NameOID

    check = "private key"
    certificate = load_certificate(kit.certificate)
    if certificate is None:
        return failed(check, "the certificate cannot be read", ASK)
    try:
        key = serialization.load_pem_private_key(kit.key.read_bytes(), password=None)
    except OSError as error:
        return failed(
            check, f"the key cannot be read ({type(error).__name__})", "start as the user who owns startup/*.key"
        )
    except (ValueError, TypeError):
        return failed(check, "the key is no plain private key in PEM form", "FLARE needs it without a password")
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        return failed(
            check, "the key does not belong to the certificate", "put the key back that the request was made with"
        )
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if kit.name and names and not {kit.name, kit.name.rpartition(".")[2]} & set(names):
        return failed(check, "the certificate is another participant's", "use the kit that was made for this one")
    if kit.key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warned(
            check, "they belong together, but others than its owner may use the key", "chmod 600 startup/*.key"
        )
    return passed(check, "they belong together, and the key is its owner's alone")


def certificate_chain(kit: Kit) -> Finding:
    """Whether the kit's root certificate signed the participant's."""
    from cryptography.exceptions import InvalidSignature

    check = "certificate"
    certificate, root = load_certificate(kit.certificate), load_certificate(kit.authority)
    if certificate is None or root is None:
        return failed(check, "the certificate or the root certificate cannot be read", ASK)
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return failed(
            check, "startup/rootCA.pem did not sign the certificate", f"the files are of two federations: {ASK}"
        )
    if root.issuer != root.subject:
        return warned(check, "signed by rootCA.pem, which is no root itself", "check with the network administrator")
    return passed(check, "signed by the kit's rootCA.pem")


def server_port(kit: Kit, *, timeout: float = TIMEOUT) -> Finding:
    """Whether the kit's server can be reached: name, port, and, with certificates, the server's own certificate.

    A server's kit asks instead whether the port can be opened here, or is in use by a server already running.
    """
    check, target = "server port", f"{kit.host}:{kit.port}"
    if kit.role == "server":
        return _own_port(check, kit)
    try:
        connection = socket.create_connection((kit.host, kit.port), timeout=timeout)
    except socket.gaierror:
        return failed(
            check, f"{kit.host}: no such name (DNS)", "add the server to DNS or to /etc/hosts, or correct the resolver"
        )
    except TimeoutError:
        return failed(
            check,
            f"{target}: no answer within {timeout:g} s",
            f"a firewall drops it: allow outbound TCP to port {kit.port}, or the server's machine is off",
        )
    except ConnectionRefusedError:
        return failed(
            check, f"{target}: refused", "nothing listens there: start the server, or a firewall rejects the connection"
        )
    except OSError as error:
        return failed(check, f"{target}: {error.strerror or type(error).__name__}", "correct this machine's network")
    with connection:
        if kit.security == "clear":
            return warned(
                check, f"{target} answers, without any encryption", "provision the federation with mutual TLS"
            )
        return _handshake(check, kit, target, connection)


def class_allow_list(kit: Kit) -> Finding:
    """Whether FLARE enforces a list of classes here, and it is exactly the one our jobs need."""
    check, mend = "class allow-list", "take local/resources.json of the kit as it was provisioned"
    file = site_resources(kit.local)
    try:
        resources = read_json(file)
        found = list_problems(without_optional(resources) if kit.role == "server" else resources)
    except ConfigurationError as error:
        return failed(check, f"{file.name}: {error.got}", mend)
    if found:
        return failed(check, "; ".join(found), mend)
    added = [one for one in OPTIONAL_AT_SERVER if one in resources.get("class_allow_list", ())]
    more = f"; added by hand: {', '.join(added)}" if added else ""
    return passed(check, f"{len(CLASS_ALLOW_LIST)} classes, exactly what our jobs name{more}")


def privacy_scopes(kit: Kit) -> Finding:
    """Whether the privacy scopes are ours, and at a hospital run exactly our filters on what leaves it."""
    check, mend = "privacy", "take local/privacy.json of the kit as it was provisioned"
    file = kit.local / "privacy.json"
    if not file.is_file():
        return failed(check, "no local/privacy.json: FLARE accepts any scope and filters nothing", mend)
    try:
        content = read_json(file)
    except ConfigurationError as error:
        return failed(check, f"privacy.json: {error.got}", mend)
    if kit.role == "server":
        # names alone: what filters is the sites' matter
        if content != scope_names(privacy_policy()):
            return failed(check, "privacy.json: not the names of our scopes", mend)
        return passed(check, f"the names of {len(content['scopes'])} scopes")
    found = problems(content)
    if found:
        return failed(check, "; ".join(found), mend)
    names = ", ".join(scope["name"] for scope in content["scopes"])
    chosen = choices(content)
    if chosen:
        return warned(check, f"privacy.json: {'; '.join(chosen)}", f"well if this hospital wants it so; else {mend}")
    return passed(check, f"scopes {names}; a job that names none gets {content['default_scope']}")


def load_certificate(path: Path) -> Certificate | None:
    """The PEM certificate at ``path``, or None where there is none that can be read."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _own_port(check: str, kit: Kit) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", kit.port))
        except PermissionError:
            return failed(check, f"port {kit.port} needs rights this user lacks", "choose a port above 1023")
        except OSError:
            return warned(
                check,
                f"port {kit.port} is in use on this machine",
                "well if it is this federation's running server; else stop what holds it",
            )
    return passed(check, f"port {kit.port} is free on this machine")


def _handshake(check: str, kit: Kit, target: str, connection: socket.socket) -> Finding:
    try:
        context = client_context(kit)
    except OSError:
        return failed(check, f"{target} answers, but the kit's certificates cannot be used", ASK)
    version, der, why = None, None, ""
    try:
        with context.wrap_socket(connection, server_hostname=kit.server or kit.host) as secure:
            version, der = secure.version(), secure.getpeercert(binary_form=True)
            # silence refuses nobody; a server that refuses this certificate says so, or hangs up
            with suppress(TimeoutError):
                why = "" if first_word(kit, secure) else "it hung up after the TLS handshake"
    except ssl.SSLCertVerificationError as error:
        return failed(
            check,
            f"{target} answers with a certificate that rootCA.pem does not vouch for ({error.verify_message})",
            "something else listens there, a proxy opens TLS, or the server's certificate must be renewed",
        )
    except OSError as error:
        alert = told(error) if isinstance(error, ssl.SSLError) else ""
        if version is None and "alert" not in alert:
            return failed(
                check,
                f"{target} answers, but does not speak TLS with us ({type(error).__name__})",
                "something else listens there, or a proxy stands between: ask for a direct outbound connection",
            )
        why = alert or "it hung up after the TLS handshake"
    if why:
        return failed(check, f"{target} answers, but refuses this kit's certificate ({why})", ASK)
    return passed(check, f"{target} answers, {version}{_server_end(der)}")


def _server_end(der: bytes | None) -> str:
    if der is None:
        return ""
    from cryptography import x509

    return f", server certificate valid until {x509.load_der_x509_certificate(der).not_valid_after_utc:%Y-%m-%d}"


def today() -> datetime:
    """This machine's clock, UTC."""
    return datetime.now(UTC)
