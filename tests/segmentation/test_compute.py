"""Supervised training and prediction are computed as the settings say, and continue to the same bits."""

from __future__ import annotations

import json
import re

import pytest
import torch

from fedmedseg.core import compute as core
from fedmedseg.core.checkpoint import content_sha256, load, save
from fedmedseg.core.compute import SHIPPED, ComputeChoice
from fedmedseg.core.seeding import seed_everything
from fedmedseg.networks import timing
from fedmedseg.networks.compute import layout_of
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.compute import inference_trial, supervised_trial, way_of
from fedmedseg.segmentation.inference import predict
from fedmedseg.segmentation.local import fine_tune_from
from fedmedseg.segmentation.objective import SupervisedObjective
from fedmedseg.segmentation.starts import initial_network

AUTO = {"precision": "auto", "attention": "auto", "layout": "auto"}
BF16 = ComputeChoice(precision="bf16")
BF16_LAST = ComputeChoice(precision="bf16", layout="channels_last")


def objective(experiment, volumes, **options):
    return SupervisedObjective(
        model=initial_network(experiment),
        training=volumes,
        validation=None,
        experiment=experiment,
        pretrained=(),
        device="cpu",
        **options,
    )


def train(trained, steps):
    for index in steps:
        seed_everything(index)
        trained.step(index)
    return trained


def dtypes_of(network):
    """dtypes that the last convolution gives, filled as it runs."""
    seen = []
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    last.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    return seen


@pytest.mark.parametrize(("choice", "dtype"), [(SHIPPED, torch.float32), (BF16, torch.bfloat16)])
def test_training_steps_are_computed_in_the_precision_asked_for(make_experiment, discs, choice, dtype):
    trained = objective(make_experiment(), discs(2), compute=choice)
    seen = dtypes_of(trained.model)
    train(trained, [0])
    assert seen == [dtype]
    moments = trained._optimizer.state.values()
    assert {tensor.dtype for state in moments for tensor in state.values()} == {torch.float32}
    assert {tensor.dtype for tensor in trained.model.parameters()} == {torch.float32}


