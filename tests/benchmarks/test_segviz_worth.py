"""The study of what SegViz is worth: partial lists, equal budgets, a whole small cell, a table that counts right."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from fedmedseg.core.config import parse_experiment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "segviz_worth.py"


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    # what a script finds beside itself
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("segviz_worth", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "segviz_worth", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """Site files of three hospitals, each with a case in every section that shows both structures."""
    rng = np.random.default_rng(4)
    sites = tmp_path / "sites"
    sites.mkdir()
    for site in ("site-1", "site-2", "site-3"):
        folder = tmp_path / site
        content: dict[str, Any] = {"unlabeled": []}
        for section in ("training", "validation", "test"):
            name = f"{site}-{section}.nii.gz"
            label = np.zeros((16, 16, 16), dtype=np.uint8)
            label[2:7, 4:12, 4:12], label[9:14, 4:12, 4:12] = 1, 2
            image = 100.0 + 100.0 * label + rng.normal(scale=5.0, size=label.shape)
            for kind, array in (("images", image.astype(np.float32)), ("labels", label)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(array, np.eye(4)), folder / kind / name)
            content[section] = [{"image": f"images/{name}", "label": f"labels/{name}", "patient": name}]
        (folder / "datalist.json").write_text(json.dumps(content))
        listed = {"datasets": {"hippocampus": {"list": f"../{site}/datalist.json"}}}
        (sites / f"{site}.yaml").write_text(yaml.safe_dump(listed))
    return sites


def test_every_method_is_a_valid_study_on_the_same_network_data_and_budget(worth: ModuleType) -> None:
    experiments = {name: parse_experiment(worth.Cell(3, name, 1).settings()) for name in worth.METHODS}
    first = experiments["segviz"]
    for name, one in experiments.items():
        assert (one.network, one.data, one.seed, one.stages) == (first.network, first.data, first.seed, first.stages)
        # its learning rate each method chose among the same
        rate = {"learning_rate": first.segmentation.optimizer.learning_rate}
        assert one.segmentation.optimizer.model_copy(update=rate) == first.segmentation.optimizer
        times = 3 if name == "pooled" else 1
        assert one.segmentation.steps == times * first.segmentation.steps
        assert one.segmentation.validate_every == times * first.segmentation.validate_every
    assert experiments["fedavg"].wing.share == "fedavg"
    assert {name for name, one in experiments.items() if one.wing.mode == "one_model"} == {"pooled"}


def test_each_site_keeps_one_structure_in_turn(worth: ModuleType, hospitals: Path, tmp_path: Path) -> None:
    lists = worth.partial_lists(hospitals, 3, 2, tmp_path / "work")
    kept = {}
    for site, listed in lists.items():
        content = json.loads(listed.read_text())
        (entry,) = content["training"]
        kept[site] = (entry["annotated_labels"], set(np.unique(np.asanyarray(nib.load(entry["label"]).dataobj))))
        assert Path(entry["image"]).is_file()
    assert kept == {"site-1": ([1], {0, 1}), "site-2": ([2], {0, 2}), "site-3": ([1], {0, 1})}
    pooled = json.loads(worth.pooled_list(lists, tmp_path / "pool").read_text())
    assert [entry["annotated_labels"] for entry in pooled["training"]] == [[1], [2], [1]]


def shrink(worth: ModuleType) -> None:
    """The study as a cell of a second."""
    settings = worth.STUDY["settings"]
    settings |= {"network": {"channels": [4, 8]}, "data": {"crop": [16, 16, 16]}, "stages": {"training": {"rounds": 2}}}
    settings["segmentation"] |= {"steps": 4, "validate_every": 2}


def test_every_probe_changes_what_its_name_says(worth: ModuleType) -> None:
    of = {name: parse_experiment(worth.Cell(2, name, 1).settings()) for name in worth.METHODS | worth.PROBES}
    for probe, method in worth.LIKE.items():
        rates = {one.segmentation.optimizer.learning_rate for one in (of[probe], of[method])}
        assert len(rates) == 1, probe
        times = 3 if probe.startswith("longer") else 1
        assert of[probe].segmentation.steps == times * of["segviz"].segmentation.steps, probe
        assert of[probe].stages["training"].rounds == times * of["segviz"].stages["training"].rounds, probe
    for probe, method in (("received", "segviz"), ("fedavg_received", "fedavg")):
        assert of[probe].wing == of[method].wing.model_copy(update={"candidates": "received"})
    assert (of["longer"].wing, of["longer_local"].wing) == (of["segviz"].wing, of["local"].wing)
    one = of["one_model"].wing
    assert (one.mode, one.share, one.candidates, one.distillation) == ("one_model", "fedavg", "received", None)
    assert of["condist"].wing.distillation is not None
    assert of["condist"].wing.model_copy(update={"distillation": None}) == one
    assert of["one_model_trained"].wing == one.model_copy(update={"candidates": "trained"})
    assert set(worth.LIKE) == set(worth.PROBES)
    assert set(worth.NAMES) == set(worth.METHODS | worth.PROBES)


def test_every_method_has_the_same_trials_and_the_study_names_the_best_of_each(worth: ModuleType) -> None:
    from worth import best_rates, read_results

    trials = worth.STUDY["trials"]
    cells = worth.trials_of(worth.METHODS)
    assert len(cells) == len(worth.METHODS) * len(trials["rates"])
    assert {(cell.sites, cell.seed) for cell in cells} == {(trials["sites"], trials["seed"])}
    assert all(cell.is_done() for cell in cells), "a trial is missing, or of other settings"
    assert best_rates(read_results(worth.TRIALS / worth.ROLE)) == worth.STUDY["rates"]


def test_of_equal_trials_the_lower_rate_is_taken_and_the_table_marks_it(worth: ModuleType) -> None:
    from worth import best_rates, trial_table

    trials = [
        {"method": "segviz", "rate": rate, "chosen_by": dice} for rate, dice in ((0.01, 0.7), (0.001, 0.7), (0.1, 0.2))
    ]
    assert best_rates(trials) == {"segviz": 0.001}
    assert "| SegViz (FedBN) | **0.700** | 0.700 | 0.200 |" in trial_table(trials, worth.NAMES)


def test_a_trial_sees_no_test_case_and_not_the_external_hospital(
    worth: ModuleType, hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(worth)
    monkeypatch.setattr(worth, "TRIALS", tmp_path / "trials")
    monkeypatch.setattr(worth, "score_fused", None)
    cell = worth.Cell(2, "local", 1, 0.002)
    assert cell.settings()["segmentation"]["optimizer"]["learning_rate"] == 0.002
    worth.run_cell(cell, hospitals, tmp_path / "work", time.time() + 600)
    found = json.loads(cell.file.read_text())
    validated = [site["validation_dice/personal"] for site in found["internal"].values()]
    assert len(validated) == 2
    assert found["chosen_by"] == pytest.approx(sum(validated) / 2, abs=1e-5)
    assert not any(name.startswith(("dice/", "hd95/")) for site in found["internal"].values() for name in site)
    assert "patients" not in found


@pytest.mark.parametrize("method", ["segviz", "local", "pooled"])
def test_a_cell_trains_fuses_and_tests_on_the_external_hospital(
    worth: ModuleType, hospitals: Path, tmp_path: Path, method: str
) -> None:
    shrink(worth)
    cell = worth.Cell(2, method, 1)
    worth.run_cell(cell, hospitals, tmp_path / "work", time.time() + 600)
    assert cell.is_done()
    result = json.loads(cell.file.read_text())
    assert len(result["patients"]) == 3
    assert set(result["patients"][0]) == {"anterior", "posterior"}
    assert set(result["internal"]) == ({"pool"} if method == "pooled" else {"site-1", "site-2"})
    assert "site-3" not in json.dumps(result), "neither a patient nor the external hospital is named"
    before = cell.file.read_bytes()
    worth.run_cell(worth.Cell(2, method, 2), hospitals, tmp_path / "work", time.time() - 1)
    assert not worth.Cell(2, method, 2).file.exists(), "none is begun after the time is over"
    assert cell.file.read_bytes() == before


def row(anterior: float | None, posterior: float) -> dict[str, Any]:
    return {
        "anterior": {"dice": anterior, "hd95": None if anterior is None else 2.0},
        "posterior": {"dice": posterior, "hd95": 4.0},
    }


def finished(worth: ModuleType, method: str, seed: int, rows: list[dict[str, Any]]) -> None:
    cell = worth.Cell(2, method, seed)
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    content = {"sites": 2, "method": method, "seed": seed, "patients": rows, "settings_sha256": cell.key}
    cell.file.write_text(json.dumps(content))


def test_the_table_is_over_patients_then_seeds_and_pairs_patients(worth: ModuleType) -> None:
    finished(worth, "segviz", 1, [row(0.8, 0.6), row(0.6, 0.6)])
    finished(worth, "segviz", 2, [row(0.8, 0.8), row(0.8, 0.6)])
    finished(worth, "local", 1, [row(0.6, 0.6), row(0.5, 0.5)])
    text = worth.table(worth.METHODS)
    line = next(one for one in text.splitlines() if one.startswith("| SegViz (FedBN)"))
    # anterior: (0.7 + 0.8) / 2; posterior: (0.6 + 0.7) / 2; against the seed both have: +0.1 and +0.1
    assert "| 0.750 | 0.650 | 2.00 | 4.00 | 0.700 ± 0.071 |" in line
    assert "+0.100, p 0.5 (2 patients) | 2 |" in line
    assert "2 patients of the external hospital" in text
    # the same patients' distances do not differ
    assert "| single-structure models, local | +0.100 | 0.5 | +0.00 | 1 | 2 | 1 |" in text
    assert worth.table(["local"]).count("\n| ") == 4
    assert worth.table(["pooled"]) == worth.table(worth.METHODS, [3]) == "no finished cell"


def test_a_structure_that_nothing_holds_is_left_out_of_a_patients_mean(worth: ModuleType) -> None:
    result = {"patients": [row(None, 0.6), row(0.8, 0.6)]}
    assert worth.patient_figures(result, "dice") == pytest.approx([0.6, 0.7])
    assert worth.patient_figures(result, "hd95") == pytest.approx([4.0, 3.0])


def test_changed_settings_make_a_cell_undone(worth: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(worth, "segviz", 1, [row(0.8, 0.6)])
    assert worth.Cell(2, "segviz", 1).is_done()
    monkeypatch.setattr(worth, "REVISION", 2)
    assert not worth.Cell(2, "segviz", 1).is_done()
