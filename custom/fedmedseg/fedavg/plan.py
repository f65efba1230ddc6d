"""What the baseline sends in each of its stages, and the tensors its server starts from."""

from __future__ import annotations

import dataclasses
import math

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.wire import Part, StageContract
from fedmedseg.fedavg.config import BESIDE, STAGE
from fedmedseg.fedavg.sharing import CONTROL, SERVER, first_controls, first_moments, shared_tensors
from fedmedseg.segmentation.stages import COUNTS, segmentation_copies, segmentation_stages, segmentation_work

METRICS = ("loss", "loss_personal", "validation_dice/*", "memory_missing", "set_aside")


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. A site's norms under ``fedbn``, its own network under ``ditto``, its own control
    variates under ``scaffold`` and every optimiser of a site never leave it; the server's never leaves the server.

    Where a site's model is one that it receives, later stages bring it the network as the last round left it.
    """
    trained, network = Part(without=(SERVER,)), Part(without=(SERVER, CONTROL))
    last = experiment.wing.receives and "personal" in experiment.wing.starts
    shared = segmentation_stages(experiment)
    return {
        STAGE: StageContract(
            sends="shared",
            returns="shared",
            metrics=METRICS,
            counts=COUNTS,
            sent=trained,
            returned=trained,
            weighting=experiment.wing.weights,
        ),
        **{
            name: dataclasses.replace(contract, sends="shared" if last else "nothing", sent=network)
            for name, contract in shared.items()
        },
    }


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The shared tensors before the first round; the same wherever it is called, float32, on the CPU.

    Raises:
        ConfigurationError: nothing to keep at the sites, see ``fedavg.sharing``.
    """
    from fedmedseg.segmentation.starts import initial_network

    network, wing = initial_network(experiment), experiment.wing
    tensors = shared_tensors(network, experiment)
    if wing.strategy == "scaffold":
        tensors |= first_controls(network)
    if wing.strategy == "fedopt":
        tensors |= first_moments(network, wing.server)
    return tensors


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage; a test case counts as one."""
    steps = math.ceil(experiment.segmentation.steps / max(1, experiment.stages[STAGE].rounds))
    networks = 2 if experiment.wing.strategy == "ditto" else 1
    return {STAGE: networks * steps, **segmentation_work(experiment)}


def beside(experiment: Experiment) -> dict[str, int]:
    """Copies of the network that a step of a stage holds in memory beside the trained one, for preflight's estimate.

    On a GPU SCAFFOLD's control variates lie in the machine's memory: there it is two fewer.
    """
    return {STAGE: BESIDE.get(experiment.wing.strategy, 0)}


def copies(experiment: Experiment) -> dict[str, int]:
    """Copies of the network that a site's state holds at once, for preflight's estimate.

    An unfinished round needs weights and an optimiser's moments, and the best round so far is kept. Under ``ditto`` the
    site's own network is trained beside the common one and remembered of two rounds; so are control variates.
    """
    wing = experiment.wing
    if not experiment.stages[STAGE].rounds:
        return {"network": segmentation_copies(experiment)}
    moments = 2 if wing.sgd is None else int(wing.sgd.momentum > 0)
    own = (1 + moments) * (2 if wing.strategy == "ditto" else 1) + 1
    remembered = 2 if wing.strategy in ("ditto", "scaffold") else 0
    return {"network": own + remembered + segmentation_copies(experiment)}
