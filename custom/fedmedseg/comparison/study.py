"""STUDY.yaml of a comparison: methods, data, labelled shares and seeds. Nothing in it is evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedmedseg.core.config import (
    MOST_SITES,
    Experiment,
    Fraction,
    PhantomSection,
    Positive,
    parse_experiment,
    system_module,
    systems,
)
from fedmedseg.core.errors import ConfigurationError, choose
from fedmedseg.core.jobs import find_job, find_preset, find_shipped, read_settings, shipped
from fedmedseg.core.schema import Misfit, Strict, parse, read_yaml, worded
from fedmedseg.segmentation.stages import TEST_METRICS

Name = Annotated[
    str,
    worded(
        r"[a-z0-9][a-z0-9_-]{0,39}",
        "1 to 40 lower-case letters, digits, dashes and underscores that begin with a letter or digit",
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
OURS = ("system", "study", "seed", "resume")
"""Settings of a run that the study's own keys say."""


class DirichletSection(Strict):
    """All sites' cases dealt out anew (``data.dirichlet``)."""

    alpha: float = Field(gt=0.0)
    """The smaller, the less alike the new sites: each has its patients from few of the old ones."""
    sites: int = Field(ge=2, le=MOST_SITES)
    seed: Seed = 1
    """Of the split, which is the same for every method and seed of training."""


class SourceSection(Strict):
    """Where the sites' data come from."""

    sites: Path | None = None
    """Folder of site files, as `fedmedseg data import` writes it; a relative path starts at the study's file."""
    phantom: PhantomSection | None = None
    """Instead: phantoms, written once and read by every method under every seed."""
    seed: Seed = 1
    """Of the phantoms."""
    dirichlet: DirichletSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SourceSection:
        if self.sites is not None and self.phantom is not None:
            raise Misfit("phantom", got="both sites and phantom", expected="one of the two", remedy="remove one")
        if self.phantom is None and self.seed != 1:
            raise Misfit(
                "seed",
                got=self.seed,
                expected="nothing here: it is read with phantom alone",
                remedy="remove seed, or use phantom",
            )
        return self


class LabelledSection(Strict):
    """How many labels each site trains on; every value is a comparison of its own. Neither: all of them."""

    fractions: tuple[Fraction, ...] = ()
    """Shares of each site's labelled training patients (``data.labelled_fraction``)."""
    patients: tuple[Positive, ...] = ()
    """Instead: numbers of them (``data.labelled_patients``)."""

    @model_validator(mode="after")
    def _one_kind(self) -> LabelledSection:
        if self.fractions and self.patients:
            raise Misfit("patients", got="both fractions and patients", expected="one of the two", remedy="remove one")
        for field, values in (("fractions", self.fractions), ("patients", self.patients)):
            if len(set(values)) != len(values):
                raise Misfit(field, got=list(values), expected="each value once", remedy="remove the second")
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        """Every amount of labels, in the study's order."""
        if self.patients:
            return tuple(Level("patients", count) for count in self.patients)
        return tuple(Level("fraction", share) for share in self.fractions or (1.0,))


@dataclass(frozen=True)
class Level:
    """One amount of labels."""

    kind: Literal["fraction", "patients"]
    value: float

    @property
    def name(self) -> str:
        """As files are called."""
        return f"{self.value:g}patients" if self.kind == "patients" else f"{round(100 * self.value, 3):g}pc"

    @property
    def title(self) -> str:
        """As people read it."""
        if self.kind == "patients":
            return f"at most {self.value:g} labelled patient{'s' if self.value > 1 else ''} a site"
        return "all labels" if self.value == 1.0 else f"{round(100 * self.value, 3):g} % of the labels"

    @property
    def settings(self) -> dict[str, Any]:
        """As an experiment.yaml says it."""
        if self.kind == "patients":
            return {"data": {"labelled_patients": int(self.value), "labelled_fraction": None}}
        return {"data": {"labelled_fraction": self.value, "labelled_patients": None}}


