"""Pictures of the test for a site's own people: its worst, its median and its best case under the models of the run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.learner import Task
from fedmedseg.core.training import Aborted
from fedmedseg.reporting.metrics import CaseScore
from fedmedseg.reporting.tables import label_of as label_of_model
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segmentation.evaluation import label_of, labelled
from fedmedseg.segmentation.inference import label_map, predict
from fedmedseg.segmentation.overlay import busiest_slice, overlay_png
from fedmedseg.segmentation.stages import PERSONAL, SCRATCH, SHARED

PLACES = ("worst", "median", "best")
"""What the pictures are called, ``overlay_<place>.png``; of fewer than three cases those in between are left out."""


def picture_file(place: str) -> str:
    """Name of the picture of ``place``."""
    return f"overlay_{place}.png"


PICTURES = tuple(map(picture_file, PLACES))


def chosen(standings: Sequence[float]) -> dict[str, int]:
    """Which cases are drawn, by the pictures' names; cases without a standing are not.

    >>> chosen([0.5, 0.2, math.nan, 0.9]), chosen([0.1, 0.7]), chosen([0.3])
    ({'worst': 1, 'median': 0, 'best': 3}, {'worst': 0, 'best': 1}, {'best': 0})
    """
    order = sorted((index for index, one in enumerate(standings) if not math.isnan(one)), key=lambda i: standings[i])
    middle = order[(len(order) - 1) // 2 : (len(order) - 1) // 2 + 1] if len(order) > 2 else []
    return dict(
        [("worst", one) for one in order[:1] if len(order) > 1]
        + [("median", one) for one in middle]
        + [("best", one) for one in order[-1:]]
    )


def place_pictures(folder: Path, drawn: Mapping[str, bytes]) -> None:
    """Write the pictures by their places; those of an earlier test with more cases go."""
    for place in PLACES:
        file = folder / picture_file(place)
        if place in drawn:
            write_atomic(file, drawn[place])
        else:
            file.unlink(missing_ok=True)


def standing(score: CaseScore) -> float:
    """How well a model did on a case, 0 to 1: its mean Dice over the structures that count; nan where none does."""
    dice = [one.dice for one in score.structures.values() if one.counted]
    return math.fsum(dice) / len(dice) if dice else math.nan


def judge(starts: Sequence[str]) -> str:
    """By which model cases are chosen: the trained one, personal before shared."""
    return next((start for start in (PERSONAL, SHARED) if start in starts), starts[0])


def outlined(trained: Collection[str]) -> list[str]:
    """The models whose outlines are drawn: the judging one, and the same training from scratch where there is one."""
    return [name for name in dict.fromkeys((judge(list(trained)), SCRATCH)) if name in trained]


def draw_cases(bench: Bench, places: Mapping[str, int], digests: Mapping[str, str], task: Task) -> dict[str, bytes]:
    """The busiest slice of each of ``places`` (place -> index among the labelled test cases) as PNG, with outlines of
    the truth, the judging model and the same training from scratch.

    Raises:
        Aborted: the federation asked to stop.
        ConfigurationError: a model file was changed since.
    """
    test = bench.test
    indices = {place: labelled(test)[number] for place, number in places.items()}
    slices = {place: busiest_slice(label_of(test, index)) for place, index in indices.items()}
    outlines: dict[str, dict[str, NDArray[np.integer]]] = {place: {} for place in places}
    for name in outlined(digests) if places else ():
        bench.load(name, digests[name])
        for place, index in indices.items():
            if task.aborted():
                raise Aborted
            overlap, way = bench.experiment.segmentation.overlap, bench.way("inference", task)
            found = predict(bench.model, test.image(index), bench.experiment.data, overlap, bench.site.device, way)
            outlines[place][label_of_model(name)] = label_map(found)[:, :, slices[place]]
    drawn = {}
    for place, index in indices.items():
        x, y, _ = test.spacing(index)
        image, truth = test.image(index)[0, :, :, slices[place]], label_of(test, index)[:, :, slices[place]]
        drawn[place] = overlay_png(image, truth, outlines[place], spacing=(x, y))
    return drawn
