"""Which versions server and site must share for one study, and which each of them has."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

import fedmedseg

PACKAGES = ("fedmedseg", "nvflare", "torch", "monai", "numpy", "nibabel")
"""Those that decide results."""
EXACT = ("fedmedseg", "nvflare")
"""Their messages and settings change from one version to the next: nothing but the same will do."""
MINOR = ("torch", "monai")
"""Major and minor version must agree: patches mend and do not change what an operation computes, nor does the way in
which a wheel was built (``+cu128``)."""
LONGEST = 150
"""Characters of the whole difference, which a site tells the server as its reason."""
_VERSION = re.compile(r"[0-9A-Za-z.+!_-]{1,32}")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    return {"python": platform.python_version(), **{package: _installed(package) for package in PACKAGES}}


def own_versions() -> dict[str, str]:
    """What the server tells in a task's header, and what a site compares with it.

    Of this package it is the version of the code that runs, not of what an installer noted down.
    """
    found = {package: _installed(package) for package in (*EXACT, *MINOR)}
    return {**found, "fedmedseg": fedmedseg.__version__}


def differences(theirs: object, here: Mapping[str, str], *, who: str = "server") -> str:
    """In what ``here`` must not differ from ``theirs`` and does; empty where the two can work together.

    ``theirs`` comes from the wire and may be anything: what is missing or no version differs too. ``who`` told it.
    """
    told = theirs if isinstance(theirs, Mapping) else {}
    found = []
    for package in (*EXACT, *MINOR):
        value = told.get(package)
        other = value if isinstance(value, str) and _VERSION.fullmatch(value) else None
        if other is None or not _agree(package, other, here[package]):
            found.append(f"{package} {here[package]} ({who} {other or 'does not say'})")
    return ", ".join(found)[:LONGEST]


def _agree(package: str, one: str, other: str) -> bool:
    if one == other or package in EXACT:
        return one == other
    try:
        return Version(one).release[:2] == Version(other).release[:2]
    except InvalidVersion:
        return False


@cache
def _installed(package: str) -> str:
    # looked up once: every task is compared, and what is installed does not change under a running process
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
