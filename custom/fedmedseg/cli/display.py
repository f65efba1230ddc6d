"""How far a run is, shown to the person who started it: what sites tell (`core.progress`) and the time left."""

from __future__ import annotations

import time
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from fedmedseg.cli.console import NARROW, console
from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.estimate import Estimate
from fedmedseg.core.progress import SECONDS_BETWEEN_LINES, clock

SECONDS_BETWEEN_ROUNDS = 1.0
"""A new round is told at once, but rounds of a fraction of a second do not get a line each."""
FIRST_SILENCE, LONGEST_SILENCE = 10.0, 60.0
"""Seconds without a line after which one says that the run goes on; twice as long each time, up to the longest."""
MOST_BEFORE_THE_END = 0.99
"""The largest share shown while a run goes on: how many volumes a site tests is known to that site alone."""


class Display:
    """A bar on a terminal; anywhere else a line at each round and at most every five seconds, and none long missing.

    Args:
        experiment: the study.
        sites: how many sites take part.
        threads: sites that run at once.
    """

    def __init__(self, experiment: Experiment, sites: int, threads: int) -> None:
        self._estimate = Estimate(
            steps=system_module(experiment.system, "plan").work(experiment),
            rounds={stage: section.rounds for stage, section in experiment.stages.items()},
            sites=sites,
            threads=threads,
        )
        self._began = time.monotonic()
        self._last_line = 0.0
        self._last_round: tuple[str, int] | None = None
        self._silence = FIRST_SILENCE
        whole = TextColumn("{task.description}", table_column=Column(no_wrap=False, overflow="fold"))
        share, left = TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[left]}")
        wide = (whole, BarColumn(), share, TimeElapsedColumn(), left)
        self._bar = Progress(
            *((share, whole) if console.width < NARROW else wide),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=1.0, left="")

    def __enter__(self) -> Display:
        self._bar.start()
        self._say("starting; the first round begins once every process has loaded what it needs")
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def wait(self) -> None:
        """Nothing has come; called again and again, so that somebody without a terminal sees that the run goes on."""
        if not console.is_terminal and time.monotonic() - self._last_line >= self._silence:
            self._silence = min(2 * self._silence, LONGEST_SILENCE)
            begun = self._last_round is not None
            self._say("at work, nothing new to tell" if begun else "starting: no site has told of its work yet")

    def show(self, event: dict[str, Any]) -> None:
        """Take one progress record into account."""
        self._estimate.add(event)
        share = min(self._estimate.done / self._estimate.total, MOST_BEFORE_THE_END)
        left = _left(self._estimate.left())
        what = "" if event["work"] == event["stage"] else f" {event['work']}"
        loss = "" if event["loss"] is None else f" loss {event['loss']:.4f}"
        text = (
            f"{event['site']} {event['stage']} round {event['round'] + 1}/{event['rounds']}{what} "
            f"step {event['step']}/{event['steps']}{loss}"
        )
        narrow = f"{text}, {left}" if console.width < NARROW else text
        self._bar.update(self._task, completed=share, description=escape(narrow), left=left)
        here = (event["stage"], event["round"])
        gap = SECONDS_BETWEEN_LINES if here == self._last_round else SECONDS_BETWEEN_ROUNDS
        first = self._last_round is None or here[0] != self._last_round[0]
        if first or time.monotonic() - self._last_line >= gap:
            self._last_round, self._silence = here, FIRST_SILENCE
            self._say(f"{text}  ({share:.0%}, {left})")

    def _say(self, text: str) -> None:
        """A line with the time since the start, where there is no terminal for the bar."""
        if not console.is_terminal:
            self._last_line = time.monotonic()
            elapsed = clock(self._last_line - self._began)
            console.print(f"{elapsed}  {text}", highlight=False, soft_wrap=True, markup=False)


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left not known yet"
    return f"{clock(seconds)} left" if seconds >= 1.0 else "nearly done"
