"""Federated fine-tuning at a site: what comes, what goes back, and which round is tested."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fedmedseg.segmentation.together as module
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.fedata.plan import initial_shared, stages
from fedmedseg.segmentation.learner import SegmentationLearner
from fedmedseg.segmentation.models import load_for_inference
from fedmedseg.segmentation.stages import network_of


@pytest.fixture
def experiment(make_experiment):
    return make_experiment(
        segmentation={"fine_tuning": "federated", "steps": 4, "validate_every": 2},
        stages={"fine_tuning": {"rounds": 2}},
        fedata={"starts": ["shared", "scratch"]},
    )


@pytest.fixture
def learner(experiment, site):
    torch.set_num_threads(1)
    return SegmentationLearner(experiment=experiment, site=site)


def second(task):
    return replace(task, round=1, base="later")


def test_a_round_returns_the_whole_network_of_every_start_and_starts_differ_by_their_encoder(
    experiment, learner, make_task, monkeypatch
):
    seen = {}

    def caught(objective, **options):
        seen[options["name"]] = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
        return {"loss": 1.0}

    monkeypatch.setattr(module, "run_steps", caught)
    shared = {name: tensor + 0.01 for name, tensor in initial_shared(experiment).items()}
    reply = learner.run(make_task("fine_tuning", experiment=experiment, rounds=2), shared)
    contract = stages(experiment)["fine_tuning"]
    contract.check_metrics(reply.metrics)
    assert set(reply.tensors) == {name for name in shared if contract.returned.holds(name)}
    encoder = "swinViT.patch_embed.proj.weight"
    decoder = "out.conv.conv.weight"
    assert torch.equal(seen["fine_tuning_shared"][encoder], shared[encoder])
    assert not torch.equal(seen["fine_tuning_scratch"][encoder], shared[encoder])
    assert torch.equal(seen["fine_tuning_shared"][decoder], seen["fine_tuning_scratch"][decoder])
    assert (reply.examples, reply.steps) == (3, 4)


def test_the_second_round_goes_on_from_the_servers_networks_in_the_same_schedule(
    experiment, learner, make_task, monkeypatch
):
    placed = []

    def caught(objective, **options):
        placed.append((objective.first_step, options["steps"]))
        return {"loss": 1.0}

    monkeypatch.setattr(module, "run_steps", caught)
    monkeypatch.setattr(module, "validate", lambda *_, **__: 0.5)
    shared = stages(experiment)["fine_tuning"].sent_in(1).of(initial_shared(experiment))
    reply = learner.run(second(make_task("fine_tuning", experiment=experiment, rounds=2)), shared)
    assert placed == [(2, 2), (2, 2)]
    # nothing was trained here, so what goes back is what came
    assert all(torch.equal(reply.tensors[name], shared[name]) for name in shared)


def test_the_site_tests_the_round_that_validated_best(experiment, learner, make_task, monkeypatch):
    """After round 1 the shared networks validate at 0.9, after round 2 at 0.2: the first are tested."""
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    task = make_task("fine_tuning", experiment=experiment, rounds=2)
    networks = stages(experiment)["fine_tuning"].returned
    first = networks.of(initial_shared(experiment))
    last = {name: tensor + 0.5 for name, tensor in first.items()}
    monkeypatch.setattr(module, "validate", lambda *_, **__: 0.9)
    learner.run(second(task), first)
    monkeypatch.setattr(module, "validate", lambda *_, **__: 0.2)
    reply = learner.run(make_task("evaluation", experiment=experiment, base="last"), last)
    stages(experiment)["evaluation"].check_metrics(reply.metrics)
    assert reply.metrics["best_round/shared"] == 1.0
    assert reply.metrics["validation_dice/shared"] == 0.9
    kept = load_for_inference(learner.bench.model_file("shared")).model
    assert all(torch.equal(dict(kept.named_parameters())[name], t) for name, t in network_of("shared", first).items())


def test_without_validation_the_last_round_is_tested(experiment, learner, make_task, monkeypatch):
    learner.bench.__dict__["validation"] = None
    networks = stages(experiment)["fine_tuning"].returned
    first = networks.of(initial_shared(experiment))
    last = {name: tensor + 0.5 for name, tensor in first.items()}
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    learner.run(second(make_task("fine_tuning", experiment=experiment, rounds=2)), first)
    reply = learner.run(make_task("evaluation", experiment=experiment, base="last"), last)
    assert reply.metrics["best_round/scratch"] == 2.0
    assert "validation_dice/scratch" not in reply.metrics
    kept = load_for_inference(learner.bench.model_file("scratch")).model
    assert content_sha256(kept.state_dict()) != content_sha256({**kept.state_dict(), **network_of("scratch", first)})


def test_a_round_of_the_future_is_forgotten_when_the_server_went_back(experiment, learner, make_task, monkeypatch):
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    task = make_task("fine_tuning", experiment=experiment, rounds=2)
    first = stages(experiment)["fine_tuning"].returned.of(initial_shared(experiment))
    task.state.save("best_shared", {"rounds": 2, "dice": 0.99, "tensors": network_of("shared", first)})
    monkeypatch.setattr(module, "validate", lambda *_, **__: 0.1)
    learner.run(second(task), first)
    assert task.state.load("best_shared")["rounds"] == 1
