"""What names of models mean where their readers differ."""

from __future__ import annotations

import pytest

from fedmedseg.reporting.meanings import CARDS, legend, on_card


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
