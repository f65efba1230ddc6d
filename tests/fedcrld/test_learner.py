"""Rounds at two sites: what is exchanged, what stays, what is remembered, and which round a site keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import Aborted
from fedmedseg.data.views import site_view
from fedmedseg.fedcrld import learner as module
from fedmedseg.fedcrld.learner import BEST, MEMORY, RelocalizationLearner
from fedmedseg.fedcrld.plan import initial_shared, stages
from fedmedseg.segmentation import together

Tensors = Mapping[str, torch.Tensor]
MakeLearner = Callable[..., RelocalizationLearner]
MakeTask = Callable[..., Task]


def mean(shared: Tensors, replies: Mapping[str, Reply]) -> dict[str, torch.Tensor]:
    """The server's rule with equal weights."""
    differences = {site: {n: reply.tensors[n] - shared[n] for n in shared} for site, reply in replies.items()}
    moved = weighted_mean(differences, dict.fromkeys(replies, 1 / len(replies)))
    return {name: tensor + moved[name] for name, tensor in shared.items()}


def client_of(learner: RelocalizationLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.bench.model.state_dict().items()}


def test_exchange_really_happens_between_four_and_five_classes(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask, late: dict[str, Any], monkeypatch: Any
) -> None:
    """Rows 1 and 3: what every site receives is bit-equal, what is private differs, nothing else travels."""
    whole = study(data=late)
    views = {"site-1": site_view(whole, ["cmr"]), "site-2": site_view(whole, ["lge"])}
    shared = initial_shared(whole)
    learners = {site: learner(view, site) for site, view in views.items()}
    replies = {site: one.run(task(whole, shared, site=site), shared) for site, one in learners.items()}
    for reply in replies.values():
        assert reply.tensors.keys() == shared.keys()
        assert any(not torch.equal(reply.tensors[name], shared[name]) for name in shared)
        stages(whole)["relocalization"].check_metrics(reply.metrics)
    assert any(not torch.equal(replies["site-1"].tensors[name], replies["site-2"].tensors[name]) for name in shared)

    averaged = mean(shared, replies)
    received: dict[str, dict[str, torch.Tensor]] = {}
    real = module.run_steps

    def spy(objective: Any, **options: Any) -> Any:
        options["prepare"]()
        tensors = {name: tensor.clone() for name, tensor in objective.network.state_dict().items()}
        received[options["task"].site] = tensors
        return real(objective, **options)

    monkeypatch.setattr(module, "run_steps", spy)
    private = {site: client_of(one) for site, one in learners.items()}
    for site, one in learners.items():
        one.run(task(whole, averaged, site=site, round=1), averaged)
    for name, tensor in averaged.items():
        assert torch.equal(received["site-1"][name], tensor)
        assert torch.equal(received["site-2"][name], tensor)
    own = set(private["site-1"]) - set(shared)
    assert all(name.split(".")[0] in ("localnet", "relocalization", "decoder", "output") for name in own)
    for site in learners:
        assert all(torch.equal(received[site][name], private[site][name]) for name in own), "what is private is kept"
    assert received["site-1"]["output.weight"].shape[0] == 4
    assert received["site-2"]["output.weight"].shape[0] == 5
    for name in own - {"output.weight", "output.bias"}:
        assert not torch.equal(received["site-1"][name], received["site-2"][name]), name


