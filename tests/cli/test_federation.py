"""`fedmedseg federation` refuses what cannot work before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmedseg.cli.main import app


def call(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["federation", *options])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sites", "0"], ["--sites", "got 0", "at least 1 site, at most 20"]),
        (["--sites", "21"], ["--sites", "got 21"]),
        (["fedatta"], ["job", "write 'fedata'"]),
        (["--set", "segmentation.batchs=3"], ["segmentation.batchs", "write 'batch'"]),
        (["--set", "federation.quorum=4"], ["federation.quorum", "got 4", "at most 3"]),
    ],
)
def test_a_wrong_option_is_told_with_its_remedy_and_leaves_nothing(
    tmp_path: Path, options: list[str], words: list[str]
) -> None:
    code, said = call("--out", str(tmp_path / "out"), *options)
    assert code == 2
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, words in ((tmp_path / "two words", "without spaces"), (tmp_path / "file" / "x", "Expected a folder")):
        code, said = call("--out", str(out))
        assert code == 2
        assert "--out" in said
        assert words in said


def test_a_folder_of_somebodys_own_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    """A job folder under its name would be replaced: ``--out .`` in a source tree meant the tree's own."""
    (tmp_path / "jobs" / "fedata").mkdir(parents=True)
    (tmp_path / "jobs" / "fedata" / "meta.json").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    code, said = call("--out", str(tmp_path))
    assert code == 2
    assert "which holds jobs. Expected a new or empty folder, or that of an earlier call" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", [".lock", "kits"])
def test_the_folder_of_an_earlier_call_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    monkeypatch.setattr("fedmedseg.cli.federation._run", lambda *_: {"outcome": "finished"})
    (tmp_path / left).mkdir()
    (tmp_path / "jobs").mkdir()
    assert call("--out", str(tmp_path)) == (0, "")


@pytest.mark.parametrize(
    ("outcome", "code", "words"), [("finished", 0, ""), ("stopped", 1, "stopped: quorum lost")], ids=["end", "stop"]
)
def test_the_exit_status_tells_how_the_study_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, code: int, words: str
) -> None:
    asked: list[tuple[str, ...]] = []

    def run(study: object, out: Path, names: tuple[str, ...]) -> dict[str, str]:
        asked.append(names)
        return {"outcome": outcome, "reason": "quorum lost"}

    monkeypatch.setattr("fedmedseg.cli.federation._run", run)
    assert call("--out", str(tmp_path), "--sites", "2") == (code, words)
    assert asked == [("site-1", "site-2")]


def test_an_interrupted_call_ends_with_the_status_of_an_interrupted_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedmedseg.cli.federation._run", run)
    code, said = call("--out", str(tmp_path))
    assert code == 130
    assert "no process is left" in said


def test_two_calls_do_not_share_a_folder(tmp_path: Path) -> None:
    from fedmedseg.core import simulation

    with simulation.claimed(tmp_path, home=tmp_path, option="--out"):
        code, said = call("--out", str(tmp_path))
    assert code == 2
    assert "another run is under way" in said
    assert "choose another with --out" in said
