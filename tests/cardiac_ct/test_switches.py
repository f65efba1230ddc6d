"""Whole stages with each switch, on scans of a few voxels: what its name says changes, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.cardiac_ct.answers import Found, log_probabilities
from fedmedseg.cardiac_ct.learner import KnowledgeDistillationLearner
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.cardiac_ct.pseudo_labels import ScanLabels, load_labels, save_index, save_labels
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.data.site import Site
from fedmedseg.data.spheres import draw_spheres

Run = Callable[..., Reply]
SHAPE = (64, 32, 32)
SMALL = {"filters": [4, 4, 4], "strides": [1, 2, 2], "size": [12, 12, 8], "supervised": 1, "steps": 2}
SEPTUM = np.array([[30.0, 16.0, 16.0], [36.0, 16.0, 16.0]])
"""Both ends of the membranous septum, in voxels."""
CALCIFIED = np.zeros(SHAPE, np.uint8)
CALCIFIED[30:34, 14:18, 14:18] = 1
ONE_STEP = {"segmentation": {"steps": 1}, "stages": {"distillation": {"rounds": 1}}}


@pytest.fixture
def run(study: Callable[..., Experiment], in_memory: Any, tmp_path: Path) -> Run:
    """run("teacher_calc", cardiac_ct={...}): a stage's reply at one site of two scans that have points and a mask.

    For distillation they have none, and ``answers`` are what the CNNs are taken to have said of each. ``hearts`` are
    maps of the heart's structures by scan, ``number`` is the round.
    """

    class Noise(in_memory):  # type: ignore[misc]
        def image(self, index: int) -> np.ndarray:
            drawn = np.random.default_rng(index).normal(size=(1, *self.shape)).astype(np.float32)
            return np.asarray(drawn + 3.0 * CALCIFIED, np.float32)

    made: list[SiteState] = []

    def make(
        stage: str,
        *,
        cardiac_ct: Mapping[str, Any],
        hearts: Mapping[int, np.ndarray] | None = None,
        answers: ScanLabels | None = None,
        number: int = 0,
        **changes: Any,
    ) -> Reply:
        gate = {"keep": "task", "hinge_points": "any", "ostia": "any", "septum": "any", "calcium": "any"}
        experiment = study(cardiac_ct={"teacher": SMALL, "radius": 2.0, "gate": gate, **cardiac_ct}, **changes)
        labels = {"calc": CALCIFIED, "ms": draw_spheres(SEPTUM, SHAPE, radius=2.0)}
        drawn = {task: {} if stage == "distillation" else dict.fromkeys(range(2), one) for task, one in labels.items()}
        scans = Noise(experiment=experiment, count=2, shape=SHAPE, drawn=drawn, hearts=hearts or {}, points=SEPTUM)
        folder = tmp_path / str(len(made))
        folder.mkdir()
        site = Site(
            name="site-1", state_root=folder, cache=folder, models=folder, device="cpu", datasets={}, salt="salt",
            simulated=True,
        )  # fmt: skip
        learner = KnowledgeDistillationLearner(experiment=experiment, site=site)
        learner.__dict__ |= {"training": scans, "scans": scans}
        state = SiteState(folder, study="s", experiment="e" * 64, site="site-1", run="r")
        made.append(state)
        if answers is not None:
            for key in ("key0", "key1"):
                save_labels(state, key, answers, teachers="t")
            save_index(state, {key: set(answers.kept) for key in ("key0", "key1")}, teachers="t")
        shared = initial_shared(experiment)
        task = Task(
            site="site-1",
            stage=stage,
            round=number,
            rounds=experiment.stages[stage].rounds,
            seed=1,
            base=content_sha256(shared),
            state=state,
            progress=Progress(site="site-1", stage=stage, round=number, rounds=1, file=folder / "progress.jsonl"),
        )
        return learner.run(task, shared)

    make.states = made  # type: ignore[attr-defined]
    return make


def same(one: Reply, other: Reply) -> bool:
    return content_sha256(one.tensors) == content_sha256(other.tensors)


def answers(*, calc: float = 1.0, ms: float | None = 1.0, soft: bool = False) -> ScanLabels:
    """Calcification and septum of a scan, as sure as said; ``ms`` None: no septum; softened for the calcification."""
    kept = {"calc": Found(points=None, mask=CALCIFIED, confidence=calc)}
    if ms is not None:
        kept["ms"] = Found(points=SEPTUM, mask=None, confidence=ms)
    doubtful = torch.softmax(torch.stack([torch.zeros(SHAPE), torch.from_numpy(CALCIFIED).float() - 0.5]), 0)
    return ScanLabels(kept=kept, soft={"calc": log_probabilities(doubtful)} if soft else {})


def test_a_cnn_that_is_conditioned_learns_from_the_hearts_structures_and_counts_who_has_none(run: Run) -> None:
    heart = np.zeros(SHAPE, np.uint8)
    heart[20:32, 8:24, 8:24] = 6
    hearts = {0: heart, 1: heart}
    on = {"conditioning": True}
    without, with_hearts = run("teacher_calc", cardiac_ct=on), run("teacher_calc", cardiac_ct=on, hearts=hearts)
    plain = run("teacher_calc", cardiac_ct={})
    assert (without.metrics["without_heart"], with_hearts.metrics["without_heart"]) == (2.0, 0.0)
    assert "without_heart" not in plain.metrics
    assert not same(without, with_hearts)
    assert same(plain, run("teacher_calc", cardiac_ct={}, hearts=hearts))


def test_a_cnn_of_heat_maps_learns_maps_of_their_width(run: Run) -> None:
    narrow, wide = (run("teacher_ms", cardiac_ct={"landmarks": "heatmaps", "sigma": sigma}) for sigma in (2.0, 3.0))
    spheres = run("teacher_ms", cardiac_ct={})
    # the wider maps hold more of what an untrained network misses; cross-entropy of three classes begins near log 3
    assert narrow.metrics["loss"] != wide.metrics["loss"] != spheres.metrics["loss"]
    assert min(narrow.metrics["loss"], wide.metrics["loss"]) > 0
    assert len({content_sha256(reply.tensors) for reply in (narrow, wide, spheres)}) == 3


def test_heat_maps_are_read_as_points_in_pseudo_labelling_and_taught_as_maps_in_distillation(run: Run) -> None:
    """Maps of an untrained CNN lie above the threshold all over what it sees: each has a peak, no point is missing."""
    labelled = run("pseudo_labelling", cardiac_ct={"landmarks": "heatmaps", "distillation": {"real_labels": False}})
    assert (labelled.metrics["kept/ms"], labelled.metrics["refused/ms"]) == (2.0, 0.0)
    labels = load_labels(run.states[-1], "key0")  # type: ignore[attr-defined]
    assert labels is not None
    assert labels.kept["ms"].points is not None
    assert np.isfinite(labels.kept["ms"].points).all()
    spheres, maps = (
        run("distillation", cardiac_ct={"landmarks": landmarks}, answers=answers(), **ONE_STEP)
        for landmarks in ("spheres", "heatmaps")
    )
    assert maps.metrics["cases/ms"] == spheres.metrics["cases/ms"] == 2.0
    assert not same(spheres, maps)


def test_softened_answers_are_kept_at_the_site_and_distilled_at_their_temperature(run: Run) -> None:
    for targets in ("soft", "hard"):
        run("pseudo_labelling", cardiac_ct={"distillation": {"targets": targets, "real_labels": False}})
        labels = load_labels(run.states[-1], "key1")  # type: ignore[attr-defined]
        assert labels is not None
        assert "calc" in labels.kept
        assert set(labels.soft) == (set(labels.kept) if targets == "soft" else set())
    hard = run("distillation", cardiac_ct={}, answers=answers(ms=None), **ONE_STEP)
    warm, hot = (
        run(
            "distillation",
            cardiac_ct={"distillation": {"targets": "soft", "temperature": temperature}},
            answers=answers(ms=None, soft=True),
            **ONE_STEP,
        )
        for temperature in (2.0, 5.0)
    )
    # a divergence is at least 0
    assert min(warm.metrics["loss"], hot.metrics["loss"]) >= 0.0
    assert len({content_sha256(reply.tensors) for reply in (hard, warm, hot)}) == 3


def test_a_pseudo_label_counts_by_its_cnns_confidence_where_that_is_wanted(run: Run) -> None:
    by_confidence = {"distillation": {"weighting": "confidence"}}
    plain = run("distillation", cardiac_ct={}, answers=answers(calc=0.25, ms=0.25), **ONE_STEP)
    weighted, certain, lopsided = (
        run("distillation", cardiac_ct=by_confidence, answers=answers(calc=calc, ms=ms), **ONE_STEP)
        for calc, ms in ((0.25, 0.25), (1.0, 1.0), (1.0, 0.25))
    )
    assert weighted.metrics["loss"] == pytest.approx(0.25 * plain.metrics["loss"], rel=1e-5)
    assert same(plain, certain)
    assert not same(plain, lopsided)


def test_a_schedule_lowers_the_rate_over_all_rounds_of_a_stage(run: Run) -> None:
    """Three rounds of a step each: the first has the full rate under both, the last less under ``cosine``."""
    longer = {"teacher": {**SMALL, "steps": 3}}
    replies = {
        (schedule, number): run(
            "teacher_calc",
            cardiac_ct={**longer, "schedule": schedule},
            number=number,
            stages={"teacher_calc": {"rounds": 3}},
        )
        for schedule in ("constant", "cosine")
        for number in (0, 2)
    }
    assert same(replies["constant", 0], replies["cosine", 0])
    assert not same(replies["constant", 2], replies["cosine", 2])
