"""Files that are whole or not there: what a killed process leaves, and names that reach the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core.atomic import file_sha256, previous, write_atomic


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site" / "lessons.json"


@pytest.fixture
def twice(file: Path) -> Path:
    write_atomic(file, b"first", keep_previous=True)
    write_atomic(file, b"second", keep_previous=True)
    return file


def test_the_generation_before_is_kept_where_asked_and_no_other(twice: Path) -> None:
    assert (twice.read_bytes(), previous(twice).read_bytes()) == (b"second", b"first")
    write_atomic(twice, b"third")
    assert (twice.read_bytes(), previous(twice).read_bytes()) == (b"third", b"first")
    assert sorted(one.name for one in twice.parent.iterdir()) == ["lessons.json", "lessons.json.previous"]


def test_a_files_digest_is_that_of_its_bytes(twice: Path) -> None:
    assert file_sha256(twice) == hashlib.sha256(b"second").hexdigest()


def test_what_a_killed_process_left_half_written_goes_with_the_next_write(twice: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, of_others = (twice.with_name(f".{twice.name}.{one}.tmp") for one in (ended.pid, os.getppid()))
    for one in (left, of_others):
        one.write_bytes(b"half")
    write_atomic(twice, b"third", keep_previous=True)
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


def test_the_name_is_on_the_disk_before_the_call_returns(twice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure after the rename may otherwise bring the generation before back."""
    flushed = folders_flushed(monkeypatch)
    write_atomic(twice, b"third", keep_previous=True)
    assert flushed == ["lessons.json", "lessons.json.previous"], "after the rename, not before"


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_flush_a_folder_still_keeps_files(
    file: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    flushed = folders_flushed(monkeypatch, answer)
    write_atomic(file, b"new")
    assert flushed == ["lessons.json"]
    assert file.read_bytes() == b"new"


def test_a_disk_that_breaks_while_names_are_flushed_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders_flushed(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output") as caught:
        write_atomic(file, b"new")
    assert caught.value.errno == errno.EIO
    assert [one.name for one in file.parent.iterdir()] == ["lessons.json"], "no litter"


def test_a_folder_that_may_be_written_and_not_listed_is_no_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def closed(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", closed)
    write_atomic(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"new"
