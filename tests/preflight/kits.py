"""Certificates and startup kits made by hand: valid, expired, foreign."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import fedmedseg
from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST
from fedmedseg.core.scopes import privacy_policy
from fedmedseg.core.versions import own_versions

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
Key = ec.EllipticCurvePrivateKey


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(
    subject: str, key: Key, *, issuer: str, issuer_key: Key, start: datetime, end: datetime, authority: bool
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def write_key(path: Path, key: Key, password: bytes | None = None) -> None:
    form = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form))
    path.chmod(0o600)


def write_certificate(path: Path, one: x509.Certificate) -> None:
    path.write_bytes(one.public_bytes(serialization.Encoding.PEM))


class Federation:
    """A root key and the kits it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())

    def root(self, *, start: datetime = NOW - timedelta(days=30), end: datetime = NOW + timedelta(days=3650)) -> Any:
        both = {"key": self.key, "issuer": "federation", "issuer_key": self.key}
        return certificate("federation", **both, start=start, end=end, authority=True)

    def kit(
        self,
        site: str = "hospital-1",
        *,
        start: datetime = NOW - timedelta(days=30),
        end: datetime = NOW + timedelta(days=300),
        target: str = "localhost:8002",
        resources: Mapping[str, Any] | None = None,
        privacy: Mapping[str, Any] | None = None,
        root: Any = None,
    ) -> Path:
        """A client's kit as provisioning writes it."""
        kit = self.folder / site
        startup, local = kit / "startup", kit / "local"
        startup.mkdir(parents=True)
        local.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        own = certificate(site, key, issuer="federation", issuer_key=self.key, start=start, end=end, authority=False)
        write_certificate(startup / "client.crt", own)
        write_certificate(startup / "rootCA.pem", root or self.root())
        write_key(startup / "client.key", key)
        fed = {
            "servers": [{"name": "fed", "service": {"target": target, "scheme": "grpc"}, "identity": "localhost"}],
            "client": {
                "ssl_private_key": "client.key",
                "ssl_cert": "client.crt",
                "ssl_root_cert": "rootCA.pem",
                "fqsn": site,
                "connection_security": "mtls",
                "require_signed_jobs": True,
            },
        }
        (startup / "fed_client.json").write_text(json.dumps(fed))
        others = {package: version for package, version in own_versions().items() if package != "fedmedseg"}
        release = {"format": 1, "version": fedmedseg.__version__, "wheel": None, "versions": others}
        (startup / "release.json").write_text(json.dumps(release))
        listed = {"class_list_enforcement_mode": "enforce", "class_allow_list": list(CLASS_ALLOW_LIST)}
        (local / "resources.json").write_text(json.dumps(listed if resources is None else resources))
        (local / "privacy.json").write_text(json.dumps(privacy_policy() if privacy is None else privacy))
        return kit
