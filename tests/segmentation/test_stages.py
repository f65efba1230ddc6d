"""Contracts of the last two stages, and the rules of a federated fine-tuning."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.wire import Part
from fedmedseg.segmentation.stages import (
    fine_tuned_tensors,
    network_of,
    segmentation_stages,
    segmentation_work,
    wire_name,
)
from fedmedseg.segmentation.together import better, is_due, steps_of_round

FEDERATED = {
    "segmentation": {"fine_tuning": "federated"},
    "stages": {"fine_tuning": {"rounds": 2}},
    "fedata": {"starts": ["shared", "scratch"]},
}


SCRATCH = {"stages": {"pretraining": {"rounds": 0}}, "fedata": {"starts": ["scratch"]}}


def test_a_part_holds_the_names_that_begin_as_it_says():
    part = Part(within=("vit.", "head"), without=("vit.norm",))
    assert [part.holds(name) for name in ("vit.block", "vit.norm.weight", "head", "mask")] == [True, False, True, False]
    assert Part().holds("anything")
    assert not Part(within=()).holds("anything")


def test_local_fine_tuning_returns_figures_and_sends_no_decoder(make_experiment):
    stages = segmentation_stages(make_experiment())
    assert (stages["fine_tuning"].returns, stages["evaluation"].sends) == ("metrics", "nothing")
    assert fine_tuned_tensors(make_experiment()) == {}


def test_federated_fine_tuning_sends_the_encoder_once_and_returns_the_networks_alone(make_experiment):
    stages = segmentation_stages(make_experiment(**FEDERATED))
    tuning = stages["fine_tuning"]
    encoder, network = "swinViT.patch_embed.proj.weight", wire_name("shared", "swinViT.patch_embed.proj.weight")
    assert [tuning.sent_in(0).holds(name) for name in (encoder, network)] == [True, True]
    assert [tuning.sent_in(1).holds(name) for name in (encoder, network)] == [False, True]
    assert [tuning.returned.holds(name) for name in (encoder, network)] == [False, True]
    assert stages["evaluation"].sent_in(0) == tuning.returned


def test_every_start_begins_with_the_same_network(make_experiment):
    tensors = fine_tuned_tensors(make_experiment(**FEDERATED))
    shared, scratch = network_of("shared", tensors), network_of("scratch", tensors)
    assert shared.keys() == scratch.keys()
    assert len(shared) + len(scratch) == len(tensors)
    assert all(torch.equal(shared[name], scratch[name]) for name in shared)
    assert any(name.startswith("decoder") for name in shared)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"stages": {"fine_tuning": {"rounds": 2}}},
            "stages.fine_tuning.rounds.*set it to 1 and give segmentation.steps",
        ),
        (
            {"stages": {"fine_tuning": {"rounds": 0}}},
            "stages.fine_tuning.rounds: got 0.*set it to 1, or take .*scratch out of fedata.starts",
        ),
        ({"stages": {"evaluation": {"rounds": 2}}}, "stages.evaluation.rounds"),
        (FEDERATED | {"stages": {"fine_tuning": {"rounds": 7}}}, "stages.fine_tuning.rounds"),
        (FEDERATED | {"fedata": {"starts": ["personal"]}}, "fedata.starts"),
        ({"stages": {"pretraining": {"rounds": 0}}}, "fedata.starts"),
        (SCRATCH | {"segmentation": {"encoder_rate_factor": 0.3}}, "segmentation.encoder_rate_factor: got 0.3"),
        (SCRATCH | {"segmentation": {"encoder_rate_share": 1.0}}, "segmentation.encoder_rate_share: got 1.0"),
    ],
)
def test_rounds_and_starts_that_cannot_run_are_refused(make_experiment, changes, field):
    with pytest.raises(ConfigurationError, match=field):
        make_experiment(**changes)


def test_the_rounds_share_the_steps_without_losing_one():
    shares = [steps_of_round(number, 3, 10) for number in range(3)]
    assert shares == [(0, 3), (3, 3), (6, 4)]
    assert [steps_of_round(number, 5, 100)[1] for number in range(5)] == [20] * 5


def test_of_equal_rounds_the_longer_trained_is_kept_and_without_validation_the_last():
    cases = [(0.5, None), (0.5, 0.5), (0.6, 0.5), (0.4, 0.5), (None, None), (None, 0.5)]
    assert [better(dice, kept) for dice, kept in cases] == [True, True, True, False, True, False]


def test_a_federated_training_validates_where_a_local_one_would_and_at_its_end():
    """150 steps in 5 rounds end at 30, 60, 90, 120, 150; a local training that validates every 75 steps does twice."""
    assert [is_due(number, 5, 150, 75) for number in range(1, 6)] == [False, False, True, False, True]
    assert [is_due(number, 5, 150, 30) for number in range(1, 6)] == [True] * 5
    assert [is_due(number, 5, 150, 1000) for number in range(1, 6)] == [False] * 4 + [True]


def test_the_work_of_a_round_is_a_rounds_share_and_the_untrained_network_counts_where_it_is_tested(make_experiment):
    """6 steps for each of three starts, two test cases: 18 and 8; in two rounds of two starts 2 x 3 and 6."""
    assert segmentation_work(make_experiment()) == {"fine_tuning": 18, "evaluation": 8}
    assert segmentation_work(make_experiment(**FEDERATED)) == {"fine_tuning": 6, "evaluation": 6}
    alone = make_experiment(segmentation={"test_untrained": False})
    assert segmentation_work(alone) == {"fine_tuning": 18, "evaluation": 6}
