"""How many labels the sites of a comparison train on: each amount is a comparison of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from fedmedseg.core.bounds import Fraction, Positive
from fedmedseg.core.schema import Misfit, Strict


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
