"""What FCLOpt sends in each of its stages, by mode and round, and the tensors its server starts from."""

from __future__ import annotations

import dataclasses

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.wire import Part, StageContract
from fedmedseg.fclopt.config import STAGE, Section
from fedmedseg.fclopt.distance_prediction import is_anchor
from fedmedseg.fclopt.network import PREDICTOR, PROJECTOR, TARGET
from fedmedseg.fclopt.recursion import PREDICTION
from fedmedseg.segmentation.stages import (
    FINE_TUNED,
    fine_tuned_tensors,
    segmentation_copies,
    segmentation_stages,
    segmentation_work,
)

METRICS = (
    "loss",
    "loss/structural",
    "feature_std",
    "collapse_alarm",
    "rate",
    "mixing/change",
    "mixing/mu",
    "mixing/lambda",
    "memory_missing",
    "set_aside",
)
ONLINE = Part(without=(FINE_TUNED, TARGET, PREDICTION))
WITH_TARGET = Part(without=(FINE_TUNED, PREDICTION))
WITH_CORRECTION = Part(without=(FINE_TUNED, TARGET))


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. Images, optimiser and a target that is kept locally never leave a site.

    Fine-tuning gets the encoder alone.
    """
    left = (TARGET, PREDICTION, PROJECTOR, PREDICTOR)
    later = {
        name: dataclasses.replace(contract, sent=Part(contract.sent.within, (*contract.sent.without, *left)))
        for name, contract in segmentation_stages(experiment).items()
    }
    return {STAGE: pretraining(experiment.wing), **later}


def pretraining(section: Section) -> StageContract:
    """The contract of the mode: what goes each way in which round.

    The target network of round 0 is everywhere a copy of the online one, so nothing of it is sent then.
    """
    plain = StageContract(
        sends="shared", returns="shared", metrics=METRICS, counts=("set_aside",), sent=ONLINE, returned=ONLINE
    )
    if section.mode == "both":
        return dataclasses.replace(
            plain, sent=WITH_TARGET, sent_at=lambda number: WITH_TARGET if number else ONLINE, returned=WITH_TARGET
        )
    if not section.predicts:
        return plain
    predicted = dataclasses.replace(plain, extra=Part(within=(TARGET, PREDICTION)), held=True)
    if section.mode == "ptnu":
        return dataclasses.replace(
            predicted,
            sent=WITH_CORRECTION,
            sent_at=lambda number: WITH_CORRECTION if number else ONLINE,
            returned=WITH_TARGET,
        )
    if section.mode == "ptnu_dp":
        warm_up, every = section.distance.warm_up, section.distance.every

        def anchors(number: int) -> bool:
            return number >= 0 and is_anchor(number, warm_up=warm_up, every=every)

        return dataclasses.replace(
            predicted,
            sent=WITH_CORRECTION,
            sent_at=lambda number: WITH_CORRECTION if anchors(number - 1) else ONLINE,
            returned=WITH_TARGET,
            returned_at=lambda number: WITH_TARGET if anchors(number) else ONLINE,
        )
    return predicted


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Encoder, projector and predictor before the first round; the same tensors wherever it is called.

    Names of encoder tensors are those of the segmentation network; running statistics of batch norm are among them.
    Where the server keeps a target network, its parameters follow under names that begin with ``target.``, and what its
    correction needs. Where fine-tuning is federated, its networks follow (``segmentation.stages``). On the CPU. The
    global generators are left as they were.
    """
    from fedmedseg.fclopt.network import BootstrapNetwork, TargetNetwork, floating, parameters_of, to_wire
    from fedmedseg.fclopt.recursion import initial_correction

    section = experiment.wing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.seed, "initial_shared"))
        network = BootstrapNetwork(experiment=experiment)
    tensors = {name: tensor.detach().clone() for name, tensor in floating(network).items()}
    if section.predicts or section.mode == "both":
        followed = parameters_of(TargetNetwork(online=network))
        tensors |= to_wire({name: tensors[name].clone() for name in followed})
        tensors |= initial_correction(section, len(followed))
    return tensors | fine_tuned_tensors(experiment)


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage, for the share of a run that is done."""
    return {STAGE: experiment.wing.local_steps, **segmentation_work(experiment)}


def copies(experiment: Experiment) -> dict[str, int]:
    """Copies of the encoder and of the whole network that a site's state holds at once, for preflight's estimate.

    Of the encoder what an unfinished round needs (online and target network, the momentum of SGD) and what the last one
    left: its online network and the target it started with, where targets are predicted the online network that was
    sent, its own target where that goes on, and what mixing starts from.
    """
    section = experiment.wing
    left = 2 + section.predicts + (section.mode == "keep_local") + (section.client_mix == "fedema")
    encoder = 3 + left if experiment.stages[STAGE].rounds else 0
    return {"encoder": encoder, "network": segmentation_copies(experiment)}


def crops(experiment: Experiment) -> dict[str, int]:
    """Crops that the encoder, and a target beside it, sees in one step: two views of every slice."""
    return {STAGE: 2 * experiment.wing.volumes_per_step * experiment.wing.parts}
