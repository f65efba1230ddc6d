"""A site's rounds: what it remembers, what it does without, FedEMA's mixing, the alarm."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.core.training import Aborted
from fedmedseg.fclopt.learner import BootstrapLearner
from fedmedseg.fclopt.network import TARGET, from_wire
from fedmedseg.segmentation.stages import PERSONAL


def test_a_reply_holds_both_networks_and_says_what_it_stands_on(federation: Callable[..., Any]) -> None:
    study = federation(2, mode="ptnu")
    study.round(0)
    reply = study.replies["site-2"]
    assert reply.examples == 4
    assert reply.steps == 2
    assert reply.metrics["set_aside"] == 1.0
    assert reply.metrics["rate"] == pytest.approx(0.032)
    assert set(from_wire(reply.tensors)) == set(from_wire(reply.known))
    study.contract.check_metrics(reply.metrics)


def test_a_task_given_again_after_its_answer_was_lost_gives_the_same_answer(federation: Callable[..., Any]) -> None:
    study = federation(3, mode="ptnu_dp")
    study.round(0)
    _, current = study.open(1)
    study.train("site-1", current)
    first = study.replies["site-1"]
    study.train("site-1", current)
    again = study.replies["site-1"]
    assert again.held == first.held
    assert again.metrics == first.metrics
    assert all(torch.equal(again.tensors[name], first.tensors[name]) for name in first.tensors)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_site_killed_in_a_round_goes_on_to_the_same_bits(steps: int, federation: Callable[..., Any]) -> None:
    whole, killed = (federation(3, mode="ptnu", folder=name, local_steps=3) for name in "ab")
    for study in (whole, killed):
        study.round(0)
    _, current = whole.open(1)
    whole.train("site-1", current)
    _, current = killed.open(1)
    site = SimpleNamespace(state_root=killed.folder / "state", cache=killed.folder / "cache", device="cpu")
    learner = BootstrapLearner(experiment=killed.experiment, site=site)
    learner.__dict__["volumes"] = killed.volumes["site-1"]
    asked = iter([False] * steps + [True])
    with pytest.raises(Aborted):
        learner.run(killed.task("site-1", current, aborted=lambda: next(asked)), dict(current.given_to("site-1")))
    killed.train("site-1", current)
    one, other = whole.replies["site-1"], killed.replies["site-1"]
    assert one.held == other.held
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_a_memory_of_the_future_is_not_used(federation: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """The server went back to an older checkpoint."""
    study = federation(4, mode="ptnu")
    study.round(0)
    kept, history = dict(study.shared), list(study.history)
    study.round(1)
    study.round(2)
    study.shared, study.history = kept, history
    with caplog.at_level(logging.WARNING):
        study.round(1)
    assert "not of an earlier one" in caplog.text
    assert study.replies["site-1"].metrics["memory_missing"] == 1.0
    study.round(2)
    assert list(study.behind) == study.sites
    study.round(3)
    assert study.history[-1]["notes"]["target"]["held"] == study.sites


def test_a_target_that_is_kept_goes_on_from_the_sites_own_last_round(federation: Callable[..., Any]) -> None:
    study = federation(4, mode="keep_local")
    study.round(0)
    own = from_wire(study.replies["site-1"].tensors)
    study.round(1, taking_part=["site-2"])
    study.round(2)
    known = from_wire(study.replies["site-1"].known)
    assert all(torch.equal(known[name], own[name]) for name in own), "also over a round that it missed"
    assert "memory_missing" not in study.replies["site-1"].metrics


def test_a_kept_target_that_is_lost_is_told(federation: Callable[..., Any]) -> None:
    study = federation(2, mode="keep_local")
    study.round(0)
    _, current = study.open(1)
    study.task("site-1", current).state.remove(PERSONAL)
    study.round(1)
    assert study.replies["site-1"].metrics["memory_missing"] == 1.0
    known = from_wire(study.replies["site-1"].known)
    assert all(torch.equal(known[name], study.given["site-1"][name]) for name in known)


def test_fedema_keeps_a_part_of_the_sites_own_network(federation: Callable[..., Any]) -> None:
    mixed, plain = (
        federation(4, mode="keep_local", folder=name, **more)
        for name, more in (("a", {"client_mix": "fedema", "fedema": {"tau": 0.5}}), ("b", {}))
    )
    for study in (mixed, plain):
        study.round(0)
        study.round(1)
    figures = mixed.replies["site-1"].metrics
    # lambda is tau over the first change, so that the first mixing takes tau of its own
    assert figures["mixing/mu"] == pytest.approx(0.5)
    assert figures["mixing/lambda"] * figures["mixing/change"] == pytest.approx(0.5)
    assert "mixing/mu" not in plain.replies["site-1"].metrics
    one, other = mixed.replies["site-1"].tensors, plain.replies["site-1"].tensors
    assert any(not torch.equal(one[name], other[name]) for name in one if not name.startswith(TARGET))
    mixed.round(2)
    later = mixed.replies["site-1"].metrics
    assert later["mixing/lambda"] == figures["mixing/lambda"], "set once"
    assert later["mixing/mu"] == pytest.approx(min(1.0, later["mixing/lambda"] * later["mixing/change"]))


def test_a_repeated_task_mixes_as_before(federation: Callable[..., Any]) -> None:
    study = federation(3, mode="keep_local", client_mix="fedema")
    study.round(0)
    _, current = study.open(1)
    study.train("site-1", current)
    first = study.replies["site-1"].metrics
    study.train("site-1", current)
    assert study.replies["site-1"].metrics == first


def test_collapsed_projections_raise_an_alarm(federation: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    alarmed, calm = (
        federation(1, folder=name, collapse={"alarm": alarm}) for name, alarm in (("a", 0.99), ("b", 0.01))
    )
    with caplog.at_level(logging.WARNING):
        for study in (calm, alarmed):
            assert "collapsed" not in caplog.text
            study.round(0)
    assert alarmed.replies["site-1"].metrics["collapse_alarm"] == 1.0
    assert calm.replies["site-1"].metrics["collapse_alarm"] == 0.0
    assert "features have collapsed" in caplog.text


def test_volumes_too_shallow_for_the_rule_are_told(federation: Callable[..., Any], make_volumes: Any) -> None:
    study = federation(1, partition="rounded_width", parts=4)
    study.volumes["site-1"] = make_volumes(slices=1)
    _, current = study.open(0)
    with pytest.raises(DataError, match=r"fclopt.partition.*set fclopt.partition to even"):
        study.train("site-1", current)


def test_another_stage_is_refused(federation: Callable[..., Any]) -> None:
    study = federation(1)
    _, current = study.open(0)
    task = dataclasses.replace(study.task("site-1", current), stage="evaluation")
    with pytest.raises(ConfigurationError, match="stage: got 'evaluation'"):
        BootstrapLearner(experiment=study.experiment, site=SimpleNamespace()).run(task, {})
