"""Cells: which there are, when a result is still good, and which trial wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.comparison.cells import (
    Cell,
    best_trial,
    cells_of,
    digest_of,
    is_current,
    known_methods,
    read_results,
    steps_of,
    trials_of,
    wanted,
)
from fedmedseg.comparison.study import Comparison
from fedmedseg.core.errors import ConfigurationError, DataError

Read = Callable[[dict[str, Any]], Comparison]
RATE = "segmentation.optimizer.learning_rate"


def keys(comparison: Comparison, out: Path) -> dict[str, str]:
    return {cell.method: cell.key for cell in cells_of(comparison, out)}


def test_every_method_meets_every_seed_and_amount_of_labels_first_seeds_first(
    content: dict[str, Any], read: Read, tmp_path: Path
) -> None:
    comparison = read(content | {"seeds": [2, 1], "labelled": {"fractions": [0.5, 1.0]}})
    cells = cells_of(comparison, tmp_path)
    assert len(cells) == wanted(comparison) == 12
    assert wanted(comparison, methods=["local"], seeds=[1]) == 2
    assert [cell.name for cell in cells][:4] == [
        "fedavg 50pc seed 2", "local 50pc seed 2", "central 50pc seed 2", "fedavg 100pc seed 2",
    ]  # fmt: skip
    assert [cell.seed for cell in cells] == [2] * 6 + [1] * 6
    assert len({cell.file for cell in cells}) == len({cell.key for cell in cells}) == 12
    few = cells_of(comparison, tmp_path, methods=["local"], seeds=[1])
    assert [cell.name for cell in few] == ["local 50pc seed 1", "local 100pc seed 1"]


def test_a_result_is_good_as_long_as_settings_and_data_are_the_same(
    content: dict[str, Any], read: Read, tmp_path: Path
) -> None:
    cell = cells_of(read(content), tmp_path)[0]
    assert not is_current(cell, None)
    cell.write({"data_sha256": "one", "figure": 1})
    assert is_current(cell, None)
    assert is_current(cell, "one")
    assert not is_current(cell, "other")
    assert read_results([cell], "one")[0]["figure"] == 1
    assert read_results([cell], "other") == []


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b'{"data_sha256": "d"', r"got no JSON: .* in line 1"),
        (b"", r"got no JSON"),
        (b"\xff\xfe", r"got UnicodeDecodeError"),
        (b"[]", r"got JSON without settings_sha256"),
        (b'{"data_sha256": "d"}', r"got JSON without settings_sha256"),
    ],
)
def test_a_damaged_result_names_its_file_and_the_mend_and_is_kept(
    content: dict[str, Any], read: Read, tmp_path: Path, damaged: bytes, words: str
) -> None:
    comparison = read(content)
    cells = cells_of(comparison, tmp_path)
    cells[1].write({"data_sha256": "d"})
    cells[0].file.write_bytes(damaged)
    for ask in (lambda: cells[0].is_done(), lambda: is_current(cells[0], "d"), lambda: read_results(cells)):
        with pytest.raises(DataError, match=rf"{cells[0].file.name}: {words}.*Remedy: remove the file"):
            ask()
    assert cells[0].file.read_bytes() == damaged
    # once it is taken away the cell is one that is missing
    cells[0].file.unlink()
    assert [is_current(cell, "d") for cell in cells] == [False, True, False]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda one: one["methods"]["local"].update(settings={"segmentation": {"batch": 3}}), {"local"}),
        (lambda one: one["settings"]["segmentation"].update(steps=3), {"fedavg", "local", "central"}),
        (lambda one: one.update(participation=0.5), {"fedavg"}),
        (lambda one: one["methods"]["local"].update(training="central"), {"local"}),
        (lambda one: one["data"]["phantom"].update(training=3), {"fedavg", "local", "central"}),
        (lambda one: one["data"].update(seed=2), {"fedavg", "local", "central"}),
        (lambda one: one["data"].update(dirichlet={"alpha": 1.0, "sites": 2}), {"fedavg", "local", "central"}),
        (lambda one: one["methods"]["local"].update(label="another name"), set()),
        (lambda one: one.update(against="fedavg", seeds=[1, 2]), set()),
    ],
)
def test_a_changed_setting_runs_its_own_cells_again_and_no_other(
    content: dict[str, Any], read: Read, tmp_path: Path, change: Callable[[dict[str, Any]], None], again: set[str]
) -> None:
    before = {cell.method: cell.key for cell in cells_of(read(content), tmp_path, seeds=[1])}
    change(content)
    after = {cell.method: cell.key for cell in cells_of(read(content), tmp_path, seeds=[1])}
    assert {method for method in before if before[method] != after[method]} == again


def with_trials(content: dict[str, Any]) -> dict[str, Any]:
    for method in content["methods"].values():
        method["trials"] = {RATE: [0.1, 0.2, 0.3]}
    return content


def validated(trials: list[Cell], figures: list[float]) -> None:
    for trial, figure in zip(trials, figures, strict=True):
        trial.write({"data_sha256": "d", "validation": figure})


def test_the_trial_that_validates_best_settles_its_method_once_all_are_there(
    content: dict[str, Any], read: Read, tmp_path: Path
) -> None:
    comparison = read(with_trials(content))
    trials = trials_of(comparison, tmp_path)
    assert [(one.method, one.chosen[RATE], one.file.name) for one in trials][:3] == [
        ("fedavg", 0.1, "fedavg-1.json"), ("fedavg", 0.2, "fedavg-2.json"), ("fedavg", 0.3, "fedavg-3.json"),
    ]  # fmt: skip
    assert cells_of(comparison, tmp_path) == []
    local = trials_of(comparison, tmp_path, methods=["local"])
    validated(local[:2], [0.5, 0.7])
    assert best_trial(comparison, "local", tmp_path) is None
    validated(local, [0.5, 0.7, 0.7])
    assert best_trial(comparison, "local", tmp_path, "d") == {RATE: 0.2}
    assert best_trial(comparison, "local", tmp_path, "other data") is None
    (cell,) = cells_of(comparison, tmp_path)
    assert (cell.method, cell.settings["segmentation"]["optimizer"]["learning_rate"]) == ("local", 0.2)
    # another winner is another cell
    validated(local, [0.9, 0.7, 0.7])
    assert cells_of(comparison, tmp_path)[0].key != cell.key


def test_a_trial_is_never_taken_for_a_cell_of_the_same_settings(
    content: dict[str, Any], read: Read, tmp_path: Path
) -> None:
    comparison = read(with_trials(content))
    validated(trials_of(comparison, tmp_path, methods=["local"]), [0.5, 0.4, 0.3])
    (cell,) = cells_of(comparison, tmp_path)
    first = trials_of(comparison, tmp_path, methods=["local"])[0]
    assert cell.settings == first.settings
    assert cell.key != first.key


def test_steps_count_every_stage_but_the_test(content: dict[str, Any], read: Read, tmp_path: Path) -> None:
    of = {cell.method: cell for cell in cells_of(read(content), tmp_path)}
    assert {name: steps_of(cell.experiment, 1.0, 2) for name, cell in of.items()} == {
        "fedavg": 2, "local": 2, "central": 2,
    }  # fmt: skip
    # two rounds of one step, half of the sites in each
    assert steps_of(of["fedavg"].experiment, 0.5, 2) == 1
    assert {name: cell.weight(2) for name, cell in of.items()} == {"fedavg": 4.0, "local": 4.0, "central": 2.0}


def test_a_method_that_the_study_has_not_is_told(content: dict[str, Any], read: Read) -> None:
    assert known_methods(read(content), ["local"]) == ["local"]
    assert known_methods(read(content), None) is None
    with pytest.raises(ConfigurationError, match=r"--method: got lokal"):
        known_methods(read(content), ["lokal"])


def test_a_digest_is_of_what_is_written_in_any_order() -> None:
    assert digest_of(1, {"a": 1, "b": 2}) == digest_of(1, {"b": 2, "a": 1}) != digest_of(2, {"a": 1, "b": 2})
    # fixed: benchmarks keep results under such keys
    assert digest_of(1, {"a": 1}) == "7bb31c49c80d0da6bfe7b8622aa87e4eab96c80658a5a87b25462bc4137476f6"


def test_a_result_is_json_with_its_key(content: dict[str, Any], read: Read, tmp_path: Path) -> None:
    cell = cells_of(read(content), tmp_path)[0]
    cell.write({"data_sha256": "d"})
    assert json.loads(cell.file.read_text()) == {"data_sha256": "d", "settings_sha256": cell.key}
    assert not list(tmp_path.rglob("*.tmp"))
