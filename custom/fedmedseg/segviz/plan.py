"""What SegViz sends in each of its stages, and the tensors its server starts from."""

from __future__ import annotations

import math
from typing import Literal

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.wire import Part, StageContract
from fedmedseg.segmentation.stages import COUNTS, TEST_METRICS, TUNING_METRICS

PUBLISHED = "published."
"""Beginning of the names of what a site publishes (``segviz.publication``)."""

TRAINING_METRICS = ("loss", "loss/*", "loss_scratch", "validation_dice/*", "memory_missing", "set_aside")


def stages(experiment: Experiment) -> dict[str, StageContract]:
    """The stages in their order. A site's head, norms and running statistics, its optimiser and data never leave it;
    what is shared is the trunk alone (``segviz.network``), and one model's head with it.

    Where a site chooses among models as it receives them, later stages bring it the last one. A publication, which is
    left out unless the study asks for it, sends head, norms and statistics of the sites whose own file agrees.
    """
    trunk, private = Part(without=(PUBLISHED,)), Part(within=(PUBLISHED,))
    sends: Literal["shared", "nothing"] = "shared" if experiment.wing.candidates == "received" else "nothing"
    return {
        "training": StageContract(
            sends="shared",
            returns="shared",
            metrics=TRAINING_METRICS,
            counts=COUNTS,
            sent=trunk,
            returned=trunk,
            weighting=experiment.wing.weights,
        ),
        "head_tuning": StageContract(
            sends=sends, returns="metrics", metrics=(*TUNING_METRICS, "loss"), counts=COUNTS, sent=trunk
        ),
        "evaluation": StageContract(sends=sends, returns="metrics", metrics=TEST_METRICS, counts=COUNTS, sent=trunk),
        "publication": StageContract(sends="shared", returns="shared", sent=private, returned=private, collects=True),
    }


def initial_shared(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The shared tensors before the first round; the same wherever it is called, float32, on the CPU.

    The head is what MONAI builds last, so that the trunk's first weights do not depend on the number of organs.

    Raises:
        ConfigurationError: nothing to keep at the sites, see ``segviz.network``.
    """
    from fedmedseg.segmentation.starts import initial_network
    from fedmedseg.segviz.network import shared_tensors
    from fedmedseg.segviz.publication import blank

    network = initial_network(experiment)
    places = blank(network, experiment) if experiment.stages["publication"].rounds else {}
    return shared_tensors(network, experiment) | places


def work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of each stage; a test case counts as one."""
    section, wing = experiment.segmentation, experiment.wing
    phantom = experiment.data.phantom
    models = len(wing.starts) + section.test_untrained
    return {
        "training": len(wing.starts) * math.ceil(section.steps / max(1, experiment.stages["training"].rounds)),
        "head_tuning": wing.head_steps,
        "publication": 1,
        "evaluation": models * (phantom.test if phantom is not None else 1),
    }


def beside(experiment: Experiment) -> dict[str, int]:
    """Copies of the network that a step of a stage holds in memory beside the trained one, for preflight's estimate."""
    return {"training": int(experiment.wing.distillation is not None)}


def copies(experiment: Experiment) -> dict[str, int]:
    """Copies of the network that a site's state holds at once, for preflight's estimate.

    Of every model an unfinished round (weights and two moments), as much of each of two rounds before it (of the shared
    model the private tensors alone, beside the moments of all), and the best round. Tuning the head adds the weights.
    """
    wing = experiment.wing
    return {"network": (3 + 2 * 3 + 1) * len(wing.starts) + bool(wing.head_steps)}
