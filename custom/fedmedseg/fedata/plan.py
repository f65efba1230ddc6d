"""What FedATA sends in each of its three stages, and the tensors its server starts from."""

from __future__ import annotations

import dataclasses

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.wire import Part, StageContract
from fedmedseg.fedata.teacher import TEACHER, to_wire
from fedmedseg.segmentation.stages import (
    FINE_TUNED,
    fine_tuned_tensors,
    segmentation_copies,
    segmentation_stages,
    segmentation_work,
)

PRETRAINING_METRICS = (
    "loss",
    "loss/class",
    "loss/pixels",
    "loss/prox",
    "teacher_std",
    "student_std",
    "student_teacher_gap",
    "collapse_alarm",
    "mixing/passes",
    "mixing/loss_first",
    "mixing/loss_last",
    "mixing/weight_mean",
    "mixing/change",
    "mixing/mu",
    "mixing/lambda",
    "memory_missing",
    "set_aside",
)
NOTHING = Part(within=())


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. Mixing weights, optimiser and data never leave a site; a teacher does where
    ``teacher_sync`` is ``aggregate``, in pretraining alone.

    The segmentation's decoder does where ``segmentation.fine_tuning`` is ``federated``. With ``server_aggregation:
    none`` nothing but figures comes back from pretraining, and the encoder, which nobody trains at the server, is
    sent in its first round alone.
    """
    alone = experiment.wing.server_aggregation == "none"
    encoder = Part(without=(FINE_TUNED,))
    return {
        "pretraining": StageContract(
            sends="shared",
            returns="metrics" if alone else "shared",
            metrics=PRETRAINING_METRICS,
            counts=("set_aside",),
            sent=encoder,
            sent_later=NOTHING if alone else None,
            returned=encoder,
            personal=experiment.wing.server_aggregation == "pair_att",
        ),
        **{name: _trimmed(contract, alone=alone) for name, contract in segmentation_stages(experiment).items()},
    }


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Encoder, mask token and predictor before the first round; the same tensors wherever it is called.

    Names of encoder tensors are those of the segmentation network. Where teachers are averaged, copies of all that a
    teacher follows come next, under names that begin with ``teacher.``. Where fine-tuning is federated, its networks
    follow (``segmentation.stages``). float32, on the CPU. The global generators are left as they were.
    """
    from fedmedseg.fedata.network import MaskedEncoder
    from fedmedseg.fedata.pretexts import make_pretext

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.seed, "initial_shared"))
        network = MaskedEncoder(experiment=experiment)
    tensors = network.shared()
    if experiment.wing.teacher_sync == "aggregate":
        encoder = [name for name in tensors if name.startswith(f"{network.prefix}.")]
        followed = [*encoder, *make_pretext(experiment.wing, network).teacher_tensors()]
        tensors |= to_wire({name: tensors[name] for name in followed})
    return tensors | fine_tuned_tensors(experiment)


def _trimmed(contract: StageContract, *, alone: bool) -> StageContract:
    """The same contract, whose tasks carry no averaged teachers: only pretraining needs them.

    Nor an encoder where every site pretrains ``alone``: it would be the untrained one.
    """
    within = (FINE_TUNED,) if alone else contract.sent.within
    without = contract.sent.without
    return dataclasses.replace(contract, sent=Part(within=within, without=(*without, TEACHER)))


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage, for the share of a run that is done."""
    return {"pretraining": experiment.wing.local_steps, **segmentation_work(experiment)}


def copies(experiment: Experiment) -> dict[str, int]:
    """Copies of the encoder and of the whole network that a site's state holds at once, for preflight's estimate.

    Of the encoder what an unfinished round needs (student, teacher, two moments, what mixing learns) and what the last
    one left (student, teacher, what mixing learned).
    """
    encoder = 8 if experiment.stages["pretraining"].rounds else 0
    return {"encoder": encoder, "network": segmentation_copies(experiment)}


def crops(experiment: Experiment) -> dict[str, int]:
    """Crops that the encoder, and a teacher beside it, sees in one step of each stage that trains them alone."""
    return {"pretraining": experiment.wing.volumes_per_step * experiment.wing.crops_per_volume}
