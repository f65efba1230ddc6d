"""What FedATA sends in each of its three stages, and the tensors its server starts from."""

from __future__ import annotations

import dataclasses

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.seeding import derive_seed
from fedmedseg.core.wire import Part, StageContract
from fedmedseg.fedata.teacher import TEACHER, to_wire
from fedmedseg.segmentation.stages import FINE_TUNED, fine_tuned_tensors, segmentation_stages, segmentation_work

PRETRAINING_METRICS = (
    "loss",
    "loss/class",
    "loss/pixels",
    "loss/prox",
    "teacher_std",
    "student_std",
    "student_teacher_gap",
    "collapse_alarm",
    "mixing/*",
    "set_aside",
)


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. Mixing weights, optimiser and data never leave a site; a teacher does where
    ``teacher_sync`` is ``aggregate``, in pretraining alone.

    The segmentation's decoder does where ``segmentation.fine_tuning`` is ``federated``, and nothing but figures comes
    back from a pretraining with ``server_aggregation: none``.
    """
    alone = experiment.wing.server_aggregation == "none"
    encoder = Part(without=(FINE_TUNED,))
    return {
        "pretraining": StageContract(
            sends="shared",
            returns="metrics" if alone else "shared",
            metrics=PRETRAINING_METRICS,
            sent=encoder,
            returned=encoder,
            personal=experiment.wing.server_aggregation == "pair_att",
        ),
        **{name: _without_teacher(contract) for name, contract in segmentation_stages(experiment).items()},
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


def _without_teacher(contract: StageContract) -> StageContract:
    """The same contract, whose tasks do not carry averaged teachers: only pretraining needs them."""
    sent = Part(within=contract.sent.within, without=(*contract.sent.without, TEACHER))
    return dataclasses.replace(contract, sent=sent)


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage, for the share of a run that is done."""
    return {"pretraining": experiment.wing.local_steps, **segmentation_work(experiment)}
