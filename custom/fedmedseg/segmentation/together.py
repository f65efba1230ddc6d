"""Federated fine-tuning: FedAvg over the whole network of each start, of which a site keeps the round it likes best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.segmentation.bench import Bench, training_name
from fedmedseg.segmentation.evaluation import validate
from fedmedseg.segmentation.local import announced_training
from fedmedseg.segmentation.objective import SupervisedObjective
from fedmedseg.segmentation.stages import SCRATCH, SHARED, network_of, wire_name
from fedmedseg.segmentation.starts import encoder_tensors


def steps_of_round(round: int, rounds: int, steps: int) -> tuple[int, int]:
    """(first step, number of steps) of one round; all rounds together do exactly ``steps``.

    >>> [steps_of_round(round, 3, 10) for round in range(3)]
    [(0, 3), (3, 3), (6, 4)]
    """
    first, end = round * steps // rounds, (round + 1) * steps // rounds
    return first, end - first


def is_due(round: int, rounds: int, steps: int, every: int) -> bool:
    """Whether the networks of after ``round`` rounds are validated: at the end, and where ``every`` steps are full.

    So a federated training chooses among as many candidates as a local one of equal steps.
    """
    done, before = round * steps // rounds, (round - 1) * steps // rounds
    return round == rounds or done // every > before // every


def candidate_is_due(experiment: Experiment, rounds: int, task: Task) -> bool:
    """Whether the network of after ``rounds`` rounds is a candidate, by the study's own steps."""
    section = experiment.segmentation
    return is_due(rounds, task.rounds, section.steps, section.validate_every)


def validation_of(start: str, kept: Mapping[str, Any]) -> dict[str, float]:
    """How what is ``kept`` of ``start`` (``consider``) validated; nothing where it could not be."""
    return {} if kept["dice"] is None else {f"validation_dice/{start}": float(kept["dice"])}


def better(dice: float | None, kept: float | None) -> bool:
    """Whether a round that validates with ``dice`` replaces the kept one; of equals the longer trained is kept.

    A site without validation cases (None) keeps the last round.
    """
    if dice is None:
        return kept is None
    return kept is None or dice >= kept


def fine_tune_together(bench: Bench, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
    """One round: a share of the steps on the server's networks, whose weights go back.

    The first round lays the shared encoder over the networks of start ``shared``; later rounds validate what came
    before they train on.

    Raises:
        Aborted: the federation asked to stop; the task continues when it is given again.
        DataError: no labelled case here (reason NO_CASES).
    """
    training = announced_training(bench)
    metrics = {"set_aside": float(len(training.quarantined))}
    trained: dict[str, torch.Tensor] = {}
    first, steps = steps_of_round(task.round, task.rounds, bench.experiment.segmentation.steps)
    for start in bench.starts:
        network = network_of(start, shared)
        if task.round:
            section = bench.experiment.segmentation
            if is_due(task.round, task.rounds, section.steps, section.validate_every):
                consider(bench, start, network, task.round, task)
        elif start != SCRATCH:
            network |= encoder_tensors(shared, bench.encoder_names, bench.initial, source=SHARED)
        bench.begin(network)
        objective = SupervisedObjective(
            model=bench.model,
            training=training,
            validation=None,
            experiment=bench.experiment,
            pretrained=() if start == SCRATCH else tuple(bench.encoder_names),
            device=bench.site.device,
            aborted=task.aborted,
            first_step=first,
            compute=bench.way("supervised", task),
        )
        figures = run_steps(
            objective,
            task=task,
            name=training_name(start),
            steps=steps,
            work=f"fine-tuning from {start}",
            # every start sees the same batches, so that they differ by their encoder alone
            draws="fine_tuning",
        )
        metrics[f"loss/{start}"] = figures["loss"]
        parameters = bench.model.named_parameters()
        trained |= {wire_name(start, name): tensor.detach().cpu().clone() for name, tensor in parameters}
    return Reply(tensors=trained, metrics=metrics, examples=len(training), steps=steps * len(bench.starts))


def adopt(bench: Bench, task: Task, shared: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Make the best round of each shared network this site's model, as if it had fine-tuned it alone.

    A site without labelled cases of its own gets one too. Returns figures: which round each is of, and how it
    validated.
    """
    rounds = bench.experiment.stages["fine_tuning"].rounds
    figures: dict[str, float] = {}
    for start in bench.starts:
        kept = consider(bench, start, network_of(start, shared), rounds, task)
        bench.finish(start, {**bench.initial, **kept["tensors"]}, task, key=task.base, metrics={})
        figures[f"best_round/{start}"] = float(kept["rounds"])
        if kept["dice"] is not None:
            figures[f"validation_dice/{start}"] = kept["dice"]
    return figures


def validated(bench: Bench, task: Task) -> float | None:
    """Mean Dice of the bench's network, as it stands, on the validation cases; None without a figure."""
    if bench.validation is None:
        return None
    measured = validate(
        bench.model,
        volumes=bench.validation,
        experiment=bench.experiment,
        device=bench.site.device,
        choice=bench.way("inference", task),
        aborted=task.aborted,
    )
    return None if math.isnan(measured) else measured


def consider(bench: Bench, start: str, network: Mapping[str, torch.Tensor], rounds: int, task: Task) -> dict[str, Any]:
    """Keep the shared network as it stands after ``rounds`` rounds where no earlier one validated better here.

    Returns what is kept: ``rounds``, ``dice`` on the validation cases or None, ``tensors``. What is kept of a later
    round does not count: the server then went back to an older checkpoint.
    """
    bench.begin(network)
    dice = validated(bench, task)
    name = f"best_{start}"
    kept: dict[str, Any] | None = task.state.load(name)
    if kept is None or kept["rounds"] > rounds or better(dice, kept["dice"]):
        kept = {"rounds": rounds, "dice": dice, "tensors": dict(network)}
        task.state.save(name, kept)
    return kept
