"""Validation on the network's grid while training, and the one test on each file's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from torch import nn

from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.data.datalist import case_key
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.metrics import CaseScore, mean_dice, per_patient, score_structures
from fedmedseg.segmentation.inference import label_map, predict


def evaluate(
    model: nn.Module,
    *,
    volumes: Volumes,
    experiment: Experiment,
    device: str,
    salt: str,
    choice: ComputeChoice | None = None,
    aborted: Callable[[], bool] = lambda: False,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> list[CaseScore]:
    """Score every labelled volume of ``volumes`` on its file's own grid, in mm.

    Probabilities are resampled, not labels: a resampled label map would show steps that the network did not
    make. One score per volume; ``reporting.metrics.per_patient`` merges those of one patient, and every
    mean a site reports is taken over patients. Scores carry hashes made with the site's
    ``salt``, never a name; ``choice`` is how the network is computed (see ``predict``); ``on_case`` hears (volumes
    done, volumes in all).

    Raises:
        Aborted: ``aborted()`` became true between two volumes.
        DataError: reason NO_CASES, where no volume has a label.
    """
    scores: list[CaseScore] = []
    indices = labelled(volumes)
    for index in _unless_aborted(indices, aborted):
        overlap = experiment.segmentation.overlap
        probabilities = predict(model, volumes.image(index), experiment.data, overlap, device, choice)
        case = volumes.cases[index]
        scores.append(
            CaseScore(
                key=case.key,
                patient=case_key(salt, case.patient),
                structures=score_structures(
                    label_map(volumes.to_native(index, probabilities)),
                    volumes.native_label(index),
                    spacing=volumes.native_spacing(index),
                    labels=experiment.data.labels,
                    annotated=case.annotated_labels,
                ),
            )
        )
        on_case(len(scores), len(indices))
    return scores


def validate(
    model: nn.Module,
    *,
    volumes: Volumes,
    experiment: Experiment,
    device: str,
    choice: ComputeChoice | None = None,
    aborted: Callable[[], bool] = lambda: False,
) -> float:
    """Mean foreground Dice on the preprocessed grid: over patients first, then over structures.

    nan where no structure is in any truth or prediction. ``choice`` as for ``predict``.

    Raises:
        Aborted: ``aborted()`` became true between two volumes.
    """
    scores = []
    for index in _unless_aborted(labelled(volumes), aborted):
        case = volumes.cases[index]
        overlap = experiment.segmentation.overlap
        probabilities = predict(model, volumes.image(index), experiment.data, overlap, device, choice)
        structures = score_structures(
            label_map(probabilities),
            label_of(volumes, index),
            spacing=volumes.spacing(index),
            labels=experiment.data.labels,
            annotated=case.annotated_labels,
            distances=False,
        )
        scores.append(CaseScore(key=case.key, patient=case.patient, structures=structures))
    return mean_dice(per_patient(scores))


def labelled(volumes: Volumes) -> list[int]:
    """Indices of the volumes that have a label: public test sets often list images without one.

    Raises:
        DataError: reason NO_CASES, where none has.
    """
    found = [index for index, case in enumerate(volumes.cases) if case.label is not None]
    if not found:
        raise DataError(
            f"section {volumes.section}",
            got=f"{len(volumes)} volumes without a label",
            expected="at least one labelled volume to score",
            remedy="add labels to the section in the data list",
            reason=Reason.NO_CASES,
        )
    return found


def label_of(volumes: Volumes, index: int) -> np.ndarray:
    """The preprocessed label map (X, Y, Z).

    Raises:
        DataError: the case has none.
    """
    label = volumes.label(index)
    if label is None:
        raise DataError("label", got="a case without a label", expected="labelled cases only")
    return label


def _unless_aborted(indices: Iterable[int], aborted: Callable[[], bool]) -> Iterator[int]:
    for index in indices:
        if aborted():
            raise Aborted
        yield index
