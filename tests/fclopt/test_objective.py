"""One step at a site: the loss it takes, what moves, the rate, and every switch of it."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.seeding import seed_everything
from fedmedseg.fclopt.config import RateSection
from fedmedseg.fclopt.losses import symmetric_loss
from fedmedseg.fclopt.network import floating, parameters_of
from fedmedseg.fclopt.objective import BootstrapObjective, round_rate

Make = Callable[..., BootstrapObjective]


@pytest.fixture
def make(study: Callable[..., Experiment], volumes: Any) -> Make:
    """make(momentum=0.5): an objective at the start of a round."""

    def build(*args: Any, **kwargs: Any) -> BootstrapObjective:
        torch.manual_seed(0)
        return BootstrapObjective(experiment=study(*args, **kwargs), volumes=volumes, device=torch.device("cpu"))

    return build


def stepped(objective: BootstrapObjective, index: int = 0) -> dict[str, float]:
    seed_everything(index)
    return dict(objective.step(index))


def online(objective: BootstrapObjective) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in floating(objective.online).items()}


def test_a_step_moves_both_networks_and_tells_its_figures(make: Make) -> None:
    objective = make()
    before, target = online(objective), objective.followed()
    figures = stepped(objective)
    assert set(figures) == {"loss", "loss/structural", "feature_std"}
    weights = {name: tensor for name, tensor in parameters_of(objective.online).items() if "weight" in name}
    assert all(not torch.equal(tensor, before[name]) for name, tensor in weights.items())
    after = objective.followed()
    for name in target:
        expected = 0.9 * target[name] + 0.1 * objective.trained()[name]
        assert torch.allclose(after[name], expected, atol=1e-6), name


def test_an_objective_frees_its_networks_without_the_collector(make: Make) -> None:
    made = make()
    seed_everything(1)
    made.batches.next()
    gone = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()


def test_a_batch_made_beside_the_step_before_it_changes_no_bit(make: Make) -> None:
    plain, ahead = make(), make()
    for index in range(2):
        stepped(plain, index)
    seed_everything(0)
    ahead.expect(1)
    ahead.step(0)
    assert ahead.batches._coming, "made beside the step"
    stepped(ahead, 1)
    assert not ahead.batches._coming, "and taken"
    assert all(torch.equal(tensor, online(ahead)[name]) for name, tensor in online(plain).items())
    ahead.expect(2)
    ahead.begin(round=1, rounds=3)
    assert not ahead.batches._coming, "a new round expects nothing of the one before"


def test_the_rate_stands_still_in_a_round_and_falls_over_rounds(make: Make) -> None:
    section = RateSection(learning_rate=0.1)
    assert [round_rate(section, number, 4) for number in range(4)] == pytest.approx(
        [0.1 * 0.5 * (1 + math.cos(math.pi * number / 4)) for number in range(4)]
    )
    assert round_rate(RateSection(learning_rate=0.1, schedule="constant"), 3, 4) == 0.1
    objective = make()
    objective.begin(round=1, rounds=2)
    rates = []
    for index in range(2):
        stepped(objective, index)
        rates.append(objective.optimizer.param_groups[0]["lr"])
    assert rates == [pytest.approx(0.016)] * 2


def test_the_structural_positive_is_a_switch(make: Make) -> None:
    without = stepped(make(structural_weight=0.0))
    some, more = stepped(make(structural_weight=0.5)), stepped(make(structural_weight=1.0))
    assert "loss/structural" not in without
    assert some["loss"] == pytest.approx(without["loss"] + 0.5 * some["loss/structural"], abs=1e-5)
    assert more["loss"] == pytest.approx(without["loss"] + more["loss/structural"], abs=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"parts": 1}, {"parts": 3}),
        ({"volumes_per_step": 2}, {"volumes_per_step": 3}),
        ({"head_norm": True}, {"head_norm": False}),
        ({"partition": "even", "parts": 4}, {"partition": "rounded_width", "parts": 4}),
        ({"hidden": 8}, {"hidden": 6}),
        ({"projection": 4}, {"projection": 3}),
    ],
    ids=str,
)
def test_switches_change_what_is_learned(one: dict[str, Any], other: dict[str, Any], make: Make) -> None:
    assert stepped(make(**one))["loss"] != stepped(make(**other))["loss"]


@pytest.mark.parametrize("switch", [{"learning_rate": 0.1}, {"momentum": 0.0}, {"weight_decay": 0.1}])
def test_the_optimisers_settings_reach_it(switch: dict[str, float], make: Make) -> None:
    usual, changed = make(), make(optimizer=switch)
    for objective in (usual, changed):
        for index in range(2):
            stepped(objective, index)
    assert any(not torch.equal(usual.trained()[name], changed.trained()[name]) for name in usual.trained())


def test_the_targets_momentum_is_a_switch(make: Make) -> None:
    still, moving = make(momentum=0.99), make(momentum=0.0)
    for objective in (still, moving):
        stepped(objective)
    trained = moving.trained()
    assert all(torch.allclose(tensor, trained[name], atol=1e-7) for name, tensor in moving.followed().items())
    assert any(
        not torch.allclose(tensor, still.trained()[name], atol=1e-4) for name, tensor in still.followed().items()
    )


def test_a_step_depends_on_its_seed_alone(make: Make) -> None:
    one, other = make(), make()
    stepped(one, 0)
    torch.randn(7)
    stepped(other, 0)
    assert all(torch.equal(one.trained()[name], other.trained()[name]) for name in one.trained())


def test_a_loss_that_is_no_number_touches_neither_network(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmedseg.fclopt import objective as module

    objective = make()
    monkeypatch.setattr(module, "symmetric_loss", lambda *views: symmetric_loss(*views) * float("nan"))
    before, target = (
        {name: t.detach().clone() for name, t in parameters_of(objective.online).items()},
        objective.followed(),
    )
    with pytest.raises(FedMedSegError, match="finite"):
        stepped(objective)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parameters_of(objective.online).items())
    assert all(torch.equal(tensor, target[name]) for name, tensor in objective.followed().items())


def test_a_killed_round_goes_on_to_the_same_bits(make: Make) -> None:
    whole, killed, again = make(), make(), make()
    for index in range(4):
        stepped(whole, index)
    for index in range(2):
        stepped(killed, index)
    again.restore(killed.state())
    for index in range(2, 4):
        stepped(again, index)
    assert all(torch.equal(whole.trained()[name], again.trained()[name]) for name in whole.trained())
    assert all(torch.equal(whole.followed()[name], again.followed()[name]) for name in whole.followed())


def test_a_round_starts_from_what_it_is_given_statistics_included(make: Make) -> None:
    objective = make()
    stepped(objective)
    given = {name: torch.full_like(tensor, 0.5) for name, tensor in online(objective).items()}
    target = {name: torch.full_like(tensor, 0.25) for name, tensor in objective.followed().items()}
    objective.start(given, target)
    assert all(bool((tensor == 0.5).all()) for tensor in objective.trained().values())
    for name, tensor in floating(objective.target).items():
        assert bool((tensor == (0.25 if name in target else 0.5)).all()), name


def test_the_trial_is_timed_on_a_batch_of_the_studys_size(make: Make) -> None:
    objective = make()
    trial = objective.trial()
    assert torch.isfinite(trial.loss(objective.compute))
