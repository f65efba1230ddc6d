"""Cells as they run, on the smallest phantoms: the same patients for everybody, and what a missing model costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.comparison.conftest import patients

from fedmedseg.comparison.cells import Cell, cells_of, is_current, trials_of
from fedmedseg.comparison.patients import failure, figures_of
from fedmedseg.comparison.run import Job, peak_bytes, run_cell
from fedmedseg.comparison.sites import prepare_sites
from fedmedseg.comparison.study import Comparison
from fedmedseg.core.errors import ConfigurationError

Read = Callable[[dict[str, Any]], Comparison]


@pytest.fixture
def run(read: Read, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """run(content, "local"): the result of that method's first cell (``trial``: of its first trial)."""

    def make(content: dict[str, Any], method: str, *, trial: bool = False, **changes: Any) -> dict[str, Any]:
        comparison = read(content)
        files, sha256, salt = prepare_sites(comparison, role="cmr", work=tmp_path / "work")
        for site, other in changes.get("lists", {}).items():
            files[site] = {"datasets": {"cmr": {"list": str(other)}}}
        of: list[Cell] = (trials_of if trial else cells_of)(comparison, tmp_path / "out", methods=[method])
        run_cell(Job(of[0], files, sha256, salt, tmp_path / "work"))
        assert is_current(of[0], sha256)
        assert not list((tmp_path / "work" / "cells").rglob("*.safetensors"))
        found: dict[str, Any] = json.loads(of[0].file.read_text())
        return found

    return make


def test_all_ways_of_training_are_tested_on_the_same_patients(
    content: dict[str, Any], run: Callable[..., dict[str, Any]]
) -> None:
    of = {method: run(content, method) for method in content["methods"]}
    structures = {"left ventricle", "myocardium", "right ventricle"}
    for method, one in of.items():
        assert {site: len(found) for site, found in one["patients"].items()} == {"site-1": 2, "site-2": 2}, method
        assert all(set(figures) == structures for found in one["patients"].values() for figures in found)
        assert one["steps_a_site"] == 2
        assert one["process_peak_mb"] > 100
        assert one["sites"]["site-1"] == figures_of(one["patients"]["site-1"])
        assert one["tested"] == of["local"]["tested"], "the same patients in the same order, whoever trains"
        assert one["unpredicted"] == {"site-1": 0, "site-2": 0}
    keys = [key for of_site in of["local"]["tested"].values() for key in of_site]
    assert len(set(keys)) == 4
    # hashes: nobody is named
    assert all(len(key) == 12 and int(key, 16) >= 0 for key in keys)
    assert {method: one["parameters"] for method, one in of.items()} == dict.fromkeys(of, of["local"]["parameters"])
    # parameters down and their differences up, twice and once more for the test; names and headers come on top
    moved = of["fedavg"]["megabytes"]["site-1"]
    dense = 4 * of["fedavg"]["parameters"] / 1e6
    assert 2 * dense < moved["up"] < moved["down"] < 3 * dense + 0.2
    assert of["local"]["megabytes"] == of["central"]["megabytes"] == {}
    assert set(of["central"]["site_seconds"]) == {"pool"}
    assert set(of["local"]["site_seconds"]) == {"site-1", "site-2"}


def test_a_site_that_could_train_nothing_has_failed_on_its_patients(
    content: dict[str, Any], run: Callable[..., dict[str, Any]], read: Read, tmp_path: Path
) -> None:
    files = prepare_sites(read(content), role="cmr", work=tmp_path / "work").files
    listed = Path(files["site-2"]["datasets"]["cmr"]["list"])
    content_of = json.loads(listed.read_text())
    empty = listed.with_name("without_training.json")
    empty.write_text(json.dumps(content_of | {"training": []}))
    result = run(content, "local", lists={"site-2": empty})
    found = result["patients"]["site-2"]
    assert len(found) == len(result["tested"]["site-2"]) == result["unpredicted"]["site-2"] == 2
    for patient in found:
        for one in patient.values():
            # the diagonal of a volume of 48 x 48 x 4 voxels is far longer than any distance within a heart
            assert (one["dice"], one["failures"] >= 1, one["hd95"] > 50) == (0.0, True, True)


def test_a_patient_whom_the_method_sets_aside_has_failed_and_one_without_a_truth_counts_for_nobody(
    content: dict[str, Any], run: Callable[..., dict[str, Any]], read: Read, tmp_path: Path
) -> None:
    files = prepare_sites(read(content), role="cmr", work=tmp_path / "work").files
    listed = Path(files["site-1"]["datasets"]["cmr"]["list"])
    sections = json.loads(listed.read_text())
    first, second = sections["test"]
    # the image is no image, the label is a truth; the other way round nobody can say what a method missed
    for entry, image, label in ((first, "broken.nii.gz", None), (second, None, "broken.nii.gz")):
        (listed.parent / "broken.nii.gz").write_bytes(b"no NIfTI file")
        entry["patient"] = entry.get("patient") or entry["image"]
        sections["test"].append(
            {**entry, "image": image or entry["image"].replace("nii", "copy.nii"), "label": label or entry["label"],
             "patient": f"{entry['patient']}-{image}"}
        )  # fmt: skip
    copied = listed.parent / sections["test"][-1]["image"]
    copied.write_bytes((listed.parent / second["image"]).read_bytes())
    other = listed.with_name("with_broken.json")
    other.write_text(json.dumps(sections))
    for method in ("fedavg", "central"):
        result = run(content, method, lists={"site-1": other})
        patients_of, keys = result["patients"]["site-1"], result["tested"]["site-1"]
        assert (len(patients_of), len(keys), result["unpredicted"]) == (3, 3, {"site-1": 1, "site-2": 0}), method
        # in the order of names, hers comes after the one it was made of
        assert all((f["dice"], f["failures"], f["hd95"] > 50) == (0.0, 1.0, True) for f in patients_of[1].values())


