"""`fedmedseg compare`: what it refuses, what it writes, and that a second call runs nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.comparison.conftest import patients, result
from typer.testing import CliRunner

from fedmedseg.cli import compare as command
from fedmedseg.cli.main import app
from fedmedseg.comparison import workers
from fedmedseg.comparison.workers import Event

METHOD = {"system": "fedavg", "training": "local", "presets": ["local"]}
STUDY = {
    "study": "small",
    "seeds": [1, 2],
    "data": {"phantom": {"family": "cine_mr", "sites": 1, "unlabeled": 0, "training": 1, "validation": 1, "test": 1,
                         "size": [48, 48, 4]}},
    "settings": {
        "data": {"crop": [32, 32]},
        "network": {"name": "unet", "channels": [4, 8]},
        "segmentation": {"steps": 1, "batch": 1, "validate_every": 1, "augment": False},
    },
    "methods": {"local": METHOD, "central": METHOD | {"training": "central"}},
}  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """call("--table"): exit code and everything said, with the study in a file."""
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))

    def make(*options: str, study: str | None = None) -> tuple[int, str]:
        arguments = ["compare", study or str(file), "--output", str(tmp_path / "out"), *options]
        found = CliRunner().invoke(app, arguments)
        assert not isinstance(found.exception, AssertionError), found.exception
        return found.exit_code, " ".join(found.output.split())

    return make


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that were run, each at once and in this process; their results are made up."""
    names: list[str] = []

    def at_once(function: Any, pieces: Any, *, workers: int, minutes: float) -> Any:
        for job in pieces:
            yield Event("begun", job)
            names.append(job.cell.name)
            figures = {"site-1": patients(0.5)}
            made = result(job.cell, figures, data_sha256=job.data_sha256)
            job.cell.write({**made, "validation": float(job.cell.chosen.get("segmentation.batch", 0))})
            yield Event("done", job, 1.0)

    monkeypatch.setattr(workers, "work_on", at_once)
    return names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "--workers: got 0. Expected 1 to 64"),
        (["--minutes", "0"], "--minutes: got 0.0"),
        (["--method", "lokal"], "--method: got lokal. Expected of local, central"),
        (["--seed", "3"], "--seed: got 3. Expected of the study's: 1, 2"),
        (["--sites", "."], "--sites"),
    ],
)
def test_what_cannot_work_is_refused(call: Any, options: list[str], words: str) -> None:
    code, said = call(*options)
    assert (code, words in said) == (2, True), said


def test_an_unknown_study_is_told(call: Any) -> None:
    code, said = call(study="phantoms_smal")
    assert (code, "write 'phantoms_small'" in said) == (2, True), said


def test_a_second_call_runs_nothing_and_a_changed_method_its_own_cells(
    call: Any, ran: list[str], tmp_path: Path
) -> None:
    code, said = call()
    assert code == 0, said
    assert ran == ["local 100pc seed 1", "central 100pc seed 1", "local 100pc seed 2", "central 100pc seed 2"]
    assert "4 of 4 cells are missing" in said
    assert "4 of 4 cells done" in said
    out = tmp_path / "out"
    assert {"results.csv", "results.md", "dice.svg", "dice.png"} <= {path.name for path in out.iterdir()}
    assert len((out / "results.csv").read_text().splitlines()) == 5
    ran.clear()
    code, said = call()
    assert (code, ran, "0 of 4 cells are missing" in said) == (0, [], True)
    changed = json.loads(json.dumps(STUDY))
    changed["methods"]["central"]["settings"] = {"segmentation": {"batch": 2}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    call()
    assert ran == ["central 100pc seed 1", "central 100pc seed 2"]


def test_methods_and_seeds_may_be_chosen_and_the_table_runs_nothing(call: Any, ran: list[str], tmp_path: Path) -> None:
    call("--method", "local", "--seed", "2")
    assert ran == ["local 100pc seed 2"]
    ran.clear()
    code, said = call("--table")
    assert (code, ran) == (0, [])
    assert "3 cells are missing." in said
    assert "| local |" in said


def test_trials_come_first_and_their_winner_is_what_the_cells_have(call: Any, ran: list[str], tmp_path: Path) -> None:
    tried = json.loads(json.dumps(STUDY))
    for method in tried["methods"].values():
        method["trials"] = {"segmentation.batch": [1, 3, 2]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tried, sort_keys=False))
    code, said = call("--seed", "1")
    assert code == 0, said
    assert ran == [f"{method} trial {n}" for method in ("local", "central") for n in (1, 2, 3)] + [
        "local 100pc seed 1", "central 100pc seed 1",
    ]  # fmt: skip
    made = json.loads((tmp_path / "out" / "cells" / "local-100pc-seed1.json").read_text())
    assert made["chosen"] == {"segmentation.batch": 3}


