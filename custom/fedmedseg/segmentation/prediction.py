"""What a model says of one image file: label maps on the file's own grid, and points in mm of the world.

Preparation, sliding window and the way back are the test's: ``data.preprocessing`` and ``segmentation.inference``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.checks import inspect
from fedmedseg.data.datalist import Case
from fedmedseg.data.landmarks import Place
from fedmedseg.data.preprocessing import back_to_native, prepare_image
from fedmedseg.segmentation.inference import label_map, predict, predict_flipped
from fedmedseg.segmentation.models import InferenceModel


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Classes of every voxel of the file's own grid."""

    labels: np.ndarray
    """uint8 (X, Y, Z)."""
    names: Mapping[int, str]
    solid: bool = True
    """Whether its structures have volumes of their own: a sphere that stands for a point has none."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of one image."""

    maps: Mapping[str, LabelMap]
    """By what is added to the file's name: nothing where there is one map."""
    points: Mapping[str, Place | None] = field(default_factory=dict)
    """mm of the world (right, anterior, superior); None of a point that was looked for and not found."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which model it was. Nothing of a patient, and no path."""

    study: str
    system: str
    model: str
    experiment: str
    """Digest of the experiment that trained it."""
    run: str
    """The run that trained it; empty where its file names none."""
    tensors: str
    """SHA-256 of its tensors: sites' own models of one run differ in nothing else."""


def origin_of(model: InferenceModel) -> Origin:
    """Which model ``model`` is."""
    return Origin(
        study=model.study,
        system=model.system,
        model=model.start,
        experiment=model.experiment,
        run=model.run,
        tensors=content_sha256(model.model.state_dict()),
    )


class Predictor(Protocol):
    """A model, ready for one image after another."""

    origin: Origin
    data: DataSection
    names: Mapping[str, Mapping[int, str]]
    """Structures of each of its label maps, by what is added to the map's name."""
    points: tuple[str, ...]
    """Names of the points that it looks for."""
    conditions: bool
    """Whether it sees the heart's structures beside the image."""

    def __call__(self, image: Path, *, heart: Path | None = None) -> Answer:
        """The model's answer.

        Raises:
            CaseRejected: an image that cannot be used, or is smaller than the crop.
        """
        ...


def checked(image: Path, *, data: DataSection, budget_mb: int, heart: Path | None = None) -> Case:
    """``image`` as a case, after the gate that every case of a study passes (``data.checks``).

    Raises:
        CaseRejected: with the reason.
        OSError: it cannot be read at all.
    """
    case = Case(image=image, label=None, patient="", annotated_labels=None, key="", heart=heart)
    inspect(case, data=data, budget_mb=budget_mb)
    return case


def native_probabilities(
    model: InferenceModel,
    image: Path,
    *,
    device: str = "cpu",
    flips: bool = False,
    choice: ComputeChoice | None = None,
) -> torch.Tensor:
    """Class probabilities (classes, X, Y, Z) float32 on the file's own grid.

    The volume is prepared as the model's file says. ``flips``: the mean over mirror images (``predict_flipped``).

    Raises:
        CaseRejected: an image that is no volume, or smaller than the crop.
    """
    case = Case(image=image, label=None, patient="", annotated_labels=None, key="")
    prepared = prepare_image(case, model.data)
    network = model.model.to(device)
    say = predict_flipped if flips else predict
    probabilities = say(network, prepared.arrays["image"][None], model.data, model.overlap, device, choice)
    return back_to_native(probabilities, prepared.meta)


class SegmentationPredictor:
    """One network with one label map."""

    points: tuple[str, ...] = ()
    conditions = False

    def __init__(self, *, model: InferenceModel, device: str = "cpu", flips: bool = False) -> None:
        self.model, self.device, self.flips = model, device, flips
        self.data = model.data
        self.names: Mapping[str, Mapping[int, str]] = {"": dict(self.data.labels)}
        self.origin = origin_of(model)

    def __call__(self, image: Path, *, heart: Path | None = None) -> Answer:
        """See ``Predictor``. ``heart`` is not read."""
        found = native_probabilities(self.model, image, device=self.device, flips=self.flips)
        return Answer(maps={"": LabelMap(labels=label_map(found), names=self.names[""])})


def require_device(device: str) -> None:
    """Refuse a GPU that is not there.

    Raises:
        ConfigurationError: torch finds none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "--device",
            got="cuda",
            expected="a GPU that torch can use",
            remedy="use --device cpu, or see `fedmedseg preflight`",
        )
