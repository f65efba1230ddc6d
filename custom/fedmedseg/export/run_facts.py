"""What a model card says of the run that trained the model, out of that run's record: numbers, no site's name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.reporting.point_table import PointRow
from fedmedseg.reporting.points import ALL
from fedmedseg.reporting.record_file import read_record
from fedmedseg.reporting.tables import DiceRow, calcium_of, dice_table, mean, points_of, rounds_of
from fedmedseg.segmentation.predicted_files import CALCIFICATION

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
class MeasuredPoint:
    """One landmark over the sites that tested it: each site's own figures, averaged; mm."""

    point: str
    sites: int
    median: float | None
    """None where it is infinite at a site, which missed that many."""
    lowest: float | None
    highest: float | None
    mean: float | None
    """Of those found."""
    missed: int | None
    """At all sites; None where one withholds it."""
    points: int


@dataclass(frozen=True, kw_only=True)
class MeasuredCalcium:
    """Mean absolute errors over the sites that tested it: each site's own, averaged."""

    sites: int
    volume: float | None
    """mm3."""
    agatston: float | None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is told of a run."""

    training_sites: int
    started: str
    finished: bool
    measured: tuple[Measured, ...]
    """Of the model in question, as ``points`` and ``calcium``; empty where the run did not test it."""
    together: bool = False
    """Whether the sites fine-tuned on labels together."""
    software: str = ""
    """Version of the package at the run's server."""
    points: tuple[MeasuredPoint, ...] = ()
    calcium: MeasuredCalcium | None = None

    @property
    def tested(self) -> bool:
        """Whether any figure of the model is there."""
        return bool(self.measured or self.points or self.calcium)

    def about(self, names: Iterable[str]) -> RunFacts:
        """What of it is told of the structures and points ``names``: a model's head marks only some."""
        marked = set(names)
        return replace(
            self,
            measured=tuple(one for one in self.measured if one.structure in marked),
            points=tuple(one for one in self.points if one.point in marked),
            calcium=self.calcium if CALCIFICATION in marked else None,
        )


def read_facts(place: Path, *, experiment: str, run: str, model: str, stages: Collection[str] = ()) -> RunFacts:
    """The facts of the run in ``place`` (its run.json, or a folder that holds it) on the model called ``model``, which
    ``stages`` trained (none named: all in which anybody trains).

    Raises:
        ConfigurationError: no record there, or one of another experiment than ``experiment``, a digest, or of another
            run than ``run``; the same settings may have run elsewhere, with other sites.
    """
    record = read_record(place, option="--run")
    found = record.get("experiment_sha256")
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
    return facts(record, model=model, stages=stages)


def facts(record: Mapping[str, Any], *, model: str, stages: Collection[str] = ()) -> RunFacts:
    """The facts in ``record``; see ``read_facts``."""
    training = [
        one
        for one in rounds_of(record)
        if (one.get("stage") in stages if stages else one.get("stage") not in LEARNING_ENDS)
    ]
    trained = {site for one in training for site in one.get("accepted") or []}
    rows = [row for row in dice_table(record) if row.model == model and row.dice is not None]
    points = [row for row in points_of(record) if row.model == model and row.point != ALL]
    calcium = [row for row in calcium_of(record) if row.model == model]
    versions = record.get("versions")
    return RunFacts(
        training_sites=len(trained),
        started=str(record.get("started", "?")),
        finished=record.get("outcome") == "finished",
        software=str(versions.get("fedmedseg", "")) if isinstance(versions, Mapping) else "",
        together=_section(record, "segmentation").get("fine_tuning") == "federated",
        measured=tuple(
            _measured(name, [row for row in rows if row.structure == name])
            for name in dict.fromkeys(row.structure for row in rows)
        ),
        points=tuple(
            _measured_point(name, [row for row in points if row.point == name])
            for name in dict.fromkeys(row.point for row in points)
        ),
        calcium=MeasuredCalcium(
            sites=len(calcium),
            volume=mean(row.volume for row in calcium),
            agatston=mean(row.agatston for row in calcium),
        )
        if calcium
        else None,
    )


def _section(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    settings = record.get("settings")
    section = settings.get(name) if isinstance(settings, Mapping) else None
    return section if isinstance(section, Mapping) else {}


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


def _measured_point(point: str, rows: Sequence[PointRow]) -> MeasuredPoint:
    medians = [row.median for row in rows if row.median is not None]
    finite = len(medians) == len(rows)
    missed = [row.missed for row in rows if row.missed is not None]
    return MeasuredPoint(
        point=point,
        sites=len(rows),
        median=mean(medians) if finite else None,
        lowest=min(medians) if finite else None,
        highest=max(medians) if finite else None,
        mean=mean(row.mean for row in rows),
        missed=sum(missed) if len(missed) == len(rows) else None,
        points=sum(row.points for row in rows),
    )
