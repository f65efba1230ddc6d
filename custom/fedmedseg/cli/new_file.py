"""What a command writes with --out: something new, or what was there and --force gives up; and a disk that refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError, why

OPTION = "--out"


def require_new_file(out: Path, *, force: bool, ending: str = "") -> None:
    """Refuse a place where nothing can be written, or where something is, before anything is computed for it. A folder
    that is missing will be made.

    Raises:
        ConfigurationError: the name has another ending; something is there, and it is no file or ``force`` is off; what
            should be its folder is a file, or cannot be written.
    """
    if not out.name.endswith(ending):
        raise ConfigurationError(
            OPTION, got=out.name, expected=f"a file that ends with {ending}", remedy="give it that ending"
        )
    with writing(out, expected="a new file"):
        _require_room(out, force=force)
    # it loads torch, which --help does not wait for
    from fedmedseg.segmentation.predicted_files import require_writable

    require_writable(out.parent, option=OPTION)


def _require_room(out: Path, *, force: bool) -> None:
    if out.is_dir():
        raise ConfigurationError(OPTION, got=f"the folder {out}", expected="a new file", remedy="name a file in it")
    if out.exists() and not (force and out.is_file()):
        raise ConfigurationError(
            OPTION, got=f"{out}, which is there", expected="a new file", remedy="choose another, or add --force"
        )
    for folder in out.parents:
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(
                OPTION, got=f"{folder}, which is a file", expected="a file in a folder", remedy="choose another"
            )


@contextmanager
def writing(out: Path, *, expected: str = "a file that can be written") -> Iterator[None]:
    """Tell a path that cannot be written, or not even looked at, like any other wrong option.

    Raises:
        ConfigurationError: naming ``out`` and the system's reason.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            OPTION,
            got=f"{out} ({why(error)})",
            expected=expected,
            remedy="make room or rights there, or choose another",
        ) from None
