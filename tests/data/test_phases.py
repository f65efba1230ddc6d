"""Whose frames are which stands in a table; what it names must be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data import phases
from fedmedseg.data.phases import Phases, checked, read_phases

KNOWN = ["a/p1_ED", "a/p1_ES", "p2.1"]


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "phases.csv").write_text(text)
    return tmp_path / "phases.csv"


def test_rows_name_images_with_or_without_an_ending(tmp_path: Path) -> None:
    text = "es,group,patient,ed\na/p1_ES.nii.gz,x,p1,a/p1_ED\na/p1_ES,,p2,p2.1.nii\n"
    assert read_phases(table(tmp_path, text), KNOWN) == [
        Phases("p1", "a/p1_ED", "a/p1_ES"),
        Phases("p2", "p2.1", "a/p1_ES"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no row"),
        ("patient,ed\np1,a\n", "without es"),
        ("patient,ed,es\np1,a/p1_ED,a/p1_EX\n", "write 'a/p1_E"),
        ("patient,ed,es\np1,a/p1_ED,a/p1_ED.nii\n", "for both"),
        ("patient,ed,es\np1,a/p1_ED,a/p1_ES\np1,a/p1_ED,a/p1_ES\n", "a patient twice"),
        ("patient,ed,es\np1,a/p1_ED\n", "no image here"),
    ],
)
def test_a_table_that_does_not_suit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        read_phases(table(tmp_path, text), KNOWN)


def test_a_quoted_line_break_is_read_and_a_table_is_never_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = table(tmp_path, 'patient,note,ed,es\np1,"two\nlines",a/p1_ED,a/p1_ES\n')
    assert read_phases(file, KNOWN) == [Phases("p1", "a/p1_ED", "a/p1_ES")]
    monkeypatch.setattr(phases, "MOST_BYTES", 20)
    with pytest.raises(ConfigurationError, match="a table of 20 at most"):
        read_phases(file, KNOWN)


def test_no_table_and_no_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no table"):
        read_phases(tmp_path / "none.csv", KNOWN)
    with pytest.raises(ConfigurationError, match="--ed, --es: got 'x'"):
        checked(Phases("1", "x", "p2.1"), KNOWN, source="--ed, --es")
