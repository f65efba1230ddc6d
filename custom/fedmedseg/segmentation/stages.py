"""Contracts of the stages that every system ends with, and the tensors of a federated fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import refuse_unread
from fedmedseg.core.wire import Part, StageContract

PERSONAL, SHARED, CONTINUED, SCRATCH, UNTRAINED = "personal", "shared", "continued", "scratch", "untrained"
STARTS = (PERSONAL, SHARED, CONTINUED, SCRATCH)
"""What a model comes from. ``continued`` is trained on from the site's model ``personal``, which a system finished
before."""

FINE_TUNED = "fine_tuned."
"""Beginning of the shared tensors' names of federated fine-tuning: ``fine_tuned.<start>.<name in the network>``."""

TUNING_METRICS = ("loss/*", "validation_dice/*", "personal_missing", "set_aside")
TEST_METRICS = (
    "dice/*",
    "hd95/*",
    "spread/*",
    "failures/*",
    "cases",
    "set_aside",
    "validation_dice/*",
    "best_round/*",
)
COUNTS = ("cases", "set_aside", "failures/*")
"""Those of them that count cases."""


def is_federated(experiment: Experiment) -> bool:
    """Whether the sites fine-tune together."""
    return experiment.segmentation.fine_tuning == "federated"


def tuned_starts(experiment: Experiment) -> tuple[str, ...]:
    """The starts that fine-tuning trains: all but those whose models the system's own stages have ``finished``."""
    finished = getattr(experiment.wing, "finished", ())
    return tuple(start for start in experiment.wing.starts if start not in finished)


def segmentation_stages(experiment: Experiment) -> dict[str, StageContract]:
    """``fine_tuning`` and ``evaluation``.

    Local: every site trains alone from the shared tensors and returns figures. Federated: the networks under
    ``FINE_TUNED`` are trained as FedAvg does; the encoder goes along in the first round only, and the evaluation
    gets the networks as the last round left them.
    """
    if not is_federated(experiment):
        return {
            "fine_tuning": StageContract(
                sends="shared",
                returns="metrics",
                metrics=TUNING_METRICS,
                counts=COUNTS,
                sent=Part(without=(FINE_TUNED,)),
            ),
            "evaluation": StageContract(sends="nothing", returns="metrics", metrics=TEST_METRICS, counts=COUNTS),
        }
    networks = Part(within=(FINE_TUNED,))
    return {
        "fine_tuning": StageContract(
            sends="shared",
            returns="shared",
            metrics=TUNING_METRICS,
            counts=COUNTS,
            sent_later=networks,
            returned=networks,
        ),
        "evaluation": StageContract(
            sends="shared", returns="metrics", metrics=TEST_METRICS, counts=COUNTS, sent=networks
        ),
    }


def segmentation_work(experiment: Experiment) -> dict[str, int]:
    """Steps one site does in one round of these stages; a test case counts as one."""
    starts, tuned = len(experiment.wing.starts), len(tuned_starts(experiment))
    section = experiment.segmentation
    phantom = experiment.data.phantom
    cases = phantom.test if phantom is not None else 1
    rounds = max(1, experiment.stages["fine_tuning"].rounds)
    return {
        "fine_tuning": tuned * math.ceil(section.steps / rounds),
        "evaluation": (starts + section.test_untrained) * cases,
    }


def segmentation_copies(experiment: Experiment) -> int:
    """Copies of the whole network that a site's state holds at once for these stages, for preflight's estimate."""
    if is_federated(experiment):
        # of every start its unfinished training, weights and two moments, and the best round
        return 4 * len(experiment.wing.starts)
    # start after start: weights, two moments, the best weights
    return 4 if tuned_starts(experiment) else 0


