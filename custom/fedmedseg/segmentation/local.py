"""Local fine-tuning: from each start the site trains a network of its own, on its own labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.data.volumes import Volumes
from fedmedseg.segmentation.bench import Bench, training_name
from fedmedseg.segmentation.objective import SupervisedObjective
from fedmedseg.segmentation.stages import CONTINUED, PERSONAL, SCRATCH, SHARED
from fedmedseg.segmentation.starts import encoder_tensors

logger = logging.getLogger(__name__)


def fine_tune(bench: Bench, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
    """Train from every start, with equal steps and equal batches; figures are all that goes back.

    Raises:
        Aborted: the federation asked to stop; what was finished is not trained again.
        DataError: no labelled case here (reason NO_CASES).
        FedMedSegError: no encoder or model to start from (reason MISSING_TENSORS).
    """
    training = announced_training(bench)
    metrics = {"set_aside": float(len(training.quarantined))}
    for start in bench.tuned:
        if start == CONTINUED:
            # all of it is trained: no part needs to be spared
            metrics |= fine_tune_from(bench, start, bench.finished_tensors(PERSONAL, task), task, pretrained=())
        else:
            encoder = _encoder(bench, start, task, shared, metrics)
            metrics |= fine_tune_from(bench, start, encoder, task, pretrained=tuple(encoder))
    return Reply(
        metrics=metrics,
        examples=len(training),
        steps=bench.experiment.segmentation.steps * len(bench.tuned),
    )


def announced_training(bench: Bench) -> Volumes:
    """The labelled volumes, after a line that says how many there are."""
    training, validation = bench.training, bench.validation
    logger.info(
        "fine-tuning on %d labelled volumes of %d patients (%s), validation on %s",
        len(training),
        len(training.patients),
        _limit(bench.experiment.data),
        "no volume: the last weights are kept" if validation is None else f"{len(validation)} volumes",
    )
    return training


def _limit(data: DataSection) -> str:
    return (
        f"fraction {data.labelled_fraction:g}"
        if data.labelled_patients is None
        else f"at most {data.labelled_patients}"
    )


def fine_tune_from(
    bench: Bench, start: str, tensors: Mapping[str, torch.Tensor], task: Task, *, pretrained: Sequence[str]
) -> dict[str, float]:
    """Train one network from ``tensors`` (empty: from scratch) and save it; a finished one is not trained again.

    ``pretrained`` names those of them that have the encoder's learning rate.
    """
    key = f"{task.stage}|{task.round}|{task.base}|{content_sha256(tensors)}"
    done = bench.finished(start, task)
    if done is not None and done["key"] == key and bench.model_file(start).exists():
        return dict(cast(Mapping[str, float], done["metrics"]))
    bench.begin(tensors)
    objective = SupervisedObjective(
        model=bench.model,
        training=bench.training,
        validation=bench.validation,
        experiment=bench.experiment,
        pretrained=pretrained,
        device=bench.site.device,
        aborted=task.aborted,
        compute=bench.way("supervised", task),
        inference=bench.way("inference", task),
    )
    figures = run_steps(
        objective,
        task=task,
        name=training_name(start),
        steps=bench.experiment.segmentation.steps,
        work=f"fine-tuning from {start}",
        # every start sees the same batches, so that they differ by their encoder alone
        draws="fine_tuning",
    )
    objective.finish()
    metrics = {f"loss/{start}": figures["loss"]}
    if objective.best_dice is not None:
        metrics[f"validation_dice/{start}"] = objective.best_dice
    bench.finish(start, bench.model.state_dict(), task, key=key, metrics=metrics)
    return metrics


def _encoder(
    bench: Bench, start: str, task: Task, shared: Mapping[str, torch.Tensor], metrics: dict[str, float]
) -> dict[str, torch.Tensor]:
    """The pretrained tensors of ``start``; empty from scratch.

    A site that remembers no pretraining uses the shared encoder, where the task brought one.

    Raises:
        FedMedSegError: there is neither (reason MISSING_TENSORS): the system trains no shared encoder.
    """
    if start == SCRATCH:
        return {}
    tensors, source = shared, SHARED
    if start == PERSONAL:
        personal = task.state.load(PERSONAL)
        if personal is None and not shared.keys() & set(bench.encoder_names):
            raise FedMedSegError(
                "personal encoder",
                got="no pretraining remembered at this site, and no shared encoder was sent",
                expected="the encoder this site pretrained",
                remedy="see why the pretraining stage failed at this site, or bring its state folder back",
                reason=Reason.MISSING_TENSORS,
            )
        if personal is None:
            logger.info("this site took no part in pretraining: start 'personal' uses the shared encoder")
            metrics["personal_missing"] = 1.0
        else:
            tensors, source = personal["tensors"], PERSONAL
    return encoder_tensors(tensors, bench.encoder_names, bench.initial, source=source)
