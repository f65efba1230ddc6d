"""What names of models mean where their readers differ."""

from __future__ import annotations

import pytest

from fedmedseg.core.config import systems
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.reporting.figures import MODEL_COLOURS
from fedmedseg.reporting.meanings import CARDS, legend, on_card
from fedmedseg.reporting.tables import MODELS
from fedmedseg.segmentation.stages import STARTS


@pytest.mark.parametrize("model", [*(name for name in STARTS if name != "untrained"), "cnn", "student"])
def test_every_model_that_a_run_can_leave_has_a_name_a_column_and_a_card(model: str) -> None:
    assert on_card(model) != model
    assert model in MODELS
    assert model in MODEL_COLOURS
    trained, pretrained = ({"rounds": [{"stage": stage}]} for stage in ("training", "pretraining"))
    assert legend(pretrained, [model])
    # a shared model beside personal ones is tested after a pretraining alone
    assert legend(trained, [model]) or model == "shared"


@pytest.mark.parametrize("job", systems())
def test_a_legend_speaks_of_pretraining_where_the_job_has_one(job: str) -> None:
    stages = read_settings(find_job(job), [])[1].stages
    metrics = {"best_round/personal": 2.0}
    record = {"rounds": [{"stage": stage, "sites": {"a": {"metrics": metrics}}} for stage in stages]}
    said = legend(record, ["personal", "scratch"])
    assert ("pretrain" in said) == ("pretraining" in stages)
    assert ("Fine-tuning was federated" in said) == ("pretraining" in stages)
    assert ("without the other sites" in said) == ("pretraining" not in stages)


@pytest.mark.parametrize("model", list(CARDS))
def test_a_card_begins_with_the_name_and_says_more(model: str) -> None:
    for options in ({}, {"pretrained": True}, {"new_layer": True}):
        assert on_card(model, **options).startswith(f"{model}: ")


def test_the_same_name_means_another_thing_after_pretraining_and_under_a_new_layer() -> None:
    assert on_card("scratch") != on_card("scratch", pretrained=True)
    assert "without any pretraining" in on_card("scratch", pretrained=True)
    assert on_card("cnn") != on_card("cnn", new_layer=True)
    assert "last layer learned anew" in on_card("cnn", new_layer=True)
    assert on_card("personal", new_layer=True) == on_card("personal"), "transfer learning has no such network"
    assert on_card("mine") == "mine"


def test_columns_of_a_federated_training_are_not_called_fine_tuning() -> None:
    metrics = {"dice/personal/liver": 0.5, "best_round/personal": 2.0}
    record = {"rounds": [{"stage": "training"}, {"stage": "evaluation", "sites": {"a": {"metrics": metrics}}}]}
    said = legend(record, ["personal", "scratch"])
    assert "trained in the federation" in said
    assert "without the other sites" in said
    assert "validated best there" in said
    assert "pretrain" not in said
