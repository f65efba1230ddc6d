"""Rounds at two sites under each strategy: what is exchanged, what stays, and what a fresh process goes on from."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedmedseg.core import checkpoint, in_process
from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.recall import recall
from fedmedseg.fedavg.learner import MEMORY
from fedmedseg.fedavg.sharing import CONTROL, private_tensors

Federate = Callable[..., InProcessFederation]
SGD = {"learning_rate": 0.05, "momentum": 0.0}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.5},
    "fedopt": {"server": {"momentum": 0.9}},
    "scaffold": {"sgd": SGD},
    "ditto": {"ditto_lambda": 0.5},
    "fedbn": {},
}


def of(strategy: str, **more: Any) -> dict[str, Any]:
    return {"strategy": strategy, **STRATEGIES[strategy], **more}


def trained(federation: InProcessFederation, *, fresh: bool = False) -> list[dict[str, dict[str, float]]]:
    """All rounds of training; with ``fresh`` every one in learners that were not there in the one before."""
    rounds = []
    for number in range(2):
        if fresh:
            federation._learners.clear()
        rounds.append(federation._run_round("training", number, 2))
    return rounds


def memory(federation: InProcessFederation, site: str) -> dict[str, torch.Tensor]:
    """What ``site`` remembers of its last round."""
    tree = recall(federation.state(site, "training"), MEMORY, 2)
    assert tree is not None
    (tensors,) = tree.values()
    return dict(tensors)


def equal(ones: Any, others: Any) -> bool:
    return ones.keys() == others.keys() and all(torch.equal(one, others[name]) for name, one in ones.items())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fresh_processes_end_with_the_bits_of_one_process_and_a_model_each(federate: Federate, strategy: str) -> None:
    """State at the site and at the server is found again; a strategy that lost any would end elsewhere."""
    ends = []
    for fresh in (False, True):
        one = federate(name=f"{strategy}-{fresh}", fedavg=of(strategy))
        rounds = trained(one, fresh=fresh)
        assert not any("memory_missing" in site for round in rounds for site in round.values())
        (figures,) = one.run_stage("evaluation")
        assert all(any(name.startswith("dice/personal/") for name in site) for site in figures.values())
        assert all(1.0 <= site["best_round/personal"] <= 2.0 for site in figures.values())
        ends.append((one.shared, figures["site-1"]["dice/personal/square"]))
    assert equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_every_strategy_changes_what_the_sites_end_with(federate: Federate) -> None:
    """The network after two rounds differs from that of every other strategy; ditto's common one is FedAvg's."""
    ends = {}
    for strategy in STRATEGIES:
        # the optimiser of scaffold for all, so that nothing else differs
        one = federate(name=strategy, fedavg={**of(strategy), "sgd": SGD})
        trained(one)
        ends[strategy] = {n: t for n, t in one.shared.items() if n.startswith("model.0.conv")}
    assert ends["fedavg"]
    assert equal(ends.pop("ditto"), ends["fedavg"])
    names = list(ends)
    for index, name in enumerate(names):
        assert not any(equal(ends[name], ends[other]) for other in names[index + 1 :]), name


def test_what_a_site_receives_under_fedavg_is_the_mean_of_what_came_back(federate: Federate) -> None:
    one = federate(fedavg=of("fedavg"))
    start = dict(one.shared)
    one._run_round("training", 0, 2)
    sites = [one.learner(site, "training").bench.model.state_dict() for site in one.sites]  # type: ignore[attr-defined]
    for name, tensor in one.shared.items():
        # two cases at site-1, one at site-2
        expected = start[name] + (2 * (sites[0][name] - start[name]) + (sites[1][name] - start[name])) / 3
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-6), name


def test_fedprox_without_weight_is_fedavg_and_with_it_stays_nearer(federate: Federate) -> None:
    moved = []
    for mu in (0.0, 5.0):
        one = federate(name=str(mu), fedavg={"strategy": "fedprox", "mu": mu, "sgd": SGD})
        start = dict(one.shared)
        one._run_round("training", 0, 2)
        moved.append(sum(float((one.shared[n] - start[n]).square().sum()) for n in start if n.endswith("weight")))
        if not mu:
            plain = federate(name="plain", fedavg={"sgd": SGD})
            plain._run_round("training", 0, 2)
            assert equal(plain.shared, one.shared)
    assert moved[1] < moved[0]


@pytest.mark.parametrize("strategy", ["fedprox", "ditto"])
def test_no_gradient_of_the_received_network_is_worked_out(federate: Federate, strategy: str) -> None:
    one = federate(fedavg=of(strategy))
    learner: Any = one.learner("site-1", "training")
    make, received = learner.parts.proximal, []

    def listening(weight: float) -> Any:
        penalty = make(weight)

        def of_both(network: Any, other: Any) -> torch.Tensor:
            received.append(other)
            return penalty(network, other)

        return of_both

    learner.parts = replace(learner.parts, proximal=listening)
    one._run_round("training", 0, 2)
    assert received
    assert all(parameter.grad is None for other in received for parameter in other.parameters())


def test_a_sites_page_names_its_patients_and_nothing_that_is_told_does(
    federate: Federate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    replies: list[str] = []
    real = in_process.encode

    def listening(*given: Any, **more: Any) -> Any:
        replies.append(repr(answer := real(*given, **more)))
        return answer

    monkeypatch.setattr(in_process, "encode", listening)
    federation = federate(stages={"training": {"rounds": 1}})
    figures = [federation.run_stage(stage) for stage in ("training", "evaluation")]
    pages = sorted(federation.workspace.with_name("w.fedmedseg").glob("*/models/tiny/site_report.html"))
    assert [page.parents[2].name for page in pages] == ["site-1", "site-2"]
    for page, patient in zip(pages, ("Ada3", "Ada2"), strict=True):
        text = page.read_text()
        assert patient in text, "the test case's patient"
        assert f"i{patient[-1]}.nii.gz" in text
        assert "data:image/png;base64," in text
    assert len(replies) == 4
    for told in (caplog.text, *replies, repr(figures)):
        assert not re.search(r"Ada\d|\bi\d\.nii|image/png", told)


def test_norms_stay_at_the_sites_under_fedbn(federate: Federate) -> None:
    one = federate(fedavg=of("fedbn"))
    trained(one)
    ones, others = memory(one, "site-1"), memory(one, "site-2")
    statistics = [name for name in ones if name.endswith("running_mean")]
    assert statistics
    assert not any(torch.equal(ones[name], others[name]) for name in statistics)
    assert not ones.keys() & one.shared.keys()
    learner: Any = one.learner("site-1", "training")
    assert equal(private_tensors(learner.bench.model, one.experiment), ones)


def test_scaffolds_common_variates_are_the_mean_of_the_sites(federate: Federate) -> None:
    one = federate(fedavg=of("scaffold"))
    trained(one)
    ones, others = memory(one, "site-1"), memory(one, "site-2")
    for name, tensor in ones.items():
        mean = (2 * tensor + others[name]) / 3
        assert torch.allclose(one.shared[f"{CONTROL}{name}"], mean, rtol=0, atol=1e-5), name
    assert any(bool(tensor.any()) for tensor in ones.values())


def test_a_network_of_its_own_is_drawn_to_the_common_one_under_ditto(federate: Federate) -> None:
    distances = []
    for weight in (0.0, 5.0):
        one = federate(name=str(weight), fedavg={"strategy": "ditto", "ditto_lambda": weight, "sgd": SGD})
        one._run_round("training", 0, 2)
        received = dict(one.shared)
        (figures,) = [one._run_round("training", 1, 2)]
        assert all("loss_personal" in site for site in figures.values())
        own = memory(one, "site-1")
        distances.append(sum(float((own[n] - received[n]).square().sum()) for n in own if n.endswith("weight")))
        learner: Any = one.learner("site-1", "training")
        assert equal(learner.bench.model.state_dict(), own), "what is chosen is the site's own network"
    assert distances[1] < distances[0]


def test_a_site_that_lost_its_memory_says_so(federate: Federate) -> None:
    one = federate(fedavg=of("ditto"))
    one._run_round("training", 0, 2)
    one.state("site-2", "training").remove(MEMORY)
    figures = one._run_round("training", 1, 2)
    assert "memory_missing" not in figures["site-1"]
    assert figures["site-2"]["memory_missing"] == 1.0


def test_a_site_keeps_the_received_network_that_validated_best(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.segmentation import together

    one = federate(fedavg=of("fedavg"))
    dice = {"site-1": iter([0.8, 0.5]), "site-2": iter([0.5, 0.8])}

    def validate(*given: Any, volumes: Any, **options: Any) -> float:
        return next(dice[volumes.site.name])

    monkeypatch.setattr(together, "validate", validate)
    one._run_round("training", 0, 2)
    after_one = dict(one.shared)
    one._run_round("training", 1, 2)
    (figures,) = one.run_stage("evaluation")
    assert [figures[site]["best_round/personal"] for site in one.sites] == [1.0, 2.0]
    for site, expected in (("site-1", after_one), ("site-2", one.shared)):
        learner: Any = one.learner(site, "training")
        kept = checkpoint.load(learner.bench.model_file("personal"))
        assert all(torch.equal(kept["tensors"][name], tensor) for name, tensor in expected.items())


def test_candidates_trained_are_the_sites_own(federate: Federate) -> None:
    one = federate(fedavg=of("fedavg", candidates="trained"))
    (last,) = [trained(one)[-1]]
    assert all("validation_dice/personal" in site for site in last.values())
    one.run_stage("evaluation")
    models = []
    for site in one.sites:
        learner: Any = one.learner(site, "training")
        models.append(checkpoint.load(learner.bench.model_file("personal"))["tensors"])
    assert not equal(models[0], models[1])


def test_a_site_goes_on_alone_from_the_federations_network(federate: Federate) -> None:
    changes = {"starts": ["personal", "continued", "scratch"]}
    one = federate(fedavg=changes, stages={"fine_tuning": {"rounds": 1}})
    for stage in one.contracts:
        figures = one.run_stage(stage)
    models = {name.split("/")[1] for name in figures[-1]["site-1"] if name.startswith("dice/")}
    assert models == {"personal", "continued", "scratch"}


@pytest.mark.parametrize(("transport", "most"), [("fp16", 0.9), ("int8", 0.8), ("topk", 0.7)])
def test_a_thin_wire_carries_every_round_and_fresh_processes_keep_what_was_not_sent(
    federate: Federate, transport: str, most: float
) -> None:
    """The network of a few hundred numbers has many vectors, which travel as they are; larger ones save more."""
    ends = []
    for fresh in (False, True):
        one = federate(name=f"{transport}-{fresh}", federation={"transport": transport})
        trained(one, fresh=fresh)
        ends.append(one.shared)
    assert equal(*ends)
    dense = federate(name="dense")
    trained(dense)
    assert not equal(dense.shared, ends[0])
    for thin, whole in zip(one.traffic, dense.traffic, strict=True):
        for site in one.sites:
            assert thin[site]["up"] < most * whole[site]["up"]
            assert thin[site]["down"] == whole[site]["down"]


@pytest.mark.parametrize(("transport", "most"), [("fp16", 0.9), ("int8", 0.8)])
def test_a_thin_way_down_carries_every_round_and_leaves_the_way_up(
    federate: Federate, transport: str, most: float
) -> None:
    one, dense = (
        federate(name=name, federation={"transport_down": down})
        for name, down in (("thin", transport), ("dense", "fp32"))
    )
    for federation in (one, dense):
        trained(federation)
    assert not equal(dense.shared, one.shared)
    for name, tensor in dense.shared.items():
        assert torch.allclose(one.shared[name], tensor, atol=0.05 * float(tensor.abs().max()) + 0.01), name
    for thin, whole in zip(one.traffic, dense.traffic, strict=True):
        for site in one.sites:
            assert thin[site]["down"] < most * whole[site]["down"]
            assert thin[site]["up"] == pytest.approx(whole[site]["up"], abs=64)


@pytest.mark.parametrize("robust", [{"rule": "median"}, {"rule": "trimmed_mean"}, {"clip": "median"}], ids=str)
def test_two_sites_are_too_few_for_a_robust_rule(federate: Federate, robust: dict[str, Any]) -> None:
    one = federate(federation={"robust": robust})
    with pytest.raises(FedMedSegError, match="at least 3"):
        one._run_round("training", 0, 2)
