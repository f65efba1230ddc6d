"""A card says what the run's record says, and "not given" where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedmedseg
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.export.card import model_card
from fedmedseg.export.metadata import metadata_of
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


def points_record(*, missed: bool = True) -> dict[str, Any]:
    """A CNN of the root's points, of which two sites have any; a third trained and tested something else."""

    def tested(median: float, number: float) -> dict[str, Any]:
        metrics = {
            "points/cnn/RCC": 6.0, "distance/median/cnn/RCC": median, "distance/mean/cnn/RCC": median + 1,
            "points/cnn/LCC": 6.0, "distance/mean/cnn/LCC": 9.0, "missed/cnn/LCC": 5.0,
            "points/cnn/all points": 12.0, "dice/cnn/calcification": 0.5, "calcium/volume_error/cnn": 12.3,
        }  # fmt: skip
        return {"accepted": True, "metrics": metrics | ({"missed/cnn/RCC": number} if missed else {})}

    rounds = [
        {"stage": "teacher_hps", "round": 0, "accepted": list(SITES[:2]), "sites": {}},
        {"stage": "teacher_calc", "round": 0, "accepted": list(SITES), "sites": {}},
        {"stage": "evaluation", "round": 0, "sites": {SITES[0]: tested(2.0, 0.0), SITES[1]: tested(3.0, 1.0)}},
    ]
    return record(rounds=rounds)


def test_a_card_of_landmarks_tells_distances_and_how_many_were_missed(model_file: Callable[..., Path]) -> None:
    head = replace(exportable(load_for_inference(model_file())), labels={1: "RCC", 2: "LCC"})
    found = facts(points_record(), model="cnn", stages=("teacher_hps",))
    card = model_card(head, facts=found, licences=None, use="x")
    assert "| RCC | 2 | 2.5 | - | 3.5 | 1 of 12 |" in card
    assert "| LCC | 2 | none | - | 9.0 | 10 of 12 |" in card, "a median is infinite where most were missed"
    assert "| sites that trained | 2 |" in card
    assert "may fare worse than the worst site above" in card
    for other in ("calcification", "calcium", "was not measured", "no site told"):
        assert other not in card
    metrics = metadata_of(head, facts=found, licences=None)["eval_metrics"]
    assert metrics == {"distance/median/RCC": 2.5}, "nothing of another head"
    withheld = facts(points_record(missed=False), model="cnn")
    assert "| RCC | 2 | 2.5 | - | 3.5 | withheld |" in model_card(head, facts=withheld, licences=None, use="x")
    assert withheld.training_sites == 3


def test_a_card_of_calcification_tells_the_error_of_calcium(model_file: Callable[..., Path]) -> None:
    head = replace(exportable(load_for_inference(model_file())), labels={1: "calcification"})
    found = facts(points_record(), model="cnn", stages=("teacher_calc",))
    card = model_card(head, facts=found, licences=None, use="x")
    assert "| per scan | 2 | 12.3 | - |" in card
    assert "| calcification | 2 | 0.500 | - | - |" in card
    assert "RCC" not in card
    assert metadata_of(head, facts=found, licences=None)["eval_metrics"] == {
        "dice/calcification": 0.5,
        "calcium/volume_error": 12.3,
    }


def test_a_model_that_no_site_tested_or_trained_in_this_run_is_said_to_be_so(model_file: Callable[..., Path]) -> None:
    head = replace(exportable(load_for_inference(model_file())), labels={1: "MS1"})
    card = model_card(head, facts=facts(points_record(), model="cnn", stages=("teacher_ms",)), licences=None, use="x")
    assert "Not given: no site told a figure of a model of this name on what it marks." in card
    assert "| sites that trained | Not given. |" in card
    assert "was not measured" in card


def test_the_card_tells_who_trained_the_model_and_who_exported_it(model_file: Callable[..., Path]) -> None:
    source = exportable(load_for_inference(model_file()))
    with_run, alone = (
        model_card(source, facts=found, licences=None, use="x")
        for found in (facts(record(versions={"fedmedseg": "0.0.9"}), model="personal"), None)
    )
    assert "| trained with | fedmedseg 0.0.9 |" in with_run
    assert "| trained with | Not given. |" in alone
    for card in (with_run, alone):
        assert f"| exported with | fedmedseg {fedmedseg.__version__} |" in card


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
    with pytest.raises(ConfigurationError, match="no record at"):
        read_facts(tmp_path / "nothing", experiment="cd" * 32, run="r1", model="personal")
    for content in ("[", "[" * 100_000):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match="which is no JSON"):
            read_facts(file, experiment="cd" * 32, run="r1", model="personal")


@pytest.mark.parametrize(
    ("system", "start", "words"),
    [
        ("fedavg", "personal", "a site's own network"),
        ("fedavg", "shared", "of all sites together"),
        ("fedavg", "scratch", "of the federation it has nothing"),
        ("fedata", "personal", "begun from a site's own pretrained encoder"),
        ("fedata", "shared", "begun from the federation's pretrained encoder"),
        ("fedata", "scratch", "without any pretraining"),
    ],
)
def test_a_models_name_means_what_it_means_in_its_system(
    model_file: Callable[..., Path], system: str, start: str, words: str
) -> None:
    source = exportable(load_for_inference(model_file()))
    named = replace(source, origin=replace(source.origin, system=system, model=start))
    card = model_card(named, facts=None, licences=None, use="")
    assert words in card.split(f"| model | {start}: ")[1].split("\n")[0]
    # alone it is trained at one site; labels after a pretraining may have been learned together
    if (system, start) == ("fedata", "scratch"):
        for how, sites in (("local", "1"), ("federated", "2")):
            told = facts(record(settings={"segmentation": {"fine_tuning": how}}), model="scratch")
            assert f"| sites that trained | {sites} |" in model_card(named, facts=told, licences=None, use="")
    assert ("| sites that trained | 1 |" in card) == ((system, start) == ("fedavg", "scratch"))
