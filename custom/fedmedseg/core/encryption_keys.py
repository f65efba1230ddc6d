"""The files of a kit that hold the federation's encryption: where they lie, and that nobody changed them.

All sites share one secret key, the server has none. The SHA-256 of the sites' file stands in every kit, so that a kit
of another federation, or of another provisioning, is known before anything is encrypted with it; the key cannot be
computed from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nvflare.fuel.sec.security_content_service import LoadResult, SecurityContentManager
from pydantic import Field

from fedmedseg.core.bounds import Digest
from fedmedseg.core.ckks import SCHEME, Cipher
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.kit import read_json
from fedmedseg.core.schema import Strict, parse

SERVER_FILE = "server_context.tenseal"
SITE_FILE = "client_context.tenseal"
"""FLARE's own names (``ProvFileName``): its SignatureBuilder signs kits that hold them."""
KEY_FILE = "encryption.json"
_REMEDY = "ask the federation's network administrator for kits made with encryption (provisioning/README.md)"


class KeyEntry(Strict):
    """Content of ``startup/encryption.json``."""

    format: int = Field(1, ge=1, le=1)
    scheme: Literal["ckks"] = SCHEME
    key: Digest
    """SHA-256 of the sites' context."""


@dataclass(frozen=True)
class KitCipher:
    """What a kit encrypts or adds with."""

    cipher: Cipher
    key: str
    """See ``KeyEntry``."""


def key_of(content: bytes) -> str:
    """What a kit says of the sites' context."""
    return hashlib.sha256(content).hexdigest()


def load_cipher(startup: Path, *, secret: bool) -> KitCipher:
    """The cipher of the kit whose ``startup`` folder this is: a site's (``secret``) or the server's.

    Raises:
        ConfigurationError: a file is missing, not signed by the federation's root or changed since; a site's without
            the secret key or of another key than the kit names; a server's with one; TenSEAL is not installed.
    """
    name = SITE_FILE if secret else SERVER_FILE
    content = _signed(startup, name)
    _signed(startup, KEY_FILE)
    entry = parse(KeyEntry, read_json(startup / KEY_FILE), source=KEY_FILE)
    cipher = Cipher(content)
    if cipher.private != secret:
        raise ConfigurationError(
            f"startup/{name}",
            got="a context with the secret key" if cipher.private else "a context without the secret key",
            expected="the secret key in the sites' kits, and in no other",
            remedy=_REMEDY,
        )
    if secret and key_of(content) != entry.key:
        raise ConfigurationError(
            f"startup/{name}", got="another key", expected=f"the one that startup/{KEY_FILE} names", remedy=_REMEDY
        )
    return KitCipher(cipher=cipher, key=entry.key)


def _signed(startup: Path, name: str) -> bytes:
    """A file of ``startup`` under the signature of the federation's root (``signature.json``)."""
    content, result = SecurityContentManager(str(startup)).load_content(name)
    if result != LoadResult.OK:
        raise ConfigurationError(
            f"startup/{name}",
            got="no such file" if result == LoadResult.NO_SUCH_CONTENT else f"a file that is {_WORDS[result]}",
            expected="a file signed by the federation's root",
            remedy=_REMEDY,
        )
    return bytes(content)


_WORDS = {
    LoadResult.NOT_SIGNED: "not signed",
    LoadResult.INVALID_SIGNATURE: "changed since it was signed",
    LoadResult.INVALID_CONTENT: "damaged",
    LoadResult.NOT_MANAGED: "not signed",
}
