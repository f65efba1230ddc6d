"""All keys of a comparison's STUDY.yaml, and what of them does not go together. Nothing in it is evaluated."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from fedmedseg.comparison.labels import LabelledSection, Level
from fedmedseg.comparison.methods import MethodSection, without_ours
from fedmedseg.comparison.source import Seed, SourceSection
from fedmedseg.core.bounds import Fraction
from fedmedseg.core.config import systems
from fedmedseg.core.errors import choose
from fedmedseg.core.schema import Misfit, Strict, worded

Name = Annotated[
    str,
    worded(
        r"[a-z0-9][a-z0-9_-]{0,39}",
        "1 to 40 lower-case letters, digits, dashes and underscores that begin with a letter or digit",
    ),
]


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
        return without_ours(settings)

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
