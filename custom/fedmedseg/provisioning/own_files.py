"""Files of a kit that nobody at a hospital has a reason to change: their SHA-256, as provisioning wrote them.

They decide what runs before any policy is read: the start scripts, whom FLARE connects to, and the log's configuration,
from which Python's ``logging`` calls whatever it names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedmedseg.core.findings import Finding, failed, passed
from fedmedseg.core.kit import Kit
from fedmedseg.core.release import read_release

PATTERNS = ("startup/*.sh", "startup/fed_*.json", "local/log_config.json")
CHECK = "own files"
CONTAINER_START = "startup/start_docker.sh"


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of each of those files, by its path in the kit at ``root``."""
    files = sorted(file for pattern in PATTERNS for file in root.glob(pattern) if file.is_file())
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def own_files(kit: Kit, *, prepared: bool) -> Finding:
    """Whether they are what ``startup/release.json`` names.

    ``prepared`` is true of a kit that `nvflare deploy prepare` has turned into one for containers: it takes start
    scripts out and puts ``CONTAINER_START`` in.
    """
    told, found = read_release(kit).files, digests(kit.root)
    if not told:
        return failed(CHECK, "release.json names none", "provision the kit again")
    expected = {CONTAINER_START} if prepared else set()
    differing = [
        f"{name} {'is gone' if name not in found else 'is new' if name not in told else 'was changed'}"
        for name in sorted({*told, *found} - expected)
        if told.get(name) != found.get(name) and not (prepared and name not in found and name.endswith(".sh"))
    ]
    if differing:
        return failed(CHECK, ", ".join(differing), "take these files of the kit as they were provisioned")
    return passed(CHECK, f"{len(found.keys() & told.keys())} scripts and settings as provisioned")
