"""The seam between FLARE and plain PyTorch: what a system's learner is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from fedmedseg.core.exchange import Features
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState


@dataclass(frozen=True)
class Task:
    """One task of one site: everything a learner needs to know about where it stands."""

    site: str
    stage: str
    round: int
    rounds: int
    seed: int
    base: str
    """CRC-32 of the shared tensors that came with the task."""
    state: SiteState
    progress: Progress
    received: Features | None = None
    """The other sites' features, where the stage exchanges any and this site was sent some."""
    aborted: Callable[[], bool] = lambda: False
    checkpoint_seconds: float = 30.0


@dataclass(frozen=True)
class Reply:
    """What a learner hands back. Only what the stage's contract declares leaves the site."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The trained shared tensors themselves (the executor sends their difference), or nothing."""
    known: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Tensors that the site knows as the server does without being sent them: what differences to them are to."""
    held: str = ""
    """SHA-256 of what it worked out so, where the stage's contract asks for it (``held``)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    examples: int = 0
    """Number of cases this reply stands on; its weight in the aggregate."""
    steps: int = 0
    """Optimiser steps done."""
    features: Features | None = None
    """This site's features, where the stage exchanges any; their order is lost on the way."""


class Learner(Protocol):
    """A system's local objective: plain PyTorch, no FLARE import."""

    @property
    def state_root(self) -> Path:
        """Folder on the site's disk under which its state is kept."""
        ...

    @property
    def needs_approval(self) -> bool:
        """Whether a local person must agree to a job before its first task."""
        ...

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        """Do one task from the shared tensors.

        Raises:
            Aborted: the federation asked to stop.
            FedMedSegError: with the reason the server may be told.
        """
        ...
