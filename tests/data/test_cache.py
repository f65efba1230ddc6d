"""The cache: whole entries or none, whoever writes."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fedmedseg.data import cache as module
from fedmedseg.data.cache import Cache

DIGEST = "ab" * 32


def test_an_entry_is_read_by_another_process(tmp_path: Path) -> None:
    Cache(folder=tmp_path).write_entry(DIGEST, {"image": np.arange(6.0)}, {"figure": 1})
    other = Cache(folder=tmp_path)
    assert other.meta(DIGEST) == {"figure": 1}
    assert other.array(DIGEST, "image").tolist() == [0, 1, 2, 3, 4, 5]


def test_records_are_kept_per_kind(tmp_path: Path) -> None:
    Cache(folder=tmp_path).write_record("checks", DIGEST, {"reason": None})
    other = Cache(folder=tmp_path)
    assert other.record("checks", DIGEST) == {"reason": None}
    assert other.record("others", DIGEST) is None


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3)])
def test_arrays_of_any_shape_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    Cache(folder=tmp_path).write_entry(DIGEST, {"points": array}, {})
    back = Cache(folder=tmp_path).array(DIGEST, "points")
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    Cache(folder=tmp_path).write_record("checks", DIGEST, {"reason": None})
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    assert Cache(folder=tmp_path).record("checks", DIGEST) is None


def test_many_writers_leave_one_whole_entry(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def write() -> None:
        one = Cache(folder=tmp_path)
        start.wait()
        for number in range(5):
            one.write_entry(f"{number:02d}" * 32, {"image": np.full(1000, number)}, {"number": number})

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    reader = Cache(folder=tmp_path)
    for number in range(5):
        assert reader.meta(f"{number:02d}" * 32) == {"number": number}
        assert (reader.array(f"{number:02d}" * 32, "image") == number).all()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_writer_that_fails_leaves_nothing_and_goes_on_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_save_array", full)
    cache = Cache(folder=tmp_path)
    for digest in (DIGEST, "cd" * 32):
        cache.write_entry(digest, {"image": np.arange(3)}, {"digest": digest})
        assert cache.meta(digest) == {"digest": digest}
        assert cache.array(digest, "image").tolist() == [0, 1, 2]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ENOSPC" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_more_than_a_limit_of_files_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 3)
    cache = Cache(folder=tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10):
        cache.write_entry(f"{number:02d}" * 32, {"image": np.full(3, number)}, {})
        assert cache.array(f"{number:02d}" * 32, "image")[0] == number
    assert len(os.listdir("/proc/self/fd")) - before <= 3
    assert cache.array("00" * 32, "image")[0] == 0


def test_leftovers_of_killed_writers_are_swept_after_a_day(tmp_path: Path) -> None:
    old, young = (tmp_path / "volumes" / "ab" / f".{name}.tmp" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "image.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    Cache(folder=tmp_path)
    assert not old.exists()
    assert young.exists()
