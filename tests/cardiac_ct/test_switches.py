"""Whole stages with each switch, on scans of a few voxels: what its name says changes, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
from marked_scans import ONE_STEP, SHAPE, answers, gap, same

from fedmedseg.cardiac_ct.batches import Batch, WholeHearts
from fedmedseg.cardiac_ct.pseudo_labels import load_labels
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.jobs import merged, setting
from fedmedseg.core.learner import Reply

Run = Callable[..., Reply]


def test_a_cnn_that_is_conditioned_learns_from_the_hearts_structures_and_counts_who_has_none(run: Run) -> None:
    heart = np.zeros(SHAPE, np.uint8)
    heart[36:48, 8:24, 8:24] = 6
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


def test_where_real_labels_are_left_out_a_marked_scan_teaches_as_if_nobody_had_marked_it(run: Run) -> None:
    def distilled(*, real: bool, marked: tuple[int, ...]) -> Reply:
        wing = {"distillation": {"real_labels": real}}
        return run("distillation", cardiac_ct=wing, marked=marked, answers=answers(ms=None, soft=True), **ONE_STEP)

    with_them, without, unmarked = (
        distilled(real=real, marked=marked) for real, marked in ((True, (0, 1)), (False, (0, 1)), (False, ()))
    )
    assert (with_them.metrics["cases/pseudo"], without.metrics["cases/pseudo"]) == (0.0, 2.0)
    assert same(without, unmarked)
    assert not same(with_them, without)


def test_a_share_of_the_students_patches_lies_where_something_is_marked(run: Run) -> None:
    """Two thirds of a scan along x, which lie elsewhere once they are centred on the calcification."""
    none, all_of_them = (
        run(
            "distillation",
            cardiac_ct={},
            answers=answers(ms=None),
            **merged(ONE_STEP, {"segmentation": {"foreground_share": share}}),
        )
        for share in (0.0, 1.0)
    )
    assert not same(none, all_of_them)


@pytest.mark.parametrize(("keep", "kept"), [("scan", 0.0), ("task", 2.0)])
def test_a_scan_whose_points_are_implausible_keeps_its_mask_where_each_task_is_judged_alone(
    run: Run, keep: str, kept: float
) -> None:
    wing = {"gate": {"keep": keep, "septum": [500.0, 501.0]}, "distillation": {"real_labels": False}}
    found = run("pseudo_labelling", cardiac_ct=wing).metrics
    assert (found["refused/ms"], found["kept/ms"]) == (2.0, 0.0)
    assert (found["kept/calc"], found["refused/calc"]) == (kept, 2.0 - kept)


ONE_STEP_OF: dict[str, dict[str, Any]] = {
    "teacher_calc": {"cardiac_ct": {"teacher": {"steps": 1, "optimizer": {"warmup_fraction": 0.0}}}},
    "distillation": {**ONE_STEP, "cardiac_ct": {}},
    "head_tuning": {"cardiac_ct": {"head_steps": 1}},
    "transfer": {"cardiac_ct": {"transfer": {"steps": 1}}},
}
"""Each stage that trains, with one step."""


@pytest.mark.parametrize("stage", ["teacher_calc", "transfer"])
def test_a_cnn_sees_as_many_volumes_a_step_as_its_batch(run: Run, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    draw, seen = WholeHearts.draw, []

    def listening(self: WholeHearts, rng: np.random.Generator) -> Batch:
        seen.append(draw(self, rng))
        return seen[-1]

    monkeypatch.setattr(WholeHearts, "draw", listening)
    run(stage, **merged(ONE_STEP_OF[stage], setting("cardiac_ct.teacher.batch=3")))
    assert [len(batch.inputs) for batch in seen] == [3]


@pytest.mark.parametrize("stage", ONE_STEP_OF)
def test_a_site_counts_by_the_scans_that_teach_it(run: Run, stage: str) -> None:
    replies = [run(stage, marked=marked, **ONE_STEP_OF[stage]) for marked in ((0,), (0, 1))]
    assert [reply.examples for reply in replies] == [1, 2]


@pytest.mark.parametrize(
    ("stage", "own", "other"),
    [
        ("teacher_calc", "cardiac_ct.teacher.optimizer.learning_rate", "segmentation.optimizer.learning_rate"),
        ("distillation", "segmentation.optimizer.learning_rate", "cardiac_ct.teacher.optimizer.learning_rate"),
        ("head_tuning", "segmentation.optimizer.learning_rate", "cardiac_ct.transfer.learning_rate"),
        ("transfer", "cardiac_ct.transfer.learning_rate", "segmentation.optimizer.learning_rate"),
    ],
)
def test_each_stage_has_a_rate_of_its_own(run: Run, stage: str, own: str, other: str) -> None:
    """AdamW moves a weight by its rate in the first step, and by a little of the weight itself."""
    settings = reduce(merged, map(setting, (f"{own}=0.01", f"{other}=0.01")), ONE_STEP_OF[stage])
    low, high, beside = (
        run(stage, marked=(0, 1), **merged(settings, setting(change)))
        for change in (f"{own}=0.01", f"{own}=0.03", f"{other}=0.02")
    )
    assert gap(low, high) == pytest.approx(0.02, rel=0.1)
    assert same(low, beside)


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        ("teacher_calc", "cardiac_ct.teacher.steps"),
        ("distillation", "segmentation.steps"),
        ("head_tuning", "cardiac_ct.head_steps"),
        ("transfer", "cardiac_ct.transfer.steps"),
    ],
)
def test_a_schedule_lowers_the_rate_over_all_rounds_of_a_stage(run: Run, stage: str, steps: str) -> None:
    """Three rounds of a step each: the first has the full rate under both, the last less under ``cosine``."""
    longer = merged(ONE_STEP_OF[stage], setting(f"{steps}=3"))
    replies = {
        (schedule, number): run(
            stage,
            marked=(0, 1),
            number=number,
            **merged(longer, {"cardiac_ct": {"schedule": schedule}, "stages": {stage: {"rounds": 3}}}),
        )
        for schedule in ("constant", "cosine")
        for number in (0, 2)
    }
    assert same(replies["constant", 0], replies["cosine", 0])
    assert not same(replies["constant", 2], replies["cosine", 2])