class MethodSection(Strict):
    """One method: a job under settings, and who trains."""

    system: str
    """A job by name or folder."""
    label: str = ""
    """Its name in tables; unset: the key it stands under."""
    training: Literal["federated", "local", "central"] = "federated"
    """``federated``: all sites together. Without a federation, the same job: ``local``, every site by itself;
    ``central``, one site that holds what all of them train, validate and test on."""
    presets: tuple[str, ...] = ()
    """Laid over the job's settings and under the study's: a name, or a file beside the study's."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Laid over the study's. What is not of the system's own section is told in the table's column of needs."""
    model: str | None = None
    """Which of the system's models is compared (``personal``, ``shared``, ...), where it ends with several."""
    trials: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Setting (``segmentation.optimizer.learning_rate``) -> values; every combination is one trial."""

    @field_validator("settings")
    @classmethod
    def _not_ours(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return _without_ours(settings)

    @property
    def grid(self) -> tuple[dict[str, Any], ...]:
        """Every trial: setting -> value."""
        if not self.trials:
            return ()
        return tuple(dict(zip(self.trials, values, strict=True)) for values in itertools.product(*self.trials.values()))


class TuningSection(Strict):
    """Under which seed and with which of the study's labels the trials are made; unset: the first seed, the last."""

    seed: Seed | None = None
    labelled: float | None = None


