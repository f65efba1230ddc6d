"""Results that outlive an emptied workspace: whole, newest, and no more than a few."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fedmedseg.core import kept_results
from fedmedseg.core.kept_results import MOST, keep_results


def run(folder: Path, said: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "report" / "rounds").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "report" / "run.json").write_text(said)
    (folder / "report" / "rounds" / "training-0000.json").write_text(said)
    (folder / "models" / "shared.safetensors").write_bytes(said.encode())
    (folder / "log.txt").write_text(said)
    return folder


def test_what_a_run_left_is_there_after_its_folder_was_emptied(tmp_path: Path) -> None:
    folder = run(tmp_path / "w", "first")
    place = keep_results(folder, tmp_path / "home", study="heart", started="2026-01-02T03:04:05+00:00")
    assert place == tmp_path / "home" / "results" / "heart" / "2026-01-02T030405"
    assert os.stat(place / "models" / "shared.safetensors").st_nlink == 2, "a second name, not a second file"
    shutil.rmtree(folder)
    assert (place / "report" / "rounds" / "training-0000.json").read_text() == "first"
    assert (place / "models" / "shared.safetensors").read_bytes() == b"first"
    assert not (place / "log.txt").exists()


def test_a_run_that_is_continued_replaces_itself_and_another_study_nothing(tmp_path: Path) -> None:
    for said, study in (("first", "heart"), ("again", "heart"), ("other", "liver")):
        keep_results(run(tmp_path / "w", said), tmp_path / "home", study=study, started="2026-01-02T03:04:05+00:00")
    found = {file.parts[-4]: file.read_text() for file in (tmp_path / "home").glob("results/*/*/report/run.json")}
    assert found == {"heart": "again", "liver": "other"}


def test_the_oldest_runs_of_a_study_go(tmp_path: Path) -> None:
    for day in range(1, MOST + 3):
        keep_results(run(tmp_path / "w", str(day)), tmp_path, study="heart", started=f"2026-01-0{day}T00:00:00+00:00")
    kept = sorted(folder.name[:10] for folder in (tmp_path / "results" / "heart").iterdir())
    assert kept == [f"2026-01-0{day}" for day in range(3, MOST + 3)]


def test_a_disk_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(kept_results.os, "link", link)
    place = keep_results(run(tmp_path / "w", "x"), tmp_path, study="heart", started="2026-01-01T00:00:00+00:00")
    assert (place / "report" / "run.json").read_text() == "x"
    assert os.stat(place / "report" / "run.json").st_nlink == 1
