"""What FedCRLD sends in each of its stages, and the tensors its server starts from."""

from __future__ import annotations

import dataclasses

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.wire import Part, StageContract
from fedmedseg.fedcrld.config import STAGE
from fedmedseg.segmentation.stages import segmentation_copies, segmentation_stages, segmentation_work

METRICS = (
    "loss",
    "loss/dice",
    "loss/cross_entropy",
    "loss/distillation",
    "loss/history",
    "loss/contrast",
    "loss/bank",
    "validation_dice/*",
    "best_round/*",
    "memory_missing",
    "set_aside",
)
NOTHING = Part(within=())


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. Private encoder, attention, decoder, output layer and bank never leave a site.

    With ``share: nothing`` figures alone come back, and the encoder is sent in the first round alone.
    """
    alone = experiment.wing.share == "nothing"
    shared = segmentation_stages(experiment)
    return {
        STAGE: StageContract(
            sends="shared",
            returns="metrics" if alone else "shared",
            metrics=METRICS,
            counts=("set_aside",),
            sent_later=NOTHING if alone else None,
            weighting=experiment.wing.weights,
        ),
        # fine-tuning starts from nothing, or from what the site has on its own disk
        **{name: dataclasses.replace(contract, sends="nothing") for name, contract in shared.items()},
    }


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The shared tensors before the first round, by their names in the network; the same wherever it is called.

    float32, on the CPU. The global generators are left as they were.
    """
    from fedmedseg.fedcrld.sharing import shared_names
    from fedmedseg.segmentation.starts import initial_network

    network = initial_network(experiment)
    tensors = network.state_dict()
    return {name: tensors[name].detach().clone() for name in shared_names(network, experiment)}


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage, for the share of a run that is done."""
    section, phantom = experiment.wing, experiment.data.phantom
    epoch = phantom.training if phantom is not None else 1
    return {STAGE: section.local_steps or section.local_epochs * epoch, **segmentation_work(experiment)}


def copies(experiment: Experiment) -> dict[str, int]:
    """Copies of the network that a site's state holds at once, for preflight's estimate.

    An unfinished round needs weights and two moments, and what the last one left are weights: of the client, and of
    the bank where there is one.
    """
    networks = 2 if experiment.wing.loss.needs_bank else 1
    own = 4 * networks if experiment.stages[STAGE].rounds else 0
    return {"network": own + segmentation_copies(experiment)}


def crops(experiment: Experiment) -> dict[str, int]:
    """Crops in memory at once in the stage that trains more than fine-tuning does, for preflight's estimate."""
    return {STAGE: experiment.segmentation.batch}
