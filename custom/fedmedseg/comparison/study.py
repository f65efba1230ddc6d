"""A comparison's STUDY.yaml as it is read: which layers of settings make a cell, and what is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedseg.comparison.checks import check_alike, check_evaluation, check_participation
from fedmedseg.comparison.labels import Level
from fedmedseg.comparison.methods import model_of
from fedmedseg.comparison.section import ComparisonSection
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import find_job, find_preset, find_shipped, read_settings, shipped
from fedmedseg.core.schema import parse, read_yaml


@dataclass(frozen=True)
class Comparison:
    """A study's file as it was read, and the folder from which its paths start."""

    section: ComparisonSection
    base: Path

    def settings(
        self, method: str, *, seed: int, level: Level, chosen: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The job's settings under one cell, as its experiment.yaml would say them.

        Presets lie over the job's own, the study's over those, then the method's, then ``chosen`` (setting -> value).

        Raises:
            ConfigurationError: names what is wrong and how to mend it.
        """
        one = self.section.methods[method]
        job = find_job(self.beside(one.system))
        layers: list[Mapping[str, Any]] = []
        if one.presets:
            system = read_settings(job, [])[1].system
            layers += [read_yaml(find_preset(system, self.beside(name))) for name in one.presets]
        layers += [self.section.settings, one.settings]
        layers += [nested(name, value) for name, value in (chosen or {}).items()]
        own = {"study": f"compare-{self.section.study}", "seed": seed, "segmentation": {"test_untrained": False}}
        settings, experiment = read_settings(job, [*layers, own, level.settings])
        model_of(one, experiment, method)
        return settings

    def experiment(self, method: str, *, chosen: Mapping[str, Any] | None = None) -> Experiment:
        """The method's study under the first seed with the last amount of labels.

        Raises:
            ConfigurationError: its settings do not go together.
        """
        settings = self.settings(
            method, seed=self.section.seeds[0], level=self.section.labelled.levels[-1], chosen=chosen
        )
        return parse_experiment(settings)

    def beside(self, name: str) -> str:
        """A file or folder beside the study's where there is one, or the name as it stands."""
        path = self.base / name
        return str(path) if path.exists() else name


def read_comparison(file: Path) -> Comparison:
    """Read and check a study of a comparison, every method's settings included.

    Raises:
        ConfigurationError: names the field, what came, what was expected and how to mend it.
    """
    section = parse(ComparisonSection, read_yaml(file), source=file.name)
    comparison = Comparison(section, file.resolve().parent)
    read: dict[str, Experiment] = {}
    for name, method in section.methods.items():
        for chosen in method.grid or ({},):
            try:
                experiment = comparison.experiment(name, chosen=chosen)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{file.name}: methods.{name}: {error.field}",
                    got=error.got,
                    expected=error.expected,
                    remedy=error.remedy,
                ) from None
        check_participation(section, name, experiment)
        check_evaluation(name, experiment)
        read[name] = experiment
    check_alike(section, read)
    return comparison


def find_comparison(name: str) -> Path:
    """The file of a study given by path, or by name among those that come with the package.

    Raises:
        ConfigurationError: no such study.
    """
    return find_shipped("study", name, shipped("studies"))


def nested(name: str, value: Any) -> dict[str, Any]:
    """``a.b`` and a value as nested sections.

    >>> nested("a.b", 1)
    {'a': {'b': 1}}
    """
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)
