"""Supervised training: it learns, keeps its best weights, slows a pretrained encoder and continues exactly."""

from __future__ import annotations

import math

import pytest
import torch

from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.training import Aborted, run_steps
from fedmedseg.segmentation import objective as module
from fedmedseg.segmentation.objective import SupervisedObjective, encoder_rate_factor


def build(net, training, validation, experiment, pretrained=(), **options):
    return SupervisedObjective(
        model=net,
        training=training,
        validation=validation,
        experiment=experiment,
        pretrained=pretrained,
        device="cpu",
        **options,
    )


def test_two_convolutions_learn_bright_discs(make_experiment, make_task, make_net, discs):
    experiment = make_experiment(segmentation={"steps": 40, "validate_every": 20})
    objective = build(make_net(), discs(3), discs(2, seed=9), experiment)
    figures = run_steps(objective, task=make_task("fine_tuning", experiment=experiment), name="t", steps=40)
    assert math.isfinite(figures["loss"])
    assert objective.best_dice > 0.9


def test_the_best_weights_are_kept_and_among_equals_the_later(make_experiment, make_net, discs, monkeypatch):
    dices = iter([0.5, 0.8, 0.8, 0.3])
    seen = []

    def validate(model, **_):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(dices)

    monkeypatch.setattr(module, "validate", validate)
    experiment = make_experiment(segmentation={"steps": 7, "validate_every": 2})
    net = make_net()
    objective = build(net, discs(2), discs(1), experiment)
    for index in range(7):
        objective.step(index)
    assert len(seen) == 4  # after 2, 4, 6 and, as the end, 7 steps
    objective.finish()
    assert objective.best_dice == 0.8
    assert all(torch.equal(tensor, seen[2][name]) for name, tensor in net.state_dict().items())
    assert any(not torch.equal(tensor, seen[3][name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("scored", [False, True])
def test_without_any_validation_dice_the_last_weights_are_kept(make_experiment, make_net, discs, monkeypatch, scored):
    monkeypatch.setattr(module, "validate", lambda *_, **__: math.nan)
    net = make_net()
    objective = build(net, discs(2), discs(1) if scored else None, make_experiment())
    for index in range(6):
        objective.step(index)
    last = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    objective.finish()
    assert objective.best_dice is None
    assert all(torch.equal(tensor, last[name]) for name, tensor in net.state_dict().items())


def test_a_pretrained_encoder_learns_slower_during_the_first_tenth(make_experiment, make_net, discs):
    experiment = make_experiment(segmentation={"steps": 20, "encoder_rate_factor": 0.25})
    objective = build(make_net(), discs(1), None, experiment, pretrained=("0.weight", "0.bias"))
    rates = []
    for index in (0, 1, 2):
        objective.step(index)
        rates.append({group["pretrained"]: group["lr"] for group in objective._optimizer.param_groups})
    # 20 steps: two are slow; no warm-up, cosine from 0.01
    cosine = [0.01 * 0.5 * (1 + math.cos(math.pi * index / 20)) for index in (0, 1, 2)]
    assert [rate[False] for rate in rates] == pytest.approx(cosine)
    assert [rate[True] for rate in rates] == pytest.approx([cosine[0] / 4, cosine[1] / 4, cosine[2]])


def test_the_encoder_is_slow_for_the_share_of_the_steps_asked_for(make_experiment, make_net, discs):
    """Of 4 steps three quarters: the encoder's rate is a quarter of the decoder's in steps 0, 1 and 2."""
    experiment = make_experiment(
        segmentation={"steps": 4, "encoder_rate_factor": 0.25, "encoder_rate_share": 0.75, "validate_every": 9}
    )
    objective = build(make_net(), discs(1), None, experiment, pretrained=("0.weight", "0.bias"))
    shares = []
    for index in range(4):
        objective.step(index)
        rates = {group["pretrained"]: group["lr"] for group in objective._optimizer.param_groups}
        shares.append(rates[True] / rates[False])
    assert shares == pytest.approx([0.25, 0.25, 0.25, 1.0])


def test_the_slow_share_is_a_tenth_rounded_up():
    assert [encoder_rate_factor(0.1, index, 25, share=0.1) for index in (0, 2, 3, 24)] == [0.1, 0.1, 1.0, 1.0]
    assert [encoder_rate_factor(0.1, index, 25, share=1.0) for index in (0, 12, 24)] == [0.1, 0.1, 0.1]


def test_all_parameters_are_trained_and_each_once(make_experiment, make_net, discs):
    net = make_net()
    objective = build(net, discs(1), None, make_experiment(), pretrained=("0.weight",))
    trained = [tensor for group in objective._optimizer.param_groups for tensor in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, net.parameters()))


def test_unknown_pretrained_tensors_are_refused(make_experiment, make_net, discs):
    with pytest.raises(ConfigurationError, match=r"nowhere\.weight"):
        build(make_net(), discs(1), None, make_experiment(), pretrained=("nowhere.weight",))


def test_a_killed_training_continues_to_the_same_weights_and_figures(make_experiment, make_task, make_net, discs):
    experiment = make_experiment(segmentation={"steps": 8, "validate_every": 3})
    calls = iter([False] * 5 + [True])
    with pytest.raises(Aborted):
        run_steps(
            build(make_net(), discs(2), discs(1, seed=4), experiment),
            task=make_task("fine_tuning", experiment=experiment, aborted=lambda: next(calls)),
            name="cut",
            steps=8,
        )
    # another process: other objects, nothing in common but the disk
    again = make_net(seed=77)
    resumed = build(again, discs(2), discs(1, seed=4), experiment)
    figures = run_steps(resumed, task=make_task("fine_tuning", experiment=experiment), name="cut", steps=8)

    fresh = make_net()
    reference = build(fresh, discs(2), discs(1, seed=4), experiment)
    task = make_task("fine_tuning", experiment=experiment, run="run2")
    assert run_steps(reference, task=task, name="cut", steps=8) == figures
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert resumed.best_dice == reference.best_dice
    resumed.finish()
    reference.finish()
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(make_experiment, make_net, discs):
    net = make_net()
    objective = build(net, discs(1), None, make_experiment())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net[0].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FedMedSegError) as caught:
        objective.step(0)
    assert caught.value.reason == Reason.LOCAL_DIVERGED
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_task_with_the_weights_alone(make_experiment, make_task, make_net, discs):
    experiment = make_experiment()
    net = make_net()
    with torch.no_grad():
        net[2].bias[0] = math.nan
    kept = net[0].weight.clone()
    with pytest.raises(FedMedSegError) as caught:
        run_steps(
            build(net, discs(1), None, experiment),
            task=make_task("fine_tuning", experiment=experiment),
            name="n",
            steps=6,
        )
    assert caught.value.reason == Reason.LOCAL_DIVERGED
    assert torch.equal(net[0].weight, kept)


def test_a_validation_stops_between_volumes_when_asked(make_experiment, make_net, discs):
    objective = build(
        make_net(), discs(1), discs(2), make_experiment(segmentation={"validate_every": 1}), aborted=lambda: True
    )
    with pytest.raises(Aborted):
        objective.step(0)
