"""Files that are whole or not there, checkpoints among them: what a killed process leaves, and names on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core import checkpoint
from fedmedseg.core.atomic import file_sha256, previous, replaced, write_atomic

Write = Callable[[Path, str], None]


@pytest.fixture(params=["plain", "checkpoint"])
def write(request: pytest.FixtureRequest) -> Write:
    """write(file, words): in both ways in which the package writes what must not be lost."""
    if request.param == "plain":
        return lambda path, words: write_atomic(path, words.encode())
    return lambda path, words: checkpoint.save(path, {"words": words})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site" / "lessons"


def test_the_generation_before_is_kept_where_asked(file: Path) -> None:
    for words, keep in (("first", True), ("second", True), ("third", False)):
        with replaced(file, keep_previous=keep) as temporary:
            temporary.write_text(words)
    assert (file.read_text(), previous(file).read_text()) == ("third", "first")
    assert sorted(one.name for one in file.parent.iterdir()) == ["lessons", "lessons.previous"]


def test_a_files_digest_is_that_of_its_bytes(file: Path) -> None:
    write_atomic(file, b"first")
    assert file_sha256(file) == hashlib.sha256(b"first").hexdigest()


def test_what_a_killed_process_left_half_written_goes_with_the_next_write(file: Path, write: Write) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    file.parent.mkdir()
    left, of_others = (file.with_name(f".{file.name}.{one}.tmp") for one in (ended.pid, os.getppid()))
    for one in (left, of_others):
        one.write_bytes(b"half")
    write(file, "new")
    assert not left.exists()
    assert of_others.exists(), "its process lives and may be writing"


def folders_flushed(monkeypatch: pytest.MonkeyPatch, answer: int = 0) -> list[str]:
    """The folders whose names are flushed from now on, and what lies in them then; each flush ends with ``answer``."""
    seen: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            real(descriptor)
            return
        seen.extend(sorted(os.listdir(descriptor)))
        if answer:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_the_name_is_on_the_disk_before_the_call_returns(
    file: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure after the rename may otherwise bring the generation before back."""
    flushed = folders_flushed(monkeypatch)
    write(file, "new")
    assert flushed == ["lessons"], "after the rename, not before"


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_flush_a_folder_still_keeps_files(
    file: Path, write: Write, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    flushed = folders_flushed(monkeypatch, answer)
    write(file, "new")
    assert flushed == ["lessons"]
    assert b"new" in file.read_bytes()


def test_a_disk_that_breaks_while_names_are_flushed_is_told(
    file: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders_flushed(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output") as caught:
        write(file, "new")
    assert caught.value.errno == errno.EIO
    assert [one.name for one in file.parent.iterdir()] == ["lessons"], "no litter"


def test_a_folder_that_may_be_written_and_not_listed_is_no_error(
    file: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def closed(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", closed)
    write(file, "new")
    monkeypatch.undo()
    assert b"new" in file.read_bytes()