def check_starts(experiment: Experiment, stage: str, *, own: str) -> None:
    """Refuse a system's own ``stage`` whose outcome no start uses, and starts that need it where it is left out.

    ``own`` is a start that it leads to. Every start but ``scratch`` needs it.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and how to mend it.
    """
    starts, rounds = f"{experiment.system}.starts", experiment.stages[stage].rounds
    needing = set(experiment.wing.starts) - {SCRATCH}
    if rounds and not needing:
        raise ConfigurationError(
            f"stages.{stage}.rounds",
            got=rounds,
            expected=f"0 where {starts} is [{SCRATCH}]: no start would use what comes of it",
            remedy=f"set stages.{stage}.rounds to 0, or add {own} to {starts}",
        )
    if not rounds and needing:
        raise ConfigurationError(
            starts,
            got=list(experiment.wing.starts),
            expected=f"[{SCRATCH}] where stages.{stage}.rounds is 0",
            remedy=f"set starts to [{SCRATCH}], or give {stage} its rounds",
        )


def check_stages(experiment: Experiment) -> None:
    """Refuse rounds and starts that these stages cannot run, and rates of an encoder that no start has.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and how to mend it.
    """
    tuned = tuned_starts(experiment)
    read = (any(start in (PERSONAL, SHARED) for start in tuned), "a start from a pretrained encoder")
    rates = {"encoder_rate_factor": read, "encoder_rate_share": read}
    refuse_unread(experiment.segmentation, "segmentation", rates)
    rounds = {stage: experiment.stages[stage].rounds for stage in ("fine_tuning", "evaluation")}
    if rounds["evaluation"] != 1:
        raise ConfigurationError(
            "stages.evaluation.rounds", got=rounds["evaluation"], expected="1: the test set is read once"
        )
    if not tuned:
        if rounds["fine_tuning"]:
            raise ConfigurationError(
                "stages.fine_tuning.rounds",
                got=rounds["fine_tuning"],
                expected=f"0: no model of {experiment.system}.starts is fine-tuned",
                remedy="set it to 0, or add scratch or continued to starts",
            )
        return
    if not is_federated(experiment):
        if rounds["fine_tuning"] != 1:
            raise ConfigurationError(
                "stages.fine_tuning.rounds",
                got=rounds["fine_tuning"],
                expected=f"1: sites fine-tune {', '.join(tuned)} on their own, a second round would repeat the first",
                remedy="set it to 1 and give segmentation.steps the length you want"
                if rounds["fine_tuning"]
                else f"set it to 1, or take {' and '.join(tuned)} out of {experiment.system}.starts",
            )
        return
    if not 1 <= rounds["fine_tuning"] <= experiment.segmentation.steps:
        raise ConfigurationError(
            "stages.fine_tuning.rounds",
            got=rounds["fine_tuning"],
            expected=f"1 to {experiment.segmentation.steps}, the steps that the rounds share (segmentation.steps)",
        )
    if any(one.labels != experiment.data.labels for one in experiment.data.alternatives):
        raise ConfigurationError(
            "segmentation.fine_tuning",
            got="federated, with data.alternatives that have other labels",
            expected="local, or one label map at all sites: networks of other classes have no average",
            remedy="use fine_tuning local, or give every alternative the labels of data.labels",
        )
    if PERSONAL in experiment.wing.starts:
        raise ConfigurationError(
            f"{experiment.system}.starts",
            got=list(experiment.wing.starts),
            expected="shared or scratch with segmentation.fine_tuning federated, which needs one start for all sites",
            remedy="remove personal from starts, or use fine_tuning local",
        )


def fine_tuned_tensors(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The networks of a federated fine-tuning before its first round: one per start, equal, from the study's seed.

    Empty where fine-tuning is local. Parameters only, float32, on the CPU.
    """
    if not is_federated(experiment):
        return {}
    from fedmedseg.segmentation.starts import initial_network

    network = {name: tensor.detach() for name, tensor in initial_network(experiment).named_parameters()}
    return {
        wire_name(start, name): tensor.clone() for start in experiment.wing.starts for name, tensor in network.items()
    }


def wire_name(start: str, name: str) -> str:
    """Name on the wire of one tensor of the network that is fine-tuned from ``start``."""
    return f"{FINE_TUNED}{start}.{name}"


def network_of(start: str, shared: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the network that is fine-tuned from ``start``, by their names in the network."""
    prefix = wire_name(start, "")
    return {name.removeprefix(prefix): tensor for name, tensor in shared.items() if name.startswith(prefix)}
