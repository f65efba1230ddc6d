"""The study of what FedCRLD is worth: methods are the settings they are called, cells resume, the table is right."""

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
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.data.phantoms import write_site

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fedcrld_worth.py"


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    # what a script finds beside itself
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("fedcrld_worth", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fedcrld_worth", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_every_method_has_the_same_network_data_rounds_and_steps(worth: ModuleType) -> None:
    of = {name: parse_experiment(worth.Cell("sunnybrook", name, 1).settings()) for name in worth.METHODS}
    first = of["fedcrld"]
    for name, one in of.items():
        assert (one.network, one.data, one.seed, one.stages, one.segmentation) == (
            first.network, first.data, first.seed, first.stages, first.segmentation,
        ), name  # fmt: skip
        # its learning rate each method chose among the same
        alike = one.wing.optimizer.model_copy(update={"learning_rate": first.wing.optimizer.learning_rate})
        assert (one.wing.local_steps, alike) == (first.wing.local_steps, first.wing.optimizer), name
        assert one.wing.loss.needs_bank is (name == "fedcrld"), name
    assert {name: one.wing.share for name, one in of.items()} == {
        "fedcrld": "encoder",
        "local": "nothing",
        "fedavg": "everything",
        "fedbn": "everything_but_norms",
    }


def test_every_probe_changes_what_its_name_says(worth: ModuleType) -> None:
    whole = {name: parse_experiment(worth.Cell("sunnybrook", name, 1).settings()) for name in worth.PROBES}
    of = {name: one.wing for name, one in whole.items()}
    rounds = {name: one.stages["relocalization"].rounds for name, one in whole.items()}
    assert rounds.pop("longer") == rounds.pop("longer_fedavg") == 3 * rounds["moon"]
    assert set(rounds.values()) == {rounds["moon"]}
    assert of["longer_fedavg"].share == "everything"
    assert of["no_contrast"].loss.contrast == "off"
    assert of["no_distillation"].loss.distillation_weight == 0.0
    assert of["no_history"].loss.history_weight == 0.0
    assert of["bank_slow"].bank.momentum == 0.99
    assert of["moon"].loss.contrast == "moon"
    assert of["published_losses"].loss.form == "published"
    assert (of["encoder_alone"].share, of["encoder_alone"].loss.needs_bank) == ("encoder", False)
    assert (of["everything_with_terms"].share, of["everything_with_terms"].loss.needs_bank) == ("everything", True)
    assert set(worth.NAMES) == set(worth.METHODS | worth.PROBES)


def result(worth: ModuleType, method: str, seed: int, dice: dict[str, float]) -> None:
    cell = worth.Cell("sunnybrook", method, seed)
    figures = {
        site: {"dice/personal/left ventricle": value, "hd95/personal/left ventricle": 20 * value}
        for site, value in dice.items()
    }
    patients = {
        site: {"dice": [{"left ventricle": value}] * 2, "hd95": [{"left ventricle": 20 * value}] * 2}
        for site, value in dice.items()
    }
    content = {"method": method, "seed": seed, "settings_sha256": cell.key, "sites": figures, "patients": patients}
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cell.file.write_text(json.dumps(content))


def test_a_cell_is_done_while_its_settings_are_those_it_was_run_with(worth: ModuleType) -> None:
    cell = worth.Cell("sunnybrook", "fedcrld", 1)
    assert not cell.is_done()
    result(worth, "fedcrld", 1, {"a": 0.5})
    assert cell.is_done()
    cell.file.write_text(json.dumps(json.loads(cell.file.read_text()) | {"settings_sha256": "other"}))
    assert not cell.is_done()


def test_the_table_gives_mean_worst_site_and_distance_and_compares_seed_by_seed(worth: ModuleType) -> None:
    result(worth, "fedcrld", 1, {"a": 0.5, "b": 0.9})
    result(worth, "fedcrld", 2, {"a": 0.7, "b": 0.7})
    result(worth, "local", 1, {"a": 0.4, "b": 0.8})
    result(worth, "local", 2, {"a": 0.8, "b": 0.7})
    text = worth.table("sunnybrook", list(worth.METHODS))
    # worst sites 0.5 and 0.7; worst distances 18 and 14; differences 0.1 and -0.05
    assert "| FedCRLD | 0.600 | 0.800 | 0.700 ± 0.000 | 0.600 | 14.0 | 16.0 | +0.025 ± 0.106 (1 of 2) | 2 |" in text
    assert "| local training | 0.600 | 0.750 | 0.675 ± 0.106 | 0.550 | 13.5 | 16.0 |  | 2 |" in text
    # patients over both seeds: 0.6 less 0.6 at a (twice), 0.8 less 0.75 at b (twice)
    assert "| FedCRLD less | Dice | p | HD95 (mm) | p | patients | seeds |" in text
    assert "| local training | +0.025 | 0.5 | +0.50 | 0.5 | 4 | 2 |" in text
    assert worth.table("sunnybrook", ["fedbn"]) == "no finished cell"


def test_cells_come_seed_by_seed_so_that_an_early_end_compares_all_methods(worth: ModuleType) -> None:
    cells = worth.cells_of("sunnybrook", ["fedcrld", "local"])
    assert [(cell.seed, cell.method) for cell in cells[:3]] == [(1, "fedcrld"), (1, "local"), (2, "fedcrld")]


TINY: dict[str, Any] = {
    "data": {"phantom": None, "alternatives": [], "crop": [48, 48, 4]},
    "stages": {"relocalization": {"rounds": 2}, "fine_tuning": {"rounds": 0}},
    "fedcrld": {"local_steps": 1, "starts": ["personal"]},
    "segmentation": {"batch": 1, "validate_every": 1, "test_untrained": False},
}


def phantom_sites(tmp_path: Path) -> Path:
    """Site files of two phantom sites."""
    sites = tmp_path / "sites"
    sites.mkdir()
    counts = {"unlabeled": 0, "training": 2, "validation": 1, "test": 1}
    for index, name in enumerate(("a", "b")):
        folder = tmp_path / name
        written = write_site("cine_mr", site_index=index, out=folder, seed=1, counts=counts, size=(48, 48, 4))
        (sites / f"{name}.yaml").write_text(f"datasets: {{cmr: {{list: {written}}}}}\n")
    return sites


def test_every_method_has_the_same_trials_and_the_study_names_the_best_of_each(
    worth: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worth import best_rates, read_results, study_file

    study = study_file("fedcrld", "sunnybrook")
    cells = worth.trials_of("sunnybrook", worth.METHODS)
    assert len(cells) == len(worth.METHODS) * len(study["trials"]["rates"])
    assert all(cell.is_done() for cell in cells), "a trial is missing, or of other settings"
    assert best_rates(read_results(worth.TRIALS / "sunnybrook")) == study["rates"]
    monkeypatch.setattr(worth, "REVISION", worth.REVISION + 1)
    assert not cells[0].is_done()


@pytest.mark.slow
def test_a_cell_trains_tests_and_is_written(worth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = phantom_sites(tmp_path)
    monkeypatch.setattr(worth.Cell, "settings", lambda cell: read_settings(find_job("fedcrld"), [TINY])[0])
    cell = worth.Cell("phantoms", "fedcrld", 1)
    worth.run_cell(cell, sites, tmp_path / "work", time.time() - 1)
    assert not cell.file.exists(), "after the deadline nothing is begun"
    worth.run_cell(cell, sites, tmp_path / "work", time.time() + 600)
    found = json.loads(cell.file.read_text())
    assert set(found["sites"]) == {"a", "b"}
    assert all(len(found["validation"][site]) == 2 for site in ("a", "b"))
    assert all(len(found["patients"][site]["hd95"]) == 1 for site in ("a", "b"))
    assert "| FedCRLD |" in worth.table("phantoms", ["fedcrld"])


@pytest.mark.slow
def test_a_trial_sees_no_test_case(worth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = phantom_sites(tmp_path)
    monkeypatch.setattr(worth, "TRIALS", tmp_path / "trials")
    monkeypatch.setattr(worth.Cell, "settings", lambda cell: read_settings(find_job("fedcrld"), [TINY])[0])
    monkeypatch.setattr(worth, "study_file", lambda system, study: {"trials": {"sites": ["b"]}})
    cell = worth.Cell("phantoms", "fedcrld", 1, 0.002)
    monkeypatch.setattr(worth, "patients_of", None)
    worth.run_cell(cell, sites, tmp_path / "work", time.time() + 600)
    found = json.loads(cell.file.read_text())
    assert found["rate"] == 0.002
    assert found["chosen_by"] == max(found["validation"]["b"])
    assert set(found["validation"]) == {"b"}
    assert not {"sites", "patients"} & set(found)
