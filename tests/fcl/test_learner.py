"""One round at a site, from the server's tensors and the others' features to the reply."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.fcl.plan import exchange_of, initial_shared, stages


@pytest.fixture
def play(study, learner, task) -> Any:
    """play(round=1, received=..., **options): a new process does one task; returns its reply."""

    def run(*, round: int = 0, site: str = "site-1", received: Any = None, more: Any = None, **options: Any) -> Any:
        experiment = study(**options)
        shared = initial_shared(experiment)
        made = learner(experiment, site, **(more or {}))
        return made.run(task(experiment, shared, round=round, site=site, received=received), shared)

    return run


def test_a_reply_holds_shared_tensors_features_and_declared_figures(play, study, others) -> None:
    reply = play(received=others(7))
    contract = stages(study())["pretraining"]
    contract.check_metrics(reply.metrics)
    assert set(reply.metrics) == {
        "loss", "loss/local", "loss/remote", "feature_std", "collapse_alarm", "bank/own", "bank/received",
        "stack/coverage_mm", "stack/slices", "stack/one_direction", "set_aside",
    }  # fmt: skip
    assert (reply.metrics["bank/own"], reply.metrics["bank/received"], reply.metrics["set_aside"]) == (6.0, 7.0, 1.0)
    assert (reply.metrics["stack/coverage_mm"], reply.metrics["stack/slices"]) == (50.0, 5.0)
    assert set(reply.tensors) == set(initial_shared(study()))
    assert (reply.examples, reply.steps) == (3, 2)
    entries = exchange_of(study()).encode(reply.features)
    assert exchange_of(study()).problem(entries) is None
    assert len(reply.features) == 6


def test_without_an_exchange_no_feature_and_no_figure_of_it_leaves(play) -> None:
    reply = play(exchange=False)
    assert reply.features is None
    assert not [name for name in reply.metrics if name.startswith(("bank/", "stack/"))]


def test_two_sites_that_start_alike_end_apart_and_so_do_their_features(play) -> None:
    one, other = play(site="site-1"), play(site="site-2")
    assert content_sha256(one.tensors) != content_sha256(other.tensors)
    assert not torch.equal(one.features.vectors, other.features.vectors)


def test_a_task_given_again_to_a_new_process_gives_the_same_reply(play, others) -> None:
    for options in ({}, {"upload": "recompute"}, {"key_sync": "keep"}, {"noise": {"sigma": 0.1}}):
        first, again = (play(received=others(), **options) for _ in range(2))
        assert content_sha256(first.tensors) == content_sha256(again.tensors)
        assert torch.equal(first.features.vectors, again.features.vectors)
        assert first.metrics == again.metrics


@pytest.mark.parametrize("sync", ["reset", "keep"])
def test_rounds_in_fresh_processes_equal_rounds_in_one(study, learner, task, sync, tmp_path) -> None:
    experiment = study(key_sync=sync, rounds=2)
    shared = initial_shared(experiment)
    kept = learner(experiment, "site-1")
    ends = []
    for name, fresh in (("site-1", False), ("site-1x", True)):
        one = kept
        for number in (0, 1):
            if fresh:
                one = learner(experiment, "site-1")
            given = task(experiment, shared, round=number, site=name)
            # the same random numbers for both: they depend on the site's name
            given = type(given)(**{**vars(given), "site": "site-1"})
            reply = one.run(given, shared)
        ends.append(content_sha256(reply.tensors))
    assert ends[0] == ends[1]


def test_features_that_changed_by_noise_leave_and_the_bank_stays_clean(play, study, task, learner) -> None:
    plain, changed = play(site="site-1"), play(site="site-1", noise={"sigma": 0.2})
    assert not torch.equal(plain.features.vectors, changed.features.vectors)
    torch.testing.assert_close(changed.features.vectors.norm(dim=1), torch.ones(6))
    longer = play(site="site-1", noise={"sigma": 0.2, "renormalise": False})
    assert float((longer.features.vectors.norm(dim=1) - 1).abs().max()) > 0.01
    # trained alike: noise is on what leaves alone
    assert content_sha256(plain.tensors) == content_sha256(changed.tensors) == content_sha256(longer.tensors)


def test_collapsed_features_raise_the_alarm(play, caplog) -> None:
    spread = play(site="site-1").metrics["feature_std"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        calm = play(site="site-1", collapse={"alarm": spread * 0.9})
        assert calm.metrics["collapse_alarm"] == 0.0
        assert "collapsed" not in caplog.text
        loud = play(site="site-1", collapse={"alarm": min(0.99, spread * 1.1)})
    assert loud.metrics["collapse_alarm"] == 1.0
    assert "features have collapsed" in caplog.text


def test_a_later_round_without_memory_starts_anew_and_says_so(play, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        reply = play(round=1)
    assert reply.metrics["memory_missing"] == 1.0
    assert "no memory of an earlier round" in caplog.text
    assert play(round=1).metrics["memory_missing"] == 1.0, "the same when it is given again"
    assert "memory_missing" not in play(round=2).metrics


def test_a_site_alone_refuses_to_start_over(play) -> None:
    alone = {"exchange": False, "aggregation": "none", "starts": ["personal"]}
    with pytest.raises(FedMedSegError, match="personal memory") as caught:
        play(round=1, **alone)
    assert caught.value.reason == Reason.MISSING_TENSORS
    play(round=0, **alone)
    assert "memory_missing" not in play(round=1, **alone).metrics


def privacy(**settings: Any) -> Any:
    return SimpleNamespace(**{"features": True, "noise": None, **settings})


@pytest.mark.parametrize(
    "more",
    [
        {"simulated": False, "privacy": None},
        {"simulated": False, "privacy": privacy(features=False)},
        {"simulated": True, "privacy": privacy(features=False)},
        {"simulated": False, "privacy": privacy(noise=object())},
    ],
    ids=["no section", "not allowed", "not allowed in a simulation either", "noise"],
)
def test_a_site_that_keeps_its_features_declines_before_any_work(play, more) -> None:
    with pytest.raises(FedMedSegError, match="features of single slices") as caught:
        play(more=more)
    assert caught.value.reason == Reason.DENIED
    play(more=more, exchange=False)


def test_a_site_that_allows_it_takes_part(play) -> None:
    assert play(more={"simulated": False, "privacy": privacy()}).features is not None


def test_an_aborted_task_stops(study, learner, task) -> None:
    experiment = study()
    shared = initial_shared(experiment)
    with pytest.raises(Aborted):
        learner(experiment).run(task(experiment, shared, aborted=lambda: True), shared)


def test_another_stage_is_refused(study, learner, task) -> None:
    experiment = study()
    shared = initial_shared(experiment)
    given = task(experiment, shared)
    with pytest.raises(ConfigurationError, match="stage"):
        learner(experiment).run(type(given)(**{**vars(given), "stage": "other"}), shared)


def test_the_studys_precision_is_computed_in(play) -> None:
    full, half = (play(sections={"compute": {"precision": precision}}) for precision in ("fp32", "bf16"))
    assert not torch.equal(full.features.vectors, half.features.vectors)
    assert half.metrics["loss"] == pytest.approx(full.metrics["loss"], rel=0.1)


def test_volumes_too_shallow_for_the_rule_are_told(study, learner, volumes, task) -> None:
    experiment = study(partition="rounded_width")
    made = learner(experiment)
    made.__dict__["volumes"] = volumes(depths=(5, 1))
    shared = initial_shared(experiment)
    with pytest.raises(DataError, match=r"fcl.partition.*set fcl.partition to even"):
        made.run(task(experiment, shared), shared)
