"""Cells of a comparison: what is run in one piece, under which settings, and when its result is still good."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmedseg.comparison.labels import Level
from fedmedseg.comparison.methods import model_of
from fedmedseg.comparison.study import Comparison
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.config import Experiment, parse_experiment, system_module
from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.core.turns import asked

REVISION = 2
"""Raise it when the code or a default changes what a finished cell would say."""

Result = dict[str, Any]


class AnyCell(ABC):
    """One method under one seed, or whatever else a study runs in one piece."""

    @property
    @abstractmethod
    def file(self) -> Path:
        """Where its result lies."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Digest of all that its result depends on."""

    def read(self) -> Result | None:
        """The result of exactly these settings, or None where there is none, or one of other settings.

        Raises:
            DataError: a damaged file: results are written whole, so that something else changed it.
        """
        try:
            text = self.file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(type(error).__name__) from None
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise self._damaged(f"no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
        if not isinstance(content, dict) or "settings_sha256" not in content:
            raise self._damaged("JSON without settings_sha256")
        return content if content["settings_sha256"] == self.key else None

    def is_done(self) -> bool:
        """Whether a result of exactly these settings is there.

        Raises:
            DataError: a damaged file.
        """
        return self.read() is not None

    def write(self, result: Mapping[str, Any]) -> None:
        """Keep the result, whole or not at all."""
        content = {**result, "settings_sha256": self.key}
        write_atomic(self.file, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def _damaged(self, got: str) -> DataError:
        return DataError(
            str(self.file),
            got=got,
            expected="a result as it was written",
            remedy="remove the file, or restore it from a copy: the same call runs again what is missing",
        )


def digest_of(*parts: Any) -> str:
    """SHA-256 of settings as they are written: a key that a later version adds does not change it, while whoever
    changes what a setting does raises the study's revision, one of the parts."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Cell(AnyCell):
    """One method under one seed with one amount of labels; with a ``trial``, a trial of it."""

    method: str
    seed: int
    level: Level
    settings: Mapping[str, Any]
    """The job's, as its experiment.yaml says them."""
    system: str
    """The job, by name or folder."""
    training: str
    model: str
    participation: float
    source: Mapping[str, Any]
    """What the study says of the data's making: phantoms, split."""
    results: Path
    trial: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Setting -> value of the trial, or of the trial that did best."""

    @property
    def file(self) -> Path:
        """Where its result lies."""
        if self.trial is not None:
            return self.results / "trials" / f"{self.method}-{self.trial + 1}.json"
        return self.results / "cells" / f"{self.method}-{self.level.name}-seed{self.seed}.json"

    @property
    def name(self) -> str:
        """As a line of progress has it."""
        what = f"trial {self.trial + 1}" if self.trial is not None else f"{self.level.name} seed {self.seed}"
        return f"{self.method} {what}"

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, of who trains and on what, and of ``REVISION``."""
        who = [self.training, self.participation, self.model, self.trial is not None]
        return digest_of(REVISION, who, self.source, self.settings)

    @property
    def experiment(self) -> Experiment:
        """The settings, checked."""
        return parse_experiment(dict(self.settings))

    def weight(self, sites: int) -> float:
        """Steps of all ``sites`` together, by which time is told."""
        return float(
            steps_of(self.experiment, self.participation, sites) * (1 if self.training == "central" else sites)
        )


def current(cell: Cell, data_sha256: str | None) -> Result | None:
    """The cell's result, where one of these settings and, if they are known, of these data is there.

    Raises:
        DataError: a damaged file.
    """
    result = cell.read()
    return result if result is None or data_sha256 in (None, result.get("data_sha256")) else None


def is_current(cell: Cell, data_sha256: str | None) -> bool:
    """Whether there is such a result.

    Raises:
        DataError: a damaged file.
    """
    return current(cell, data_sha256) is not None


def steps_of(experiment: Experiment, participation: float, sites: int) -> int:
    """Optimiser steps of one site in all stages but the test; where not all take part in each round, on average."""
    plan = system_module(experiment.system, "plan")
    work, total = plan.work(experiment), 0.0
    for stage, contract in plan.stages(experiment).items():
        rounds = experiment.stages[stage].rounds
        partial = contract.returns == "shared" and not contract.collects
        share = asked(participation, sites) / sites if partial else 1.0
        total += 0 if stage == "evaluation" else rounds * share * work[stage]
    return round(total)


def cells_of(
    comparison: Comparison,
    results: Path,
    *,
    methods: Collection[str] | None = None,
    seeds: Collection[int] | None = None,
    data_sha256: str | None = None,
) -> list[Cell]:
    """All final cells whose settings are known, the first seed of every method before the second of any.

    A method whose trials are not all there has none yet.
    """
    section, cells = comparison.section, []
    best = {
        name: best_trial(comparison, name, results, data_sha256) if method.grid else {}
        for name, method in section.methods.items()
    }
    for seed in section.seeds:
        for level in section.labelled.levels:
            for name, chosen in best.items():
                asked_for = (methods is None or name in methods) and (seeds is None or seed in seeds)
                if asked_for and chosen is not None:
                    cells.append(_cell(comparison, results, name, seed, level, chosen))
    return cells


def trials_of(comparison: Comparison, results: Path, *, methods: Collection[str] | None = None) -> list[Cell]:
    """Every trial of every method, which see validation cases alone."""
    seed, level = comparison.section.tuned_on
    return [
        _cell(comparison, results, name, seed, level, chosen, trial=number)
        for name, method in comparison.section.methods.items()
        if methods is None or name in methods
        for number, chosen in enumerate(method.grid)
    ]


def best_trial(
    comparison: Comparison, method: str, results: Path, data_sha256: str | None = None
) -> Mapping[str, Any] | None:
    """The settings of the trial that validated best, of equals the first; None before all of them are there."""
    trials = trials_of(comparison, results, methods=[method])
    found = [current(trial, data_sha256) for trial in trials]
    figures = [float(result["validation"]) for result in found if result is not None]
    return trials[figures.index(max(figures))].chosen if len(figures) == len(trials) else None


def wanted(
    comparison: Comparison, *, methods: Collection[str] | None = None, seeds: Collection[int] | None = None
) -> int:
    """How many final cells the study has, or those of its methods and seeds that are named."""
    section = comparison.section
    of = (section.methods if methods is None else set(methods), section.seeds if seeds is None else set(seeds))
    return len(of[0]) * len(of[1]) * len(section.labelled.levels)


def read_results(cells: Iterable[Cell], data_sha256: str | None = None) -> list[Result]:
    """The results of those cells that are there."""
    found = (current(cell, data_sha256) for cell in cells)
    return [result for result in found if result is not None]


def known_methods(comparison: Comparison, names: Sequence[str] | None) -> list[str] | None:
    """``names``, where the study has them all.

    Raises:
        ConfigurationError: it has not.
    """
    for name in names or ():
        if name not in comparison.section.methods:
            raise ConfigurationError("--method", got=name, expected=f"of {', '.join(comparison.section.methods)}")
    return list(names) if names else None


def _cell(
    comparison: Comparison,
    results: Path,
    method: str,
    seed: int,
    level: Level,
    chosen: Mapping[str, Any],
    trial: int | None = None,
) -> Cell:
    section, one = comparison.section, comparison.section.methods[method]
    settings = comparison.settings(method, seed=seed, level=level, chosen=chosen)
    source = section.data.model_dump(mode="json", include={"phantom", "dirichlet"}, exclude_none=True)
    if section.data.phantom is not None:
        source["seed"] = section.data.seed
    return Cell(
        method=method,
        seed=seed,
        level=level,
        settings=settings,
        system=comparison.beside(one.system),
        training=one.training,
        model=model_of(one, parse_experiment(settings), method),
        participation=section.participation if one.training == "federated" else 1.0,
        source=source,
        results=results,
        trial=trial,
        chosen=chosen,
    )
