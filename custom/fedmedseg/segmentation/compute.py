"""How a study's network is computed in supervised training and in inference at one site: fixed, or measured there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.config import Experiment
from fedmedseg.core.seeding import derive_seed
from fedmedseg.data.site import Site
from fedmedseg.networks.compute import logits_of
from fedmedseg.networks.timing import InferenceTrial, StepTrial, choose
from fedmedseg.segmentation.inference import windows_per_forward
from fedmedseg.segmentation.loss import SegmentationLoss


def way_of(
    work: Literal["supervised", "inference"],
    *,
    experiment: Experiment,
    site: Site,
    model: nn.Module,
    aborted: Callable[[], bool] = lambda: False,
) -> ComputeChoice:
    """How ``model``, the study's network, is computed in ``work`` at ``site``; see ``networks.timing.choose``.

    A copy of ``model`` is timed, on noise of the shape of the study's batches.
    """
    batch = experiment.segmentation.batch if work == "supervised" else windows_per_forward(experiment.data)
    shape = (batch, 1, *experiment.data.crop)

    def trial() -> StepTrial | InferenceTrial:
        build = supervised_trial if work == "supervised" else inference_trial
        return build(copy.deepcopy(model), shape=shape, experiment=experiment, device=site.device)

    return choose(
        experiment,
        work=work,
        shape=shape,
        trial=trial,
        cache=site.cache,
        device=site.device,
        aborted=aborted,
    )


def supervised_trial(
    model: nn.Module, *, shape: tuple[int, ...], experiment: Experiment, device: str | torch.device
) -> StepTrial:
    """Forward and backward of supervised training on noise (B, 1, *crop) with random labels."""
    images = torch.randn(shape)
    labels = torch.randint(experiment.data.classes, shape, device=device)
    criterion = SegmentationLoss()
    model.to(device).train()

    def loss(choice: ComputeChoice) -> torch.Tensor:
        return criterion(logits_of(model, images, choice, device), labels, [None] * shape[0])

    return StepTrial(networks=[model], loss=loss, seed=derive_seed(experiment.seed, "compute", "supervised"))


def inference_trial(
    model: nn.Module, *, shape: tuple[int, ...], experiment: Experiment, device: str | torch.device
) -> InferenceTrial:
    """One forward pass of sliding-window prediction on noise (B, 1, *crop)."""
    return InferenceTrial(network=model.to(device).eval(), windows=torch.randn(shape), device=device)
