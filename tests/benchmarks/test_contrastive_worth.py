"""The study of contrastive pretraining: methods are what they are called, folds make a whole, the table is right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedmedseg.core.config import Experiment, parse_experiment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "contrastive_worth.py"


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    # what a script finds beside itself
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("contrastive_worth", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "contrastive_worth", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def study(worth: ModuleType, method: str, labelled: str = "2") -> Experiment:
    return parse_experiment(worth.Cell("sunnybrook", method, 1, 1, labelled).settings())


def test_every_method_has_the_same_network_data_steps_and_fine_tuning(worth: ModuleType) -> None:
    of = {name: study(worth, name) for name in worth.METHODS}
    first = of["fcl"]
    for name, one in of.items():
        assert (one.network, one.data, one.seed) == (first.network, first.data, first.seed), name
        # the rate of a pretrained encoder is that of the rest: random initialisation has no such encoder
        alike = one.segmentation.model_copy(update={"encoder_rate_factor": 1.0})
        assert alike == first.segmentation, name
        assert one.wing.local_steps == first.wing.local_steps, name
        assert (one.wing.volumes_per_step, one.wing.parts) == (first.wing.volumes_per_step, first.wing.parts), name
        assert one.stages["pretraining"].rounds == (0 if name == "random" else 30), name
        assert len(one.wing.starts) == 1, name
    assert {name: one.system for name, one in of.items() if one.system == "fclopt"} == dict.fromkeys(
        ("fclopt", "fclopt_both", "fedbyol", "fedema"), "fclopt"
    )


def test_every_method_is_what_it_is_called(worth: ModuleType) -> None:
    of = {name: study(worth, name).wing for name in worth.METHODS}
    assert (of["fcl"].exchange, of["fcl"].structural, of["fcl"].aggregation) == (True, True, "fedavg")
    assert (of["fedsimclr"].exchange, of["fedsimclr"].structural, of["fedsimclr"].positives) == (False, False, "view")
    assert (of["local_contrastive"].aggregation, of["local_contrastive"].starts) == ("none", ("personal",))
    assert of["random"].starts == ("scratch",)
    assert (of["fclopt"].mode, of["fclopt_both"].mode) == ("ptnu_dp", "both")
    assert (of["fedbyol"].mode, of["fedbyol"].client_mix) == ("keep_local", "replace")
    assert (of["fedema"].mode, of["fedema"].client_mix) == ("keep_local", "fedema")


def test_every_probe_changes_what_its_name_says(worth: ModuleType) -> None:
    studies = {name: study(worth, name) for name in worth.PROBES}
    assert {name: one.stages["pretraining"].rounds for name, one in studies.items()} == {
        name: {"longer": 90, "untrained_frozen": 1, "random_short": 0}.get(name, 30) for name in worth.PROBES
    }
    assert {name: one.segmentation.encoder_rate_factor for name, one in studies.items()} == {
        # nothing is pretrained in random_short, so that nothing of a start is set
        name: {"slow_encoder": 0.1, "frozen": 0.001, "untrained_frozen": 0.001, "random_short": 0.1}.get(name, 1.0)
        for name in worth.PROBES
    }
    rates = {name: one.wing.optimizer.learning_rate for name, one in studies.items()}
    assert rates == {name: 1e-9 if name == "untrained_frozen" else 0.1 for name in worth.PROBES}
    assert {name for name, one in studies.items() if one.segmentation.encoder_rate_share == 1.0} == {
        "frozen", "untrained_frozen"
    }  # fmt: skip
    of = {name: one.wing for name, one in studies.items()}
    assert (of["fcl_fp16"].transport, of["fcl_int8"].transport) == ("fp16", "int8")
    assert (of["fcl_noise"].noise.sigma, of["fcl_much_noise"].noise.sigma) == (0.1, 0.3)
    steps = {name: one.segmentation.steps for name, one in studies.items()}
    assert steps == {name: 120 if name.endswith("short") else 240 for name in worth.PROBES}
    rates = {name: one.segmentation.optimizer.learning_rate for name, one in studies.items()}
    assert rates == {name: 3e-3 if name.endswith("short") else 1e-2 for name in worth.PROBES}
    assert (of["no_matching"].structural, of["no_matching"].exchange) == (False, True)
    assert of["no_other_volumes"].positives == "view"
    assert of["exclude_same_partition"].denominator == "exclude_same_partition"
    assert set(worth.NAMES) == set(worth.METHODS | worth.PROBES)


def test_the_labelled_patients_and_the_other_set_are_the_cells(worth: ModuleType) -> None:
    assert [study(worth, "fcl", number).data.labelled_patients for number in ("1", "2", "4")] == [1, 2, 4]
    other = study(worth, "fcl", worth.TRANSFER)
    assert (other.data.role, tuple(other.data.labels.values())) == ("hippocampus", ("anterior", "posterior"))
    assert other.network == study(worth, "fcl").network


def test_a_pass_tests_every_fold_once_each_under_a_seed_of_its_own(worth: ModuleType) -> None:
    cells = worth.cells_of("sunnybrook", ["fcl", "local_contrastive"], transfer=True)
    assert [(one.seed, one.fold, one.method, one.labelled) for one in cells[:8]] == [
        (1, 1, "fcl", "1"),
        (1, 1, "fcl", "2"),
        (1, 1, "fcl", "4"),
        (1, 1, "fcl", "transfer"),
        # each of its sites has an encoder of its own, and none that another could start from
        (1, 1, "local_contrastive", "1"),
        (1, 1, "local_contrastive", "2"),
        (1, 1, "local_contrastive", "4"),
        (2, 2, "fcl", "1"),
    ]
    assert [(one.seed, one.fold) for one in cells if one.labelled == worth.TRANSFER] == [(1, 1), (2, 2), (3, 3)]
    assert len(cells) == 3 * (4 + 3)


def test_with_as_many_passes_as_seeds_every_fold_meets_every_seed(
    worth: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = worth.study_file(worth.NAME, "sunnybrook") | {"passes": 3}
    monkeypatch.setattr(worth, "study_file", lambda *_: content)
    cells = worth.cells_of("sunnybrook", ["fcl"], transfer=False)
    assert sorted({(one.seed, one.fold) for one in cells}) == [(s, f) for s in (1, 2, 3) for f in (1, 2, 3)]
    assert [(one.seed, one.fold) for one in cells[9::3]] == [(2, 1), (3, 2), (1, 3), (3, 1), (1, 2), (2, 3)]


def test_trials_fine_tune_as_the_study_says_of_them(worth: ModuleType) -> None:
    """So that rates that were chosen stay chosen when the fine-tuning becomes longer, and it is said."""
    (trial, *_), cell = worth.trials_of("sunnybrook", ["fcl"]), worth.Cell("sunnybrook", "fcl", 1, 1, "2")
    steps = [one.settings()["segmentation"]["steps"] for one in (trial, cell)]
    assert steps == [worth.study_file(worth.NAME, "sunnybrook")["trials"]["segmentation"]["steps"], 240]


def test_trials_are_as_many_for_every_method_that_pretrains(worth: ModuleType) -> None:
    trials = worth.trials_of("sunnybrook", worth.METHODS)
    counts = {name: sum(one.method == name for one in trials) for name in worth.METHODS}
    assert counts.pop("random") == 0
    assert set(counts.values()) == {2}


def result(worth: ModuleType, method: str, fold: int, seed: int, dice: dict[str, list[float]]) -> None:
    cell = worth.Cell("sunnybrook", method, fold, seed, "1")
    patients = {
        site: {
            "dice": [{"left ventricle": value} for value in values],
            "hd95": [{"left ventricle": 10 * value} for value in values],
        }
        for site, values in dice.items()
    }
    content: dict[str, Any] = {
        "method": method,
        "fold": fold,
        "seed": seed,
        "labelled": "1",
        "settings_sha256": cell.key,
        "pretraining": {"megabytes_per_site": 2.0 * fold},
        "patients": patients,
    }
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cell.file.write_text(json.dumps(content))
    assert cell.is_done()


def test_a_pass_counts_when_all_its_folds_are_there(worth: ModuleType) -> None:
    """A fold under another seed does not complete it."""
    for fold, seed, values in ((1, 1, [0.2, 0.4]), (2, 2, [0.6]), (3, 1, [0.1])):
        result(worth, "fcl", fold, seed, {"a": values, "b": [0.8]})
    assert worth.whole_passes("sunnybrook") == {}
    assert worth.table("sunnybrook", worth.METHODS) == "no finished cell"
    result(worth, "fcl", 3, 3, {"a": [0.8], "b": [0.8]})
    ((key, (one,)),) = worth.whole_passes("sunnybrook").items()
    assert key == ("fcl", "1")
    # every patient once: (0.2 + 0.4 + 0.6 + 0.8) / 4, not the mean of the folds' means
    assert one["sites"]["a"]["dice/mean"] == pytest.approx(0.5)
    assert one["megabytes"] == pytest.approx(4.0)


def test_the_table_compares_patient_by_patient(worth: ModuleType) -> None:
    for fold in (1, 2, 3):
        result(worth, "fcl", fold, fold, {"a": [0.5], "b": [0.9]})
        result(worth, "random", fold, fold, {"a": [0.4], "b": [0.9]})
    text = worth.table("sunnybrook", worth.METHODS)
    assert "**1 labelled patient(s) a site**" in text
    assert "| FCL | 0.500 | 0.900 | 0.700 | 0.500 | 0.000 | 7.0 | 4.0 | +0.050 ± 0.000 (3 of 3) | 3 |" in text
    # three patients of six are 0.1 better
    assert "| random initialisation | +0.050 | 0.25 | +0.50 | 0.25 | 6 | 1 |" in text


def test_the_figure_is_drawn_of_what_there_is(worth: ModuleType, tmp_path: Path) -> None:
    for fold in (1, 2, 3):
        result(worth, "fcl", fold, fold, {"a": [0.5], "b": [0.9]})
    worth.draw("sunnybrook", tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert "1 labelled patient a site" in text
    assert "FCL" in text
    assert "<!-- random initialisation -->" not in text
    for fold in (1, 2, 3):
        result(worth, "random", fold, fold, {"a": [0.4], "b": [0.9]})
    worth.draw("sunnybrook", tmp_path / "figure.svg")
    assert "<!-- random initialisation -->" in (tmp_path / "figure.svg").read_text()


def test_a_table_of_probes_alone_has_no_pass_to_show(worth: ModuleType) -> None:
    for fold in (1, 2, 3):
        result(worth, "fcl", fold, fold, {"a": [0.5], "b": [0.9]})
    assert "FCL" not in worth.table("sunnybrook", ["longer"])
