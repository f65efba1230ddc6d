"""What is said of a round and of a stage that cannot begin, in words a person can act on."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fedmedseg.core.federation_settings import FederationSection
from fedmedseg.core.rounds import clean, disk_problem, shortfall, too_few


def federation(**changes: Any) -> FederationSection:
    return FederationSection.model_validate(changes)


MEDIAN = {"rule": "median", "faulty": 1}


@pytest.mark.parametrize(
    ("settings", "sites", "aggregates", "words"),
    [
        ({"quorum": 3}, 3, True, None),
        ({"quorum": 3}, 2, True, "federation.quorum: got 3. Expected at most 2, the connected sites."),
        ({"quorum": 0.5}, 1, True, None),
        ({"robust": MEDIAN}, 3, True, None),
        ({"robust": MEDIAN}, 2, True, "federation.robust: got 2 connected sites. Expected at least 3 for"),
        ({"robust": MEDIAN}, 2, False, None),
    ],
)
def test_a_stage_that_too_few_sites_can_begin_says_how_many_it_takes(
    settings: dict[str, Any], sites: int, aggregates: bool, words: str | None
) -> None:
    found = too_few(federation(**settings), sites, aggregates=aggregates)
    assert found is None if words is None else str(found).startswith(words), found


def test_a_shortfall_names_every_site_that_did_not_count() -> None:
    said = shortfall(
        stage="training", number=4, asked=["a", "b", "c"], accepted=["a"], needed=2,
        replies={"a": {"reason": None}, "b": {"reason": "NOT_FINITE: x"}},
    )  # fmt: skip
    assert said == (
        "training round 4: 1 of 2 needed replies were accepted (b: NOT_FINITE: x; c: no reply in time). "
        "The shared model stays as it was before this round."
    )


def test_a_sites_words_are_short_and_on_one_line() -> None:
    assert clean("a/b\nc") == "a?b?c"
    assert len(clean("x" * 1000)) == 200


def test_a_disk_problem_names_no_path() -> None:
    assert disk_problem(OSError(errno.ENOSPC, "No space left on device", "somewhere/else")) == "disk full"
    assert disk_problem(PermissionError(errno.EACCES, "Permission denied", "somewhere/else")) == "PermissionError"
