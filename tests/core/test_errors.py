"""Errors say what was wrong and keep to themselves what may not leave the site."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason, called, choose, nearest, why


def test_the_message_tells_field_got_expected_and_remedy() -> None:
    error = ConfigurationError("stages.pretraining.rounds", got=0, expected="at least 1", remedy="raise it")
    assert str(error) == "stages.pretraining.rounds: got 0. Expected at least 1. Remedy: raise it."
    assert error.reason is Reason.CONFIGURATION


def test_what_is_not_known_is_not_written() -> None:
    assert str(FedMedSegError("quorum")) == "quorum:"
    assert str(DataError("labels", got=False)) == "labels: got False."


def test_the_public_part_holds_neither_what_came_nor_what_to_do() -> None:
    """Fault row 44."""
    error = DataError("image", got="/secret/patient-7.nii", expected="a file like /secret", remedy="ask /secret")
    assert error.public == "DATA: image"
    assert DataError("unlabeled", reason=Reason.NO_CASES).public == "NO_CASES: unlabeled"


def test_reason_codes_are_their_own_names() -> None:
    assert all(reason.value == reason.name for reason in Reason)
    assert str(Reason.NOT_FINITE) == "NOT_FINITE"


@pytest.mark.parametrize(
    ("name", "guess"),
    [("fedat", "fedata"), ("segvis", "segviz"), ("zzz", None), ("", None), ("fcl", "fcl"), ("FedATA", "fedata")],
)
def test_the_nearest_name_is_one_a_person_may_have_meant(name: str, guess: str | None) -> None:
    assert nearest(name, iter(["fedata", "fcl", "segviz"])) == guess


@pytest.mark.parametrize(
    ("name", "known", "remedy"),
    [
        ("fp8", ["fp32", "bf16", "auto"], "write one of these"),
        ("fedatta", ["fedata", "fcl"], "write 'fedata'"),
        ("x", ["toy"], "write 'toy'"),
        ("x", [], ""),
        (7, ["2", "3"], "write one of these"),
    ],
)
def test_a_choice_is_mended_with_the_nearest_word(name: object, known: list[str], remedy: str) -> None:
    assert choose(name, known) == remedy


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "no text in UTF-8"),
        (json.JSONDecodeError("x", "y", 0), "no JSON"),
        (gzip.BadGzipFile("not a gzipped file"), "no gzip archive"),
        (zlib.error("incorrect header check"), "compressed data that is damaged"),
        (OSError("of our own"), "not of the form it should have"),
        (TypeError("of our own"), "not of the form it should have"),
    ],
)
def test_why_a_file_cannot_be_read_is_told_without_its_path(error: Exception, words: str) -> None:
    assert why(error) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        ("a", "text"),
        ([1], "a list"),
        (2, "a number"),
        ({}, "a mapping"),
        ({1}, "a set"),
        (object(), "something else"),
    ],
)
def test_a_value_of_settings_is_called_by_a_word_of_people(value: object, words: str) -> None:
    assert called(value) == words
