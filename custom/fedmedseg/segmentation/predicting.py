"""One image after another through a predictor; what cannot be used is set aside with its reason, and the rest done."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedmedseg.core.errors import ConfigurationError, DataError, why
from fedmedseg.data.checks import CaseRejected
from fedmedseg.data.images import Source
from fedmedseg.data.phases import Phases
from fedmedseg.reporting.structure_volumes import Ventricle
from fedmedseg.segmentation.earlier_answers import digests, earlier
from fedmedseg.segmentation.predicted_files import Measured, Outputs, asked, measured, remove, write_prediction
from fedmedseg.segmentation.prediction import Predictor, checked


@dataclass
class Batch:
    """What became of the images."""

    done: list[Measured] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Name of the image -> reason."""
    kept: int = 0
    """Images whose answer is that of an earlier call, with ``resume``."""
    anew: int = 0
    """Images whose earlier answer was to another question, and gave way to a new one."""


def predict_all(
    predictor: Predictor,
    sources: Sequence[Source],
    outputs: Mapping[str, Outputs],
    *,
    flips: bool,
    budget_mb: int,
    hearts: Mapping[str, Path] | None = None,
    resume: bool = False,
    on_image: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> Batch:
    """Predict every image and write its files. ``on_image`` hears (images done, images in all, name of the last).
    ``resume``: answers of an earlier call are taken over where the same model answered the same image.

    Raises:
        ConfigurationError: a file that cannot be written.
    """
    batch = Batch()
    if not resume:
        # an earlier call's answers must not lie beside this one's, however far it comes
        for one in outputs.values():
            remove(one.every)
    for number, source in enumerate(sources, start=1):
        try:
            heart = (hearts or {}).get(source.name)
            there = resume and outputs[source.name].figures.exists()
            answer, kept = _one(
                predictor,
                source,
                outputs[source.name],
                flips=flips,
                budget_mb=budget_mb,
                heart=heart,
                resume=resume,
            )
            batch.done.append(answer)
            batch.kept += kept
            batch.anew += there and not kept
        except CaseRejected as rejected:
            batch.failed[source.name] = rejected.reason + _sizes(rejected.shape, predictor.data.crop)
        except DataError as error:
            batch.failed[source.name] = f"{error.field}: {error.got}"
        except (MemoryError, torch.OutOfMemoryError):
            batch.failed[source.name] = "more memory than there is"
        except OSError as error:
            batch.failed[source.name] = f"file cannot be read ({why(error)})"
        if source.name in batch.failed:
            # the answer of an earlier call must not stand for an image that fails now
            remove(outputs[source.name].every)
        on_image(number, len(sources), source.name)
    return batch


def ventricles(phases: Sequence[Phases], batch: Batch, *, cavity: str) -> dict[str, Ventricle]:
    """Volumes of each patient's cavity at both frames. A patient one of whose frames failed is noted as failed."""
    found_in = {one.name: one.volumes[cavity] for one in batch.done if cavity in one.volumes}
    found = {}
    for one in phases:
        lost = [name for name in (one.diastole, one.systole) if name not in found_in]
        if lost:
            batch.failed[f"patient {one.patient}"] = f"no prediction of {' and '.join(lost)}"
            continue
        frames = {"end-diastole": found_in[one.diastole], "end-systole": found_in[one.systole]}
        found[one.patient] = Ventricle(
            diastolic_ml=frames["end-diastole"].ml,
            systolic_ml=frames["end-systole"].ml,
            doubts=tuple(f"{frame}: {volume.doubt}" for frame, volume in frames.items() if volume.doubt),
        )
    return found


def require_cavity(predictor: Predictor, cavity: str) -> None:
    """Refuse a model that does not mark the cavity.

    Raises:
        ConfigurationError: it does not.
    """
    known = list(predictor.data.labels.values())
    if cavity not in known or tuple(predictor.names) != ("",):
        raise ConfigurationError(
            "--cavity",
            got=cavity,
            expected=f"a structure of this model: {', '.join(known)}",
            remedy="name the structure whose volume at end-diastole and end-systole counts, or leave the frames out",
        )


def _sizes(shape: tuple[int, ...] | None, crop: tuple[int, ...]) -> str:
    """How many voxels there are, at the model's spacing, and how many it takes at once."""
    if shape is None:
        return ""
    has, takes = (" x ".join(map(str, one)) for one in (shape[: len(crop)], crop))
    return f": {has} voxels at the model's spacing, of which it takes {takes} at once"


def _one(
    predictor: Predictor,
    source: Source,
    outputs: Outputs,
    *,
    flips: bool,
    budget_mb: int,
    heart: Path | None,
    resume: bool,
) -> tuple[Measured, bool]:
    """What is measured in the image, and whether an earlier call did it."""
    if source.fault is not None:
        raise CaseRejected(source.fault)
    if source.modality is not None and source.modality != predictor.data.modality:
        raise CaseRejected(f"modality {source.modality}, while the model is of {predictor.data.modality}")
    with tempfile.TemporaryDirectory() as folder:
        image = source.as_nifti(Path(folder))
        question = asked(outputs, predictor, flips=flips, inputs=digests(image, heart))
        if resume:
            kept = earlier(source.name, outputs, question)
            if kept is not None:
                return kept, True
            remove(outputs.every)
        checked(image, data=predictor.data, budget_mb=budget_mb, heart=heart)
        answer = predictor(image, heart=heart)
        found = measured(source.name, answer, image, modality=predictor.data.modality)
        write_prediction(found, answer.maps, outputs, image, question)
    return found, False
