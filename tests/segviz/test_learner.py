"""Rounds of small federations: what is exchanged, what stays, what each switch changes, and what a site ends with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from html_page import Page

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.learner import Reply
from fedmedseg.core.recall import recall
from fedmedseg.segmentation.models import load_for_inference
from fedmedseg.segviz import learner as learner_module

Federate = Callable[..., InProcessFederation]


def private(federation: InProcessFederation, site: str, before: int = 99) -> dict[str, torch.Tensor]:
    """What a site keeps of its network."""
    memory = recall(federation.state(site, "training"), "personal", before)
    assert memory is not None
    return dict(memory["private"])


def watch(federation: InProcessFederation, site: str) -> list[tuple[dict[str, torch.Tensor], Reply]]:
    """What ``site`` is given and answers, call by call."""
    seen: list[Any] = []
    learner = federation.learner(site, "training")
    run = learner.run

    def listening(task: Any, shared: Any) -> Reply:
        given = {name: tensor.clone() for name, tensor in shared.items()}
        reply = run(task, shared)
        seen.append((given, reply))
        return reply

    learner.run = listening  # type: ignore[method-assign]
    return seen


def test_shared_tensors_are_really_exchanged_and_private_ones_never(federate: Federate) -> None:
    """Invariant 1: equal as received, their mean is what comes back, and every private tensor differs."""
    federation = federate()
    first, second = watch(federation, "site-1"), watch(federation, "site-2")
    federation.run_stage("training")
    assert content_sha256(first[1][0]) == content_sha256(second[1][0]) != content_sha256(first[0][0])
    for name, mean in first[1][0].items():
        ours, theirs = first[0][1].tensors[name], second[0][1].tensors[name]
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(mean, (ours + theirs) / 2, atol=1e-6, rtol=0)
    one, two = private(federation, "site-1"), private(federation, "site-2")
    assert one.keys() == two.keys()
    assert not one.keys() & first[0][0].keys()
    counters = [name for name in one if name.endswith("num_batches_tracked")]
    assert not [name for name in one if name not in counters and torch.equal(one[name], two[name])]


def test_running_means_differ_between_sites_after_a_round(federate: Federate) -> None:
    """Invariant 2."""
    federation = federate(stages={"training": {"rounds": 1}})
    federation.run_stage("training")
    one, two = private(federation, "site-1"), private(federation, "site-2")
    means = [name for name in one if name.endswith("running_mean")]
    assert means
    assert not [name for name in means if torch.equal(one[name], two[name])]


def test_head_norms_and_moments_of_a_site_go_on_in_its_next_round(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[tuple[dict[str, torch.Tensor], Any]] = []
    real = learner_module.PartialLabelObjective

    def noting(**arguments: Any) -> Any:
        state = {name: tensor.clone() for name, tensor in arguments["model"].state_dict().items()}
        began.append((state, copy.deepcopy(arguments["optimizer"])))
        return real(**arguments)

    monkeypatch.setattr(learner_module, "PartialLabelObjective", noting)
    federation = federate(marks={"site-1": [(1,)]})
    given = watch(federation, "site-1")
    federation.run_stage("training")
    left = private(federation, "site-1", before=1)
    state, optimizer = began[1]
    assert all(torch.equal(state[name], tensor) for name, tensor in left.items())
    assert all(torch.equal(state[name], tensor) for name, tensor in given[1][0].items())
    assert began[0][1] is None
    assert {int(moments["step"]) for moments in optimizer["state"].values()} == {2}


def test_a_site_without_memory_says_so_and_starts_its_head_anew(federate: Federate) -> None:
    federation = federate()
    state = federation.state("site-2", "training")
    learner = federation.learner("site-2", "training")
    run = learner.run

    def forgetful(task: Any, shared: Any) -> Reply:
        state.remove("personal")
        return run(task, shared)

    learner.run = forgetful  # type: ignore[method-assign]
    rounds = federation.run_stage("training")
    assert "memory_missing" not in rounds[0]["site-2"]
    assert rounds[1]["site-2"]["memory_missing"] == 1.0
    assert "memory_missing" not in rounds[1]["site-1"]


def test_a_site_alone_in_the_federation_trains_as_its_local_baseline_does(federate: Federate) -> None:
    """Same batches, steps and first weights: what is averaged with nobody is what was never exchanged.

    Up to rounding, which Adam makes much of where a bias before a norm has no gradient.
    """
    federation = federate(marks={"site-1": [(1,), (1,)]}, segviz={"local_baseline": True})
    rounds = federation.run_stage("training")
    for figures in rounds:
        assert figures["site-1"]["loss_scratch"] == pytest.approx(figures["site-1"]["loss"], abs=1e-5)
    alone = recall(federation.state("site-1", "training"), "scratch", 99)
    assert alone is not None
    for name, tensor in federation.shared.items():
        torch.testing.assert_close(tensor, alone["tensors"][name], atol=1e-3, rtol=0)


def test_a_local_baseline_does_not_change_what_is_shared(federate: Federate) -> None:
    with_, without = federate(name="b", segviz={"local_baseline": True}), federate(name="c")
    for federation in (with_, without):
        federation.run_stage("training")
    assert content_sha256(with_.shared) == content_sha256(without.shared)


def evaluated(federation: InProcessFederation) -> dict[str, dict[str, float]]:
    for stage in ("training", "head_tuning"):
        federation.run_stage(stage)
    return federation.run_stage("evaluation")[-1]


def test_every_site_is_scored_on_its_own_organs_by_their_names(federate: Federate) -> None:
    federation = federate(
        marks={"site-1": [(3,), (1,)], "site-2": [(2,)]},
        segviz={"local_baseline": True},
        segmentation={"test_untrained": True},
    )
    metrics = evaluated(federation)
    found = {site: {name for name in figures if name.startswith("dice/")} for site, figures in metrics.items()}
    models = ("personal", "scratch", "untrained")
    assert found["site-1"] <= {f"dice/{model}/{organ}" for model in models for organ in ("disc", "bar")}
    assert found["site-2"] <= {f"dice/{model}/square" for model in models}
    failures = {name for name in metrics["site-1"] if name.startswith("failures/personal")}
    assert failures == {"failures/personal/disc", "failures/personal/bar"}
    assert metrics["site-2"]["best_round/personal"] in (1.0, 2.0)


def test_a_sites_model_file_names_its_own_organs_and_can_be_used_alone(federate: Federate) -> None:
    federation = federate(marks={"site-1": [(3,), (1,)], "site-2": [(2,)]})
    evaluated(federation)
    file = federation.learner("site-1", "evaluation").bench.model_file("personal")
    model = load_for_inference(file)
    assert model.data.labels == {1: "disc", 2: "bar"}
    assert model.model(torch.zeros(1, 1, 24, 24)).shape == (1, 3, 24, 24)


def test_renumbering_the_organs_changes_their_names_and_nothing_else(federate: Federate) -> None:
    """Invariant 10."""
    one = federate(name="b", marks={"site-1": [(1,)], "site-2": [(3,)]})
    # the same files, read under another order of names; each organ keeps its number, so its name moves
    other = federate(
        name="c", marks={"site-1": [(1,)], "site-2": [(3,)]}, data={"labels": {1: "bar", 2: "square", 3: "disc"}}
    )
    swap = {"disc": "bar", "bar": "disc", "square": "square"}
    first, second = evaluated(one), evaluated(other)
    assert content_sha256(one.shared) == content_sha256(other.shared)
    for site, figures in first.items():
        renamed = {"/".join(swap.get(part, part) for part in name.split("/")): value for name, value in figures.items()}
        assert {name: value for name, value in renamed.items() if name != "seconds"} == {
            name: value for name, value in second[site].items() if name != "seconds"
        }


def test_which_site_owns_which_organ_permutes_the_results_and_nothing_else(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 10: random numbers, which follow the sites' names, are the same here for all."""
    from fedmedseg.core import training

    real = training.derive_seed
    monkeypatch.setattr(training, "derive_seed", lambda seed, site, *rest: real(seed, *rest))
    one = federate(name="b", marks={"site-1": [(1,)], "site-2": [(2,)]}, seeds={"site-1": 0, "site-2": 1})
    other = federate(name="c", marks={"site-1": [(2,)], "site-2": [(1,)]}, seeds={"site-1": 1, "site-2": 0})
    first, second = evaluated(one), evaluated(other)
    assert content_sha256(one.shared) == content_sha256(other.shared)
    for here, there in (("site-1", "site-2"), ("site-2", "site-1")):
        assert {name: value for name, value in first[here].items() if name != "seconds"} == {
            name: value for name, value in second[there].items() if name != "seconds"
        }


