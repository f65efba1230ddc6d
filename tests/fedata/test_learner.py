"""A site's round end to end: reply, memory, and the same bits after being killed at any place."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.fedata.learner import OneVolume
from fedmedseg.fedata.objective import MaskedDistillationObjective
from fedmedseg.fedata.plan import initial_shared, stages


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _forget(given):
    for name in ("personal", "running_pretraining"):
        given.state.remove(name)


@pytest.fixture
def done(monkeypatch):
    """The index of every step that was finished."""
    finished: list[int] = []
    plain = MaskedDistillationObjective.step

    def counted(self, index):
        figures = plain(self, index)
        finished.append(index)
        return figures

    monkeypatch.setattr(MaskedDistillationObjective, "step", counted)
    return finished


@pytest.mark.parametrize(("network", "crop"), [("swin_unetr", (64, 64)), ("unetr", (32, 32)), ("unetr", (32, 32, 32))])
def test_a_round_replies_with_exactly_the_shared_tensors_and_declared_figures(study, learner, task, network, crop):
    experiment = study(network, crop, local_steps=2)
    shared = initial_shared(experiment)
    reply = learner(experiment).run(task(experiment, shared), shared)
    assert set(reply.tensors) == set(shared)
    assert all(not torch.equal(reply.tensors[name], shared[name]) for name in shared)
    assert (reply.examples, reply.steps) == (6, 2)
    stages(experiment)["pretraining"].check_metrics(reply.metrics)
    assert set(reply.metrics) == {"loss", "teacher_std", "student_teacher_gap", "collapse_alarm", "set_aside"}
    assert reply.metrics["collapse_alarm"] == 0.0


def test_the_site_remembers_what_its_next_round_and_fine_tuning_need(study, learner, task):
    experiment = study()
    shared = initial_shared(experiment)
    given = task(experiment, shared)
    reply = learner(experiment).run(given, shared)
    personal = given.state.load("personal")
    assert personal["round"] == 0
    assert _equal(personal["tensors"], reply.tensors)
    assert set(personal["teacher"]) == {name for name in shared if name.startswith("vit.")}
    assert personal["mixing"] is None
    assert personal["reference"] > 0


def test_the_next_round_mixes_and_one_that_comes_late_still_does(study, learner, task, moved):
    experiment = study(rounds=5, ala={"step": 1e3})
    shared = initial_shared(experiment)
    site = learner(experiment)
    site.run(task(experiment, shared), shared)
    incoming = moved(shared)
    second = site.run(task(experiment, incoming, round=1), incoming)
    assert {name for name in second.metrics if name.startswith("mixing/")} == {
        "mixing/passes",
        "mixing/loss_first",
        "mixing/loss_last",
        "mixing/weight_mean",
    }
    stages(experiment)["pretraining"].check_metrics(second.metrics)
    later = moved(shared, seed=8)
    fifth = site.run(task(experiment, later, round=4), later)
    assert fifth.metrics["mixing/passes"] == 1


def test_a_site_that_joins_late_starts_from_the_server_and_says_so(study, learner, task, caplog):
    experiment = study()
    shared = initial_shared(experiment)
    reply = learner(experiment).run(task(experiment, shared, round=2), shared)
    assert "no memory of an earlier round" in caplog.text
    assert reply.metrics["student_teacher_gap"] == 0.0
    assert "mixing/passes" not in reply.metrics
    assert reply.metrics["memory_missing"] == 1.0
    stages(experiment)["pretraining"].check_metrics(reply.metrics)
    # a new process that finds the task finished says the same
    again = learner(experiment).run(task(experiment, shared, round=2), shared)
    assert again.metrics == reply.metrics


def test_a_site_on_its_own_that_lost_its_memory_is_refused_and_trains_nothing(study, learner, task, done):
    experiment = study(server_aggregation="none", starts=["personal"])
    given = task(experiment, {}, round=1)
    with pytest.raises(FedMedSegError, match=r"none of an earlier round in round 1.*Remedy: bring") as caught:
        learner(experiment).run(given, {})
    assert caught.value.reason == Reason.MISSING_TENSORS
    assert done == []
    assert given.state.load("personal") is None


def test_round_zero_does_not_look_at_an_earlier_memory(study, learner, task, moved):
    experiment = study()
    shared = initial_shared(experiment)
    site = learner(experiment)
    fresh = site.run(task(experiment, shared), shared)
    other = moved(shared)
    site.run(task(experiment, other), other)
    again = site.run(task(experiment, shared), shared)
    assert _equal(again.tensors, fresh.tensors)
    assert again.metrics == fresh.metrics


@pytest.mark.parametrize("network", [("unetr", (32, 32)), ("swin_unetr", (64, 64))])
def test_a_round_stopped_in_the_middle_continues_to_the_same_bits(study, learner, task, moved, done, network):
    """Stopped after step 2 of a mixing round; a new process gets the same task again."""
    experiment = study(*network, ala={"step": 1e3})
    shared = initial_shared(experiment)
    incoming = moved(shared)
    replies, memories = [], []
    for stop in (False, True):
        site = learner(experiment)
        site.run(task(experiment, shared), shared)
        if stop:
            done.clear()
            given = task(experiment, incoming, round=1, aborted=lambda: len(done) >= 2)
            with pytest.raises(Aborted):
                site.run(given, incoming)
            assert done == [0, 1]
            assert given.state.load("personal")["round"] == 0
            site = learner(experiment)
        given = task(experiment, incoming, round=1)
        replies.append(site.run(given, incoming))
        memories.append(given.state.load("personal"))
        _forget(given)
    assert done == [0, 1, 2, 3]
    assert _equal(replies[0].tensors, replies[1].tensors)
    assert replies[0].metrics == replies[1].metrics
    assert replies[0].metrics["mixing/passes"] > 1
    for part in ("teacher", "mixing"):
        assert _equal(memories[0][part], memories[1][part])
    assert memories[0]["reference"] == memories[1]["reference"]


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_process_killed_without_warning_continues_to_the_same_bits(
    study, learner, task, moved, done, monkeypatch, checkpoint_seconds
):
    """With a checkpoint after every step, and with none at all (then mixing and steps are simply done again)."""
    experiment = study(ala={"step": 1e3})
    shared = initial_shared(experiment)
    incoming = moved(shared)
    replies = []
    for kill in (False, True):
        site = learner(experiment)
        site.run(task(experiment, shared), shared)
        second = task(experiment, incoming, round=1, checkpoint_seconds=checkpoint_seconds)
        if kill:
            plain = MaskedDistillationObjective.step

            def dies(self, index, plain=plain):
                if index == 3:
                    raise KeyboardInterrupt
                return plain(self, index)

            with monkeypatch.context() as patch:
                patch.setattr(MaskedDistillationObjective, "step", dies)
                with pytest.raises(KeyboardInterrupt):
                    site.run(second, incoming)
            done.clear()
            site = learner(experiment)
        replies.append(site.run(second, incoming))
        if kill:
            assert done == ([3] if checkpoint_seconds == 0.0 else [0, 1, 2, 3])
        _forget(second)
    assert _equal(replies[0].tensors, replies[1].tensors)
    assert replies[0].metrics == replies[1].metrics


def test_a_finished_task_given_again_returns_the_same_reply_without_training(study, learner, task, done):
    experiment = study()
    shared = initial_shared(experiment)
    first = learner(experiment).run(task(experiment, shared), shared)
    done.clear()
    again = learner(experiment).run(task(experiment, shared), shared)
    assert done == []
    assert _equal(first.tensors, again.tensors)
    assert first.metrics == again.metrics


def test_one_process_for_all_rounds_and_one_per_round_give_the_same_bits(study, learner, task, moved):
    experiment = study(ala={"step": 1e3})
    shared = initial_shared(experiment)
    incoming = moved(shared)
    replies = []
    for processes in (1, 2):
        site = learner(experiment)
        site.run(task(experiment, shared), shared)
        if processes == 2:
            site = learner(experiment)
        given = task(experiment, incoming, round=1)
        replies.append(site.run(given, incoming))
        _forget(given)
    assert _equal(replies[0].tensors, replies[1].tensors)


def test_collapsed_targets_raise_the_alarm(study, learner, task, caplog):
    experiment = study()
    shared = initial_shared(experiment)
    site = learner(experiment)
    given = task(experiment, shared)
    site.run(given, shared)
    personal = given.state.load("personal")
    given.state.save("personal", personal | {"reference": personal["reference"] * 1000})
    with caplog.at_level(logging.WARNING):
        reply = site.run(task(experiment, shared, round=1), shared)
    assert reply.metrics["collapse_alarm"] == 1.0
    assert "targets have collapsed" in caplog.text


@pytest.mark.parametrize(("share", "alarmed"), [(0.1, 0.0), (0.9, 1.0)])
def test_the_alarm_is_raised_below_the_share_asked_for(study, learner, task, share, alarmed):
    """A spread of about half the first step's is an alarm at 0.9, none at the default."""
    experiment = study(local_steps=1, collapse={"alarm": share})
    shared = initial_shared(experiment)
    site = learner(experiment)
    given = task(experiment, shared)
    site.run(given, shared)
    personal = given.state.load("personal")
    given.state.save("personal", personal | {"reference": personal["reference"] * 2})
    assert site.run(task(experiment, shared, round=1), shared).metrics["collapse_alarm"] == alarmed