def test_bf16_trains_other_bits_than_float32_and_about_the_same_loss(make_experiment, discs):
    losses, digests = [], []
    for choice in (SHIPPED, BF16):
        trained = objective(make_experiment(), discs(2), compute=choice)
        seed_everything(0)
        losses.append(trained.step(0)["loss"])
        digests.append(content_sha256(trained.model.state_dict()))
    assert digests[0] != digests[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("choice", [BF16, BF16_LAST, ComputeChoice(layout="channels_last")], ids=str)
def test_a_training_in_any_way_continues_from_its_checkpoint_to_the_same_bits(make_experiment, discs, tmp_path, choice):
    experiment, volumes = make_experiment(), discs(2)
    whole = train(objective(experiment, volumes, compute=choice), range(4))
    first = train(objective(experiment, volumes, compute=choice), range(2))
    save(tmp_path / "running", first.state())
    second = objective(experiment, volumes, compute=choice)
    second.restore(load(tmp_path / "running"))
    assert layout_of(second.model) == choice.layout
    train(second, range(2, 4))
    assert content_sha256(second.model.state_dict()) == content_sha256(whole.model.state_dict())


def test_validation_is_computed_as_inference_is_and_training_goes_on_as_before(make_experiment, discs):
    experiment = make_experiment(segmentation={"validate_every": 1})
    trained = objective(experiment, discs(2), compute=BF16_LAST, inference=SHIPPED)
    trained.validation = discs(1, seed=5)
    seen = dtypes_of(trained.model)
    train(trained, [0])
    assert seen[0] == torch.bfloat16
    assert set(seen[1:]) == {torch.float32}
    assert layout_of(trained.model) == "channels_last"


def test_prediction_in_bf16_gives_float32_probabilities_near_the_plain_ones(make_experiment, discs):
    experiment = make_experiment()
    network, volumes = initial_network(experiment), discs(1)
    seen = dtypes_of(network)
    plain = predict(network, volumes.image(0), experiment.data, 0.25, "cpu")
    other = predict(network, volumes.image(0), experiment.data, 0.25, "cpu", BF16_LAST)
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert other.dtype == torch.float32
    assert not torch.equal(plain, other)
    torch.testing.assert_close(other.sum(dim=0), torch.ones_like(other[0]))
    assert float((plain - other).abs().mean()) < 0.01
    assert layout_of(network) == "contiguous"


def test_auto_times_a_copy_of_the_network_and_remembers(make_experiment, site, monkeypatch):
    """A clock that runs by what is computed stands in for the real one: bf16 takes half of any other step."""
    experiment = make_experiment(compute={"precision": "auto"}, data={"crop": [64, 64]})
    model = initial_network(experiment)
    before = content_sha256(model.state_dict())
    now = [0.0]

    class Counted(timing.StepTrial):
        def step(self):
            super().step()
            now[0] += 1.0 if self.choice.precision == "bf16" else 2.0

    monkeypatch.setattr("fedmedseg.segmentation.compute.StepTrial", Counted)
    monkeypatch.setattr(timing, "measure", lambda *args, **words: core.measure(*args, clock=lambda: now[0], **words))
    found = way_of("supervised", experiment=experiment, site=site, model=model)
    assert found == BF16
    assert content_sha256(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    (file,) = (site.cache / "compute").rglob("*.json")
    told = json.loads(file.read_text())
    assert told["ratios"] == {str(SHIPPED): 1.0, str(BF16): 0.5}
    assert told["key"]["shape"] == [2, 1, 64, 64]
    elapsed = now[0]
    assert way_of("supervised", experiment=experiment, site=site, model=model) == BF16
    assert now[0] == elapsed


def test_a_network_whose_gradient_bf16_spoils_stays_in_float32(make_experiment, site):
    """At 64 x 32 the deepest map has two voxels: normalised they are +1 and -1, and rounding decides which."""
    experiment = make_experiment(compute={"precision": "auto"})
    assert way_of("supervised", experiment=experiment, site=site, model=initial_network(experiment)) == SHIPPED
    (file,) = (site.cache / "compute").rglob("*.json")
    struck = json.loads(file.read_text())["struck"]
    assert re.fullmatch(r"gradient norm \d+\.\d% off the reference's", struck[str(BF16)])


def test_a_precision_that_loses_the_loss_is_struck_out_on_the_real_network(make_experiment, site, monkeypatch):
    """Half of the logits lost in bf16, say by a wrong kernel: the loss moves, and the way is not taken however fast."""
    experiment = make_experiment(compute={"precision": "auto"})
    real = timing.logits_of

    def broken(network, images, choice, device):
        logits = real(network, images, choice, device)
        return logits + 20.0 * logits.detach().sign() if choice.precision == "bf16" else logits

    monkeypatch.setattr("fedmedseg.segmentation.compute.logits_of", broken)
    assert way_of("supervised", experiment=experiment, site=site, model=initial_network(experiment)) == SHIPPED
    (file,) = (site.cache / "compute").rglob("*.json")
    assert "off the reference's" in json.loads(file.read_text())["struck"][str(BF16)]


@pytest.mark.parametrize("build", [supervised_trial, inference_trial])
def test_trials_compute_a_batch_of_the_studys_shape_in_the_way_in_use(make_experiment, build):
    experiment = make_experiment()
    network = initial_network(experiment)
    shapes = []
    network.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    seen = dtypes_of(network)
    trial = build(network, shape=(3, 1, 64, 32), experiment=experiment, device="cpu")
    for choice in (SHIPPED, BF16):
        trial.use(choice)
        trial.check()
        trial.step()
    assert shapes == [(3, 1, 64, 32)] * 4
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert network.training is (build is supervised_trial)


def learn(experiment, site, make_task, discs):
    bench = Bench(experiment=experiment, site=site)
    volumes = discs(2)
    volumes.quarantined = {}
    bench.__dict__ |= {"training": volumes, "validation": discs(1, seed=5)}
    fine_tune_from(bench, "scratch", {}, make_task("fine_tuning", experiment=experiment), pretrained=())
    return content_sha256(load(bench.model_file("scratch"))["tensors"])


def test_where_the_clock_finds_nothing_faster_auto_gives_the_bits_of_plain_float32(
    make_experiment, site, make_task, discs, monkeypatch
):
    monkeypatch.setattr(
        timing,
        "measure",
        lambda trial, ways, **_: trial.check() and core.decide({ways[0]: [1.0]}, ways[0], {}),
    )
    plain = make_experiment(compute={"attention": "explicit"})
    auto = make_experiment(compute=AUTO)
    assert learn(auto, site, make_task, discs) == learn(plain, site, make_task, discs)


def test_a_forced_precision_reaches_the_learners_models(make_experiment, site, make_task, discs):
    first = learn(make_experiment(), site, make_task, discs)
    assert learn(make_experiment(compute={"precision": "fp32"}), site, make_task, discs) == first
    assert learn(make_experiment(compute={"precision": "bf16"}), site, make_task, discs) != first
