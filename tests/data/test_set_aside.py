"""What a site's own people are told of cases that are not used: by name, with the reason, from every section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedmedseg.data.datalist import Case, case_key
from fedmedseg.data.set_aside import file_name, set_aside


def told(hospital: Any, **more: Any) -> set[tuple[str, str, str]]:
    found = set_aside(hospital.site(), hospital.experiment(), **more)
    return {(one.section, one.case, one.reason) for one in found}


def test_cases_are_told_by_their_files_and_only_what_was_read_is_known(hospital: Any) -> None:
    damaged, unread = hospital.case("Ada", seed=1), hospital.case("Bea", seed=2)
    for entry in (damaged, unread):
        file = hospital.root / entry["image"]
        file.write_bytes(file.read_bytes()[:500])
    small = hospital.case("Cyd", seed=3, shape=(11, 20, 20))
    good = [hospital.case("Dee", seed=4), hospital.case("Eve", seed=5)]
    hospital.datalist(training=[damaged, small, good[0]], test=[unread, good[1]])
    assert told(hospital) == set(), "nothing was read yet, and nothing is read for it"
    reasons = hospital.volumes().quarantined
    salt = hospital.site().salt
    known = {("training", one["image"], reasons[case_key(salt, one["image"])]) for one in (damaged, small)}
    assert told(hospital) == known, "what the checks refused, and what preprocessing did"
    now = {case_key(salt, unread["image"]): "because"}
    assert told(hospital, now=now) == known | {("test", unread["image"], "because")}


def test_what_pretraining_found_is_told_though_no_label_was_read(hospital: Any) -> None:
    small = hospital.case("Cyd", seed=3, shape=(11, 20, 20))
    hospital.datalist(training=[small, hospital.case("Dee", seed=4)])
    hospital.volumes("unlabeled")
    assert told(hospital) == {("training", small["image"], "smaller than the crop")}


def test_a_file_that_is_gone_is_told(hospital: Any) -> None:
    gone = hospital.case("Ada", seed=1)
    hospital.datalist(training=[gone, hospital.case("Dee", seed=4)])
    (hospital.root / gone["image"]).unlink()
    assert told(hospital) == {("training", gone["image"], "file cannot be read")}


@pytest.mark.parametrize(("image", "name"), [("/list/a/b.nii.gz", "a/b.nii.gz"), ("/else/c.nii.gz", "c.nii.gz")])
def test_a_file_is_called_as_its_list_does(image: str, name: str) -> None:
    case = Case(image=Path(image), label=None, patient="p", annotated_labels=None, key="k")
    assert file_name(case, Path("/list")) == name
