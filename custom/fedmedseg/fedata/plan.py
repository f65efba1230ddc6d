"""What FedATA sends in each of its three stages, and the tensors its server starts from."""

from __future__ import annotations

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.wire import StageContract

STAGES: dict[str, StageContract] = {
    "pretraining": StageContract(
        sends="shared",
        returns="shared",
        metrics=("loss", "teacher_std", "student_teacher_gap", "collapse_alarm", "mixing/*", "set_aside"),
    ),
    "fine_tuning": StageContract(
        sends="shared", returns="metrics", metrics=("loss/*", "validation_dice/*", "personal_missing", "set_aside")
    ),
    "evaluation": StageContract(
        sends="nothing", returns="metrics", metrics=("dice/*", "hd95/*", "failures/*", "cases", "set_aside")
    ),
}
"""Stages in their order. Teacher, mixing weights, optimiser, decoder and data never leave a site."""


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Encoder, mask token and predictor before the first round; the same tensors wherever it is called.

    Names of encoder tensors are those of the segmentation network. float32, on the CPU. The global generators
    are left as they were.
    """
    from fedmedseg.fedata.network import MaskedEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.seed, "initial_shared"))
        return MaskedEncoder(experiment=experiment).shared()


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage, for the share of a run that is done."""
    section, segmentation = experiment.wing, experiment.segmentation
    starts = len(section.starts)
    phantom = experiment.data.phantom
    cases = phantom.test if phantom is not None else 1
    return {
        "pretraining": section.local_steps,
        "fine_tuning": starts * segmentation.steps,
        "evaluation": (starts + 1) * cases,
    }
