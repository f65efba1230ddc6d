"""The federation in one process, on the toy system: what each site is given, and what becomes of what it returns."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedmedseg.core import in_process
from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.learner import Learner, Reply, Task
from fedmedseg.core.place import Place
from fedmedseg.core.robust import Survey
from fedmedseg.core.wire import Part

Given = list[tuple[str, int, str, list[str]]]


class Listener:
    """Adds one to every tensor and notes what it was given, and with how many threads."""

    def __init__(self, root: Path, given: Given, threads: list[int]) -> None:
        self.state_root, self.given, self.threads = root, given, threads
        self.needs_approval = False

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        assert task.base == content_crc32(shared)
        self.given.append((task.site, task.round, task.stage, sorted(shared)))
        self.threads.append(torch.get_num_threads())
        return Reply(tensors={name: tensor + 1 for name, tensor in shared.items()}, metrics={"loss": 0.5}, examples=2)


@pytest.fixture
def federate(
    experiment_file: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[InProcessFederation, Given, list[int]]]:
    """federate(threads=1): two sites of the toy study, what they are given, and the threads they had."""

    def make(
        threads: int = 1, *, needs_approval: bool = False, participation: float = 1.0, **changes: Any
    ) -> tuple[InProcessFederation, Given, list[int]]:
        given: Given = []
        seen: list[int] = []

        class Executor:
            def make_learner(self, experiment: Experiment, place: Place) -> Learner:
                learner = Listener(tmp_path / "state", given, seen)
                learner.needs_approval = needs_approval
                return learner

        real = in_process._class
        monkeypatch.setattr(in_process, "_class", lambda path: Executor if path == "toy.Executor" else real(path))
        experiment_file.write_text(yaml.safe_dump({**settings, "compute": {"threads": threads}, **changes}))
        client = {"executors": [{"tasks": ["training", "tuning", "testing"], "executor": {"path": "toy.Executor"}}]}
        rule = {"id": "rule", "path": "fedmedseg.core.aggregator.SharedKeysAggregator"}
        flows = [{"args": {"stage": stage, "aggregator_id": "rule"}} for stage in ("training", "tuning", "testing")]
        folder = experiment_file.parent
        (folder / "config_fed_client.json").write_text(json.dumps(client))
        (folder / "config_fed_server.json").write_text(json.dumps({"workflows": flows, "components": [rule]}))
        job = folder.parents[1]
        federation = InProcessFederation(
            job=job, workspace=tmp_path / "w", sites=["b", "a"], run="one", participation=participation
        )
        return federation, given, seen

    return make


def test_every_site_is_given_the_shared_tensors_and_the_mean_of_their_changes_is_added(
    federate: Callable[..., Any], shared: dict[str, torch.Tensor]
) -> None:
    federation, given, _ = federate()
    rounds = federation.run_stage("training")
    assert given == [(site, number, "training", ["a", "b"]) for number in (0, 1) for site in ("a", "b")]
    assert all(torch.equal(federation.shared[name], tensor + 2) for name, tensor in shared.items())
    assert [sorted(metrics) for metrics in rounds] == [["a", "b"]] * 2


def test_a_stage_that_sends_its_tensors_once_gives_nothing_after_that_and_changes_nothing(
    sent_once: None, federate: Callable[..., Any], shared: dict[str, torch.Tensor]
) -> None:
    federation, given, _ = federate()
    rounds = federation.run_stage("training")
    assert [(number, names) for _, number, _, names in given] == [(0, ["a", "b"])] * 2 + [(1, [])] * 2
    assert all(torch.equal(federation.shared[name], tensor) for name, tensor in shared.items())
    assert rounds[1]["a"]["loss"] == 0.5


def test_a_warning_of_a_rule_is_one_line_of_its_own_and_nothing_about_an_engine(
    federate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Survey, "outliers", lambda self: {"a": ["unlike the others"]})
    federate()[0].run_stage("training")
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition("]: ")[2] or line for line in lines] == [f"round {n}: a: unlike the others" for n in (0, 1)]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_sites_compute_with_the_threads_of_their_study(federate: Callable[..., Any], threads: int) -> None:
    before = torch.get_num_threads()
    try:
        federation, _, seen = federate(threads)
        federation.run_stage("training")
    finally:
        torch.set_num_threads(before)
    assert seen == [threads] * 4


def test_a_site_whose_people_decide_is_refused_where_nobody_asks_them(federate: Callable[..., Any]) -> None:
    federation, given, _ = federate(needs_approval=True)
    with pytest.raises(ConfigurationError, match=r"a: approval: got each_job.*use the simulator"):
        federation.run_stage("training")
    assert given == []


def test_where_half_take_part_each_round_asks_one_site_and_adds_its_changes_alone(
    federate: Callable[..., Any], shared: dict[str, torch.Tensor]
) -> None:
    federation, given, _ = federate(participation=0.5)
    rounds = federation.run_stage("training")
    assert [number for _, number, _, _ in given] == [0, 1]
    assert {site for site, *_ in given} == {"a", "b"}
    assert [list(one) for one in rounds] == [[site] for site, *_ in given]
    assert all(torch.equal(federation.shared[name], tensor + 2) for name, tensor in shared.items())
    # a stage whose replies are figures alone asks everybody
    assert federation._asked("testing", 0) == ["a", "b"]


def test_too_few_for_a_robust_rule_are_refused_before_a_round(federate: Callable[..., Any]) -> None:
    robust = {"robust": {"rule": "median"}, "quorum": 0.5}
    federation, given, _ = federate(participation=0.5, federation=robust)
    with pytest.raises(ConfigurationError, match=r"participation in training: got 1 of 2 .*at least 3 for median"):
        federation.run_stage("training")
    assert given == []


def test_a_stage_that_builds_on_its_first_round_needs_everybody(
    with_contract: Callable[..., Any], federate: Callable[..., Any]
) -> None:
    with_contract("training", sent_later=Part(within=("a",)))
    federation, given, _ = federate(participation=0.5)
    with pytest.raises(ConfigurationError, match=r"participation in training.*Expected all of them"):
        federation.run_stage("training")
    assert given == []


def test_an_unknown_stage_is_told_with_those_there_are(federate: Callable[..., Any]) -> None:
    with pytest.raises(FedMedSegError, match=r"got 'trainin'. Expected one of training, tuning, testing"):
        federate()[0].run_stage("trainin")
