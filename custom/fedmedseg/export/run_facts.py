"""What a model card says of the run that trained the model, out of that run's record: numbers, no site's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.reporting.tables import DiceRow, dice_table, mean, rounds_of

RECORD_FILE = "run.json"
LEARNING_ENDS = ("evaluation", "publication")
"""Stages in which nobody trains."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One structure over the sites that tested it: each site's own mean Dice, averaged."""

    structure: str
    sites: int
    dice: float
    lowest: float
    highest: float
    hd95: float | None
    """mm."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is told of a run."""

    training_sites: int
    started: str
    finished: bool
    measured: tuple[Measured, ...]
    """Of the model in question; empty where the run did not test it."""


def read_facts(place: Path, *, experiment: str, run: str, model: str) -> RunFacts:
    """The facts of the run in ``place`` (its run.json, or a folder that holds it) on the model called ``model``.

    Raises:
        ConfigurationError: no record there, or one of another experiment than ``experiment``, a digest, or of another
            run than ``run``; the same settings may have run elsewhere, with other sites.
    """
    files = [place] if place.is_file() else [place / RECORD_FILE, place / "report" / RECORD_FILE]
    file = next((one for one in files if one.is_file()), None)
    if file is None:
        raise ConfigurationError(
            "--run", got=f"no {RECORD_FILE} at {place}", expected="a run's report folder, or its run.json"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigurationError("--run", got=f"{file}, which cannot be read", expected="a run's record") from None
    found = record.get("experiment_sha256") if isinstance(record, dict) else None
    if found != experiment:
        raise ConfigurationError(
            "--run",
            got=f"the record of experiment {str(found)[:16]}",
            expected=f"one of the experiment that the model is of, {experiment[:16]}",
            remedy="name the report folder of the run that trained it, or leave --run out",
        )
    if not run or record.get("run") != run:
        raise ConfigurationError(
            "--run",
            got=f"the record of run {str(record.get('run'))[:8]}",
            expected=f"that of the run which trained the model, {run[:8]}" if run else "a model that names its run",
            remedy="name that run's report folder, or leave --run out",
        )
    return facts(record, model=model)


def facts(record: Mapping[str, Any], *, model: str) -> RunFacts:
    """The facts in ``record``."""
    trained = {
        site for one in rounds_of(record) if one.get("stage") not in LEARNING_ENDS for site in one.get("accepted") or []
    }
    rows = [row for row in dice_table(record) if row.model == model and row.dice is not None]
    return RunFacts(
        training_sites=len(trained),
        started=str(record.get("started", "?")),
        finished=record.get("outcome") == "finished",
        measured=tuple(
            _measured(name, [row for row in rows if row.structure == name])
            for name in dict.fromkeys(row.structure for row in rows)
        ),
    )


def _measured(structure: str, rows: list[DiceRow]) -> Measured:
    dice = [row.dice for row in rows if row.dice is not None]
    average = mean(dice)
    assert average is not None, "rows without Dice are left out above"
    return Measured(
        structure=structure,
        sites=len(dice),
        dice=average,
        lowest=min(dice),
        highest=max(dice),
        hd95=mean(row.hd95 for row in rows),
    )
