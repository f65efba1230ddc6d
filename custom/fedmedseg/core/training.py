"""The one training loop: seeded per step, abortable per step, resumable from the disk."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.core.seeding import derive_seed, seed_everything

logger = logging.getLogger(__name__)


class Aborted(Exception):
    """The federation asked this task to stop."""


def require_finite(figure: str, value: float) -> float:
    """``value``, where it is a number a training can go on with.

    Raises:
        FedMedSegError: reason LOCAL_DIVERGED, naming ``figure``.
    """
    if not math.isfinite(value):
        raise FedMedSegError(
            figure,
            got=value,
            expected="a finite number",
            remedy="lower the learning rate or check the intensities of this site's images",
            reason=Reason.LOCAL_DIVERGED,
        )
    return value


class Objective(Protocol):
    """What is trained. Its step must draw every random number from the global generators, which the loop seeds."""

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step; returns figures to average over the task, ``loss`` among them."""
        ...

    def state(self) -> Any:
        """A checkpoint tree from which ``restore`` continues exactly."""
        ...

    def restore(self, tree: Any) -> None:
        """Continue from a tree that ``state`` returned."""
        ...


@runtime_checkable
class AheadObjective(Objective, Protocol):
    """One that makes the batch of its next step beside the step that runs (``core.ahead``)."""

    def expect(self, seed: int) -> None:
        """The seed of the step after the one that comes."""
        ...


def run_steps(
    objective: Objective,
    *,
    task: Task,
    name: str,
    steps: int,
    work: str | None = None,
    prepare: Callable[[], None] | None = None,
    draws: str | None = None,
) -> dict[str, float]:
    """Run ``steps`` steps of ``objective`` and return the mean of each figure.

    ``name`` names the checkpoint (several loops of one task need different names). ``prepare`` runs before
    the first step of a task that has no checkpoint yet (personal initialisation, say) and is not repeated
    when a killed task is given again. A task that was finished before returns the same figures at once.
    ``draws`` names the random numbers (default: ``name``): loops that are compared share them.

    Raises:
        Aborted: ``task.aborted()`` became true; the checkpoint lets the task continue later.
        FedMedSegError: the loss stopped being finite (reason LOCAL_DIVERGED); nothing is saved then.
    """
    key = f"{task.stage}|{task.round}|{task.base}|{steps}"
    file = f"running_{name}"
    sums: dict[str, float] = {}
    start = 0
    saved = task.state.load(file)
    if saved is not None and saved["key"] == key:
        objective.restore(saved["objective"])
        sums, start = dict(saved["sums"]), int(saved["step"])
        logger.info("continuing at step %d of %d", start, steps)
    elif prepare is not None:
        seed_everything(derive_seed(task.seed, task.site, task.stage, name, task.round, "prepare"))
        prepare()

    def save(step: int) -> None:
        task.state.save(file, {"key": key, "step": step, "sums": sums, "objective": objective.state()})

    def seed_of(index: int) -> int:
        return derive_seed(task.seed, task.site, task.stage, draws or name, task.round, index)

    last_saved = time.monotonic()
    for index in range(start, steps):
        if task.aborted():
            save(index)
            raise Aborted
        seed_everything(seed_of(index))
        if isinstance(objective, AheadObjective) and index + 1 < steps:
            objective.expect(seed_of(index + 1))
        figures = objective.step(index)
        for figure, value in figures.items():
            require_finite(figure, value)
            sums[figure] = sums.get(figure, 0.0) + value
        if index + 1 < steps and time.monotonic() - last_saved >= task.checkpoint_seconds:
            save(index + 1)
            last_saved = time.monotonic()
        task.progress.update(work or task.stage, index + 1, steps, figures.get("loss"))
    if start < steps:
        save(steps)
    return {figure: total / steps for figure, total in sums.items()}
