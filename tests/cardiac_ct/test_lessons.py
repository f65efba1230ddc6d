"""What a scan teaches: real labels before a CNN's answers, nothing where neither is, and patches of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.cardiac_ct.answers import Found, log_probabilities
from fedmedseg.cardiac_ct.batches import Patches, WholeHearts
from fedmedseg.cardiac_ct.lessons import Lessons, inputs_of, weights_of, without_heart
from fedmedseg.cardiac_ct.pseudo_labels import ScanLabels, save_index, save_labels
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.state import SiteState
from fedmedseg.data.spheres import draw_spheres

Study = Callable[..., Experiment]
Make = Callable[..., Lessons]
Scans = Callable[..., Any]
REAL = np.ones((8, 8, 8), np.uint8)
ANSWERED = np.zeros((8, 8, 8), np.uint8)
ANSWERED[2, 3, 4] = 1


@pytest.fixture
def state(tmp_path: Path) -> SiteState:
    """A CNN's answers to scans 0 and 1: a mask of both, points of the second."""
    state = SiteState(tmp_path, study="s", experiment="e" * 64, site="site-1", run="r")
    points = Found(points=np.array([[2.0, 2, 2], [6.0, 6, 6]]), mask=None, confidence=0.5)
    mask = Found(points=None, mask=ANSWERED, confidence=0.25)
    save_labels(state, "key0", ScanLabels(kept={"calc": mask}), teachers="t")
    save_labels(state, "key1", ScanLabels(kept={"calc": mask, "ms": points}), teachers="t")
    save_index(state, {"key0": ["calc"], "key1": ["ms", "calc"], "key2": []}, teachers="t")
    return state


@pytest.fixture
def lessons(study: Study, in_memory: Scans) -> Callable[..., Lessons]:
    """lessons(state, real=False): three scans, of which the first has a real mask."""

    def make(state: SiteState | None, **options: Any) -> Lessons:
        experiment = study(cardiac_ct={"radius": 1.0, **options.pop("cardiac_ct", {})})
        scans = in_memory(experiment=experiment, drawn={"calc": {0: REAL}})
        return Lessons(volumes=scans, experiment=experiment, tasks=("hps", "ms", "calc"), taught=state, **options)

    return make


def test_a_real_label_takes_the_place_of_the_answer_and_a_scan_without_either_is_left_out(
    lessons: Make, state: SiteState
) -> None:
    found = lessons(state)
    assert found.indices == [0, 1]
    assert {index: found.tasks_of(index) for index in found.indices} == {0: ("calc",), 1: ("ms", "calc")}
    drawn, answered = found.lessons(0)["calc"], found.lessons(1)["calc"]
    assert (drawn.real, answered.real) == (True, False)
    assert np.array_equal(drawn.label, REAL)
    assert np.array_equal(answered.label, ANSWERED)
    assert sorted(np.unique(found.lessons(1)["ms"].label)) == [0, 1, 2]
    assert found.counts() == {"cases/hps": 0.0, "cases/ms": 1.0, "cases/calc": 2.0, "cases/pseudo": 1.0}


def test_each_source_can_be_left_out(lessons: Make, state: SiteState) -> None:
    assert lessons(None).indices == [0]
    without = lessons(state, real=False)
    assert np.array_equal(without.lessons(0)["calc"].label, ANSWERED)
    with pytest.raises(DataError) as error:
        lessons(None, real=False)
    assert error.value.reason == Reason.NO_CASES


def test_few_patients_are_a_part_of_more(study: Study, in_memory: Scans) -> None:
    experiment = study()
    scans = in_memory(experiment=experiment, count=5, drawn={"coronaries": dict.fromkeys(range(5), REAL)})

    def chosen(patients: int | None) -> set[int]:
        options: dict[str, Any] = {"volumes": scans, "experiment": experiment, "tasks": ("coronaries",)}
        return set(Lessons(**options, patients=patients).indices)

    assert [len(chosen(number)) for number in (1, 2, None)] == [1, 2, 5]
    assert chosen(1) < chosen(2) < chosen(None)


def test_a_pseudo_label_counts_as_much_as_its_cnn_was_sure_where_that_is_wanted(
    lessons: Make, state: SiteState
) -> None:
    found = lessons(state)
    assert weights_of(found.lessons(1), "none") == {"ms": 1.0, "calc": 1.0}
    assert weights_of(found.lessons(1), "confidence") == {"ms": 0.5, "calc": 0.25}
    assert weights_of(found.lessons(0), "confidence") == {"calc": 1.0}


