"""FCLOpt's server rule as a FLARE aggregator: the mean of online networks, and the target network beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.config import load_experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.spilled import DerivedTensors
from fedmedseg.fclopt.distance_prediction import corrected, gaps, noted, ratios
from fedmedseg.fclopt.network import TARGET, from_wire, to_wire
from fedmedseg.fclopt.recursion import ANCHORS, DISTANCES, PREDICTION, chosen_scales, digest_of, open_loop
from fedmedseg.fclopt.target_prediction import Arrays, narrowed, predict, wide

Tensors = Mapping[str, torch.Tensor]


class TargetPredictionAggregator(GuardedAggregator):
    """Weighted mean of the online networks (FedAvg), and the target network by ``fclopt.mode``.

    Where targets are predicted, the server works the next one out as every site will, bit for bit, and names in its
    notes the sites that held the right one in this round (``target``: ``held``): any other is sent it whole before its
    next round. Notes also tell the mean scale of the correction (``scale``) and, where sites returned targets, how far
    the prediction lies from their mean as a share of how far that moved: by the naive formula (``naive_error``), before
    the correction (``error``) and after it (``corrected_error``).

    Args:
        experiment_file: path of experiment.yaml; its `fclopt` section chooses the mode.
    """

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self._section = load_experiment(experiment_file).wing

    @property
    def needs_plain(self) -> str:
        """A mean of online networks alone can do with encrypted replies."""
        mode = self._section.mode
        return "" if mode in ("keep_local", "online") else f"fclopt.mode {mode} reads the sites' differences"

    def behind(
        self, history: Sequence[Mapping[str, Any]], *, stage: str, number: int, sites: Collection[str]
    ) -> Collection[str]:
        """Sites of which no accepted reply of the round before told the right target network."""
        if number == 0 or not self._section.predicts:
            return ()
        held: Collection[str] = ()
        for record in history:
            if record["stage"] == stage and record["round"] == number - 1:
                held = record["notes"]["target"]["held"]
        return [site for site in sites if site not in held]

    def combine(
        self, shared: Tensors, contributions: Mapping[str, Contribution], weights: Mapping[str, float]
    ) -> Tensors:
        """Differences to the online network; what must be exact goes to ``replaced``."""
        differences = {site: contribution.differences for site, contribution in contributions.items()}
        updated = self.mean({site: _online(tensors) for site, tensors in differences.items()}, weights)
        if self._section.mode == "both" or self._section.predicts:
            self._follow(updated, {site: _targets(tensors) for site, tensors in differences.items()}, weights)
        # where targets came back the rule has to say something of them, which ``replaced`` overrides
        return {**updated, **{name: torch.zeros_like(shared[name]) for name in shared if name.startswith(TARGET)}}

    def _follow(self, updated: Tensors, returned: Mapping[str, Tensors], weights: Mapping[str, float]) -> None:
        """The target network after the round, to ``replaced``; ``returned`` holds differences to the one before."""
        assert self.round is not None, "open_round was not called"
        whole, number = self.round.whole, self.round.number
        kept = from_wire(whole)
        # in round 0 it is a copy of the online network, whatever that was given before the study began
        target = {name: whole[name] if number == 0 else kept[name] for name in kept}
        if self._section.mode == "both":
            self.replaced = to_wire(_moved(target, from_wire(self.mean(returned, weights))))
            return
        expected = digest_of(target)
        held = [site for site in sorted(self.contributions) if self.contributions[site].held == expected]
        self.notes["target"] = {"sha256": expected, "held": held}
        after = {name: whole[name] + difference for name, difference in updated.items()}
        predicted = open_loop(self._section, target=target, before=whole, after=after)
        # differences to another target network than the server's mean nothing here
        usable = {site: tensors for site, tensors in returned.items() if tensors and site in held}
        if len(usable) < self.round.robust.least:
            # too few for the study's rule to hold: as if none had come, and told
            self.notes["target"]["unused"] = sorted(usable)
            usable = {}
        correction = {name: tensor for name, tensor in whole.items() if name.startswith(PREDICTION)}
        if usable:
            total = sum(weights[site] for site in usable)
            shares = {site: weights[site] / total for site in usable}
            true = _moved(target, from_wire(self.mean(usable, shares)))
            correction = self._measured(predicted, true, after, correction)
            crude = predict(
                target,
                whole,
                after,
                formula="naive",
                momentum=self._section.momentum,
                steps=self._section.local_steps,
            )
            self.notes["target"]["naive_error"] = _error(crude, true, target)
            self.notes["target"]["error"] = _error(predicted, true, target)
        elif self._section.mode == "ptnu":
            # no distance is known: the prediction stands as it is
            measured = gaps(predicted, after, self._section.distance.grain)
            correction = {DISTANCES: torch.tensor(measured, dtype=torch.float64)}
        scales = chosen_scales(self._section, predicted, after, correction, number=number)
        self.notes["target"]["scale"] = sum(scales) / len(scales)
        following = narrowed(corrected(predicted, after, scales), target)
        if usable:
            self.notes["target"]["corrected_error"] = _error(
                {name: wide(tensor) for name, tensor in following.items()}, true, target
            )
        self.replaced = {**to_wire(following), **correction}

    def _measured(
        self, predicted: Arrays, true: Tensors, after: Tensors, correction: Tensors
    ) -> dict[str, torch.Tensor]:
        """What the sites' targets teach about distances."""
        assert self.round is not None, "open_round was not called"
        section = self._section.distance
        distances = gaps({name: wide(tensor) for name, tensor in true.items()}, after, section.grain)
        if self._section.mode == "ptnu":
            return {DISTANCES: torch.tensor(distances, dtype=torch.float64)}
        found = ratios(distances, gaps(predicted, after, section.grain))
        table = noted(correction[ANCHORS], self.round.number, found, rule=section.ratio, momentum=section.ema)
        return {ANCHORS: table}


def _targets(tensors: Tensors) -> Tensors:
    """The targets among what came, by their names on the wire, none of them read yet."""
    return DerivedTensors(tensors, [name for name in tensors if name.startswith(TARGET)])


def _online(tensors: Tensors) -> Tensors:
    return DerivedTensors(tensors, [name for name in tensors if not name.startswith(TARGET)])


def _moved(target: Tensors, mean: Tensors) -> dict[str, torch.Tensor]:
    """The target network and the mean of what the sites' differ from it."""
    return {name: tensor + mean[name] for name, tensor in target.items()}


def _error(found: Arrays, true: Tensors, before: Tensors) -> float:
    """Distance of ``found`` from ``true`` as a share of the distance that ``true`` moved."""
    gap = sum(float(((found[name] - wide(true[name])) ** 2).sum()) for name in sorted(true))
    way = sum(float(((wide(before[name]) - wide(true[name])) ** 2).sum()) for name in sorted(true))
    return float((gap / way) ** 0.5) if way else 0.0
