"""The pretext computed in other ways: every pretext in bfloat16, targets in float32, killed rounds continue exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fedmedseg.core import compute as core
from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.federation_settings import ComputeSection
from fedmedseg.core.training import Aborted
from fedmedseg.fedata import objective as module
from fedmedseg.fedata.objective import MaskedDistillationObjective
from fedmedseg.fedata.plan import initial_shared
from fedmedseg.networks import timing
from fedmedseg.networks.compute import attention_modules

BF16 = ComputeChoice(precision="bf16")
IBOT = {"ibot": {"hidden": 32, "bottleneck": 16, "prototypes": 64}}
NETWORKS = [("swin_unetr", (64, 64)), ("unetr", (32, 32))]
PRETEXTS = [("distillation", {}), ("ibot", IBOT), ("simmim", {}), ("mae", {})]


def _with(experiment, **compute):
    return experiment.model_copy(update={"compute": ComputeSection(**compute)})


def _objective(experiment, choice):
    shared = initial_shared(experiment)
    objective = MaskedDistillationObjective(
        experiment=experiment,
        volumes=2,
        crop=lambda volume, rng: torch.from_numpy(rng.normal(size=(1, *experiment.data.crop)).astype(np.float32)),
        device=torch.device("cpu"),
    )
    objective.use(choice)
    objective.begin(round=0, rounds=3)
    objective.initialise(shared, None)
    return objective


@pytest.mark.parametrize(("network", "crop"), NETWORKS)
@pytest.mark.parametrize(("pretext", "options"), PRETEXTS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_pretext_is_computed_in_bf16_around_float32_weights_and_targets(
    study, monkeypatch, network, crop, pretext, options
):
    experiment = study(network, crop, pretext=pretext, **options)
    losses, seen = [], []
    for choice in (SHIPPED, BF16):
        objective = _objective(experiment, choice)
        linear = next(layer for layer in objective.network.encoder.modules() if isinstance(layer, torch.nn.Linear))
        linear.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        given = type(objective.pretext).loss

        def loss(self, view, targets, *args, given=given, **words):
            outcome = given(self, view, targets, *args, **words)
            assert outcome.loss.dtype == torch.float32
            if pretext != "ibot":  # its scores are raised where they are compared
                assert {tensor.dtype for tensor in targets.tensors.values()} == {torch.float32}
            return outcome

        monkeypatch.setattr(type(objective.pretext), "loss", loss)
        torch.manual_seed(4)
        losses.append(objective.step(0)["loss"])
        monkeypatch.undo()
        state = objective.state()
        assert {tensor.dtype for tensor in (*state["tensors"].values(), *state["teacher"].values())} == {torch.float32}
        moments = objective.optimizer.state.values()
        assert {tensor.dtype for parts in moments for tensor in parts.values()} == {torch.float32}
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_student_and_teacher_both_take_the_kernel_and_layout(study):
    objective = _objective(study("swin_unetr", (64, 64)), ComputeChoice(attention="explicit", layout="channels_last"))
    for network in (objective.network, objective.teacher):
        assert not any(layer.use_flash_attention for layer in attention_modules(network))
    objective.use(SHIPPED)
    for network in (objective.network, objective.teacher):
        assert all(layer.use_flash_attention for layer in attention_modules(network))


@pytest.mark.parametrize(("network", "crop"), NETWORKS)
def test_a_round_in_bf16_stopped_in_the_middle_continues_to_the_same_bits(study, learner, task, network, crop):
    experiment = _with(study(network, crop, local_steps=4), precision="bf16", layout="channels_last")
    shared = initial_shared(experiment)
    whole = task(experiment, shared)
    expected = learner(experiment).run(whole, shared)
    for name in ("personal", "running_pretraining"):
        whole.state.remove(name)
    asked = iter([False, False, True])
    with pytest.raises(Aborted):
        learner(experiment).run(task(experiment, shared, aborted=lambda: next(asked)), shared)
    found = learner(experiment).run(task(experiment, shared), shared)
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in shared)
    assert found.metrics == expected.metrics


def test_a_site_times_its_pretext_once_and_where_nothing_is_faster_trains_the_same_bits(
    study, learner, task, monkeypatch, tmp_path
):
    timed = []

    def measure(trial, ways, **_):
        for way in ways:
            trial.use(way)
            timed.append(set(trial.check()))
        return core.decide({ways[0]: [1.0]}, ways[0], {})

    monkeypatch.setattr(timing, "measure", measure)
    plain = _with(study(), attention="explicit")
    shared = initial_shared(plain)
    expected = learner(plain).run(task(plain, shared), shared)
    assert timed == []
    auto = _with(study(), precision="auto", attention="auto", layout="auto")
    for _ in range(2):
        given = task(auto, shared)
        for name in ("personal", "running_pretraining"):
            given.state.remove(name)
        found = learner(auto).run(given, shared)
        assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in shared)
    assert timed == [{"loss", "gradient norm"}] * 8
    (file,) = (tmp_path / "cache" / "compute").rglob("*.json")
    key = json.loads(file.read_text())["key"]
    assert (key["work"], key["shape"]) == ("pretext", [4, 1, 32, 32])
    assert key["system"]["fedata"]["mask_ratio"] == auto.wing.mask_ratio


def test_a_trial_sees_whole_batches_and_leaves_the_objective_it_stands_for_alone(study, learner, monkeypatch):
    experiment = study()
    site = learner(experiment)
    before = {name: tensor.clone() for name, tensor in site.objective.network.shared().items()}
    drawn = []
    real = module.MaskedDistillationObjective._loss
    monkeypatch.setattr(
        module.MaskedDistillationObjective,
        "_loss",
        lambda self, images, masks: drawn.append((tuple(images.shape), self)) or real(self, images, masks),
    )
    trial = site._build().trial()
    trial.use(BF16)
    trial.check()
    trial.step()
    assert [shape for shape, _ in drawn] == [(4, 1, 32, 32)] * 2
    assert all(owner is not site.objective for _, owner in drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in site.objective.network.shared().items())
