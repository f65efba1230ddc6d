"""What a site is told of a job's submission; who signed it is in tests/provisioning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedmedseg.core.place import Place
from fedmedseg.core.submission import LONGEST, own_root, submission
from fedmedseg.core.wishes import Submitter


@pytest.fixture
def place(tmp_path: Path) -> Place:
    config = tmp_path / "job" / "app" / "config"
    config.mkdir(parents=True)
    return Place(
        name="hospital-1",
        simulated=False,
        folder=tmp_path.name,
        workspace=tmp_path,
        local=tmp_path / "local",
        config=config,
        run=tmp_path / "job",
    )


def test_without_a_signature_it_is_the_servers_word(place: Place) -> None:
    meta = {"submitter_name": "lead", "submitter_org": "two", "submitter_role": "lead", "scope": "open"}
    (place.run / "meta.json").write_text(json.dumps(meta))
    assert submission(place) == (Submitter(name="lead", org="two", role="lead", signed=False), "open")


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"submitter_name": 7, "scope": null}'])
def test_a_site_that_is_told_nothing_says_so(place: Place, text: str | None) -> None:
    if text is not None:
        (place.run / "meta.json").write_text(text)
    assert submission(place) == (None, "")


def test_long_words_are_cut(place: Place) -> None:
    (place.run / "meta.json").write_text(json.dumps({"submitter_name": "x" * 9999}))
    submitter, _ = submission(place)
    assert submitter is not None
    assert len(submitter.name) == LONGEST


def told(place: Place, name: str, org: str) -> Place:
    (place.run / "meta.json").write_text(json.dumps({"submitter_name": name, "submitter_org": org}))
    return place


def test_every_submitter_has_a_folder_of_their_own(place: Place) -> None:
    """Whoever knows another's settings must not continue, read or replace what that person's study has reached."""
    root = Path("state")
    one = own_root(root, told(place, "lead", "two"))
    assert one.parent == root
    assert one == own_root(root, told(place, "lead", "two"))
    assert len({one, own_root(root, told(place, "lead", "three")), own_root(root, told(place, "lea", "dtwo"))}) == 3
    assert "lead" not in one.name


def test_the_simulator_has_one_folder_for_all(place: Place) -> None:
    assert own_root(Path("state"), replace(place, simulated=True)) == Path("state")
