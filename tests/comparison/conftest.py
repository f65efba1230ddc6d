"""A comparison on the smallest phantoms, and results as a run would have left them."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmedseg.comparison.cells import Cell, cells_of
from fedmedseg.comparison.study import Comparison, read_comparison


@pytest.fixture(autouse=True)
def _level_as_it_was() -> Iterator[None]:
    """A cell is quiet in its process; other tests hear the package as before."""
    package = logging.getLogger("fedmedseg")
    level = package.level
    yield
    package.setLevel(level)


TRAINED = {"fedavg": {"starts": ["personal"]}, "stages": {"training": {"rounds": 2}, "fine_tuning": {"rounds": 0}}}


@pytest.fixture
def content() -> dict[str, Any]:
    """A study's file, to be changed by the test."""
    phantom = {"family": "cine_mr", "sites": 2, "unlabeled": 0, "training": 2, "validation": 1, "test": 2}
    made: dict[str, Any] = {
        "study": "small",
        "seeds": [1],
        "data": {"phantom": {**phantom, "size": [48, 48, 4]}},
        "settings": {
            "data": {"crop": [32, 32]},
            "network": {"name": "unet", "channels": [4, 8]},
            "segmentation": {"steps": 2, "batch": 2, "validate_every": 1, "augment": False},
        },
        "against": "local",
        "methods": {
            "fedavg": {"system": "fedavg", "label": "FedAvg", "settings": TRAINED},
            "local": {"system": "fedavg", "training": "local", "presets": ["local"]},
            "central": {"system": "fedavg", "training": "central", "presets": ["local"]},
        },
    }
    # a test may change it deep inside
    return copy.deepcopy(made)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[dict[str, Any]], Comparison]:
    """read(content): the study as its file is read."""

    def make(content: dict[str, Any]) -> Comparison:
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return read_comparison(file)

    return make


def patients(*figures: float | None) -> list[dict[str, dict[str, float | None]]]:
    """Patients with one structure: Dice as given, HD95 twenty times that."""
    return [{"heart": {"dice": dice, "hd95": None if dice is None else 20 * dice, "failures": 0.0}} for dice in figures]


def result(cell: Cell, of_sites: dict[str, list[dict[str, dict[str, float | None]]]], **changes: Any) -> dict[str, Any]:
    """What the cell would have left."""
    from fedmedseg.comparison.patients import figures_of

    federated = cell.training == "federated"
    return {
        "method": cell.method, "labelled": cell.level.name, "seed": cell.seed, "model": cell.model,
        "chosen": dict(cell.chosen), "steps_a_site": 2, "parameters": 1234, "data_sha256": "d",
        "sites": {site: figures_of(found) for site, found in of_sites.items()}, "patients": of_sites,
        "tested": {site: [f"{site}{number}" for number in range(len(found))] for site, found in of_sites.items()},
        "unpredicted": dict.fromkeys(of_sites, 0), "site_seconds": dict.fromkeys(of_sites, 3.0), "seconds": 7.0,
        "process_peak_mb": 500.0,
        "megabytes": {site: {"down": 2.0, "up": 1.0} for site in of_sites} if federated else {}, **changes,
    }  # fmt: skip


@pytest.fixture
def left(read: Callable[..., Comparison], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """left(content, {(method, labelled, seed): {site: patients}}): the results, as files and as they are read."""

    def make(content: dict[str, Any], found: dict[tuple[str, str, int], Any]) -> list[dict[str, Any]]:
        written = []
        for cell in cells_of(read(content), tmp_path / "out"):
            key = (cell.method, cell.level.name, cell.seed)
            if key in found:
                cell.write(result(cell, found[key]))
                written.append(json.loads(cell.file.read_text()))
        return written

    return make