def test_a_sites_disk_holds_what_is_private_and_the_whole_bank_and_nothing_shared(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study()
    tensors, one = initial_shared(experiment), learner(experiment)
    for round in range(2):
        given = task(experiment, tensors, round=round)
        tensors = dict(one.run(given, tensors).tensors)
    saved = checkpoint.load(given.state.folder / f"{MEMORY}.safetensors")
    assert saved is not None
    assert saved["tree"]["round"] == 1
    client = client_of(one)
    kept = saved["tree"]["tensors"]
    assert kept.keys() == client.keys() - tensors.keys()
    assert all(torch.equal(tensor, client[name]) for name, tensor in kept.items())
    bank = one.objective(given).bank
    assert bank is not None
    assert all(torch.equal(tensor, saved["tree"]["bank"][name]) for name, tensor in bank.network.state_dict().items())


@pytest.mark.parametrize(
    ("length", "batch", "steps"),
    [
        ({"local_steps": 3}, 1, 3),
        ({"local_steps": None, "local_epochs": 2}, 1, 6),
        ({"local_steps": None, "local_epochs": 2}, 2, 4),
    ],
)
def test_a_round_is_so_many_steps_or_passes_over_the_sites_own_volumes(
    learner: MakeLearner,
    task: MakeTask,
    settings: Callable[..., dict[str, Any]],
    length: dict[str, Any],
    batch: int,
    steps: int,
) -> None:
    """Of three volumes; the last batch of a pass is filled up from the next."""
    content = settings(**length)
    content["segmentation"]["batch"] = batch
    experiment = parse_experiment(content)
    shared = initial_shared(experiment)
    assert learner(experiment).run(task(experiment, shared), shared).steps == steps


def test_fresh_processes_and_one_process_end_with_the_same_bits(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study(rounds=2)
    # learners that draw as the same site would, with state of their own
    ends = []
    for fresh in (False, True):
        tensors = initial_shared(experiment)
        held = learner(experiment)
        for round in range(2):
            one = learner(experiment) if fresh else held
            current = task(experiment, tensors, round=round)
            tensors = dict(one.run(current, tensors).tensors)
        ends.append((tensors, current.state.load(MEMORY)))
        for name in (MEMORY, BEST, f"running_{module.STAGE}"):
            current.state.remove(name)
    assert all(torch.equal(tensor, ends[1][0][name]) for name, tensor in ends[0][0].items())
    for part in ("tensors", "bank"):
        assert all(torch.equal(tensor, ends[1][1][part][name]) for name, tensor in ends[0][1][part].items())


def test_a_task_that_was_stopped_goes_on_to_the_same_bits(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study()
    shared = initial_shared(experiment)
    whole = learner(experiment).run(task(experiment, shared), shared)
    calls = iter([False, True])
    with pytest.raises(Aborted):
        learner(experiment, "site-1b").run(
            task(experiment, shared, site="site-1b", aborted=lambda: next(calls)), shared
        )
    resumed = learner(experiment, "site-1b").run(task(experiment, shared, site="site-1b"), shared)
    straight = learner(experiment, "site-1b")
    state = task(experiment, shared, site="site-1b").state
    for name in (MEMORY, BEST, f"running_{module.STAGE}"):
        state.remove(name)
    again = straight.run(task(experiment, shared, site="site-1b"), shared)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in resumed.tensors.items())
    assert any(not torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items()), "other site"


def test_a_finished_round_given_again_ends_with_the_same_bits(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    """As after a server's death: what is remembered of the round itself is no obstacle."""
    experiment = study()
    shared, one = initial_shared(experiment), learner(experiment)
    tensors = dict(one.run(task(experiment, shared), shared).tensors)
    given = task(experiment, tensors, round=1)
    reply, memory = one.run(given, tensors), given.state.load(MEMORY)
    again = learner(experiment).run(task(experiment, tensors, round=1), tensors)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in reply.tensors.items())
    assert "memory_missing" not in again.metrics
    after = given.state.load(MEMORY)
    assert memory is not None
    assert after is not None
    for part in ("tensors", "bank"):
        assert all(torch.equal(tensor, after[part][name]) for name, tensor in memory[part].items())


def test_without_validation_cases_a_site_keeps_its_last_round(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study(rounds=2)
    tensors, one = initial_shared(experiment), learner(experiment)
    one.bench.__dict__["validation"] = None
    for round in range(2):
        given = task(experiment, tensors, round=round)
        reply = one.run(given, tensors)
        tensors = dict(reply.tensors)
        assert reply.metrics["best_round/personal"] == round + 1
        assert "validation_dice/personal" not in reply.metrics
    kept = one.bench.finished_tensors("personal", given)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in client_of(one).items())


def test_a_site_without_memory_says_so_and_starts_its_private_part_anew(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study()
    shared = initial_shared(experiment)
    reply = learner(experiment).run(task(experiment, shared, round=1), shared)
    assert reply.metrics["memory_missing"] == 1.0
    assert "memory_missing" not in learner(experiment, "b").run(task(experiment, shared, site="b"), shared).metrics


def test_a_memory_of_the_future_is_not_used(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study()
    shared = initial_shared(experiment)
    one = learner(experiment)
    one.run(task(experiment, shared, round=2), shared)
    changed = {name: tensor + 0.01 for name, tensor in shared.items()}
    assert one.run(task(experiment, changed, round=1), changed).metrics["memory_missing"] == 1.0


def test_a_site_keeps_the_round_that_validated_best(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = iter([0.5, 0.8, 0.6])
    monkeypatch.setattr(together, "validate", lambda *args, **options: next(dice))
    experiment = study(rounds=3)
    tensors = initial_shared(experiment)
    one = learner(experiment)
    clients, figures = [], []
    for round in range(3):
        current = task(experiment, tensors, round=round)
        reply = one.run(current, tensors)
        tensors = dict(reply.tensors)
        clients.append(client_of(one))
        figures.append(reply.metrics)
    assert [one["best_round/personal"] for one in figures] == [1.0, 2.0, 2.0]
    assert [one["validation_dice/personal"] for one in figures] == [0.5, 0.8, 0.6]
    kept = one.bench.finished_tensors("personal", current)
    assert all(torch.equal(tensor, clients[1][name]) for name, tensor in kept.items())


def test_rounds_are_validated_where_enough_steps_are_full(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask, settings: Callable[..., dict[str, Any]]
) -> None:
    content = settings(rounds=3)
    content["segmentation"]["validate_every"] = 4
    experiment = parse_experiment(content)
    tensors = initial_shared(experiment)
    one = learner(experiment)
    seen = []
    for round in range(3):
        reply = one.run(task(experiment, tensors, round=round), tensors)
        tensors = dict(reply.tensors)
        seen.append("validation_dice/personal" in reply.metrics)
    assert seen == [False, True, True], "after 4 of 6 steps, and at the end"


def test_without_a_server_a_site_goes_on_from_its_own_encoder(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study(share="nothing", rounds=2)
    shared = initial_shared(experiment)
    one = learner(experiment)
    one.run(task(experiment, shared), shared)
    first = client_of(one)
    current = task(experiment, {}, round=1)
    memory = current.state.load(MEMORY)
    assert memory is not None
    assert all(torch.equal(tensor, first[name]) for name, tensor in memory["tensors"].items())
    assert memory["tensors"].keys() == first.keys()
    reply = one.run(current, {})
    assert "memory_missing" not in reply.metrics
    encoder = [name for name in first if name.startswith("globalnet.")]
    assert any(not torch.equal(first[name], client_of(one)[name]) for name in encoder), "and trains it further"


def test_a_site_continues_alone_from_its_own_model(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.segmentation.local import fine_tune

    experiment = study(starts=["personal", "continued"], tuning=1)
    shared = initial_shared(experiment)
    one = learner(experiment)
    given = task(experiment, shared)
    one.run(given, shared)
    personal = one.bench.finished_tensors("personal", given)
    begun: list[dict[str, torch.Tensor]] = []
    real = one.bench.begin
    monkeypatch.setattr(one.bench, "begin", lambda tensors: (begun.append(dict(tensors)), real(tensors))[1])
    tuning = Task(**{**given.__dict__, "stage": "fine_tuning", "rounds": 1})
    reply = fine_tune(one.bench, tuning, {})
    assert len(begun) == 1, "personal itself is not trained again"
    assert all(torch.equal(tensor, personal[name]) for name, tensor in begun[0].items())
    assert "loss/continued" in reply.metrics
    assert "loss/personal" not in reply.metrics
    assert reply.steps == experiment.segmentation.steps
    assert all(
        torch.equal(tensor, personal[name]) for name, tensor in one.bench.finished_tensors("personal", given).items()
    )
    continued = one.bench.finished_tensors("continued", tuning)
    assert any(not torch.equal(tensor, personal[name]) for name, tensor in continued.items())


def test_a_reference_is_trained_alone_from_the_studys_first_weights(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.segmentation.local import fine_tune

    experiment = study(starts=["personal", "scratch"], tuning=1)
    shared = initial_shared(experiment)
    one = learner(experiment)
    given = task(experiment, shared)
    one.run(given, shared)
    begun: list[dict[str, torch.Tensor]] = []
    real = one.bench.begin
    monkeypatch.setattr(one.bench, "begin", lambda tensors: (real(tensors), begun.append(client_of(one)))[0])
    tuning = Task(**{**given.__dict__, "stage": "fine_tuning", "rounds": 1})
    assert "loss/scratch" in fine_tune(one.bench, tuning, {}).metrics
    (first,) = begun
    assert all(torch.equal(tensor, first[name]) for name, tensor in one.bench.initial.items())


def test_a_model_file_alone_is_enough_for_inference(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask, late: dict[str, Any]
) -> None:
    from fedmedseg.segmentation.models import load_for_inference

    whole = study(data={**late, "whole_depth": True, "intensity": "capped"})
    view = site_view(whole, ["lge"])
    shared = initial_shared(whole)
    one = learner(view)
    one.run(task(whole, shared), shared)
    loaded = load_for_inference(one.bench.model_file("personal"))
    assert loaded.experiment == whole.digest
    assert (loaded.data.role, loaded.data.whole_depth, loaded.data.intensity) == ("lge", True, "capped")
    assert loaded.data.labels == view.data.labels
    image = torch.randn(1, 1, 16, 16, 3)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(image), one.bench.model(image))


def test_sharing_more_than_the_encoder_overwrites_more_of_the_client(
    study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask
) -> None:
    experiment = study(share="everything")
    shared = initial_shared(experiment)
    one = learner(experiment)
    one.run(task(experiment, shared), shared)
    memory = task(experiment, shared).state.load(MEMORY)
    assert memory is not None
    assert memory["tensors"] == {}
    assert memory["bank"].keys() == shared.keys(), "the bank stays at the site whatever is shared"


def test_another_stage_is_refused(study: Callable[..., Experiment], learner: MakeLearner, task: MakeTask) -> None:
    experiment = study()
    given = task(experiment, {})
    other = Task(**{**given.__dict__, "stage": "fine_tuning"})
    with pytest.raises(ConfigurationError):
        learner(experiment).run(other, {})
