"""Batches made one step before they are asked for, in a thread beside the step that computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch

Made = TypeVar("Made")
SEEDS = 2**62
"""Seeds of batches are below it."""


class Ahead(Generic[Made]):
    """What ``make`` makes of a seed. It must depend on nothing else that changes, the global generators least, and must
    not hold whoever holds this: networks would wait for Python's collector.

    Batches are the same bytes whether they were expected or not. All are made in one thread, one after the other, so
    that what they are made from has one reader.
    """

    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._coming: dict[int, Future[Made]] = {}

    def expect(self, step_seed: int) -> None:
        """Begin with the batch of a step that torch's global generator will be seeded with ``step_seed`` for.

        Raises:
            RuntimeError: that of a step before the one that comes was never asked for; whoever draws from the generator
                before ``next`` would get none that was expected, and not notice.
        """
        if len(self._coming) > 1:
            raise RuntimeError("a batch that was expected was not asked for")
        seed = drawn(torch.Generator().manual_seed(step_seed))
        if seed not in self._coming:
            self._coming[seed] = self._worker.submit(self._make, seed)

    def next(self) -> Made:
        """The batch of the step that runs, by a seed from torch's global generator; waits until it is made.

        Raises:
            Exception: whatever ``make`` raised.
        """
        seed = drawn()
        return (self._coming.pop(seed, None) or self._worker.submit(self._make, seed)).result()

    def forget(self) -> None:
        """Expect nothing any more; nothing is being made when this returns."""
        running = [one for one in self._coming.values() if not one.cancel()]
        self._coming = {}
        wait(running)


def drawn(generator: torch.Generator | None = None) -> int:
    """A seed for a batch, from ``generator``, or torch's global one."""
    return int(torch.randint(SEEDS, (1,), generator=generator))
