"""Lifetimes are given, and those that make no sense are refused before anything is written."""

from __future__ import annotations

import pytest

from fedmedseg.provisioning.certificates import DatedCertBuilder


@pytest.mark.parametrize(
    ("root", "valid", "renew", "word"),
    [
        (100, 0, 0, "valid_days"),
        (100, 101, 0, "valid_days"),
        (100, True, 0, "valid_days"),
        (100, "30", 0, "valid_days"),
        (100, 30, 30, "renew_days"),
        (100, 30, -1, "renew_days"),
        (0, 30, 1, "root_valid_days"),
    ],
)
def test_a_lifetime_that_makes_no_sense_is_refused(root: int, valid: int, renew: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DatedCertBuilder(root_valid_days=root, valid_days=valid, renew_days=renew)


def test_no_lifetime_is_left_to_a_default() -> None:
    with pytest.raises(TypeError):
        DatedCertBuilder()  # type: ignore[call-arg]
