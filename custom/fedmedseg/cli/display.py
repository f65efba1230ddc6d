"""How far a run is, shown to the person who started it: what sites tell (`core.progress`) and the time left."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedmedseg.cli.console import console
from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.estimate import Estimate
from fedmedseg.core.progress import SECONDS_BETWEEN_LINES, clock


class Display:
    """A bar on a terminal; a line at most every five seconds anywhere else.

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
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=self._estimate.total, left="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Take one progress record into account."""
        self._estimate.add(event)
        done, total, seconds = self._estimate.done, self._estimate.total, self._estimate.left()
        elapsed = time.monotonic() - self._began
        left = "time left not known yet" if seconds is None else f"{clock(seconds)} left"
        what = "" if event["work"] == event["stage"] else f" {event['work']}"
        loss = "" if event["loss"] is None else f" loss {event['loss']:.4f}"
        text = (
            f"{event['site']} {event['stage']} round {event['round'] + 1}/{event['rounds']}{what} "
            f"step {event['step']}/{event['steps']}{loss}"
        )
        self._bar.update(self._task, completed=done, description=text, left=left)
        if not console.is_terminal and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            console.print(f"{clock(elapsed)}  {text}  ({done / total:.0%}, {left})", highlight=False, soft_wrap=True)
