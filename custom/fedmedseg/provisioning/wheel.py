"""The wheel a federation runs: what is in it, and the statement of it that goes into every kit."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import fedmedseg
from fedmedseg.core.errors import ConfigurationError, why
from fedmedseg.core.findings import Finding, failed, passed
from fedmedseg.core.kit import Kit
from fedmedseg.core.machine_checks import PACKAGE, pinned_versions
from fedmedseg.core.release import CONSTRAINTS, Release, WheelEntry, read_release, tested
from fedmedseg.core.versions import own_versions

LARGEST = 64 * 2**20
"""Bytes of one part of a wheel that is read; ours are far smaller."""


@dataclass(frozen=True)
class Wheel:
    """One wheel of this package."""

    name: str
    version: str
    sha256: str
    record: dict[str, str]
    """SHA-256 (base64, as in RECORD) by path of every file in it."""
    tested: dict[str, str]
    """The pinned versions it brings, by normalised name."""


def read_wheel(file: Path) -> Wheel:
    """The wheel at ``file``.

    Raises:
        ConfigurationError: no such file, no wheel, or one of another package.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            "wheel",
            got=f"{file} ({why(error)})",
            expected=f"a wheel of {PACKAGE}",
            remedy="make it with `python -m build --wheel --no-isolation --outdir dist .`",
        ) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            metadata = Parser().parsestr(_part(archive, "METADATA"), headersonly=True)
            record = {
                path: digest.removeprefix("sha256=")
                for path, digest, _ in csv.reader(io.StringIO(_part(archive, "RECORD")))
                if digest.startswith("sha256=")
            }
            bundled = f"{PACKAGE}/bundle/{CONSTRAINTS}"
            pins = archive.read(bundled).decode() if bundled in archive.namelist() else ""
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConfigurationError("wheel", got=f"{file.name} ({why(error)})", expected=f"a wheel of {PACKAGE}") from None
    if metadata["Name"] != PACKAGE or not record:
        raise ConfigurationError("wheel", got=f"{file.name}, of {metadata['Name']}", expected=f"a wheel of {PACKAGE}")
    return Wheel(
        name=file.name,
        version=str(metadata["Version"]),
        sha256=hashlib.sha256(content).hexdigest(),
        record=record,
        tested=pinned_versions(pins),
    )


def make_release(file: Path | None) -> Release:
    """The statement for kits provisioned here.

    Without a wheel it names the version that is installed here, for whose policy the kits are made.

    Raises:
        ConfigurationError: a wheel of another version than the one whose policy goes into the kits.
    """
    wheel = read_wheel(file) if file is not None else None
    if wheel is not None and wheel.version != fedmedseg.__version__:
        raise ConfigurationError(
            "wheel",
            got=f"{wheel.name}, of version {wheel.version}",
            expected=f"version {fedmedseg.__version__}, which is installed here and whose policy goes into the kits",
            remedy="provision with that wheel installed",
        )
    here = own_versions()
    pins = (wheel.tested if wheel is not None else None) or tested()
    versions = {**here, **pins, "nvflare": here["nvflare"]}
    return Release(
        format=1,
        version=versions.pop(PACKAGE),
        wheel=None if wheel is None else WheelEntry(name=wheel.name, sha256=wheel.sha256),
        versions=dict(sorted(versions.items())),
    )


def same_wheel(kit: Kit, wheel: Wheel) -> Finding:
    """Whether ``wheel`` is the one that ``kit`` names."""
    check, told = "wheel", read_release(kit)
    if told.wheel is None:
        return failed(
            check, "the kit names no wheel", "provision with wheel: in project.yml, or compare SHA-256 by telephone"
        )
    if wheel.sha256 != told.wheel.sha256:
        found = f"SHA-256 {wheel.sha256[:16]}..., the kit names {told.wheel.sha256[:16]}... ({told.wheel.name})"
        return failed(check, found, "do not install it: get the wheel from the network's administrator again")
    return passed(check, f"the one the kit names, SHA-256 {wheel.sha256[:16]}...")


def _part(archive: zipfile.ZipFile, name: str) -> str:
    """A file of the wheel's own dist-info folder.

    Raises:
        KeyError: none or several, or one too large to be honest.
    """
    paths = [
        one.filename
        for one in archive.infolist()
        if one.filename.count("/") == 1 and one.filename.endswith(f".dist-info/{name}") and one.file_size < LARGEST
    ]
    if len(paths) != 1:
        raise KeyError(name)
    return archive.read(paths[0]).decode()
