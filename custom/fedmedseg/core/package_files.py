"""Whether the installed files of this package still are those of the wheel."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import fedmedseg
from fedmedseg.core.findings import Finding, failed, passed, warned
from fedmedseg.core.machine_checks import PACKAGE
from fedmedseg.core.release import installed

CODE = {".py", ".pyc", ".pyd", ".so"}
"""What Python would import. Compiled copies in ``__pycache__`` are nobody's record: Python makes them itself."""
MOST_NAMES = 5
CHECK = "package files"
MEND = "install the package from its wheel once more, with pip's --force-reinstall"


def package_files(record: Mapping[str, str] | None = None, *, of: str = "the installer's record") -> Finding:
    """Compare every installed file with its digest, and look for code that nobody recorded.

    It finds damage and edits. Who can write to the installation can also rewrite the installer's record; then only
    ``record``, taken from a wheel whose own digest is known, still tells. The files in ``__pycache__`` are not
    compared.

    Args:
        record: SHA-256 (base64 as in RECORD) by path, from a wheel; unset: what the installer noted.
        of: what the digests are called in the finding.
    """
    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        return warned(CHECK, f"{PACKAGE} is not installed as a package", MEND)
    if installed().editable:
        return warned(CHECK, "a source tree in editable mode: nothing to compare with", MEND)
    wanted = dict(record) if record is not None else _noted(found)
    if not wanted:
        return warned(CHECK, "the installer noted no digests", MEND)
    package = Path(str(found.locate_file(PACKAGE)))
    if Path(fedmedseg.__file__).resolve().parent != package.resolve():
        return failed(
            CHECK, "the code that runs is not that of the installed package", "unset PYTHONPATH, start anew elsewhere"
        )
    changed = [path for path, digest in wanted.items() if _digest(Path(str(found.locate_file(path)))) != digest]
    here = package.parent
    code = (file.relative_to(here).as_posix() for file in sorted(package.rglob("*")) if _is_code(file))
    added = [path for path in code if path not in wanted]
    if changed or added:
        told = [f"{len(changed)} of {len(wanted)} not as in {of}{_some(changed)}"] if changed else []
        told += [f"{len(added)} file(s) of code that nobody recorded{_some(added)}"] if added else []
        return failed(CHECK, "; ".join(told), MEND)
    return passed(CHECK, f"{len(wanted)} as in {of}")


def _noted(found: Distribution) -> dict[str, str]:
    files = found.files or ()
    return {str(one): one.hash.value for one in files if one.hash is not None and one.hash.mode == "sha256"}


def _digest(file: Path) -> str | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def _is_code(file: Path) -> bool:
    return file.suffix in CODE and "__pycache__" not in file.parts and not file.is_dir()


def _some(paths: list[str]) -> str:
    more = ", ..." if len(paths) > MOST_NAMES else ""
    # the package's own modules; scripts outside of it by their last part
    names = [path.rpartition("../")[2] for path in paths[:MOST_NAMES]]
    return f" ({', '.join(names)}{more})"
