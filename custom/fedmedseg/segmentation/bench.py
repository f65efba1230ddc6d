"""What one site's segmentation stages work with: network, volumes and files, built once per process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.data.site import Site
from fedmedseg.data.volumes import Volumes, training_volumes
from fedmedseg.networks.factory import encoder_names
from fedmedseg.segmentation.compute import way_of
from fedmedseg.segmentation.models import load_model, save_model
from fedmedseg.segmentation.stages import STARTS, tuned_starts
from fedmedseg.segmentation.starts import initial_network


class Bench:
    """One network that serves every start, the site's volumes, and where its models lie.

    Models, per-patient scores and the picture are in ``folder`` and never leave the site.
    """

    def __init__(self, *, experiment: Experiment, site: Site) -> None:
        self.experiment = experiment
        self.site = site
        self._ways: dict[str, ComputeChoice] = {}

    @property
    def starts(self) -> tuple[str, ...]:
        """What is fine-tuned from, in the order of the experiment.

        Raises:
            ConfigurationError: a start that fine-tuning does not know.
        """
        starts = tuple(self.experiment.wing.starts)
        unknown = [start for start in starts if start not in STARTS]
        if unknown or not starts:
            raise ConfigurationError(
                f"{self.experiment.system}.starts", got=list(starts), expected=f"one or more of {', '.join(STARTS)}"
            )
        return starts

    @property
    def tuned(self) -> tuple[str, ...]:
        """Those of ``starts`` that fine-tuning trains."""
        return tuple(start for start in self.starts if start in tuned_starts(self.experiment))

    @property
    def read_as(self) -> Experiment:
        """The study whose data settings this site's files are checked and prepared by."""
        return self.experiment

    @property
    def folder(self) -> Path:
        """This study's models at this site."""
        return self.site.models / self.experiment.study

    def model_file(self, start: str) -> Path:
        """Where the model fine-tuned from ``start`` lies."""
        return self.folder / f"{start}.safetensors"

    def way(self, work: Literal["supervised", "inference"], task: Task) -> ComputeChoice:
        """How the network is computed in ``work`` here; asked once, since a full disk would not remember it."""
        if work not in self._ways:
            self._ways[work] = way_of(
                work, experiment=self.experiment, site=self.site, model=self.model, aborted=task.aborted
            )
        return self._ways[work]

    def begin(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the network to its initial weights with ``tensors`` over them."""
        self.model.load_state_dict({**self.initial, **tensors})

    def finish(
        self, start: str, tensors: Mapping[str, torch.Tensor], task: Task, *, key: str, metrics: Mapping[str, float]
    ) -> None:
        """Save ``tensors`` as this run's model of ``start``, with a record that evaluation asks for."""
        save_model(self.model_file(start), tensors, experiment=self.experiment, start=start, run=task.state.run)
        record = {"key": key, "metrics": dict(metrics), "sha256": content_sha256(tensors)}
        task.state.save(_record(start), record)
        # the finished model is safe; copies of the network with its optimiser need not stay on the disk
        task.state.remove(running(start))

    def finished(self, start: str, task: Task) -> dict[str, object] | None:
        """The record of the model that this very run fine-tuned from ``start``: key, metrics, sha256; or None."""
        record: dict[str, object] | None = task.state.load(_record(start))
        return record

    def digest(self, start: str, task: Task) -> str:
        """Digest of the model of ``start`` that this very run made; one of an earlier run never counts as ours.

        Raises:
            FedMedSegError: this run made none (reason MISSING_TENSORS).
            DataError: nor could it, without a labelled case (reason NO_CASES).
        """
        record = self.finished(start, task)
        if record is None:
            # a site without labelled cases takes no part: this raises with that reason
            _ = self.training
            raise FedMedSegError(
                f"model {start}",
                got="none from this run",
                expected="a finished training",
                remedy="see why the stage that trains it failed at this site",
                reason=Reason.MISSING_TENSORS,
            )
        return str(record["sha256"])

    def finished_tensors(self, start: str, task: Task) -> dict[str, torch.Tensor]:
        """Copies of the tensors of the model of ``start``, which this run made.

        Raises:
            FedMedSegError: see ``digest``.
            ConfigurationError: the file was changed since.
        """
        self.load(start, self.digest(start, task))
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def load(self, start: str, sha256: str) -> None:
        """Load the model of ``start``, which must be the one recorded.

        Raises:
            ConfigurationError: no such file, or one that was changed since.
        """
        load_model(self.model_file(start), self.model, experiment=self.experiment, start=start)
        if content_sha256(self.model.state_dict()) != sha256:
            raise ConfigurationError(
                f"model {start}",
                got="a file changed since this run's training",
                expected="the model that this run saved",
                remedy="run the study again, or restore the file",
            )

    @cached_property
    def model(self) -> nn.Module:
        """The study's network on the site's device."""
        return initial_network(self.experiment).to(self.site.device)

    @cached_property
    def initial(self) -> dict[str, torch.Tensor]:
        """Its initial weights, equal at every site."""
        tensors = initial_network(self.experiment).state_dict()
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @cached_property
    def encoder_names(self) -> list[str]:
        """Which of its tensors pretraining trains."""
        return encoder_names(self.model, self.experiment)

    @cached_property
    def training(self) -> Volumes:
        """Labelled volumes, after ``data.labelled_fraction`` or ``data.labelled_patients``."""
        return training_volumes(self.site, self.experiment)

    @cached_property
    def validation(self) -> Volumes | None:
        """Volumes that choices are made on, or None where the site has none."""
        try:
            return Volumes(site=self.site, experiment=self.experiment, section="validation")
        except DataError as error:
            if error.reason != Reason.NO_CASES:
                raise
            return None

    @cached_property
    def test(self) -> Volumes:
        """Volumes that are read once, at the end."""
        return Volumes(site=self.site, experiment=self.experiment, section="test")


def running(start: str) -> str:
    """Name of the checkpoint of an unfinished training from ``start``, as ``run_steps`` keeps it."""
    return f"running_{training_name(start)}"


def training_name(start: str) -> str:
    """Name of the training loop from ``start``."""
    return f"fine_tuning_{start}"


def _record(start: str) -> str:
    return f"fine_tuned_{start}"
