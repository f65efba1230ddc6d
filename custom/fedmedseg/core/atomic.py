"""Files that are whole or not there, whenever a process or a machine stops; and the digest of a file.

Nothing here loads torch: what runs for as long as a hospital takes part, and every command, writes files too.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_CANNOT_FLUSH = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}
)
"""How a file system answers that cannot flush a folder."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def previous(path: Path) -> Path:
    """Where the generation before the newest lies."""
    return path.with_name(path.name + ".previous")


def write_atomic(path: Path, content: bytes) -> None:
    """Write through a temporary file in the same folder; the content is on the disk before it takes the name, the name
    before this returns.
    """
    with replaced(path, keep_previous=False) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replaced(path: Path, *, keep_previous: bool) -> Iterator[Path]:
    """A temporary file in the folder of ``path`` to write to, which takes its name afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
        _flush_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Temporary files of processes that were killed while they wrote ``path``."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            left.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """Wait until a folder's names are on the disk: else a power failure may undo a rename that was already told of.

    Some file systems (network shares, mounted folders of another system) cannot; there it is left to them.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        # a folder that may be written and not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)
