"""Keys for encrypted replies: a builder that puts them into the kits, and whether they still lie where they belong."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Project
from nvflare.lighter.spec import Builder

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.ckks import SCHEME, make_contexts
from fedmedseg.core.encryption_keys import KEY_FILE, SERVER_FILE, SITE_FILE, KeyEntry, key_of, load_cipher
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Finding, failed, passed
from fedmedseg.core.kit import Kit

_OWNER = 0o600
_MEND = "provision the kits again with EncryptionBuilder"


class EncryptionBuilder(Builder):
    """Writes one secret key into every hospital's kit and a context without it into the server's.

    List it before SignatureBuilder, which signs a kit's folders where it finds these files. FLARE's own ``HEBuilder``
    makes another key whenever it is called, so that a hospital added later could not take part; and its parameters pay
    for a multiplication that our server does not do. The key is kept in the workspace's state folder, beside the
    federation's root key. Removing both files there makes a new one, for everybody.
    """

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write the files of server and hospitals; administrators get none."""
        state = Path(ctx.get_state_dir())
        state.mkdir(parents=True, exist_ok=True)
        contexts = {name: state / name for name in (SERVER_FILE, SITE_FILE)}
        if not all(file.is_file() for file in contexts.values()):
            for file, content in zip(contexts.values(), make_contexts(), strict=True):
                _write(file, content)
        key = key_of(contexts[SITE_FILE].read_bytes())
        entry = json.dumps(KeyEntry(format=1, scheme=SCHEME, key=key).model_dump(mode="json"), indent=2) + "\n"
        kits = [(one, SITE_FILE) for one in project.get_clients()]
        server = project.get_server()
        if server is not None:
            kits.append((server, SERVER_FILE))
        for participant, name in kits:
            startup = Path(ctx.get_kit_dir(participant))
            _write(startup / name, contexts[name].read_bytes())
            (startup / KEY_FILE).write_text(entry, encoding="utf-8")


def encryption(kit: Kit) -> Iterator[Finding]:
    """Findings on the secret key: in a hospital's kit for its owner alone, in no other kit at all."""
    check = "encryption"
    here = [name for name in (SERVER_FILE, SITE_FILE, KEY_FILE) if (kit.startup / name).exists()]
    if not here:
        yield passed(check, "no keys: studies of this federation send what the filters let pass in plain")
        return
    own = {"client": SITE_FILE, "server": SERVER_FILE}.get(kit.role)
    strange = [name for name in (SERVER_FILE, SITE_FILE) if name in here and name != own]
    if strange or own is None:
        secret = ", which holds the sites' secret key" if SITE_FILE in strange else ""
        yield failed(check, f"{', '.join(strange or here)} in this kit{secret}", f"remove it; {_MEND}")
        return
    try:
        loaded = load_cipher(kit.startup, secret=kit.role == "client")
    except ConfigurationError as error:
        yield failed(check, str(error), error.remedy)
        return
    if kit.role == "client" and stat.S_IMODE((kit.startup / SITE_FILE).stat().st_mode) & 0o077:
        yield failed(check, f"others on this machine may read startup/{SITE_FILE}", f"chmod 600 startup/{SITE_FILE}")
        return
    what = "the sites' secret key" if kit.role == "client" else "no secret key"
    yield passed(check, f"{SCHEME}, key {loaded.key[:16]}...; this kit holds {what}")


def _write(file: Path, content: bytes) -> None:
    write_atomic(file, content)
    file.chmod(_OWNER)