def test_a_label_is_a_truth_on_its_own_grid_whatever_the_crop_and_the_spacing(
    content: dict[str, Any], read: Read, tmp_path: Path
) -> None:
    from fedmedseg.comparison.sites import open_sites, place_site
    from fedmedseg.data.datalist import read_datalist

    comparison = read(content)
    prepared = prepare_sites(comparison, role="cmr", work=tmp_path / "work")
    place_site("site-1", prepared.files["site-1"], tmp_path / "w", tmp_path / "cache")
    site = open_sites(comparison.experiment("local"), ["site-1"], tmp_path / "w")["site-1"]
    case = read_datalist(site.data_list("cmr"), salt=site.salt)["test"][0]
    # so fine that the gate would refuse the volume for its size
    fine = comparison.experiment("local", chosen={"data.spacing": [0.011, 0.011, None]})
    score = failure(case, site, comparison.experiment("local"))
    assert score is not None
    assert failure(case, site, fine) == score


def test_a_trial_measures_validation_cases_and_is_told_of_no_test_file(
    content: dict[str, Any], run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.comparison import run as module

    seen: list[str] = []
    real = module.for_trial

    def listening(files: Any, role: str, out: Path) -> Any:
        made = real(files, role, out)
        for name, one in made.items():
            sections = json.loads(Path(one["datasets"][role]["list"]).read_text())
            test = json.loads(Path(files[name]["datasets"][role]["list"]).read_text())["test"]
            seen.extend(Path(entry["image"]).name for entry in test)
            named = json.dumps(sections)
            assert [Path(e["image"]).name for e in test if Path(e["image"]).name in named] == []
            assert len(sections["test"]) == len(sections["validation"]) == 1
        return made

    monkeypatch.setattr(module, "for_trial", listening)
    for method in content["methods"].values():
        method["trials"] = {"segmentation.optimizer.learning_rate": [0.01]}
    result = run(content, "central", trial=True)
    assert len(seen) == 4
    assert 0.0 <= result["validation"] <= 1.0
    assert "patients" not in result
    assert "sites" not in result


def test_the_pool_trains_on_what_each_site_would_train_on(
    content: dict[str, Any], run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.comparison import run as module

    lists = []
    real = module.pool

    def listening(sites: Any, experiment: Any, out: Path) -> Any:
        made = real(sites, experiment, out)
        lists.append(json.loads((out / "pool.json").read_text()))
        return made

    monkeypatch.setattr(module, "pool", listening)
    run(content | {"labelled": {"patients": [1]}}, "central")
    (pooled,) = lists
    assert sorted(entry["patient"].partition(":")[0] for entry in pooled["training"]) == ["site-1", "site-2"]
    # the second patient of each lends her image alone
    assert sorted(entry["patient"].partition(":")[0] for entry in pooled["unlabeled"]) == ["site-1", "site-2"]
    assert all("label" not in entry for entry in pooled["unlabeled"])


def test_sites_are_dealt_out_anew_and_sites_missing_are_told(
    content: dict[str, Any], read: Read, tmp_path: Path
) -> None:
    content["data"]["phantom"] |= {"training": 4, "test": 3, "validation": 2}
    content["data"]["dirichlet"] = {"alpha": 1.0, "sites": 3}
    files, sha256, salt = prepare_sites(read(content), role="cmr", work=tmp_path / "work")
    assert list(files) == ["site-1", "site-2", "site-3"]
    again = prepare_sites(read(content), role="cmr", work=tmp_path / "elsewhere")
    assert (list(again.files), again.sha256, again.salt) == (list(files), sha256, salt)
    assert salt != sha256
    with pytest.raises(ConfigurationError, match=r"--sites.*makes its own phantoms"):
        prepare_sites(read(content), role="cmr", work=tmp_path / "work", sites=tmp_path)
    del content["data"]
    with pytest.raises(ConfigurationError, match=r"data.sites: got no folder.*--sites"):
        prepare_sites(read(content), role="cmr", work=tmp_path / "work")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "pool.yaml").touch()
    with pytest.raises(ConfigurationError, match=r"pool.yaml: got a site called pool"):
        prepare_sites(read(content), role="cmr", work=tmp_path / "work", sites=tmp_path / "named")


def test_a_structure_nobody_has_has_no_mean_and_this_process_has_a_peak() -> None:
    assert figures_of(patients(None)) == {}
    assert figures_of(patients(0.5, None)) == {"heart": {"n": 1.0, "dice": 0.5, "hd95": 10.0, "failures": 0.0}}
    assert 2e7 < peak_bytes() < 1e11


def test_a_list_may_lie_in_the_home_folder_and_no_site_is_called_as_the_pool(
    content: dict[str, Any], read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.json").write_text('{"training": []}')
    sites = tmp_path / "sites"
    sites.mkdir()
    (sites / "east.yaml").write_text("datasets: {cmr: {list: ~/list.json}}\n")
    del content["data"]["phantom"]
    files = prepare_sites(read(content), role="cmr", work=tmp_path / "work", sites=sites).files
    assert files["east"]["datasets"]["cmr"]["list"] == str(tmp_path / "list.json")
    (sites / "east.yaml").rename(sites / "pool.yaml")
    with pytest.raises(ConfigurationError, match=r"pool.yaml: got a site called pool"):
        prepare_sites(read(content), role="cmr", work=tmp_path / "work", sites=sites)
