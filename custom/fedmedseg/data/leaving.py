"""The site file's section ``privacy``: what this hospital lets leave, whatever a job asks for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedmedseg.core.schema import Strict

Finite = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class NoiseSection(Strict):
    """Gaussian noise on clipped differences, and the loss of privacy at which the site stops; no defaults."""

    multiplier: Finite
    """Standard deviation of the noise on every number, in units of ``clip_norm``."""
    epsilon: Finite
    """A reply that would take the site beyond this is refused (``privacy.accounting``)."""
    delta: float = Field(gt=0.0, lt=0.5)
    """The probability that epsilon is given for: well below one over the number of patients."""


class PrivacySection(Strict):
    """Read by the filters of ``fedmedseg.privacy``, which block every reply of a site without this section."""

    min_count: int = Field(5, ge=0)
    """Counts of cases below this are withheld, and all figures of a reply that stands on fewer; 0 withholds none."""
    metrics: tuple[str, ...] = ("*",)
    """fnmatch patterns: of the figures an experiment declares, those that may leave."""
    clip_norm: Finite | None = None
    """Largest L2 norm of a reply's differences, over all its tensors together; unset: they are not clipped."""
    noise: NoiseSection | None = None
    encryption: Literal["optional", "required"] = "optional"
    """``required``: differences leave encrypted or not at all; figures leave in plain always."""

    @model_validator(mode="after")
    def _noise_needs_a_bound(self) -> PrivacySection:
        if self.noise is not None and self.clip_norm is None:
            raise ValueError("privacy.clip_norm together with privacy.noise, whose guarantee rests on it")
        return self
