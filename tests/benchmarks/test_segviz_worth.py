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
        times = 3 if name == "pooled" else 1
        assert one.segmentation.steps == times * first.segmentation.steps
        assert one.segmentation.validate_every == times * first.segmentation.validate_every
    assert experiments["fedavg"].wing.share == "fedavg"
    assert {name for name, one in experiments.items() if one.wing.mode == "one_model"} == {
        "pooled",
        "one_model",
        "condist",
    }
    assert experiments["condist"].wing.distillation is not None


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


@pytest.mark.parametrize("method", ["segviz", "local", "pooled"])
def test_a_cell_trains_fuses_and_tests_on_the_external_hospital(
    worth: ModuleType, hospitals: Path, tmp_path: Path, method: str
) -> None:
    small = {"network": {"channels": [4, 8]}, "data": {"crop": [16, 16, 16]}, "stages": {"training": {"rounds": 2}}}
    worth.SETTINGS.update(small)
    worth.SETTINGS["segmentation"] |= {"steps": 4, "validate_every": 2}
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
    assert worth.table(["local"]).count("\n| ") == 2


def test_a_structure_that_nothing_holds_is_left_out_of_a_patients_mean(worth: ModuleType) -> None:
    assert worth.patient_dice({"patients": [row(None, 0.6), row(0.8, 0.6)]}) == pytest.approx([0.6, 0.7])


def test_changed_settings_make_a_cell_undone(worth: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(worth, "segviz", 1, [row(0.8, 0.6)])
    assert worth.Cell(2, "segviz", 1).is_done()
    monkeypatch.setattr(worth, "REVISION", 2)
    assert not worth.Cell(2, "segviz", 1).is_done()