def test_sites_weigh_the_same_unless_cases_are_asked_for(federate: Federate) -> None:
    marks = {"site-1": [(1,), (1,), (1,)], "site-2": [(2,)]}
    shares = {}
    for weights in ("equal", "cases"):
        federation = federate(
            name=weights, marks=marks, segviz={"weights": weights}, stages={"training": {"rounds": 1}}
        )
        before = {name: tensor.clone() for name, tensor in federation.shared.items()}
        first, second = watch(federation, "site-1"), watch(federation, "site-2")
        federation.run_stage("training")
        name = next(iter(before))
        ours, theirs = first[0][1].tensors[name], second[0][1].tensors[name]
        shares[weights] = float(
            ((federation.shared[name] - theirs) * (ours - theirs)).sum() / ((ours - theirs) ** 2).sum()
        )
    assert shares["equal"] == pytest.approx(0.5, abs=1e-3)
    assert shares["cases"] == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize(
    "section",
    [
        {"share": "fedavg"},
        {"schedule": "cosine"},
        {"mode": "one_model"},
        {"mode": "one_model", "exclusion": 0.0},
        {"mode": "one_model", "exclusion": 0.5},
        {"mode": "one_model", "distillation": {}},
        {"mode": "one_model", "distillation": {"temperature": 1.0}},
        {"mode": "one_model", "distillation": {"first": 0.5}},
        {"mode": "one_model", "distillation": {"last": 0.5}},
    ],
)
def test_each_choice_changes_what_is_trained(federate: Federate, section: dict[str, Any]) -> None:
    """Against the setting that differs in that choice alone."""
    base = {name: value for name, value in section.items() if name == "mode" and len(section) > 1}
    if section.get("distillation"):
        base["distillation"] = {}
    digests = []
    for name, chosen in (("b", base), ("c", section)):
        federation = federate(name=name, segviz=chosen)
        federation.run_stage("training")
        trunk = {
            name: t for name, t in federation.shared.items() if not name.startswith("model.2") and "adn" not in name
        }
        digests.append(content_sha256(trunk))
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 1},
        {"steps": 6},
        {"augment": True},
        {"augment": True, "augmentation": "affine"},
        {"foreground_share": 0.0},
        {"optimizer": {"learning_rate": 1e-3}},
        {"optimizer": {"weight_decay": 0.5}},
        {"optimizer": {"betas": [0.5, 0.9]}},
        {"optimizer": {"clip_norm": 1e-3}},
        {"optimizer": {"warmup_fraction": 0.5}},
    ],
)
def test_each_setting_of_the_training_reaches_the_site(federate: Federate, change: dict[str, Any]) -> None:
    base = {"augment": True} if "augmentation" in change else {}
    digests = []
    for name, section in (("b", base), ("c", change)):
        federation = federate(name=name, marks={"site-1": [(1,)]}, segmentation=section)
        federation.run_stage("training")
        digests.append(content_sha256(federation.shared))
    assert digests[0] != digests[1]