def test_another_stage_is_refused(study, learner, task):
    experiment = study()
    shared = initial_shared(experiment)
    with pytest.raises(ConfigurationError, match=r"'fine_tuning'.*'pretraining'"):
        learner(experiment).run(dataclasses.replace(task(experiment, shared), stage="fine_tuning"), shared)


def test_crops_of_a_step_come_from_the_volume_that_was_chosen(study, learner, volumes):
    one = OneVolume(volumes=volumes, index=4)
    assert len(one) == 1
    one.image(0)
    assert volumes.reads == [4]


MIXES = [
    {"client_mix": "fedema"},
    {"client_mix": "keep_attn_local", "teacher_sync": "reset"},
    {"client_mix": "ala_all", "ala": {"step": 0.3, "normalise": True, "granularity": "head"}},
    {"client_mix": "replace", "teacher_sync": "aggregate"},
    {"server_aggregation": "none", "starts": ["personal"]},
]


@pytest.mark.parametrize("settings", MIXES)
def test_every_mixing_continues_after_a_kill_to_the_same_bits_in_this_round_and_the_next(
    study, learner, task, moved, monkeypatch, settings
):
    """Killed before the last step of round 1; round 2 stands on what round 1 remembered."""
    experiment = study(**settings)
    contract = stages(experiment)["pretraining"]
    shared = initial_shared(experiment)
    later = [moved(shared, seed=5), moved(shared, seed=6)]
    plain = MaskedDistillationObjective.step

    def dies(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return plain(self, index)

    outcomes = []
    for kill in (False, True):
        site = learner(experiment)
        site.run(task(experiment, shared), shared)
        if kill:
            with monkeypatch.context() as patch:
                patch.setattr(MaskedDistillationObjective, "step", dies)
                with pytest.raises(KeyboardInterrupt):
                    site.run(task(experiment, later[0], round=1, checkpoint_seconds=0.0), later[0])
            site = learner(experiment)
        replies = []
        for number, incoming in enumerate(later, start=1):
            given = task(experiment, incoming, round=number)
            replies.append(site.run(given, incoming))
            contract.check_metrics(replies[-1].metrics)
        outcomes.append((replies, given.state.load("personal")))
        _forget(given)
    (whole, memory), (continued, same) = outcomes
    for one, other in zip(whole, continued, strict=True):
        assert _equal(one.tensors, other.tensors)
        assert one.tensors.keys() == shared.keys()
        assert one.metrics == other.metrics
    assert _equal(memory["teacher"], same["teacher"])
    if settings.get("client_mix") == "fedema":
        assert memory["mixing"] == same["mixing"]


def test_fedema_follows_the_change_of_each_round_before(study, learner, task, moved):
    """mu of rounds 1 and 2 from nothing but what crossed the wire: lambda = 0.7 / d_0, mu_2 = lambda d_1."""
    experiment = study(client_mix="fedema", optimizer={"learning_rate": 1e-3, "warmup_fraction": 0.0})
    shared = initial_shared(experiment)
    site = learner(experiment)

    def distance(one, other):
        return sum(float((one[name] - other[name]).norm()) for name in one) / len(one)

    first = site.run(task(experiment, shared), shared)
    assert not any(name.startswith("mixing/") for name in first.metrics)
    incoming = moved(shared)
    second = site.run(task(experiment, incoming, round=1), incoming)
    factor = 0.7 / distance(shared, first.tensors)
    assert second.metrics["mixing/mu"] == pytest.approx(0.7)
    assert second.metrics["mixing/lambda"] == pytest.approx(factor, rel=1e-5)
    start = {name: 0.3 * incoming[name] + 0.7 * first.tensors[name] for name in shared}
    expected = factor * distance(start, second.tensors)
    assert 0.0 < expected < 1.0
    # another process, from the disk
    third = learner(experiment).run(task(experiment, shared, round=2), shared)
    assert third.metrics["mixing/mu"] == pytest.approx(expected, rel=1e-4)
    assert third.metrics["mixing/lambda"] == second.metrics["mixing/lambda"]


def test_a_site_on_its_own_takes_nothing_of_the_server_after_its_first_round(study, learner, task, moved):
    experiment = study(server_aggregation="none", starts=["personal"])
    shared = initial_shared(experiment)
    replies = []
    # from round 1 on it is sent nothing, and would take nothing if it were
    for incoming in ({}, moved(shared, 0.5)):
        site = learner(experiment)
        site.run(task(experiment, shared), shared)
        given = task(experiment, incoming, round=1)
        replies.append(site.run(given, incoming))
        _forget(given)
    assert _equal(replies[0].tensors, replies[1].tensors)
    assert replies[0].metrics == replies[1].metrics


def test_two_rounds_on_its_own_go_on_where_the_first_ended(study, learner, task):
    experiment = study(server_aggregation="none", starts=["personal"], ema={"start": 0.5, "end": 0.5})
    shared = initial_shared(experiment)
    given = task(experiment, shared)
    site = learner(experiment)
    first = site.run(given, shared)
    objective = learner(experiment).objective
    objective.begin(round=1, rounds=3)
    personal = given.state.load("personal")
    objective.initialise(shared, personal)
    assert _equal(objective.network.shared(), first.tensors)
    assert _equal(objective.memory()["teacher"], personal["teacher"])
    assert any(not torch.equal(personal["teacher"][name], first.tensors[name]) for name in personal["teacher"])
