"""Results of simulated runs that outlive the workspace: FLARE's simulator empties its folder before the next run.

A federation's server keeps every job's results in its own store and needs none of this.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FOLDER = "results"
RECORD_FILE = "run.json"
"""Of a run, in its report's folder."""
PARTS = ("report", "models")
MOST = 3
"""Runs of a study that are kept; the oldest go."""


def keep_results(run: Path, home: Path, *, study: str, started: str) -> Path:
    """Give what lies in ``run``'s report and models a second name under ``home``; no byte is copied where the disk
    allows it. A run that is continued replaces what it left before.

    Args:
        run: the server's run folder, which the next run empties.
        home: the server's own folder beside the workspace.
        study: the study's name.
        started: when the run began, ISO 8601: runs of one study are told apart, and put in order, by it.

    Returns:
        the folder that holds both.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    place = home / FOLDER / study / started.replace(":", "").partition("+")[0]
    for part in PARTS:
        if (run / part).is_dir():
            shutil.rmtree(place / part, ignore_errors=True)
            shutil.copytree(run / part, place / part, copy_function=_linked)
    for old in sorted(folder for folder in place.parent.iterdir() if folder.is_dir())[:-MOST]:
        if old != place:
            shutil.rmtree(old, ignore_errors=True)
    return place


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # a disk without hard links
        shutil.copy2(source, target)
