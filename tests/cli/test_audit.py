"""`fedmedseg audit`: lines shown and counted, a broken chain ends with code 2."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core.audit import CURRENT, FOLDER, Outcome, Trail, verify

runner = CliRunner()


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    trail = Trail(tmp_path / FOLDER, participant="site-1")
    trail.append(action="start", outcome=Outcome.ALLOWED)
    for number in range(4):
        trail.append(action=f"deploy {number}", outcome=Outcome.REFUSED, who="lead@two", reason="[red]unsigned")
    return tmp_path


def test_the_last_lines_are_shown_as_they_were_written(kit: Path) -> None:
    done = runner.invoke(app, ["audit", str(kit), "--last", "2"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "deploy 3" in done.output
    assert "deploy 1" not in done.output
    assert "[red]unsigned" in done.output, "words of a stranger are not taken for markup"
    assert "digest" not in done.output


def test_verify_tells_the_digest_to_note(kit: Path) -> None:
    done = runner.invoke(app, ["audit", str(kit), "--verify"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert f"lines 1 to 5; digest of the last: {verify(kit / FOLDER).digest}" in done.output


def test_a_broken_chain_ends_with_code_2(kit: Path) -> None:
    file = kit / FOLDER / CURRENT
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert runner.invoke(app, ["audit", str(kit)]).exit_code == 0, "looking alone judges nothing"
    done = runner.invoke(app, ["audit", str(kit), "--verify"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "broken: line 4" in done.output


def test_a_beginning_that_was_cut_ends_with_code_2_and_is_not_explained_away(kit: Path) -> None:
    file = kit / FOLDER / CURRENT
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[3:]))
    done = runner.invoke(app, ["audit", str(kit), "--verify"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "broken: line 4: the lines before it are gone" in done.output
    assert "bounded" not in done.output


def test_what_was_let_go_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    trail = Trail(tmp_path / FOLDER, participant="site-1", max_bytes=1)
    for number in range(35):
        trail.append(action=f"deploy {number}", outcome=Outcome.REFUSED)
    done = runner.invoke(app, ["audit", str(tmp_path), "--verify"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "lines up to 2 were let go: the trail's size is bounded" in done.output


def test_a_digest_that_was_noted_must_still_be_there(kit: Path) -> None:
    noted = verify(kit / FOLDER).digest
    assert runner.invoke(app, ["audit", str(kit), "--known", noted]).exit_code == 0
    assert runner.invoke(app, ["audit", str(kit), "--known", "0" * 63 + "1"]).exit_code == 2


def test_json_holds_lines_and_verification(kit: Path) -> None:
    done = runner.invoke(app, ["audit", str(kit), "--json", "--verify", "--last", "1"])
    content = json.loads(done.stdout)
    assert [one["action"] for one in content["entries"]] == ["deploy 3"]
    assert content["verification"]["last"] == 5
    assert json.loads(runner.invoke(app, ["audit", str(kit), "--json"]).stdout)["verification"] is None


def test_a_folder_without_a_trail_is_told(tmp_path: Path) -> None:
    done = runner.invoke(app, ["audit", str(tmp_path)])
    assert done.exit_code == 2
    assert "audit trail" in done.output
