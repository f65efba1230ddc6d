"""The study of what distilling task CNNs is worth: equal budgets, whole small cells, tables that count right."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedmedseg.core.config import parse_experiment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cardiac_ct_worth.py"
PREDICTED = {"student", "cnn"}


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    # what a script finds beside itself
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("cardiac_ct_worth", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cardiac_ct_worth", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_every_method_is_a_valid_study_on_the_same_networks_data_and_budget(worth: ModuleType) -> None:
    every = worth.FROM_NOTHING | worth.AFTER | worth.PROBES
    experiments = {name: parse_experiment(worth.Cell(name, 1).settings()) for name in every}
    first = experiments[worth.BASE]
    for name, one in experiments.items():
        assert (one.network, one.data, one.seed, one.compute) == (first.network, first.data, first.seed, first.compute)
        more = {"steps": 3 * first.segmentation.steps} if "longer" in name else {}
        assert one.segmentation == first.segmentation.model_copy(update=more), name
        assert one.wing.teacher == first.wing.teacher, name
        assert one.wing.radius == first.wing.radius
    assert {name for name, one in experiments.items() if one.wing.share == "nothing"} == {
        "local_cnn",
        "local_transformer",
    }
    assert not experiments["labels_only"].wing.distillation.pseudo_labels
    assert experiments["labels_only"].stages["distillation"] == first.stages["distillation"]


def test_what_follows_a_distillation_trains_what_its_name_says_and_nothing_else(worth: ModuleType) -> None:
    def trained(name: str) -> set[str]:
        stages = parse_experiment(worth.Cell(name, 1).settings()).stages
        return {stage for stage, section in stages.items() if section.rounds} - {"evaluation"}

    assert trained("tuned") == {"head_tuning"}
    for number, name in ((1, "transfer_1"), (2, "transfer_2"), (None, "transfer_all")):
        assert trained(name) == {"transfer"}
        assert parse_experiment(worth.Cell(name, 1).settings()).wing.transfer.patients == number
    for name in worth.PROBES:
        assert trained(name) == {"pseudo_labelling", "distillation"}
    wings = {name: parse_experiment(worth.Cell(name, 1).settings()).wing.distillation for name in worth.PROBES}
    assert (wings["soft"].targets, wings["confident"].weighting) == ("soft", "confidence")
    assert not wings["pseudo_only"].real_labels


def test_what_follows_a_run_is_made_anew_when_that_run_changes(
    worth: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: worth.Cell(name, 1).key for name in ("labels_only", "tuned")}
    monkeypatch.setitem(worth.FROM_NOTHING, worth.BASE, ([], {"cardiac_ct": {"radius": 2.5}}))
    assert worth.Cell("labels_only", 1).key == before["labels_only"]
    assert worth.Cell("tuned", 1).key != before["tuned"]


def shrink(worth: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study as cells of seconds: two hospitals and one that took no part."""
    monkeypatch.setitem(worth.STUDY, "sites", 3)
    settings = json.loads(json.dumps(worth.STUDY["settings"]))
    phantom = {"sites": 3, "unseen": 3, "training": 2, "unlabeled": 2, "test": 1, "size": [64, 40, 40]}
    settings["data"] = {
        "phantom": settings["data"]["phantom"] | phantom,
        "spacing": [2.0, 2.0, 2.0],
        "crop": [64, 32, 32],
    }
    settings["cardiac_ct"]["teacher"] = {
        "steps": 2, "size": [32, 32, 32], "filters": [4, 8, 16], "strides": [1, 2, 2], "supervised": 1,
    }  # fmt: skip
    settings["segmentation"] |= {"steps": 2}
    settings["stages"] |= {f"teacher_{task}": {"rounds": 1} for task in worth.TESTED} | {"distillation": {"rounds": 1}}
    monkeypatch.setitem(worth.STUDY, "settings", settings)


