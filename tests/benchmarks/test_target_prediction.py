"""What prediction saves: cells are the settings they are called, a call goes on where one ended, tables are right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedmedseg.core.config import parse_experiment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "target_prediction.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    # what a script finds beside itself
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("target_prediction", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "target_prediction", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_cells_are_valid_studies_of_forty_rounds_of_what_they_are_called(script: ModuleType) -> None:
    for cell in script.traffic_cells():
        experiment = parse_experiment(cell.settings())
        assert experiment.wing.mode == cell.name
        assert experiment.stages["pretraining"].rounds >= 40
    for steps, momentum in script.FIDELITY:
        cell = next(one for one in script.fidelity_cells() if one.name == f"steps{steps}-momentum{momentum}-seed1")
        section = parse_experiment(cell.settings()).wing
        assert (section.mode, section.local_steps, section.momentum) == ("ptnu", steps, momentum)


def test_both_sides_of_the_dice_differ_in_their_mode_alone(script: ModuleType) -> None:
    cells = script.dice_cells()
    assert len({cell.settings()["seed"] for cell in cells}) >= 3
    for both, predicted in zip(cells[::2], cells[1::2], strict=True):
        one, other = both.settings(), predicted.settings()
        assert (one["fclopt"].pop("mode"), other["fclopt"].pop("mode")) == ("both", "ptnu_dp")
        assert one == other


def written(script: ModuleType, cell: Any, **content: Any) -> None:
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    wing = cell.settings()["fclopt"]
    figures = {"settings_sha256": cell.key, "mode": wing["mode"], "seed": cell.settings()["seed"], **content}
    cell.file.write_text(json.dumps(figures))


def test_a_cell_of_other_settings_is_not_done(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = script.traffic_cells()[0]
    assert not cell.is_done()
    written(script, cell)
    assert cell.is_done()
    monkeypatch.setattr(script, "REVISION", script.REVISION + 1)
    assert not cell.is_done()


def test_a_call_starts_nothing_after_its_time_and_nothing_twice(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(script, "run_cell", lambda cell, work: ran.append(cell.name))
    written(script, script.traffic_cells()[0], traffic=[{"site-1": {"up": 1, "down": 1}}])
    arguments = ["x", "--parts", "traffic", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0"])
    script.main()
    assert ran == []
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert ran == ["ptnu", "ptnu_dp", "closed_form", "naive", "keep_local", "online"]


def test_the_tables_say_what_the_cells_hold(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    both, _, predicted = script.traffic_cells()[:3]
    written(script, both, traffic=[{"site-1": {"up": 6000, "down": 4000}}])
    written(script, predicted, traffic=[{"site-1": {"up": 4000, "down": 2000}}, {"site-1": {"up": 2000, "down": 2000}}])
    script.print_traffic()
    assert "| `ptnu_dp` | 3.0 kB | 2.0 kB | 5.0 kB | 0.500 |" in capsys.readouterr().out
    for cell in script.dice_cells():
        shared = 0.8 if cell.settings()["fclopt"]["mode"] == "both" else 0.79
        written(script, cell, dice={"shared": {"site-1": shared}, "scratch": {"site-1": 0.7}})
    script.print_dice()
    printed = capsys.readouterr().out
    assert "| 1 | 0.800 | 0.790 | -0.010 | 0.700 |" in printed
    assert "difference over 3 seeds: -0.010 ± 0.000" in printed
    for cell in script.fidelity_cells():
        errors = {"naive_error": [9.0, 0.2, 0.4], "error": [9.0, 0.1, 0.1], "corrected_error": [9.0, 0.05, 0.05]}
        wing = cell.settings()["fclopt"]
        written(script, cell, local_steps=wing["local_steps"], momentum=wing["momentum"], **errors)
    script.print_fidelity()
    assert "| 20 | 0.99 | 0.300 | 0.100 | 0.050 | 2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_cell_runs_to_its_end(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    phantom = {"family": "cine_mr", "sites": 2, "unlabeled": 2, "training": 1, "validation": 1, "test": 1}
    monkeypatch.setitem(script.SMALL, "data", {"crop": [32, 32], "phantom": phantom})
    monkeypatch.setitem(script.SMALL, "segmentation", {"steps": 2, "validate_every": 2, "test_untrained": False})
    changes = {"stages": {"pretraining": {"rounds": 2}}, "fclopt": {"mode": "ptnu_dp", "local_steps": 1}}
    cell = script.Cell("dice", "ptnu_dp-seed1", changes)
    script.run_cell(cell, tmp_path / "work")
    result = json.loads(cell.file.read_text())
    assert cell.is_done()
    assert len(result["traffic"]) == 2
    assert set(result["dice"]["shared"]) == {"site-1", "site-2"}
