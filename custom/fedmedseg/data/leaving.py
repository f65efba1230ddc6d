"""The site file's section ``privacy``: what this hospital lets leave, whatever a job asks for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedmedseg.core.errors import FedMedSegError, Reason
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
    features: bool = False
    """Whether feature vectors of single slices may leave, where a study exchanges them; other sites receive them."""

    @model_validator(mode="after")
    def _noise_needs_a_bound(self) -> PrivacySection:
        if self.noise is not None and self.clip_norm is None:
            raise ValueError("privacy.clip_norm together with privacy.noise, whose guarantee rests on it")
        return self


def require_features(privacy: PrivacySection | None, *, reason: Reason) -> None:
    """Refuse to give features away where the site's own file does not say that they may leave.

    Raises:
        FedMedSegError: ``reason``, naming the setting that forbids it.
    """
    if privacy is None or not privacy.features:
        raise FedMedSegError(
            "features of single slices, which this site keeps",
            got="no privacy.features: true in the site file",
            expected="privacy.features: true, the word of this site's people",
            remedy="set it in the site file, or take no part in stages that exchange features",
            reason=reason,
        )
    if privacy.noise is not None:
        raise FedMedSegError(
            "features of single slices, which the noise of this site does not cover",
            got="privacy.noise beside privacy.features: true",
            expected="one of the two: the guarantee of the noise is of everything that leaves, but for figures",
            remedy="set privacy.features to false, or privacy.noise to null",
            reason=reason,
        )
