"""What FCL sends in each of its three stages, and the tensors its server starts from."""

from __future__ import annotations

import dataclasses

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.exchange import Exchange
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.wire import Part, StageContract
from fedmedseg.data.stacks import STACK_METRICS
from fedmedseg.fcl.config import PROJECTOR, STAGE
from fedmedseg.segmentation.stages import (
    FINE_TUNED,
    fine_tuned_tensors,
    segmentation_copies,
    segmentation_stages,
    segmentation_work,
)

METRICS = (
    "loss",
    "loss/local",
    "loss/remote",
    "feature_std",
    "collapse_alarm",
    "bank/own",
    "bank/received",
    *STACK_METRICS,
    "memory_missing",
    "set_aside",
)
NOTHING = Part(within=())


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. Momentum encoder, bank, optimiser, slice numbers and data never leave a site.

    Features of the momentum encoder do in pretraining, with part ids and nothing else, unless ``exchange`` is off. With
    ``aggregation: none`` nothing but figures comes back from it, and the encoder is sent in its first round alone.
    """
    alone = experiment.wing.aggregation == "none"
    encoder = Part(without=(FINE_TUNED,))
    return {
        STAGE: StageContract(
            sends="shared",
            returns="metrics" if alone else "shared",
            metrics=METRICS,
            counts=("set_aside",),
            sent=encoder,
            sent_later=NOTHING if alone else None,
            returned=encoder,
            exchange=exchange_of(experiment) if experiment.wing.exchange and not alone else None,
        ),
        **{name: _trimmed(contract, alone=alone) for name, contract in segmentation_stages(experiment).items()},
    }


def exchange_of(experiment: Experiment) -> Exchange:
    """What sites give one another: at most a bank of features."""
    section = experiment.wing
    return Exchange(
        width=section.projector.out,
        most_rows=section.bank.size,
        most_received=section.most_received,
        parts=section.parts,
        transport=section.transport,
        noise=0.0 if section.noise.renormalise else section.noise.sigma,
    )


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Encoder and projector before the first round; the same tensors wherever it is called.

    Names of encoder tensors are those of the segmentation network. Where fine-tuning is federated, its networks follow
    (``segmentation.stages``). float32, on the CPU. The global generators are left as they were.
    """
    from fedmedseg.fcl.sharing import ContrastiveNetwork

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.seed, "initial_shared"))
        network = ContrastiveNetwork(experiment=experiment)
    return network.shared() | fine_tuned_tensors(experiment)


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage, for the share of a run that is done."""
    section, phantom = experiment.wing, experiment.data.phantom
    volumes = phantom.unlabeled + phantom.training if phantom is not None else 1
    epochs = section.local_epochs or 1
    return {STAGE: section.local_steps or epochs * max(1, volumes // section.volumes_per_step)} | segmentation_work(
        experiment
    )


def copies(experiment: Experiment) -> dict[str, int]:
    """Copies of the encoder and of the whole network that a site's state holds at once, for preflight's estimate.

    Of the encoder what an unfinished round needs and what the last one left: main and momentum encoder, and the
    momentum of SGD. The bank beside them, a megabyte at full size, is not counted.
    """
    encoder = 2 * 3 if experiment.stages[STAGE].rounds else 0
    return {"encoder": encoder, "network": segmentation_copies(experiment)}


def crops(experiment: Experiment) -> dict[str, int]:
    """Crops that each of the two encoders sees in one step of each stage that trains them alone."""
    return {STAGE: experiment.wing.volumes_per_step * experiment.wing.parts}


def _trimmed(contract: StageContract, *, alone: bool) -> StageContract:
    """The same contract, whose tasks carry no projector; nor an encoder where every site pretrains ``alone``."""
    within = (FINE_TUNED,) if alone else contract.sent.within
    without = contract.sent.without
    return dataclasses.replace(contract, sent=Part(within=within, without=(*without, PROJECTOR)))