def test_a_failed_cell_is_told_and_the_others_are_kept(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: Any, pieces: Any, *, workers: int, minutes: float) -> Any:
        for job in pieces:
            yield Event("begun", job)
            yield Event("failed", job, 1.0, "crop: got [3]")

    monkeypatch.setattr(workers, "work_on", failing)
    code, said = call()
    assert code == 1
    assert "local 100pc seed 1 failed: crop: got [3]" in said
    assert "4 cells failed; the same call tries them again" in said


def test_cells_that_were_not_begun_in_time_are_told_and_end_with_code_1(
    call: Any, ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everything = workers.work_on

    def first_alone(function: Any, pieces: Any, *, workers: int, minutes: float) -> Any:
        yield from everything(function, pieces[:1], workers=workers, minutes=minutes)

    monkeypatch.setattr(workers, "work_on", first_alone)
    code, said = call()
    assert (code, "3 cells are left; the same call goes on with them" in said) == (1, True), said
    assert ran == ["local 100pc seed 1"]
    assert (tmp_path / "out" / "results.md").is_file(), "the table of what there is is written"
    # what was not asked for is not left
    assert call("--method", "local", "--seed", "1")[0] == 0
    monkeypatch.setattr(workers, "work_on", everything)
    code, said = call()
    assert (code, "are left" in said) == (0, False), said


def test_trials_that_are_left_keep_their_methods_cells_waiting(
    call: Any, ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = json.loads(json.dumps(STUDY))
    for method in tried["methods"].values():
        method["trials"] = {"segmentation.batch": [1, 3]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tried, sort_keys=False))
    everything = workers.work_on

    def three(function: Any, pieces: Any, *, workers: int, minutes: float) -> Any:
        yield from everything(function, pieces[:3], workers=workers, minutes=minutes)

    monkeypatch.setattr(workers, "work_on", three)
    code, said = call()
    # local's trials are there and its two seeds run; of central one trial and both seeds are left
    assert (code, "3 cells are left" in said) == (1, True), said
    assert ran[-2:] == ["local 100pc seed 1", "local 100pc seed 2"]


def test_a_damaged_result_is_told_with_its_file_and_ends_with_code_2(call: Any, ran: list[str], tmp_path: Path) -> None:
    call("--seed", "1")
    damaged = tmp_path / "out" / "cells" / "local-100pc-seed1.json"
    damaged.write_text(damaged.read_text()[:40])
    ran.clear()
    for options in ((), ("--table",)):
        code, said = call(*options)
        assert (code, str(damaged) in said.replace(" ", ""), "Remedy: remove the file" in said) == (2, True, True), said
    assert ran == []
    damaged.unlink()
    assert call("--seed", "1")[0] == 0
    assert ran == ["local 100pc seed 1"]


def test_ctrl_c_says_that_finished_cells_are_kept(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(function: Any, pieces: Any, *, workers: int, minutes: float) -> Any:
        yield Event("begun", pieces[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "work_on", interrupted)
    code, said = call()
    assert code == 130, "as docs/commands.md says"
    assert "interrupted; finished cells are kept, and the same call continues" in said


def test_time_left_follows_the_pace_of_what_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: now[0]))
    display = command.CellDisplay({"a": 10.0, "b": 10.0, "c": 20.0, "d": 10.0}, workers=2)

    def piece(name: str) -> Any:
        return SimpleNamespace(cell=SimpleNamespace(name=name))

    display.show(Event("begun", piece("a")))
    display.show(Event("begun", piece("b")))
    assert display.left() is None
    now[0] = 5.0
    display.show(Event("done", piece("a"), 5.0))
    # half a second a step: b is at its end, c has 10 s and d 5 s before it, two at once
    assert display.left() == pytest.approx(7.5)
    display.show(Event("begun", piece("c")))
    now[0] = 9.0
    assert display.left() == pytest.approx((10.0 - 4.0 + 5.0) / 2)


@pytest.mark.slow
def test_the_smallest_study_runs_and_is_kept(call: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    code, said = call("--seed", "1", "--workers", "1")
    assert code == 0, said
    assert sorted(path.stem for path in (tmp_path / "out" / "cells").iterdir()) == [
        "central-100pc-seed1", "local-100pc-seed1",
    ]  # fmt: skip
    first = time.monotonic() - began
    rows = (tmp_path / "out" / "results.csv").read_text().splitlines()[1:]
    assert len(rows) == 6
    began = time.monotonic()
    code, said = call("--seed", "1", "--workers", "1")
    assert "0 of 2 cells are missing" in said
    assert time.monotonic() - began < first
