"""What a command writes with --out: a new file, or one that was there and that --force gives up."""

from __future__ import annotations

from pathlib import Path

from fedmedseg.core.errors import ConfigurationError


def require_new_file(out: Path, *, force: bool, ending: str = "") -> None:
    """Refuse a place where nothing can be written, or where something is. A folder that is missing will be made.

    Raises:
        ConfigurationError: the name has another ending; something is there, and it is no file or ``force`` is off; what
            should be its folder is a file.
    """
    if not out.name.endswith(ending):
        raise ConfigurationError("--out", got=out.name, expected=f"a file that ends with {ending}")
    if out.exists() and not (force and out.is_file()):
        raise ConfigurationError(
            "--out", got=f"{out}, which is there", expected="a new file", remedy="choose another, or add --force"
        )
    for folder in out.parents:
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError("--out", got=f"{folder}, which is a file", expected="a file in a folder")
