"""A card says what the run's record says, and "not given" where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.export.card import model_card
from fedmedseg.export.network import exportable
from fedmedseg.export.run_facts import facts, read_facts
from fedmedseg.segmentation.models import load_for_inference

SITES = ("hospital-a", "hospital-b", "hospital-c")


def record(**changes: Any) -> dict[str, Any]:
    """Two of three sites trained; all three tested. Dice of the disc: 0.6, 0.8 and 0.7."""

    def tested(dice: float) -> dict[str, Any]:
        metrics = {"dice/personal/disc": dice, "hd95/personal/disc": 10 * dice, "dice/scratch/disc": 0.1}
        return {"accepted": True, "metrics": metrics}

    rounds = [
        {"stage": "training", "round": 0, "accepted": ["hospital-a"], "sites": {}},
        {"stage": "training", "round": 1, "accepted": ["hospital-a", "hospital-b"], "sites": {}},
        {
            "stage": "evaluation",
            "round": 0,
            "accepted": list(SITES),
            "sites": {site: tested(dice) for site, dice in zip(SITES, (0.6, 0.8, 0.7), strict=True)},
        },
    ]
    return {
        "experiment_sha256": "cd" * 32,
        "run": "r1",
        "started": "2026-01-02T03:04:05+00:00",
        "outcome": "finished",
        "labels": {"1": "disc", "2": "bar"},
        "sites": list(SITES),
        "rounds": rounds,
    } | changes


def test_facts_are_means_over_sites_and_name_none() -> None:
    found = facts(record(), model="personal")
    assert (found.training_sites, found.finished) == (2, True)
    (disc,) = found.measured
    assert (disc.structure, disc.sites, disc.lowest, disc.highest) == ("disc", 3, 0.6, 0.8)
    assert disc.dice == pytest.approx(0.7)
    assert disc.hd95 == pytest.approx(7.0)
    assert facts(record(), model="shared").measured == ()


def test_the_card_tells_them(model_file: Callable[..., Path]) -> None:
    source = exportable(load_for_inference(model_file()))
    card = model_card(source, facts=facts(record(), model="personal"), licences="CC0 1.0", use="x")
    assert "| disc | 3 | 0.700 | 0.600 to 0.800 | 7.0 |" in card
    assert "| sites that trained | 2 |" in card
    assert "| data role | shapes |" in card
    assert "Research, not for diagnosis." in card
    assert "hospital" not in card, "no site is named"
    two = record()
    del two["rounds"][-1]["sites"]["hospital-b"]
    assert "| disc | 2 | 0.650 | - | " in model_card(
        source, facts=facts(two, model="personal"), licences=None, use="x"
    ), "the ends would be the two hospitals' own"
    bare = model_card(source, facts=None, licences=None, use="x")
    assert bare.count("Not given") >= 4
    assert "was not measured" in bare


def test_a_record_is_found_beside_its_report_and_must_be_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    file = tmp_path / "report" / "run.json"
    file.write_text(json.dumps(record()))
    for place in (file, tmp_path / "report", tmp_path):
        assert read_facts(place, experiment="cd" * 32, run="r1", model="personal").training_sites == 2
    with pytest.raises(ConfigurationError, match="the record of experiment cdcdcdcdcdcdcdcd"):
        read_facts(file, experiment="ab" * 32, run="r1", model="personal")
    for run, words in (("r2", "the record of run r1.*which trained the model, r2"), ("", "a model that names its run")):
        with pytest.raises(ConfigurationError, match=words):
            read_facts(file, experiment="cd" * 32, run=run, model="personal")
    with pytest.raises(ConfigurationError, match=r"no run\.json"):
        read_facts(tmp_path / "nothing", experiment="cd" * 32, run="r1", model="personal")
    file.write_text("[")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_facts(file, experiment="cd" * 32, run="r1", model="personal")
