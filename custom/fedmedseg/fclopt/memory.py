"""What a site remembers of a round, and the networks that its next one starts with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.fedema import proportion, scale
from fedmedseg.fclopt.config import Section
from fedmedseg.fclopt.network import TARGET, from_wire
from fedmedseg.fclopt.recursion import PREDICTION, digest_of, initial_correction, next_target

logger = logging.getLogger(__name__)
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class RoundStart:
    """The networks of a round before its first step, by their names in the online network."""

    sent: Tensors = field(repr=False)
    """The online network that the server sent."""
    online: Tensors = field(repr=False)
    """The one that the site starts from: the same, or mixed with its own."""
    target: Tensors = field(repr=False)
    correction: Tensors = field(repr=False)
    """What the target's next correction may need again: the table of anchors."""
    figures: Mapping[str, float]
    factor: float | None = None
    """FedEMA's lambda."""

    @property
    def digest(self) -> str:
        """Of the target network."""
        return digest_of(self.target)


def round_start(
    section: Section, shared: Tensors, memory: Mapping[str, Any] | None, *, number: int, followed: list[str]
) -> RoundStart:
    """What round ``number`` starts with, from what the server sent and what the site remembers of its last round.

    ``followed`` names the tensors of the target network. In round 0 it is a copy of the online network. A site that
    remembers nothing it could go on from takes a copy as well, and says so (``memory_missing``); where the target
    network is predicted, its digest tells the server, which sends that site the right one in the next round.
    """
    sent = {name: tensor for name, tensor in shared.items() if not name.startswith((TARGET, PREDICTION))}
    copied = {name: sent[name] for name in followed}
    resent = from_wire(shared)
    if memory is not None and memory["round"] == number:
        if memory["sent_sha256"] == content_sha256(sent):
            # the same task again: its answer was lost, or the server lives again after its death
            return RoundStart(
                sent=sent,
                online=memory["online"] or sent,
                target=resent or memory["target"],
                correction=memory["correction"],
                figures=memory["figures"],
                factor=memory["factor"],
            )
        memory = None
    missing = False
    correction = {**initial_correction(section, len(followed)), **_correction(memory, shared)}
    if number == 0 or section.mode == "online":
        target: Tensors = copied
    elif resent:
        # both networks travel, or this site had fallen behind
        target = resent
    else:
        found = _remembered(section, sent, memory, correction, number=number)
        target, missing = (copied, True) if found is None else (found, False)
    online, figures, factor = _mixed(section, sent, memory)
    if missing:
        logger.warning("no memory of the round before: the target network starts from the online network")
        figures["memory_missing"] = 1.0
    return RoundStart(sent=sent, online=online, target=target, correction=correction, figures=figures, factor=factor)


def _remembered(
    section: Section, sent: Tensors, memory: Mapping[str, Any] | None, correction: Tensors, *, number: int
) -> Tensors | None:
    """The target network of this round from what is remembered: the site's own, or predicted; None where that does not
    reach so far.
    """
    if memory is None:
        return None
    if section.mode == "keep_local":
        own: Tensors = memory["own_target"]
        return own
    if memory["round"] != number - 1:
        return None
    return next_target(
        section,
        target=memory["target"],
        before=memory["sent"],
        after=sent,
        correction=correction,
        number=number - 1,
    )


def _mixed(
    section: Section, sent: Tensors, memory: Mapping[str, Any] | None
) -> tuple[Tensors, dict[str, float], float | None]:
    """The online network that the site starts from, figures of the mixing, and FedEMA's factor."""
    if section.client_mix == "replace" or memory is None:
        return sent, {}, None
    change, factor = float(memory["change"]), memory["factor"]
    if factor is None:
        factor = scale(change, tau=section.fedema.tau)
    mu = proportion(change, factor)
    mixed = {name: torch.lerp(tensor, memory["tensors"][name], mu) for name, tensor in sent.items()}
    figures = {"mixing/change": change, "mixing/mu": mu}
    return mixed, figures if factor is None else {**figures, "mixing/lambda": factor}, factor


def _correction(memory: Mapping[str, Any] | None, shared: Tensors) -> dict[str, torch.Tensor]:
    """What was sent of it now, over what is remembered: the table of anchors comes after anchors alone."""
    kept = dict(memory["correction"]) if memory is not None else {}
    return {**kept, **{name: tensor for name, tensor in shared.items() if name.startswith(PREDICTION)}}
