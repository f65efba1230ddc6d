"""Fine-tuning from each start and the one test: the stages that all systems share, in plain PyTorch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedmedseg.core.checkpoint import content_sha256, write_atomic
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.training import run_steps
from fedmedseg.data.site import Site
from fedmedseg.data.volumes import Volumes
from fedmedseg.networks.factory import encoder_names
from fedmedseg.reporting.metrics import CaseScore
from fedmedseg.segmentation.compute import way_of
from fedmedseg.segmentation.evaluation import evaluate, label_of, labelled, validate
from fedmedseg.segmentation.federated import better, steps_of_round
from fedmedseg.segmentation.inference import label_map, predict
from fedmedseg.segmentation.models import load_model, save_model
from fedmedseg.segmentation.objective import SupervisedObjective
from fedmedseg.segmentation.overlay import busiest_slice, overlay_png
from fedmedseg.segmentation.scores import from_plain, metrics_of, to_plain, write_scores
from fedmedseg.segmentation.stages import (
    PERSONAL,
    SCRATCH,
    SHARED,
    STARTS,
    UNTRAINED,
    is_federated,
    network_of,
    wire_name,
)
from fedmedseg.segmentation.starts import encoder_tensors, initial_network

logger = logging.getLogger(__name__)

EVALUATING = "evaluating"


class SegmentationLearner:
    """Runs the stages ``fine_tuning`` and ``evaluation`` of any system whose section lists ``starts``.

    Network and volumes are built once per process and serve every start. Models, per-patient scores and
    the picture lie in ``site.models/<study>/`` and never leave the site.
    """

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        self.experiment = experiment
        self.site = site
        self._ways: dict[str, ComputeChoice] = {}

    @property
    def state_root(self) -> Path:
        """Folder on the site's disk under which its state is kept."""
        return self.site.state_root

    @property
    def starts(self) -> tuple[str, ...]:
        """What is fine-tuned from, in the order of the experiment.

        Raises:
            ConfigurationError: a start this learner does not know.
        """
        starts = tuple(self.experiment.wing.starts)
        unknown = [start for start in starts if start not in STARTS]
        if unknown or not starts:
            raise ConfigurationError(
                f"{self.experiment.system}.starts", got=list(starts), expected=f"one or more of {', '.join(STARTS)}"
            )
        return starts

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """Do one task.

        Raises:
            Aborted: the federation asked to stop; the task continues when it is given again.
            FedMedSegError: with the reason the server may be told.
        """
        if task.stage == "fine_tuning":
            return self._fine_tune_together(task, shared) if self._federated else self._fine_tune(task, shared)
        if task.stage == "evaluation":
            chosen = self._adopt(task, shared) if self._federated else {}
            return self._evaluate(task, chosen)
        raise ConfigurationError("stage", got=task.stage, expected="fine_tuning or evaluation")

    @property
    def training_patients(self) -> list[str]:
        """Labelled patients that fine-tuning sees, after ``data.labelled_fraction``. Never leaves the site."""
        return self._training.patients

    def model_file(self, name: str) -> Path:
        """Where the model fine-tuned from ``name`` lies."""
        return self._folder / f"{name}.safetensors"

    # fine-tuning

    def _fine_tune(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        training = self._announced_training()
        metrics = {"set_aside": float(len(training.quarantined))}
        for start in self.starts:
            encoder = self._encoder(start, task, shared, metrics)
            metrics |= self._fine_tune_from(start, encoder, task)
        return Reply(
            metrics=metrics,
            examples=len(training),
            steps=self.experiment.segmentation.steps * len(self.starts),
        )

    def _announced_training(self) -> Volumes:
        training = self._training
        logger.info(
            "fine-tuning on %d labelled volumes of %d patients (fraction %g), validation on %s",
            len(training),
            len(training.patients),
            self.experiment.data.labelled_fraction,
            "no volume: the last weights are kept" if self._validation is None else f"{len(self._validation)} volumes",
        )
        return training

    def _encoder(
        self, start: str, task: Task, shared: Mapping[str, torch.Tensor], metrics: dict[str, float]
    ) -> dict[str, torch.Tensor]:
        """The pretrained tensors of ``start``; empty from scratch."""
        if start == SCRATCH:
            return {}
        tensors, source = shared, SHARED
        if start == PERSONAL:
            personal = task.state.load(PERSONAL)
            if personal is None:
                logger.info("this site took no part in pretraining: start 'personal' uses the shared encoder")
                metrics["personal_missing"] = 1.0
            else:
                tensors, source = personal["tensors"], PERSONAL
        return encoder_tensors(tensors, self._encoder_names, self._initial, source=source)

    def _fine_tune_from(self, start: str, encoder: Mapping[str, torch.Tensor], task: Task) -> dict[str, float]:
        key = f"{task.stage}|{task.round}|{task.base}|{content_sha256(encoder)}"
        done = task.state.load(_record(start))
        if done is not None and done["key"] == key and self.model_file(start).exists():
            return dict(done["metrics"])
        self._model.load_state_dict({**self._initial, **encoder})
        objective = SupervisedObjective(
            model=self._model,
            training=self._training,
            validation=self._validation,
            experiment=self.experiment,
            pretrained=tuple(encoder),
            device=self.site.device,
            aborted=task.aborted,
            compute=self._way("supervised", task),
            inference=self._way("inference", task),
        )
        name = f"fine_tuning_{start}"
        figures = run_steps(
            objective,
            task=task,
            name=name,
            steps=self.experiment.segmentation.steps,
            work=f"fine-tuning from {start}",
            # every start sees the same batches, so that they differ by their encoder alone
            draws="fine_tuning",
        )
        objective.finish()
        metrics = {f"loss/{start}": figures["loss"]}
        if objective.best_dice is not None:
            metrics[f"validation_dice/{start}"] = objective.best_dice
        tensors = self._model.state_dict()
        save_model(self.model_file(start), tensors, experiment=self.experiment, start=start)
        task.state.save(_record(start), {"key": key, "metrics": metrics, "sha256": content_sha256(tensors)})
        # the finished model is safe; four copies of the network need not stay on the disk
        task.state.remove(f"running_{name}")
        return metrics

    # federated fine-tuning

    def _fine_tune_together(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """One round of FedAvg over the whole network of each start; its weights go back to the server."""
        training = self._announced_training()
        metrics = {"set_aside": float(len(training.quarantined))}
        trained: dict[str, torch.Tensor] = {}
        first, steps = steps_of_round(task.round, task.rounds, self.experiment.segmentation.steps)
        for start in self.starts:
            network = network_of(start, shared)
            if task.round:
                self._consider(start, network, task.round, task)
            elif start != SCRATCH:
                network |= encoder_tensors(shared, self._encoder_names, self._initial, source=SHARED)
            self._model.load_state_dict({**self._initial, **network})
            objective = SupervisedObjective(
                model=self._model,
                training=training,
                validation=None,
                experiment=self.experiment,
                pretrained=() if start == SCRATCH else tuple(self._encoder_names),
                device=self.site.device,
                aborted=task.aborted,
                first_step=first,
                compute=self._way("supervised", task),
            )
            name, work = f"fine_tuning_{start}", f"fine-tuning from {start}"
            # every start sees the same batches, so that they differ by their encoder alone
            figures = run_steps(objective, task=task, name=name, steps=steps, work=work, draws="fine_tuning")
            metrics[f"loss/{start}"] = figures["loss"]
            parameters = self._model.named_parameters()
            trained |= {wire_name(start, key): tensor.detach().cpu().clone() for key, tensor in parameters}
        return Reply(tensors=trained, metrics=metrics, examples=len(training), steps=steps * len(self.starts))

    def _consider(self, start: str, network: Mapping[str, torch.Tensor], rounds: int, task: Task) -> dict[str, Any]:
        """Keep the shared network as it stands after ``rounds`` rounds where no earlier one validated better here.

        Returns what is kept: ``rounds``, ``dice`` on the validation cases or None, ``tensors``.
        """
        self._model.load_state_dict({**self._initial, **network})
        dice: float | None = None
        if self._validation is not None:
            measured = validate(
                self._model,
                volumes=self._validation,
                experiment=self.experiment,
                device=self.site.device,
                choice=self._way("inference", task),
                aborted=task.aborted,
            )
            dice = None if math.isnan(measured) else measured
        kept: dict[str, Any] | None = task.state.load(_best(start))
        if kept is None or better(dice, kept["dice"]):
            kept = {"rounds": rounds, "dice": dice, "tensors": dict(network)}
            task.state.save(_best(start), kept)
        return kept

    def _adopt(self, task: Task, shared: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Make the best round of each shared network this site's model, as if it had fine-tuned it alone.

        Returns figures: which round each is of, and how it validated.
        """
        rounds = self.experiment.stages["fine_tuning"].rounds
        figures: dict[str, float] = {}
        for start in self.starts:
            kept = self._consider(start, network_of(start, shared), rounds, task)
            tensors = {**self._initial, **kept["tensors"]}
            save_model(self.model_file(start), tensors, experiment=self.experiment, start=start)
            task.state.save(_record(start), {"key": task.base, "metrics": {}, "sha256": content_sha256(tensors)})
            task.state.remove(f"running_fine_tuning_{start}")
            figures[f"best_round/{start}"] = float(kept["rounds"])
            if kept["dice"] is not None:
                figures[f"validation_dice/{start}"] = kept["dice"]
        return figures

    # evaluation

    def _evaluate(self, task: Task, chosen: Mapping[str, float]) -> Reply:
        records = {start: self._finished(start, task) for start in self.starts}
        key = "|".join([task.stage, str(task.round), *(f"{start}={sha}" for start, sha in records.items())])
        saved = task.state.load(EVALUATING)
        scored: dict[str, list[Any]] = dict(saved["models"]) if saved is not None and saved["key"] == key else {}
        volumes = labelled(self._test)
        untrained = (UNTRAINED,) if self.experiment.segmentation.test_untrained else ()
        for name in (*self.starts, *untrained):
            if name not in scored:
                scores = self._score(name, records.get(name), task)
                scored[name] = [to_plain(score) for score in scores]
                task.state.save(EVALUATING, {"key": key, "models": scored})
        results = {name: [from_plain(score) for score in scores] for name, scores in scored.items()}
        write_scores(self._folder / "test_scores.json", results, experiment=self.experiment)
        self._draw(records, task)
        counts = {"cases": float(len(volumes)), "set_aside": float(len(self._test.quarantined))}
        return Reply(metrics=metrics_of(results) | counts | dict(chosen), examples=len(volumes))

    def _finished(self, start: str, task: Task) -> str:
        """Digest of the model that this very run fine-tuned; a model of an earlier run is never scored as ours."""
        record = task.state.load(_record(start))
        if record is None:
            # a site without labelled cases takes no part: this raises with that reason
            _ = self._training
            raise FedMedSegError(
                f"model {start}",
                got="none from this run",
                expected="a finished fine-tuning",
                remedy="see why the fine-tuning stage failed at this site",
                reason=Reason.MISSING_TENSORS,
            )
        return str(record["sha256"])

    def _score(self, name: str, sha256: str | None, task: Task) -> list[CaseScore]:
        self._load(name, sha256)
        return evaluate(
            self._model,
            volumes=self._test,
            experiment=self.experiment,
            device=self.site.device,
            salt=self.site.salt,
            choice=self._way("inference", task),
            aborted=task.aborted,
            on_case=lambda done, total: task.progress.update(f"testing {name}", done, total),
        )

    def _load(self, name: str, sha256: str | None) -> None:
        if sha256 is None:
            self._model.load_state_dict(self._initial)
            return
        load_model(self.model_file(name), self._model, experiment=self.experiment, start=name)
        if content_sha256(self._model.state_dict()) != sha256:
            raise ConfigurationError(
                f"model {name}",
                got="a file changed since this run's fine-tuning",
                expected="the model that this run saved",
                remedy="run the study again, or restore the file",
            )

    def _draw(self, records: Mapping[str, str], task: Task) -> None:
        """The first test patient's busiest slice with outlines of the truth, the trained and the scratch model."""
        first = labelled(self._test)[0]
        image, truth = self._test.image(first), label_of(self._test, first)
        slice_ = busiest_slice(truth)
        trained = next((start for start in (PERSONAL, SHARED) if start in records), None)
        outlines = {}
        for name in (trained, SCRATCH):
            if name is not None and name in records:
                self._load(name, records[name])
                data, overlap = self.experiment.data, self.experiment.segmentation.overlap
                way = self._way("inference", task)
                probabilities = predict(self._model, image, data, overlap, self.site.device, way)
                outlines[name] = label_map(probabilities)[:, :, slice_]
        x, y, _ = self._test.spacing(first)
        png = overlay_png(image[0, :, :, slice_], truth[:, :, slice_], outlines, spacing=(x, y))
        write_atomic(self._folder / "overlay.png", png)

    # built once per process

    def _way(self, work: Literal["supervised", "inference"], task: Task) -> ComputeChoice:
        """How the network is computed in ``work`` here; asked once, since a full disk would not remember it."""
        if work not in self._ways:
            self._ways[work] = way_of(
                work, experiment=self.experiment, site=self.site, model=self._model, aborted=task.aborted
            )
        return self._ways[work]

    @property
    def _federated(self) -> bool:
        return is_federated(self.experiment)

    @property
    def _folder(self) -> Path:
        return self.site.models / self.experiment.study

    @cached_property
    def _model(self) -> nn.Module:
        return initial_network(self.experiment).to(self.site.device)

    @cached_property
    def _initial(self) -> dict[str, torch.Tensor]:
        tensors = initial_network(self.experiment).state_dict()
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @cached_property
    def _encoder_names(self) -> list[str]:
        return encoder_names(self._model, self.experiment)

    @cached_property
    def _training(self) -> Volumes:
        fraction = self.experiment.data.labelled_fraction
        return Volumes(site=self.site, experiment=self.experiment, section="training", fraction=fraction)

    @cached_property
    def _validation(self) -> Volumes | None:
        try:
            return Volumes(site=self.site, experiment=self.experiment, section="validation")
        except DataError as error:
            if error.reason != Reason.NO_CASES:
                raise
            return None

    @cached_property
    def _test(self) -> Volumes:
        return Volumes(site=self.site, experiment=self.experiment, section="test")


def _record(start: str) -> str:
    return f"fine_tuned_{start}"


def _best(start: str) -> str:
    return f"best_{start}"