def test_patches_are_cut_alike_from_image_and_labels_and_hold_the_tasks_of_their_scan(
    lessons: Make, state: SiteState
) -> None:
    found = lessons(state)
    batch = Patches(lessons=found, crop=(4, 4, 4), batch=3).draw(np.random.default_rng(1))
    scan = int(batch.inputs.flatten()[0])
    assert batch.inputs.shape == (3, 1, 4, 4, 4)
    assert tuple(batch.targets) == found.tasks_of(scan)
    assert all(target.shape == (3, 4, 4, 4) and target.dtype == torch.int64 for target in batch.targets.values())
    seen = {
        int(Patches(lessons=found, crop=(8, 8, 8), batch=1).draw(np.random.default_rng(i)).inputs.max())
        for i in range(12)
    }
    assert seen == {0, 1}


def test_a_share_of_patches_holds_what_is_marked(lessons: Make, state: SiteState) -> None:
    found = lessons(state, real=False)
    marked = [
        bool((Patches(lessons=found, crop=(2, 2, 2), batch=1, foreground_share=share).draw(np.random.default_rng(seed))
              .targets["calc"] > 0).any())
        for share in (0.0, 1.0) for seed in range(20)
    ]  # fmt: skip
    assert sum(marked[:20]) < sum(marked[20:])


def test_soft_answers_come_along(lessons: Make, tmp_path: Path) -> None:
    state = SiteState(tmp_path / "x", study="s", experiment="e" * 64, site="a", run="r")
    soft = log_probabilities(torch.softmax(torch.randn(2, 8, 8, 8), 0))
    mask = Found(points=None, mask=ANSWERED, confidence=1.0)
    save_labels(state, "key2", ScanLabels(kept={"calc": mask}, soft={"calc": soft}), teachers="t")
    save_index(state, {"key2": ["calc"]}, teachers="t")
    found = lessons(state, real=False)
    batch = Patches(lessons=found, crop=(8, 8, 8), batch=1).draw(np.random.default_rng(0))
    torch.testing.assert_close(batch.soft["calc"][0], soft.float())


def test_a_cnn_sees_whole_hearts_cut_and_padded_around_their_middle(lessons: Make, state: SiteState) -> None:
    batch = WholeHearts(lessons=lessons(None), task="calc", size=(4, 8, 12), batch=2).draw(np.random.default_rng(0))
    assert batch.inputs.shape == (2, 1, 4, 8, 12)
    assert batch.targets["calc"].sum(dim=(1, 2, 3)).tolist() == [4 * 8 * 8] * 2


def test_points_as_heat_maps_are_maps(lessons: Make, state: SiteState) -> None:
    found = lessons(state, cardiac_ct={"landmarks": "heatmaps", "sigma": 1.0})
    label = found.lessons(1)["ms"].label
    assert label.shape == (2, 8, 8, 8)
    assert label.dtype == np.float32
    assert label[0, 2, 2, 2] == pytest.approx(1.0)
    batch = Patches(lessons=found, crop=(8, 8, 8), batch=1).draw(np.random.default_rng(3))
    assert all(target.is_floating_point() == (task == "ms") for task, target in batch.targets.items())


@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_a_point_is_a_sphere_of_the_studys_radius_whoever_found_it(
    study: Study, in_memory: Scans, state: SiteState, radius: float
) -> None:
    points = np.array([[2.0, 2, 2], [6.0, 6, 6]])
    experiment = study(cardiac_ct={"radius": radius})
    scans = in_memory(experiment=experiment, drawn={"ms": {0: points}})
    found = Lessons(volumes=scans, experiment=experiment, tasks=("ms",), taught=state)
    drawn, answered = found.lessons(0)["ms"], found.lessons(1)["ms"]
    assert (drawn.real, answered.real) == (True, False)
    expected = draw_spheres(points, (8, 8, 8), radius=radius)
    assert np.array_equal(drawn.label, expected)
    assert np.array_equal(answered.label, expected)


def test_the_heart_stands_beside_the_image_as_numbers_and_its_absence_is_counted(
    study: Study, in_memory: Scans
) -> None:
    experiment = study(cardiac_ct={"conditioning": True})
    scans: Any = in_memory(experiment=experiment, hearts={1: np.full((8, 8, 8), 7, np.uint8)})
    assert inputs_of(scans, 1, experiment)[:, 0, 0, 0].tolist() == [1.0, 7.0]
    assert inputs_of(scans, 2, experiment)[:, 0, 0, 0].tolist() == [2.0, 0.0]
    assert without_heart(scans, experiment) == {"without_heart": 2.0}
    assert inputs_of(scans, 1, study()).shape == (1, 8, 8, 8)
    assert without_heart(scans, study()) == {}
