"""Why a server turns a site away, found out by a handshake with servers of every kind."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedmedseg.core import handshake
from fedmedseg.core.handshake import refusal
from fedmedseg.core.kit import Kit

NOW = datetime.now(UTC)
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
Key = ec.EllipticCurvePrivateKey


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


class Authority:
    """A root that signs certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.sign("root", self.key, days=9)

    def sign(self, subject: str, key: Key, *, days: int) -> Path:
        file = self.folder / f"{subject}.crt"
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=9))
            .not_valid_after(NOW + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=subject == "root", path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.with_suffix(".key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
        return file

    def make(self, subject: str, *, days: int = 9) -> Path:
        return self.sign(subject, ec.generate_private_key(ec.SECP256R1()), days=days)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(10)
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)


def mutual(authority: Authority) -> Callable[[socket.socket], None]:
    """Answers a client whose certificate the authority signed, as a gRPC server would."""
    own = authority.make("server")

    def answer(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own, own.with_suffix(".key"))
        context.load_verify_locations(authority.folder / "root.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1024)
            secure.sendall(SETTINGS)

    return answer


def kit(root: Path, certificate: Path, port: int, *, security: str = "mtls", scheme: str = "grpc") -> Kit:
    return Kit(
        root=root.parent,
        role="client",
        name=certificate.stem,
        certificate=certificate,
        key=certificate.with_suffix(".key"),
        authority=root,
        server="server",
        host="127.0.0.1",
        port=port,
        scheme=scheme,
        security=security,
    )


def test_a_site_that_is_let_in_is_refused_by_nobody(authority: Authority) -> None:
    with listening(mutual(authority)) as port:
        assert refusal(kit(authority.folder / "root.crt", authority.make("site-1"), port)) == ""


def test_an_expired_certificate_is_named(authority: Authority) -> None:
    with listening(mutual(authority)) as port:
        why = refusal(kit(authority.folder / "root.crt", authority.make("site-1", days=-1), port))
    assert why.startswith(("TLS: the server refuses this site", "the server hung up"))
    assert "the certificate ended on" in why


def test_a_site_of_another_federation_refuses_the_server(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign")
    with listening(mutual(authority)) as port:
        why = refusal(kit(foreign.folder / "root.crt", foreign.make("site-1"), port))
    assert why.startswith("TLS: this site refuses the server's certificate")


def test_a_certificate_that_the_servers_root_did_not_sign_is_refused(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign")
    with listening(mutual(authority)) as port:
        why = refusal(kit(authority.folder / "root.crt", foreign.make("site-1"), port))
    assert why.startswith(("TLS: the server refuses this site", "the server hung up"))
    assert "did not sign" in why


def test_a_key_of_another_certificate_is_told_without_a_path(authority: Authority) -> None:
    certificate, other = authority.make("site-1"), authority.make("site-2")
    certificate.with_suffix(".key").write_bytes(other.with_suffix(".key").read_bytes())
    with listening(lambda connection: None) as port:
        why = refusal(kit(authority.folder / "root.crt", certificate, port))
    assert "cannot be used together" in why
    assert "/" not in why


def test_another_sites_certificate_passes_tls_and_is_told_all_the_same(authority: Authority) -> None:
    certificate = authority.make("site-2")
    with listening(mutual(authority)) as port:
        one = dataclasses.replace(kit(authority.folder / "root.crt", certificate, port), name="site-1")
        assert refusal(one) == (
            "the server does not answer, and this kit is at fault; the certificate is another participant's"
        )


def test_clear_text_is_refused_by_a_server_that_wants_tls(authority: Authority) -> None:
    with listening(mutual(authority)) as port:
        one = kit(authority.folder / "root.crt", authority.make("site-1"), port, security="clear")
        assert refusal(one) == "the server takes no connection without TLS"
    with listening(lambda connection: connection.sendall(SETTINGS)) as port:
        assert refusal(kit(authority.folder / "root.crt", authority.make("site-1"), port, security="clear")) == ""


def test_a_server_that_is_away_or_silent_refuses_nobody(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    certificate = authority.make("site-1")
    assert refusal(kit(authority.folder / "root.crt", certificate, closed)) == ""
    assert handshake.TIMEOUT <= 5
    done = threading.Event()
    with listening(lambda connection: done.wait(10) and None) as port:
        assert refusal(kit(authority.folder / "root.crt", certificate, port), timeout=0.2) == ""
        done.set()
