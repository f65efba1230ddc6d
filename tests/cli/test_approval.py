"""`fedmedseg approval` as a hospital types it: list, agree, refuse, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core import audit
from fedmedseg.core.approval import require_approval
from fedmedseg.core.config import system_module
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.core.wire import Schema
from fedmedseg.core.wishes import Submitter, Wish, make_wish

runner = CliRunner()
LEAD = Submitter(name="lead@[red]two", org="two", role="lead", signed=True)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A site file whose state lies in ``tmp_path/state``."""
    file = tmp_path / "local" / "fedmedseg.yaml"
    file.parent.mkdir()
    settings = {"datasets": {"cmr": {"list": "x.json"}}, "state_dir": str(tmp_path / "state"), "approval": "each_job"}
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def wish() -> Wish:
    """What the FedATA job wants."""
    _, experiment = read_settings(find_job("fedata"), [])
    contracts = system_module("fedata", "plan").stages(experiment)
    return make_wish(
        experiment,
        contracts=contracts,
        schema=Schema({}),
        run="a1b2",
        submitter=LEAD,
        scope="",
        components=b"",
    )


def ask(hospital: Path, wish: Wish) -> FedMedSegError | None:
    """What the site's process does with the word it finds."""
    try:
        require_approval(hospital.parents[1] / "state", wish, job="j", aborted=lambda: False, patience=0)
    except FedMedSegError as error:
        return error
    return None


def call(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["approval", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.output.split())


def listed(hospital: Path) -> list[dict[str, Any]]:
    result = runner.invoke(app, ["approval", str(hospital), "--json"])
    assert result.exit_code == 0
    content: list[dict[str, Any]] = json.loads(result.stdout)
    return content


def test_a_site_that_nobody_asked_says_so(hospital: Path) -> None:
    assert "no job has asked" in call(hospital)
    assert listed(hospital) == []


def test_a_request_is_listed_with_what_leaves_and_who_signed(hospital: Path, wish: Wish) -> None:
    ask(hospital, wish)
    text = call(hospital)
    for word in (wish.id, "waiting", wish.study, "lead@[red]two", "(signed)", "data cmr", "tensors", "dice/*"):
        assert word in text, text
    (one,) = listed(hospital)
    assert (one["id"], one["status"], one["job"], one["decision"]) == (wish.id, "waiting", "j", None)
    assert one["wish"]["stages"]["pretraining"]["returns"] == "shared"


def test_a_narrow_terminal_cuts_nothing_of_what_people_agree_to(hospital: Path, wish: Wish) -> None:
    """Every word is there at 60 columns, with what stays and what to type next; the same at 200."""
    ask(hospital, wish)
    narrow = runner.invoke(app, ["approval", str(hospital)], env={"COLUMNS": "60"}).output
    assert max(map(len, narrow.splitlines())) <= 60
    assert "…" not in narrow
    squeezed = "".join(narrow.split())
    for word in (LEAD.name, "memory_missing", "images, labels", f"--approve {wish.id}", "once dice/*", "spread/*"):
        assert "".join(word.split()) in squeezed, narrow
    call(hospital, "--approve", wish.id)
    decided = call(hospital)
    assert "approved by " in decided
    assert "--deny" not in decided


def test_agreeing_lets_the_job_go_on_and_refusing_stops_it(hospital: Path, wish: Wish) -> None:
    ask(hospital, wish)
    assert "approved" in call(hospital, "--approve", wish.id)
    assert ask(hospital, wish) is None
    assert "no ethics vote" in call(hospital, "--deny", wish.id, "--reason", "no ethics vote")
    refused = ask(hospital, wish)
    assert refused is not None
    assert refused.reason is Reason.DENIED
    assert listed(hospital)[0]["decision"]["reason"] == "no ethics vote"


def test_both_decisions_stand_in_the_audit_trail_of_the_kit(
    hospital: Path, wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = hospital.parents[1]
    monkeypatch.setattr("fedmedseg.core.kit.is_kit", lambda folder: folder == root.resolve())
    monkeypatch.setattr("fedmedseg.core.kit.open_kit", lambda folder: SimpleNamespace(name="hospital-1"))
    ask(hospital, wish)
    call(hospital, "--approve", wish.id)
    call(hospital, "--deny", wish.id, "--reason", "no ethics vote")
    call(hospital)
    agreed, refused = audit.read(root / audit.FOLDER)
    assert (agreed["action"], agreed["outcome"], agreed["job"]) == ("approve job", "allowed", "j")
    assert (refused["action"], refused["outcome"]) == ("deny job", "refused")
    assert refused["reason"] == f"request {wish.id}: no ethics vote"
    assert agreed["participant"] == "hospital-1"
    assert agreed["who"] == listed(hospital)[0]["decision"]["by"]
    assert not audit.verify(root / audit.FOLDER).problems


def test_a_site_file_outside_a_kit_gets_no_trail(hospital: Path, wish: Wish) -> None:
    ask(hospital, wish)
    call(hospital, "--approve", wish.id)
    assert not (hospital.parents[1] / audit.FOLDER).exists()


def test_a_kit_is_as_good_as_its_site_file(hospital: Path, wish: Wish) -> None:
    ask(hospital, wish)
    assert wish.id in call(hospital.parents[1])


def test_a_site_file_that_asks_nobody_says_so(hospital: Path) -> None:
    hospital.write_text(hospital.read_text().replace("each_job", "none"))
    assert "does not say approval: each_job" in call(hospital)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--approve", "a", "--deny", "a"), "one of them"),
        (("--approve", "a", "--reason", "x"), "--deny ID with it"),
        (("--reason", "x"), "--deny ID with it"),
        (("--approve", "abc"), "no job has asked"),
    ],
)
def test_what_makes_no_sense_is_refused(hospital: Path, arguments: tuple[str, ...], word: str) -> None:
    assert word in call(hospital, *arguments, code=2)


def test_neither_a_kit_nor_a_file_is_refused(tmp_path: Path) -> None:
    call(tmp_path / "nowhere", code=2)
    assert "local/fedmedseg.yaml" in call(tmp_path, code=2)
