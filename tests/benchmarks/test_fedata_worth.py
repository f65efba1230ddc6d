"""The study of what FedATA is worth: methods are the settings they are called, cells resume, the table counts right."""

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

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fedata_worth.py"


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    # what a script finds beside itself
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("fedata_worth", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fedata_worth", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.mark.parametrize("study", ["sunnybrook", "hippocampus"])
def test_every_method_is_a_valid_study_on_the_same_network_data_and_budget(worth: ModuleType, study: str) -> None:
    experiments = {name: parse_experiment(worth.Cell(study, name, 0.25, 1).settings()) for name in worth.METHODS}
    first = experiments["fedata"]
    for name, one in experiments.items():
        assert (one.network, one.data, one.seed) == (first.network, first.data, first.seed), name
        assert one.segmentation.model_copy(update={"fine_tuning": "local"}) == first.segmentation, name
        pretrained = one.stages["pretraining"].rounds > 0
        assert pretrained == (name not in ("no_pretraining", "fedavg_scratch"))
        if pretrained:
            same = (one.stages["pretraining"].rounds, one.wing.local_steps, one.wing.optimizer)
            assert same == (first.stages["pretraining"].rounds, first.wing.local_steps, first.wing.optimizer), name
    assert experiments["fedavg_scratch"].segmentation.fine_tuning == "federated"
    assert {name: one.wing.pretext for name, one in experiments.items() if one.wing.pretext != "distillation"} == {
        "fed_mae": "mae",
        "fed_simmim": "simmim",
    }
    assert experiments["fedema"].wing.client_mix == "fedema"
    assert experiments["local_only"].wing.server_aggregation == "none"


def test_every_probe_changes_what_its_name_says(worth: ModuleType) -> None:
    of = {name: parse_experiment(worth.Cell("sunnybrook", name, 0.25, 1).settings()) for name in worth.PROBES}
    base = parse_experiment(worth.Cell("sunnybrook", "fedata", 0.25, 1).settings())
    assert of["still"].segmentation.encoder_rate_factor < 1e-8
    assert of["one_step_still"].stages["pretraining"].rounds * of["one_step_still"].wing.local_steps == 1
    for name, times in (("longer", 4), ("longest", 10)):
        assert of[name].stages["pretraining"].rounds == times * base.stages["pretraining"].rounds
    assert base.wing.ala.normalise
    assert not of["published_mixing"].wing.ala.normalise
    assert of["small_crops"].data.crop == of["small_crops_scratch"].data.crop == (64, 64) != base.data.crop
    for long in ("long_tuning", "long_tuning_scratch"):
        assert of[long].segmentation.steps == 4 * base.segmentation.steps
    assert of["long_tuning_scratch"].stages["pretraining"].rounds == 0 < of["long_tuning"].stages["pretraining"].rounds
    together = parse_experiment(worth.Cell("sunnybrook", "fedavg_scratch", 0.25, 1).settings())
    assert of["fedata_together"].segmentation == together.segmentation
    assert of["fedata_together"].stages["fine_tuning"] == together.stages["fine_tuning"]
    assert of["fedata_together"].stages["pretraining"] == base.stages["pretraining"]
    assert of["slow_encoder"].segmentation.encoder_rate_share == 1.0


def result(worth: ModuleType, method: str, seed: int, dice: dict[str, float]) -> dict[str, Any]:
    cell = worth.Cell("sunnybrook", method, 0.25, seed)
    content = {
        "method": method,
        "labelled_fraction": 0.25,
        "seed": seed,
        "settings_sha256": cell.key,
        "labelled_patients": dict.fromkeys(dice, 2),
        "sites": {site: {"dice/x/left ventricle": value, "hd95/x/left ventricle": 9.0} for site, value in dice.items()},
    }
    cell.file.parent.mkdir(exist_ok=True)
    cell.file.write_text(json.dumps(content))
    return content


def test_a_cell_is_done_while_its_settings_are_those_it_was_run_with(worth: ModuleType) -> None:
    cell = worth.Cell("sunnybrook", "fedata", 0.25, 1)
    assert not cell.is_done()
    content = result(worth, "fedata", 1, {"a": 0.5})
    assert cell.is_done()
    cell.file.write_text(json.dumps(content | {"settings_sha256": "other"}))
    assert not cell.is_done()


def test_the_table_gives_mean_spread_and_worst_site_over_seeds(worth: ModuleType) -> None:
    result(worth, "fedata", 1, {"a": 0.4, "b": 0.8})
    result(worth, "fedata", 2, {"a": 0.6, "b": 0.6})
    result(worth, "still", 1, {"a": 0.1, "b": 0.1})
    text = worth.table("sunnybrook", ["fedata"])
    # means 0.6 and 0.6; worst sites 0.4 and 0.6
    assert "| FedATA | 0.500 | 0.700 | 0.600 ± 0.000 | 0.500 |  | 2 |" in text
    assert "labelled patients: a 2, b 2" in text
    assert "still" not in text


def test_the_table_compares_seed_by_seed_with_no_pretraining(worth: ModuleType) -> None:
    for seed, (with_it, without) in enumerate(((0.5, 0.4), (0.9, 1.0), (0.7, 0.4)), start=1):
        result(worth, "fedata", seed, {"a": with_it})
        result(worth, "no_pretraining", seed, {"a": without})
    result(worth, "fedata", 4, {"a": 0.0})
    text = worth.table("sunnybrook", ["fedata", "no_pretraining"])
    # differences 0.1, -0.1 and 0.3: mean 0.1, SD 0.2; the fourth seed has nobody to compare with
    assert "| +0.100 ± 0.200 (2 of 3) | 4 |" in text
    assert "| no pretraining, local | 0.600 | 0.600 ± 0.346 | 0.600 |  | 3 |" in text


def test_cells_come_seed_by_seed_so_that_an_early_end_compares_all_methods(worth: ModuleType) -> None:
    cells = worth.cells_of("sunnybrook", ["fedata", "fedema"])
    assert [(cell.seed, cell.method) for cell in cells[:6:3]] == [(1, "fedata"), (1, "fedema")]
    assert len(cells) == 18


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("method", ["fedavg_scratch", "fedata"])
def test_a_cell_does_not_depend_on_what_its_group_ran_before(
    worth: ModuleType, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = tmp_path / "sites"
    sites.mkdir()
    counts = {"unlabeled": 0, "training": 2, "validation": 1, "test": 1}
    for index, name in enumerate(("a", "b")):
        written = write_site("cine_mr", site_index=index, out=tmp_path / name, seed=1, counts=counts)
        (sites / f"{name}.yaml").write_text(f"datasets: {{cmr: {{list: {written}}}}}\n")
    tiny: dict[str, Any] = {
        "data": {"phantom": None},
        "stages": {"pretraining": {"rounds": 2 * (method == "fedata")}},
        "fedata": {"local_steps": 1},
        "segmentation": {"steps": 4, "batch": 1, "validate_every": 2, "test_untrained": False},
    }
    if method != "fedata":
        tiny["segmentation"]["fine_tuning"] = "federated"
        tiny["stages"]["fine_tuning"] = {"rounds": 2}
    tiny["fedata"]["starts"] = ["personal" if method == "fedata" else "scratch"]

    def settings(cell: Any) -> dict[str, Any]:
        own = {"data": {"labelled_fraction": cell.fraction}}
        return read_settings(find_job("fedata"), [tiny, own])[0]

    monkeypatch.setattr(worth.Cell, "settings", settings)
    half, whole = (worth.Cell("phantoms", method, fraction, 1) for fraction in (0.5, 1.0))
    found = []
    for number, group in enumerate(([half, whole], [whole])):
        worth.run_group(group, sites, tmp_path / f"work-{number}", time.time() + 600)
        found.append(json.loads(whole.file.read_text()))
    for field in ("shared_sha256", "sites", "validation", "patients", "labelled_patients"):
        together, alone = (
            {site: {k: v for k, v in one[field][site].items() if k != "seconds"} for site in one[field]}
            if field == "sites"
            else one[field]
            for one in found
        )
        assert together == alone, field
    assert found[0]["labelled_patients"] == {"a": 2, "b": 2}
    assert json.loads(half.file.read_text())["labelled_patients"] == {"a": 1, "b": 1}


def test_without_site_files_nothing_is_begun(
    worth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--sites", str(tmp_path / "nowhere")], []):
        monkeypatch.setattr(sys, "argv", ["fedata_worth.py", "sunnybrook", *options])
        with pytest.raises(SystemExit):
            worth.main()
        assert "folder of site files" in capsys.readouterr().err
