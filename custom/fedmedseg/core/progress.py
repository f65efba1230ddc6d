"""Progress of long work: a line at most every five seconds for people, JSON lines for programs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger("fedmedseg.progress")
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_RECORDS = 0.5
PROGRESS_FILE = "progress.jsonl"
"""The JSON lines, in a run folder."""


class Progress:
    """Reports where one task of one site is.

    ``work`` names what is being done (``pretraining``, ``fine-tuning from personal``): steps are counted
    per work. ``file`` receives JSON lines; None writes none.
    """

    def __init__(self, *, site: str, stage: str, round: int, rounds: int, file: Path | None = None) -> None:
        self.site, self.stage, self.round, self.rounds, self.file = site, stage, round, rounds, file
        self._started: dict[str, tuple[float, int]] = {}
        self._last_line = 0.0
        self._last_record = 0.0

    def update(self, work: str, step: int, steps: int, loss: float | None = None) -> None:
        """Step ``step`` of ``steps`` (1-based) of ``work`` is done."""
        now = time.monotonic()
        began, first = self._started.setdefault(work, (now, step))
        done = step - first
        left = (now - began) / done * (steps - step) if done else None
        last = step == steps
        if last or now - self._last_record >= SECONDS_BETWEEN_RECORDS:
            self._last_record = now
            self._record(work, step, steps, loss, left)
        if last or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            logger.info("%s", self._line(work, step, steps, loss, left))

    def _line(self, work: str, step: int, steps: int, loss: float | None, left: float | None) -> str:
        where = f"{self.site} {self.stage} round {self.round + 1}/{self.rounds}"
        what = "" if work == self.stage else f" {work}"
        loss_text = "" if loss is None else f" loss {loss:.4f}"
        left_text = "" if left is None else f", {clock(left)} left"
        return f"{where}{what} step {step}/{steps}{loss_text}{left_text}"

    def _record(self, work: str, step: int, steps: int, loss: float | None, left: float | None) -> None:
        if self.file is None:
            return
        record = {
            "time": time.time(),
            "site": self.site,
            "stage": self.stage,
            "round": self.round,
            "rounds": self.rounds,
            "work": work,
            "step": step,
            "steps": steps,
            "loss": loss,
            "left": left,
        }
        try:
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError:
            # a full disk must not end a training that can still finish
            logger.warning("progress cannot be written; work goes on without it")
            self.file = None


class Follower:
    """Reads what sites append to their progress files.

    Args:
        workspace: the folder that holds one folder for each site: the simulator's workspace, or a federation's kits.
        run: name of the run's folder at a site: FLARE's id of the job.
    """

    def __init__(self, workspace: Path, *, run: str) -> None:
        self.workspace, self.run = workspace, run
        self._read: dict[Path, int] = {}

    def events(self) -> Iterator[dict[str, Any]]:
        """Whatever was written since the last call."""
        for file in sorted(self.workspace.glob(f"*/{self.run}/{PROGRESS_FILE}")):
            with open(file, "rb") as stream:
                stream.seek(self._read.get(file, 0))
                content = stream.read()
            # a line that is still being written waits for the next call
            whole = content[: content.rfind(b"\n") + 1]
            self._read[file] = self._read.get(file, 0) + len(whole)
            for line in whole.splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    # a process that was killed while it wrote leaves half a line
                    continue
                yield event


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
