"""`fedmedseg report`: a page from a record, against another, and plain words for what is no record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedmedseg.cli.main import app


def record(study: str, dice: float) -> dict[str, Any]:
    answer = {"accepted": True, "metrics": {"dice/personal/liver": dice}, "examples": 3}
    rounds = [{"stage": "evaluation", "round": 0, "sites": {"a": answer}}]
    return {"study": study, "system": "fedavg", "outcome": "finished", "sites": ["a"], "rounds": rounds}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The report folders of two runs, one as it stands in the middle of a run."""
    made = []
    for name, file, dice in (("now", "report.json", 0.8), ("then", "run.json", 0.7)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_text(json.dumps(record(name, dice)))
        made.append(folder)
    return made[0], made[1]


def report(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *map(str, words)])
    return result.exit_code, " ".join(result.output.split())


def test_a_page_is_written_again_from_its_record_alone(folders: tuple[Path, Path]) -> None:
    code, text = report(folders[0])
    assert code == 0, text
    assert "now (fedavg): finished" in text
    assert "0.800" in (folders[0] / "report.html").read_text(encoding="utf-8")


def test_in_the_middle_of_a_run_every_call_shows_the_rounds_so_far(tmp_path: Path) -> None:
    """Also the second one, beside the page and record that the first left."""
    (tmp_path / "run.json").write_text(json.dumps(record("now", 0.7) | {"outcome": "stopped", "ended": False}))
    assert "now (fedavg): no end recorded" in report(tmp_path)[1]
    (tmp_path / "run.json").write_text(json.dumps(record("now", 0.9) | {"ended": True}))
    assert "now (fedavg): finished" in report(tmp_path)[1]
    assert "0.900" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_two_runs_are_compared_in_a_folder_of_choice(folders: tuple[Path, Path], tmp_path: Path) -> None:
    now, then = folders
    out = tmp_path / "compared"
    code, text = report(now / "report.json", "--previous", then, "--out", out)
    assert code == 0, text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Against the previous run" in page
    assert "+0.100" in page
    assert not (now / "report.html").exists()
    assert json.loads((now / "report.json").read_text()) == record("now", 0.8), "what was read stays as it was"
    assert json.loads((out / "report.json").read_text())["previous"]["study"] == "then"


def test_a_folder_with_files_is_not_written_over_unless_it_is_the_records_own(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    now, then = folders
    before = (then / "run.json").read_text()
    code, text = report(now, "--out", then)
    assert (code, sorted(path.name for path in then.iterdir())) == (2, ["run.json"])
    assert "--out: got" in text
    assert "--force" in text
    assert report(now, "--out", then, "--force")[0] == 0
    assert (then / "run.json").read_text() == before
    assert (then / "report.html").exists()
    assert report(now, "--out", now)[0] == 0
    assert report(now, "--out", now)[0] == 0, "its own page is replaced"


def test_the_comparison_is_told_in_a_line_and_a_run_against_itself_is_said(folders: tuple[Path, Path]) -> None:
    now, then = folders
    text = report(now, "--previous", then)[1]
    assert "against the previous run, mean Dice: personal +0.100" in text
    assert "same run" not in text
    assert "previous run" not in report(now)[1]
    (now / "report.json").write_text(json.dumps(record("now", 0.8) | {"started": "2026-01-02T03:04:05+00:00"}))
    assert "both records are of the same run" in report(now, "--previous", now)[1]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rounds": 3}', '{"rounds": ["x"]}'])
@pytest.mark.parametrize("place", ["RECORD", "--previous"])
def test_what_is_no_record_is_refused_by_name(
    folders: tuple[Path, Path], tmp_path: Path, content: str | None, place: str
) -> None:
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    code, text = report(bad) if place == "RECORD" else report(folders[0], "--previous", bad)
    assert code == 2
    assert f"{place}: got" in text
    assert "Remedy:" in text
    assert not (folders[0] / "report.html").exists()


def test_a_folder_that_cannot_be_written_is_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    code, text = report(folders[0], "--out", taken / "page")
    assert code == 2
    assert "--out: got" in text