class ComparisonSection(Strict):
    """The whole file."""

    study: Name
    seeds: tuple[Seed, ...] = Field(min_length=1)
    data: SourceSection = Field(default_factory=lambda: SourceSection.model_validate({}))
    labelled: LabelledSection = Field(default_factory=lambda: LabelledSection.model_validate({}))
    participation: Fraction = 1.0
    """Share of the sites, rounded up, that a federation asks in each round of its training."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of every method alike: data, network, segmentation, federation, compute."""
    tuning: TuningSection | None = None
    against: str | None = None
    """The method that the others are tested against, patient by patient; unset: the first."""
    methods: dict[Name, MethodSection] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise Misfit(got=list(seeds), expected="each seed once", remedy="remove the second")
        return seeds

    @field_validator("settings")
    @classmethod
    def _shared(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for section in systems():
            if section in settings:
                raise Misfit(
                    section,
                    got="a system's own section",
                    expected="sections that every method reads: data, network, segmentation, federation, compute",
                    remedy=f"move it to the settings of the methods whose system is {section}",
                )
        return _without_ours(settings)

    @model_validator(mode="after")
    def _methods_suit(self) -> ComparisonSection:
        if self.against is not None and self.against not in self.methods:
            raise Misfit(
                "against",
                got=self.against,
                expected=f"one of {', '.join(self.methods)}",
                remedy=choose(self.against, self.methods),
            )
        counts = {name: len(method.grid) for name, method in self.methods.items()}
        if len(set(counts.values())) > 1:
            raise Misfit(
                "methods",
                got=", ".join(f"{name} {count} trials" for name, count in counts.items()),
                expected="as many trials for every method: who tries more, finds better",
                remedy="give every method's grid equally many combinations, or none any",
            )
        self._check_tuning(any(counts.values()))
        if self.participation < 1.0 and all(one.training != "federated" for one in self.methods.values()):
            raise Misfit(
                "participation",
                got=self.participation,
                expected="nothing here: it is read with a federated method alone",
                remedy="remove participation",
            )
        return self

    def _check_tuning(self, trials: bool) -> None:
        if self.tuning is None:
            return
        if not trials:
            raise Misfit(
                "tuning",
                got="tuning without trials",
                expected="nothing here: it is read with trials alone",
                remedy="remove tuning, or give every method trials",
            )
        if self.tuning.seed is not None and self.tuning.seed not in self.seeds:
            raise Misfit(
                "tuning.seed", got=self.tuning.seed, expected=f"one of seeds: {', '.join(map(str, self.seeds))}"
            )
        values = [level.value for level in self.labelled.levels]
        if self.tuning.labelled is not None and self.tuning.labelled not in values:
            known = ", ".join(f"{value:g}" for value in values)
            raise Misfit("tuning.labelled", got=self.tuning.labelled, expected=f"one of labelled: {known}")

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        return self.against or next(iter(self.methods))

    @property
    def tuned_on(self) -> tuple[int, Level]:
        """Seed and amount of labels of the trials."""
        seed = self.tuning.seed if self.tuning is not None and self.tuning.seed is not None else self.seeds[0]
        levels = self.labelled.levels
        value = self.tuning.labelled if self.tuning is not None else None
        return seed, next((level for level in levels if level.value == value), levels[-1])


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
        _check_participation(section, name, experiment)
        _check_evaluation(name, experiment)
        read[name] = experiment
    _check_alike(section, read)
    return comparison


def find_comparison(name: str) -> Path:
    """The file of a study given by path, or by name among those that come with the package.

    Raises:
        ConfigurationError: no such study.
    """
    return find_shipped("study", name, shipped("studies"))


def model_of(method: MethodSection, experiment: Experiment, name: str) -> str:
    """The model that is compared.

    Raises:
        ConfigurationError: the system ends with several and none is named, or not with the one named.
    """
    starts = tuple(experiment.wing.starts)
    if method.model is None and len(starts) == 1:
        return starts[0]
    if method.model in starts:
        return str(method.model)
    raise ConfigurationError(
        f"methods.{name}.model",
        got=method.model,
        expected=f"one of {', '.join(starts)}, the models that {experiment.system} ends with here",
        remedy=f"name it, or set {experiment.system}.starts to one of them",
    )


def nested(name: str, value: Any) -> dict[str, Any]:
    """``a.b`` and a value as nested sections.

    >>> nested("a.b", 1)
    {'a': {'b': 1}}
    """
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def _check_participation(section: ComparisonSection, name: str, experiment: Experiment) -> None:
    """Refuse a count of sites that a round with few sites can never have."""
    quorum = experiment.federation.quorum
    if section.participation < 1.0 and section.methods[name].training == "federated" and isinstance(quorum, int):
        raise ConfigurationError(
            f"methods.{name}: federation.quorum",
            got=quorum,
            expected=f"all or a share with participation {section.participation:g}, of the sites that a round asks",
            remedy="leave quorum out",
        )


def _check_evaluation(name: str, experiment: Experiment) -> None:
    """Refuse a system whose test is not Dice and HD95 of one network per start."""
    contract = system_module(experiment.system, "plan").stages(experiment).get("evaluation")
    if contract is None or not set(TEST_METRICS) <= set(contract.metrics):
        raise ConfigurationError(
            f"methods.{name}.system",
            got=experiment.system,
            expected="a system that is tested as segmentation.testing does: Dice and HD95 of every structure",
            remedy="remove the method",
        )


def _check_alike(section: ComparisonSection, read: Mapping[str, Experiment]) -> None:
    """Refuse methods that segment other data or structures than the one they are compared with."""
    first = read[section.reference].data
    for name, experiment in read.items():
        for field in ("role", "labels"):
            own, common = getattr(experiment.data, field), getattr(first, field)
            if own != common or experiment.data.alternatives:
                raise ConfigurationError(
                    f"methods.{name}: data.{field if own != common else 'alternatives'}",
                    got=own if own != common else "other data sets beside data.role",
                    expected=f"{common}, as method {section.reference} has" if own != common else "none",
                    remedy="say in the study's settings what all methods read: data.role, data.labels, "
                    "data.alternatives: []",
                )


def _without_ours(settings: dict[str, Any]) -> dict[str, Any]:
    for key in OURS:
        if key in settings:
            raise Misfit(
                key,
                got=settings[key],
                expected="settings of the run alone; this one the study's own keys say",
                remedy=f"remove {key}",
            )
    return settings
