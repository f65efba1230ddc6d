"""A method of a comparison: a job under settings, who trains, what its trials try, and which model is compared."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import Misfit, Strict

OURS = ("system", "study", "seed", "resume")
"""Settings of a run that the study's own keys say."""


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
        return without_ours(settings)

    @property
    def grid(self) -> tuple[dict[str, Any], ...]:
        """Every trial: setting -> value."""
        if not self.trials:
            return ()
        return tuple(dict(zip(self.trials, values, strict=True)) for values in itertools.product(*self.trials.values()))


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


def without_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings``, where none of them is the study's own key to say."""
    for key in OURS:
        if key in settings:
            raise Misfit(
                key,
                got=settings[key],
                expected="settings of the run alone; this one the study's own keys say",
                remedy=f"remove {key}",
            )
    return settings
