"""Where the data of a comparison come from: site files or phantoms, as they are or dealt out anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from fedmedseg.core.bounds import MOST_SITES
from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.schema import Misfit, Strict

Seed = Annotated[int, Field(ge=0, lt=2**31)]


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
