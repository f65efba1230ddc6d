"""What a startup kit says of the package it is for, and whether that is what is installed here.

The statement lies in ``startup``: provisioning wrote it, and nothing in it is the hospital's to decide, unlike what
lies in ``local``. FLARE 2.9.0 signs no plain kit, so the statement is as trustworthy as the way by which the kit came,
no more and no less than the private key beside it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from pydantic import Field

import fedmedseg
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Finding, failed, passed, warned
from fedmedseg.core.jobs import bundle_roots
from fedmedseg.core.kit import Kit, read_json
from fedmedseg.core.machine_checks import PACKAGE, tested_versions
from fedmedseg.core.schema import Strict, parse
from fedmedseg.core.versions import differences, own_versions

RELEASE_FILE = "release.json"
"""In a kit's ``startup``."""
CONSTRAINTS = "constraints.txt"
NAME_A_WHEEL = "ask the network's administrator for kits that name the wheel (wheel: in project.yml)"
SHA256 = re.compile(r"[0-9a-f]{64}")


class WheelEntry(Strict):
    """The one wheel a kit's owner is to install."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.+-]+\.whl$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Release(Strict):
    """The file."""

    format: int = Field(1, ge=1, le=1)
    version: str
    """Of this package."""
    wheel: WheelEntry | None
    """None where no wheel was given when the kit was provisioned: then the version alone is known."""
    versions: dict[str, str]
    """Of other packages, by normalised name: FLARE's own and those the release was tested with."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the kit's own scripts and settings, by path (``provisioning.own_files``)."""


@dataclass(frozen=True)
class Installed:
    """What the installer of this package left behind."""

    version: str
    """Of the code that runs."""
    editable: bool = False
    archive_sha256: str | None = None
    """Of the wheel it was installed from; pip notes it only where it was given the file itself."""


def read_release(kit: Kit) -> Release:
    """What ``kit`` says.

    Raises:
        ConfigurationError: no or a damaged statement.
    """
    source = f"startup/{RELEASE_FILE}"
    try:
        return parse(Release, read_json(kit.startup / RELEASE_FILE), source=source)
    except ConfigurationError as error:
        raise ConfigurationError(
            error.field,
            got=error.got,
            expected=error.expected,
            remedy="ask the federation's network administrator for the kit again",
        ) from None


def installed() -> Installed:
    """This installation."""
    running = fedmedseg.__version__
    try:
        noted = distribution(PACKAGE).read_text("direct_url.json")
        content = json.loads(noted) if noted else {}
    except (PackageNotFoundError, ValueError):
        content = {}
    if not isinstance(content, dict):
        content = {}
    return Installed(
        version=running,
        editable=bool(_section(content, "dir_info").get("editable")),
        archive_sha256=_archive_sha256(_section(content, "archive_info")),
    )


def release(kit: Kit) -> Finding:
    """Whether the kit says which package it is for: without a wheel it vouches for a version, and not for the code."""
    told = read_release(kit)
    if told.wheel is None:
        return warned("release", f"{PACKAGE} {told.version}; the kit names no wheel", NAME_A_WHEEL)
    return passed("release", f"{PACKAGE} {told.version}, {told.wheel.name}, SHA-256 {told.wheel.sha256[:16]}...")


def package(kit: Kit, *, here: Installed | None = None) -> Finding:
    """Whether what is installed here is what the kit names: versions, and the wheel's digest where both sides know it.

    A server of the same federation would refuse other versions (``core.versions``); a wheel of the right version and
    another digest was built by somebody else.
    """
    check, here, told = "package", here or installed(), read_release(kit)
    if told.wheel is None:
        mend = f"install {PACKAGE} {told.version} with the constraints.txt it came with"
    else:
        mend = f"pip install --no-index --no-deps --force-reinstall wheelhouse/{told.wheel.name}"
    theirs = {**told.versions, PACKAGE: told.version}
    differing = differences(theirs, {**own_versions(), PACKAGE: here.version}, who="kit")
    if differing:
        return failed(check, differing, mend)
    if told.wheel is None:
        return warned(check, f"{PACKAGE} {here.version} as in the kit, which names no wheel", NAME_A_WHEEL)
    if here.editable:
        return failed(check, "a source tree in editable mode, and the kit names a wheel", mend)
    if here.archive_sha256 is None:
        found = f"{PACKAGE} {here.version}, but the installer did not note from which wheel"
        return warned(check, found, mend)
    if here.archive_sha256 != told.wheel.sha256:
        found = f"installed from a wheel with SHA-256 {here.archive_sha256[:16]}..., not {told.wheel.sha256[:16]}..."
        return failed(check, found, mend)
    return passed(check, f"{PACKAGE} {here.version}, from the very wheel the kit names")


def tested() -> dict[str, str]:
    """Pinned versions that came with the package, or none."""
    for root in bundle_roots()[1:]:
        found = tested_versions(root / CONSTRAINTS)
        if found:
            return found
    return {}


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def _archive_sha256(archive: dict[str, Any]) -> str | None:
    """From ``hashes``, or from the one ``hash`` of older installers."""
    found = _section(archive, "hashes").get("sha256") or str(archive.get("hash", "")).removeprefix("sha256=")
    return found if isinstance(found, str) and SHA256.fullmatch(found) else None
