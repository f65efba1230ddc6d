"""Time left of a run: steps at the pace they took so far, and what every task costs beyond its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Estimate:
    """Learns from progress records (`core.progress`) how long the rest of a run will take.

    Args:
        steps: steps one site does in one round of each stage.
        rounds: rounds of each stage.
        sites: number of sites.
        threads: sites that run at once.
    """

    def __init__(self, *, steps: Mapping[str, int], rounds: Mapping[str, int], sites: int, threads: int) -> None:
        self.steps, self.rounds, self.sites, self.threads = dict(steps), dict(rounds), sites, threads
        self._loops: dict[tuple[str, str, int, str], tuple[float, int, float, int]] = {}
        self._began: float | None = None
        self._now = 0.0

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one progress record into account."""
        key = (event["site"], event["stage"], event["round"], event["work"])
        first_time, first_step, *_ = self._loops.get(key, (event["time"], event["step"], 0.0, 0))
        self._loops[key] = (first_time, first_step, event["time"], event["step"])
        self._began = event["time"] if self._began is None else self._began
        self._now = max(self._now, event["time"])

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.sites * sum(self.rounds[stage] * steps for stage, steps in self.steps.items())

    @property
    def done(self) -> int:
        """Steps done so far."""
        return sum(self._finished(stage) for stage in self.steps)

    def left(self) -> float | None:
        """Seconds left, or None before one stage's pace is known."""
        pace = self._paces()
        if not pace or self._began is None:
            return None
        busy = sum(last - first for first, _, last, _ in self._loops.values())
        tasks = {key[:3] for key in self._loops}
        # what a task costs beyond its steps: starting a process, moving tensors, waiting for others
        between = max(0.0, (self._now - self._began) * self.threads - busy) / len(tasks)
        known = sum(pace.values()) / len(pace)
        seconds = 0.0
        for stage, steps in self.steps.items():
            whole = self.sites * self.rounds[stage]
            begun = sum(key[1] == stage for key in tasks)
            seconds += (whole * steps - self._finished(stage)) * pace.get(stage, known) + (whole - begun) * between
        return seconds / self.threads

    def _finished(self, stage: str) -> int:
        """Steps of ``stage`` done so far; preparing volumes and the like do not count beyond a task's steps."""
        per_task: dict[tuple[str, str, int], int] = {}
        for key, (*_, step) in self._loops.items():
            if key[1] == stage:
                per_task[key[:3]] = per_task.get(key[:3], 0) + step
        return sum(min(self.steps[stage], steps) for steps in per_task.values())

    def _paces(self) -> dict[str, float]:
        """Seconds per step of each stage that has begun."""
        spent: dict[str, float] = {}
        counted: dict[str, int] = {}
        for key, (first, first_step, last, step) in self._loops.items():
            spent[key[1]] = spent.get(key[1], 0.0) + last - first
            counted[key[1]] = counted.get(key[1], 0) + step - first_step
        return {stage: spent[stage] / counted[stage] for stage in spent if counted[stage]}
