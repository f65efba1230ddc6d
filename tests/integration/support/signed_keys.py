"""Signed keys for encrypted replies in folders that stand in for kits, without provisioning them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from nvflare.lighter.utils import generate_keys, sign_folders

from fedmedseg.core.ckks import make_contexts
from fedmedseg.core.encryption_keys import KEY_FILE, SERVER_FILE, SITE_FILE, KeyEntry, key_of


def write_keys(*, server: Path, sites: list[Path]) -> None:
    """One federation's keys into the ``startup`` folders of its server and sites, signed by a root of their own."""
    private, public = generate_keys()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    now = datetime.datetime.now(datetime.UTC)
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    contexts = make_contexts()
    entry = KeyEntry(format=1, key=key_of(contexts[1])).model_dump(mode="json")
    for startup, file, content in [
        (server, SERVER_FILE, contexts[0]),
        *((one, SITE_FILE, contexts[1]) for one in sites),
    ]:
        startup.mkdir(parents=True, exist_ok=True)
        (startup / "rootCA.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
        (startup / KEY_FILE).write_text(json.dumps(entry))
        (startup / file).write_bytes(content)
        sign_folders(str(startup), private, signature_file="signature.json")
