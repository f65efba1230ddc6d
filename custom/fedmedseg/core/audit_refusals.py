"""Refusals that come again and again: each is written once, then counted, so that a flood pushes nothing out.

Who is turned away asks again every second, and a stranger may ask under a thousand names; the trail's size is bounded.
What is counted is written when the time is over. A process that ends before loses the count, not the refusal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from fedmedseg.core.audit import MOST_NAME, Outcome, Trail, safe

AGAIN = 600.0
"""Seconds in which equal refusals are one line, and after which the next is written again."""
MOST_TOLD = 64
"""Different refusals of one kind that are written within that time; all others together are one more."""


class Refusal(NamedTuple):
    """What makes two refusals equal."""

    action: str
    outcome: str
    who: str
    job: str
    reason: str


OTHERS = Refusal("others", str(Outcome.REFUSED), "others", "", "further refusals, counted together")


@dataclass
class _Told:
    since: float
    more: int = 0


class Refusals:
    """Writes the refusals of one kind.

    Args:
        trail: where to.
        again: seconds in which equal refusals are one line.
        most: different refusals that are written one by one within that time.
        clock: seconds.
    """

    def __init__(
        self,
        trail: Trail,
        *,
        again: float = AGAIN,
        most: int = MOST_TOLD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trail = trail
        self.again = again
        self.most = most
        self.clock = clock
        self._told: dict[Refusal, _Told] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def note(
        self, *, action: str, outcome: Outcome = Outcome.REFUSED, who: str = "", job: str = "", reason: str = ""
    ) -> None:
        """Write a refusal, or count it where it was written lately."""
        action, who, job = (safe(one, MOST_NAME) for one in (action, who, job))
        refusal = Refusal(action, str(outcome), who, job, safe(reason))
        with self._lock:
            due = self._over()
            if refusal not in self._told and len(self._told) >= self.most:
                refusal = OTHERS
            if (told := self._told.get(refusal)) is not None:
                told.more += 1
                self._wake()
            else:
                self._told[refusal] = _Told(since=self.clock())
                due.append((refusal, 0))
        self._write(due)

    def tell(self) -> None:
        """Write the counts whose time is over."""
        with self._lock:
            self._timer = None
            due = self._over()
            if any(told.more for told in self._told.values()):
                self._wake()
        self._write(due)

    def _over(self) -> list[tuple[Refusal, int]]:
        """Forget what was written long ago; what was counted since."""
        now = self.clock()
        over = [refusal for refusal, told in self._told.items() if now - told.since >= self.again]
        counted = [(refusal, self._told.pop(refusal).more) for refusal in over]
        return [(refusal, more) for refusal, more in counted if more]

    def _wake(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self.again, self.tell)
            self._timer.daemon = True
            self._timer.start()

    def _write(self, due: list[tuple[Refusal, int]]) -> None:
        for refusal, more in due:
            self.trail.note(
                action=refusal.action,
                outcome=Outcome(refusal.outcome),
                who=refusal.who,
                job=refusal.job,
                reason=f"{more} more: {refusal.reason}" if more else refusal.reason,
            )