def test_one_model_reports_its_terms(federate: Federate) -> None:
    federation = federate(segviz={"mode": "one_model", "distillation": {}})
    figures = federation.run_stage("training")[-1]["site-1"]
    parts = [figures[f"loss/{name}"] for name in ("dice", "exclusion", "distillation")]
    assert figures["loss"] == pytest.approx(sum(parts), abs=1e-5)


def test_one_model_predicts_all_organs_at_every_site(federate: Federate) -> None:
    federation = federate(segviz={"mode": "one_model"})
    metrics = evaluated(federation)
    for figures in metrics.values():
        assert {name for name in figures if name.startswith("failures/")} == {
            f"failures/personal/{organ}" for organ in ("disc", "square", "bar")
        }


def test_a_site_chooses_the_round_that_validates_best(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmedseg.segmentation import together

    figures = iter([0.4, 0.3])
    monkeypatch.setattr(together, "validate", lambda *_, **__: next(figures))
    federation = federate(marks={"site-1": [(1,)]})
    federation.run_stage("training")
    kept = federation.state("site-1", "training").load("best_personal")
    assert (kept["rounds"], kept["dice"]) == (1, 0.4)
    assert federation.run_stage("evaluation")[-1]["site-1"]["best_round/personal"] == 1.0


def test_received_candidates_have_the_federations_trunk(federate: Federate) -> None:
    federation = federate(segviz={"candidates": "received"})
    given = watch(federation, "site-1")
    federation.run_stage("training")
    second = given[1][0]
    federation.run_stage("evaluation")
    kept = federation.state("site-1", "training").load("best_personal")
    trunk = second if kept["rounds"] == 1 else federation.shared
    assert all(torch.equal(kept["tensors"][name], tensor) for name, tensor in trunk.items())
    assert given[2][0].keys() == second.keys(), "the last trunk comes with the evaluation"


def test_trained_candidates_are_the_sites_own(federate: Federate) -> None:
    federation = federate()
    given = watch(federation, "site-1")
    evaluated(federation)
    kept = federation.state("site-1", "training").load("best_personal")
    reply = given[int(kept["rounds"]) - 1][1]
    assert all(torch.equal(kept["tensors"][name], tensor) for name, tensor in reply.tensors.items())
    assert given[2][0] == {}


def test_head_tuning_moves_the_heads_parameters_and_no_others(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.segmentation import together

    monkeypatch.setattr(together, "validate", lambda *_, **__: 0.5)
    federation = federate(segviz={"head_steps": 3}, stages={"head_tuning": {"rounds": 1}})
    federation.run_stage("training")
    before = federation.state("site-1", "training").load("best_personal")
    metrics = federation.run_stage("head_tuning")[0]["site-1"]
    after = federation.state("site-1", "training").load("best_personal")
    assert (before["rounds"], after["rounds"]) == (2, 3)
    assert metrics["validation_dice/personal"] == 0.5
    moved = {name for name, tensor in before["tensors"].items() if not torch.equal(tensor, after["tensors"][name])}
    trunk = {name for name in moved if not name.startswith("model.2")}
    assert trunk
    assert all("running" in name or "num_batches" in name for name in trunk), "statistics move, parameters do not"
    parameters = [name for name, _ in federation.learner("site-1", "training").bench.model.named_parameters()]
    assert {name for name in parameters if name.startswith("model.2")} <= moved
    figures = federation.run_stage("evaluation")[0]["site-1"]
    assert figures["best_round/personal"] == 3.0


def test_a_head_that_validates_worse_is_not_kept(federate: Federate, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmedseg.segmentation import together

    figures = iter([0.5, 0.5, 0.4])
    monkeypatch.setattr(together, "validate", lambda *_, **__: next(figures))
    federation = federate(marks={"site-1": [(1,)]}, segviz={"head_steps": 1}, stages={"head_tuning": {"rounds": 1}})
    federation.run_stage("training")
    federation.run_stage("head_tuning")
    assert federation.state("site-1", "training").load("best_personal")["rounds"] == 2


def test_evaluation_without_training_names_the_reason(federate: Federate) -> None:
    with pytest.raises(FedMedSegError) as told:
        federate().run_stage("evaluation")
    assert told.value.reason == Reason.MISSING_TENSORS


def test_a_round_given_again_ends_with_the_same_bits(federate: Federate) -> None:
    """Also where what was remembered of it is already there."""
    federation = federate(marks={"site-1": [(1,)]})
    given = watch(federation, "site-1")
    learner = federation.learner("site-1", "training")
    tasks: list[Any] = []
    run = learner.run

    def noting(task: Any, shared: Any) -> Reply:
        tasks.append(task)
        return run(task, shared)

    learner.run = noting  # type: ignore[method-assign]
    federation.run_stage("training")
    shared, reply = given[1]
    before = private(federation, "site-1")
    tasks[1].state.remove("running_training_personal")
    again = run(tasks[1], shared)
    assert content_sha256(again.tensors) == content_sha256(reply.tensors)
    assert content_sha256(private(federation, "site-1")) == content_sha256(before)


def test_nothing_but_the_declared_tensors_is_in_the_servers_model(federate: Federate) -> None:
    federation = federate()
    federation.run_stage("training")
    state = federation.learner("site-1", "training").bench.model.state_dict()
    assert set(federation.shared) < set(state)
    assert checkpoint.content_sha256(federation.shared)


def test_a_sites_page_names_a_case_that_training_set_aside_whatever_organs_are_its_own(federate: Federate) -> None:
    """What the checks found is remembered under the labels of the whole study."""
    one = federate(stages={"training": {"rounds": 1}}, marks={"site-1": [(2,), (2,), (2,)], "site-2": [(1,)]})
    spoilt: Any = one.learner("site-1", "training")
    data = spoilt.site.datasets["shapes"].parent
    (data / "i0.nii.gz").write_bytes(b"no image")
    for stage in ("training", "evaluation"):
        one.run_stage(stage)
    page = one.workspace.with_name("w.fedmedseg") / "site-1" / "models" / "tiny" / "site_report.html"
    assert "i0.nii.gz training" in Page(page.read_text()).text