@pytest.mark.slow
def test_cells_train_test_everywhere_and_go_on_from_the_distilled_run(
    worth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(worth, monkeypatch)
    monkeypatch.setitem(worth.AFTER["transfer_1"][1]["cardiac_ct"], "transfer", {"steps": 2, "patients": 1})
    sites, work = tmp_path / "hospitals", tmp_path / "work"
    worth.write_hospitals(1, sites)
    names = ("distilled", "transfer_1", "local_cnn")
    cells = [worth.Cell(name, 1) for name in names]
    worth.run_group([worth.Cell("labels_only", 1)], sites, work, time.time() - 1)
    assert not worth.Cell("labels_only", 1).file.exists(), "none is begun after the time is over"
    worth.run_group(cells, sites, work, time.time() + 600)
    assert all(cell.is_done() for cell in cells)
    results = {name: json.loads(cell.file.read_text()) for name, cell in zip(names, cells, strict=True)}
    distilled = results["distilled"]
    assert distilled["owners"] == {
        "hps": ["site-1", "site-2"],
        "ms": ["site-1"],
        "calc": ["site-1", "site-2"],
        "coronaries": ["site-1"],
    }
    assert set(distilled["tested"]) == {"site-1", "site-2", "site-3"}
    for models in distilled["tested"].values():
        assert set(models) == PREDICTED
        assert all(len(runs) == 1 and len(runs[0]) == 1 for runs in models.values())
    (row,) = distilled["tested"]["site-3"]["student"][0]
    assert "key" not in row
    assert set(row["distances"]) <= {"RCC", "LCC", "NCC", "RCA", "LCA", "MS1", "MS2"}
    assert "coronaries" in results["transfer_1"]["tested"]["site-3"]["student"][0][0]["structures"]
    # two sites' own CNNs see the third hospital's patient, the second's without a septum
    local = results["local_cnn"]["tested"]
    assert [set(rows[0]["distances"]) >= {"MS1"} for rows in local["site-3"]["cnn"]] == [True, False]
    assert not (work / "distilled-seed1").exists()
    assert list((work / "distilled").glob("*.safetensors"))


def result(worth: ModuleType, method: str, tested: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    owned = {"hps": ["site-1"], "ms": ["site-1"], "calc": ["site-1"], "coronaries": ["site-1"]}
    return {"method": method, "seed": seed, "unseen": "site-3", "owners": owned, "tested": tested}


def row(*distances: float | None, calcification: float = 0.5, coronaries: float = 0.25) -> dict[str, Any]:
    structures = {"calcification": {"dice": calcification}, "coronaries": {"dice": coronaries}}
    return {"distances": dict(zip(("RCC", "LCC"), distances, strict=True)), "structures": structures}


def line(text: str, title: str, name: str) -> str:
    part = text[text.index(title) :].split("\n\n")[1]
    return next(one for one in part.splitlines() if one.startswith(f"| {name}"))


def test_the_table_counts_every_point_and_pairs_patients(worth: ModuleType) -> None:
    seen = {"student": [[row(1.0, 2.0), row(3.0, 4.0)]], "cnn": [[row(2.0, 3.0), row(5.0, None)]]}
    text = worth.table(worth.ROWS, {"distilled": [result(worth, "distilled", {"site-1": seen, "site-3": seen})]})
    owned = "**Hinge points and ostia**, sites that annotate it"
    assert "| 2.50 | 1.75 to 3.25 | 2.50 | 0.0% | 4 |  |  | 1 |" in line(text, owned, "distilled transformer")
    # a missing point is infinitely far; the student is closer by 1 and by 2 where both found the point
    assert "| 4.00 | 2.75 to inf | 3.33 | 25.0% | 4 | +1.50 | 0.5 | 1 |" in line(text, owned, "CNN of each task, fed")
    points = "**Hinge points and ostia, point by point**, sites that annotate it"
    assert "| 1 | 2.0 (0%) | 3.0 (0%) | - | - | - | 2.5 |" in line(text, points, "distilled transformer")
    assert "| 1 | 3.5 (0%) | inf (50%) | - | - | - | 4.0 |" in line(text, points, "CNN of each task, fed")
    assert "take part without annotating" not in text
    assert "**Valve calcification**, the site that took no part" in text


def test_several_local_models_of_one_patient_count_as_that_patient(worth: ModuleType) -> None:
    student = {"student": [[row(1.0, 1.0, calcification=0.8)]]}
    local = {"cnn": [[row(2.0, 2.0, calcification=0.6)], [row(4.0, 4.0, calcification=0.2)]]}
    results = {
        "distilled": [result(worth, "distilled", {"site-3": student})],
        "local_cnn": [result(worth, "local_cnn", {"site-3": local, "site-2": local})],
    }
    text = worth.table(worth.ROWS, results)
    points = line(text, "**Hinge points and ostia**, the site that took no part", "CNN of each task, local")
    assert "| 3.00 | 2.00 to 4.00 | 3.00 | 0.0% | 4 | +2.00 |" in points
    calc = line(text, "**Valve calcification**, the site that took no part", "CNN of each task, local")
    assert "| 0.400 | 1 | +0.400 | 1 | 1 |" in calc
    assert "take part without annotating" not in text, "a local model knows nothing of what its site does not mark"


def test_the_transfer_table_has_a_column_for_each_number_of_patients(worth: ModuleType) -> None:
    results = {
        f"transfer_{number}": [
            result(worth, f"transfer_{number}", {"site-3": {"student": [[row(1.0, 1.0, coronaries=dice)]]}})
        ]
        for number, dice in ((1, 0.1), (2, 0.2), ("all", 0.3))
    }
    text = worth.table([], results)
    assert "| distilled transformer | the site that took no part | 0.100 | 0.200 | 0.300 |" in text


def test_only_what_is_missing_is_run_and_one_worker_has_a_run_with_what_follows_it(worth: ModuleType) -> None:
    everything = [*worth.METHODS, *worth.AFTER]
    groups = worth.groups_of(everything, [1])
    assert [[cell.method for cell in group] for group in groups] == [
        ["distilled", "tuned", "transfer_1", "transfer_2", "transfer_all"],
        ["labels_only"],
        ["local_cnn"],
        ["local_transformer"],
    ]
    cell = worth.Cell("distilled", 1)
    cell.file.parent.mkdir(parents=True)
    cell.file.write_text(json.dumps({"settings_sha256": cell.key}))
    assert worth.groups_of(["distilled", "tuned"], [1]) == [[worth.Cell("tuned", 1)]]
    assert worth.table(worth.ROWS, {}) == "no finished cell"
