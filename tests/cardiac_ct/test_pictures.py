"""Which cases are drawn for the site, and that truth and models stand where they are in the scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.cardiac_ct import pictures
from fedmedseg.cardiac_ct.evaluation import CaseResult
from fedmedseg.cardiac_ct.pictures import draw, standing, write_pictures
from fedmedseg.core.config import Experiment
from fedmedseg.data.spheres import draw_spheres
from fedmedseg.reporting.metrics import StructureScore

SHAPE = (20, 18, 16)
TRUE = np.array([[6.0, 5.0, 7.0], [12.0, 9.0, 9.0]])
Study = Callable[..., Experiment]


def case(dice: float | None = None, **distances: float) -> CaseResult:
    structures = {} if dice is None else {"calcification": StructureScore(dice, 1.0)}
    return CaseResult("k", "p", distances, 0, structures, {})


def test_a_case_stands_by_dice_and_distances_and_a_missing_point_counts_nothing() -> None:
    """10 / (10 + 10), 0 and 0.7, and nothing of an empty structure that was found empty."""
    assert standing(case(0.7, MS1=10.0, MS2=math.inf)) == pytest.approx((0.7 + 0.5 + 0.0) / 3)
    assert standing(case(math.nan, MS1=0.0)) == 1.0
    assert math.isnan(standing(case(math.nan)))


class Marks:
    """Cases that annotate points of the septum, or a mask."""

    def __init__(self, indices: Sequence[int], label: np.ndarray | None = None) -> None:
        self.indices, self._label = tuple(indices), label

    def truth(self, place: int) -> np.ndarray:
        return TRUE

    def label(self, place: int) -> np.ndarray | None:
        return self._label


def one_hot(label: np.ndarray, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(label.astype(np.int64)), classes).movedim(-1, 0).float()


@pytest.fixture
def scene(study: Study, in_memory: Any) -> dict[str, Any]:
    """Three scans; 0 and 2 annotate the septum, 0 the calcification, whose most lies in slice 11."""
    experiment = study(cardiac_ct={"radius": 2.0})
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 3:6, 10] = label[3:8, 3:8, 11] = 1

    def student(inputs: np.ndarray, tasks: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Everything two voxels further along the first axis; the second end of the septum is missed."""
        spheres = draw_spheres(np.array([TRUE[0] + [2, 0, 0], [np.nan] * 3]), SHAPE, radius=2.0)
        found = {"ms": one_hot(spheres, 3), "calc": one_hot(np.roll(label, 2, axis=0), 2)}
        return {task: found[task] for task in tasks}

    return {
        "models": {"student": student},
        "volumes": in_memory(experiment=experiment, shape=SHAPE),
        "marked": {"ms": Marks([0, 2]), "calc": Marks([0], label)},
        "experiment": experiment,
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was handed to the drawing: image, truth, models' labels and points."""
    seen: list[tuple[Any, ...]] = []
    real = pictures.overlay_png

    def listening(image: Any, truth: Any, predictions: Any, **more: Any) -> bytes:
        seen.append((image, truth, predictions, more["points"]))
        return real(image, truth, predictions, **more)

    monkeypatch.setattr(pictures, "overlay_png", listening)
    return seen


def test_a_picture_has_the_busiest_slice_of_the_masks_with_all_points(
    scene: dict[str, Any], drawn: list[tuple[Any, ...]]
) -> None:
    assert draw(index=0, **scene).startswith(b"\x89PNG")
    ((image, truth, predictions, points),) = drawn
    assert image.shape == truth.shape == (20, 18)
    assert np.argwhere(truth).min(axis=0).tolist() == [3, 3]
    assert (truth > 0).sum() == 25, "slice 11"
    assert np.argwhere(predictions["student"]).min(axis=0).tolist() == [5, 3]
    np.testing.assert_allclose(points["truth"], TRUE[:, :2])
    np.testing.assert_allclose(points["student"][0], [8.0, 5.0], atol=0.1)
    assert np.isnan(points["student"][1]).all()


def test_a_case_of_points_alone_is_cut_between_them_and_shows_no_mask(
    scene: dict[str, Any], drawn: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = np.broadcast_to(np.arange(16, dtype=np.float32), SHAPE)[None]
    monkeypatch.setattr(scene["volumes"], "image", lambda index: planes)
    draw(index=2, **scene)
    ((image, truth, predictions, _),) = drawn
    assert np.unique(image).tolist() == [8.0]
    assert not truth.any()
    assert not predictions["student"].any()


def test_the_students_worst_and_best_case_lie_beside_the_scores_and_older_pictures_go(
    scene: dict[str, Any], drawn: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    (tmp_path / "overlay_median.png").write_bytes(b"of a test with more cases")
    results = {
        "student": [case(0.9, MS1=2.0), case(MS1=math.inf)],
        # not the one that judges
        "cnn": [case(0.1, MS1=math.inf), case(MS1=0.0)],
    }
    scene["models"]["cnn"] = scene["models"]["student"]
    write_pictures(tmp_path, results, **scene)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["overlay_best.png", "overlay_worst.png"]
    # the worst is case 2, which has no mask
    assert [bool(truth.any()) for _, truth, _, _ in drawn] == [False, True]


def test_a_site_without_a_model_gets_no_picture(scene: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "overlay_best.png").write_bytes(b"of an earlier test")
    write_pictures(tmp_path, {}, **{**scene, "models": {}})
    assert not list(tmp_path.iterdir())
