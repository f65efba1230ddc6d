"""Learning curves: a panel for each stage and figure that has more than one round, a line for each site."""

from __future__ import annotations

from typing import Any

import pytest
import records

from fedmedseg.reporting.curves import MOST_PANELS, curves, draw_curves
from fedmedseg.reporting.report import render


def study(stage: str, *rounds: dict[str, float], site: str = "a") -> dict[str, Any]:
    """One site's figures, round by round."""
    history = [
        records.one_round(stage, number, len(rounds), {site: records.answer(metrics=metrics)})
        for number, metrics in enumerate(rounds)
    ]
    return {"sites": [site], "rounds": history}


def test_a_stage_keeps_to_itself_and_one_round_is_no_curve() -> None:
    record = study("training", {"loss": 1.0}, {"loss": 0.5})
    record["rounds"] += study("fine_tuning", {"loss": 9.0})["rounds"]
    (curve,) = curves(record)
    assert (curve.stage, curve.metric, curve.sites) == ("training", "loss", {"a": [(1, 1.0), (2, 0.5)]})
    assert curve.told == "training: loss: a from 1 to 0.5"


@pytest.mark.parametrize(
    ("metrics", "titles"),
    [
        ({"loss": 1.0, "loss/dice": 0.5}, ["training: loss"]),
        ({"loss/personal": 1.0, "loss/scratch": 1.0}, ["training: loss, personal", "training: loss, local"]),
        ({"loss": 1.0, "loss_personal": 0.2}, ["training: loss", "training: loss, personal"]),
        ({"loss": 1.0, "validation_dice/shared": 0.2}, ["training: loss", "training: validation Dice, shared"]),
        ({"set_aside": 1.0}, []),
    ],
)
def test_terms_of_a_loss_have_no_panel_of_their_own(metrics: dict[str, float], titles: list[str]) -> None:
    assert [curve.title for curve in curves(study("training", metrics, metrics))] == titles


def test_only_accepted_replies_count_and_a_gap_stays_a_gap() -> None:
    record = study("training", {"loss": 1.0}, {"loss": 5.0}, {"loss": 0.2})
    record["rounds"][1]["sites"]["a"]["accepted"] = False
    (curve,) = curves(record)
    assert curve.sites["a"] == [(1, 1.0), (3, 0.2)]


def test_every_curve_has_its_panel_and_dice_its_whole_scale() -> None:
    metrics = {"loss": 1.0, "validation_dice/personal": 0.4, "validation_dice/shared": 0.5}
    figure = draw_curves(study("training", metrics, metrics))
    assert figure is not None
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert len(panels) == 3
    assert [panel.get_ylim() for panel in panels[1:]] == [(0.0, 1.0)] * 2
    assert draw_curves({"rounds": []}) is None


def test_a_flood_of_figures_is_no_flood_of_panels() -> None:
    metrics = {f"validation_dice/{number}": 0.5 for number in range(40)}
    record = study("training", metrics, metrics)
    figure = draw_curves(record)
    assert figure is not None
    assert len([panel for panel in figure.axes if panel.get_visible()]) == MOST_PANELS
    page = render(record, {"curves": "<svg/>"})
    assert "28 more are not drawn" in page
    assert page.count("validation Dice, ") == MOST_PANELS
    few = study("training", {"loss": 1.0}, {"loss": 0.5})
    assert "not drawn" not in render(few, {"curves": "<svg/>"})
