"""Dealing sites out anew: nobody is lost or doubled, alpha does what it says, a seed fixes the deal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmedseg.core.errors import DataError
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.dirichlet import deal, write_split

SECTIONS = ("training", "validation", "test")
TWO = {
    "east": {"training": [f"p{n}" for n in range(40)], "validation": ["v0", "v1"], "test": ["t0", "t1", "t2"]},
    "west": {"training": [f"p{n}" for n in range(40)], "validation": ["v0", "v1"], "test": ["t0", "t1", "t2"]},
}


@pytest.mark.parametrize("alpha", [0.3, 1.0, 100.0])
def test_every_patient_is_dealt_once_and_stays_in_her_section(alpha: float) -> None:
    dealt = deal(TWO, alpha=alpha, sites=3, seed=1)
    for section in SECTIONS:
        found = sorted(patient for one in dealt for patient in one[section])
        assert found == sorted((old, name) for old in TWO for name in TWO[old][section])
        assert all(one[section] for one in dealt)


def share_of_east(alpha: float, seed: int) -> list[float]:
    dealt = deal(TWO, alpha=alpha, sites=2, seed=seed)
    return [sum(old == "east" for old, _ in one["training"]) / len(one["training"]) for one in dealt]


def test_a_large_alpha_makes_every_site_the_same_mixture_and_a_small_one_does_not() -> None:
    assert all(abs(share - 0.5) < 0.05 for seed in range(5) for share in share_of_east(1e4, seed))
    assert max(abs(share - 0.5) for seed in range(5) for share in share_of_east(0.3, seed)) > 0.25


def test_the_seed_fixes_the_deal() -> None:
    assert deal(TWO, alpha=1.0, sites=2, seed=4) == deal(TWO, alpha=1.0, sites=2, seed=4)
    assert deal(TWO, alpha=1.0, sites=2, seed=4) != deal(TWO, alpha=1.0, sites=2, seed=5)


def test_more_sites_than_test_patients_and_an_alpha_without_a_deal_are_refused() -> None:
    with pytest.raises(DataError, match=r"section test: got 6 patients.*at least 7"):
        deal(TWO, alpha=1.0, sites=7, seed=1)
    with pytest.raises(DataError, match=r"no draw of 1000 with alpha 1e-06.*raise alpha"):
        deal({"one": TWO["east"]}, alpha=1e-6, sites=2, seed=1)


def listed(folder: Path, names: dict[str, list[str]]) -> Path:
    folder.mkdir()
    content: dict[str, list[dict[str, str]]] = {}
    for section, patients in names.items():
        content[section] = []
        for patient in patients:
            image = f"{section}-{patient}.nii.gz"
            (folder / image).touch()
            entry = {"image": image, "patient": patient}
            if section != "unlabeled":
                entry["label"] = f"label-{image}"
                (folder / entry["label"]).touch()
            content[section].append(entry)
    (folder / "list.json").write_text(json.dumps(content))
    return folder / "list.json"


def test_the_new_lists_name_the_old_files_and_a_patients_unlabelled_scan_goes_along(tmp_path: Path) -> None:
    names = {"training": ["a", "b", "c"], "validation": ["v"], "test": ["t", "u"], "unlabeled": ["a", "b", "x"]}
    old = {site: listed(tmp_path / site, names) for site in ("east", "west")}
    new = write_split(old, out=tmp_path / "new", alpha=5.0, sites=2, seed=2)
    assert list(new) == ["site-1", "site-2"]
    read = {site: read_datalist(path, salt="s") for site, path in new.items()}
    for section, patients in names.items():
        cases = [case for sections in read.values() for case in sections[section]]
        assert sorted(case.patient for case in cases) == sorted(
            f"{old}:{p}" for old in ("east", "west") for p in patients
        )
        assert {case.image.resolve().parent for case in cases} == {tmp_path / "east", tmp_path / "west"}
    for sections in read.values():
        trained = {case.patient for case in sections["training"]}
        unlabelled = {case.patient for case in sections["unlabeled"]}
        assert {name for name in unlabelled if name[-1] in "ab"} == {name for name in trained if name[-1] in "ab"}
