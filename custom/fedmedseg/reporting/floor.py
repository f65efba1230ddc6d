"""The floor under a run: fine-tuning from the trained encoder must clearly beat no training and not lose to scratch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmedseg.core.errors import ConfigurationError

ABOVE_UNTRAINED = 0.25
"""Mean Dice by which the trained model must exceed the untrained one."""
BELOW_SCRATCH = 0.05
"""Mean Dice by which it may fall short of the same training from scratch."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class FloorRow:
    """One site's mean test Dice under the three models, and whether the floor holds there."""

    site: str
    trained: float
    untrained: float
    scratch: float
    structures: int
    """Number of structures the means stand on."""

    @property
    def holds(self) -> bool:
        """trained >= untrained + 0.25 and trained >= scratch - 0.05; a bound that is met exactly holds."""
        return (
            self.trained >= self.untrained + ABOVE_UNTRAINED - _ROUNDING
            and self.trained >= self.scratch - BELOW_SCRATCH - _ROUNDING
        )


def floor(
    results: Mapping[str, Mapping[str, float]],
    *,
    trained: str = "personal",
    untrained: str = "untrained",
    scratch: str = "scratch",
) -> list[FloorRow]:
    """One row per site, sites in alphabetical order.

    ``results`` maps a site to the flat figures of its evaluation (``dice/<model>/<structure>`` among them;
    others are ignored). Each mean is taken over the structures for which all three models have a Dice:
    a structure that one model invents where the site's truth has none tells nothing about learning it.

    Raises:
        ConfigurationError: no site, or a site without one Dice that all three models share.
    """
    if not results:
        raise ConfigurationError("floor", got="no site", expected="the evaluation of at least one site")
    return [_row(site, results[site], (trained, untrained, scratch)) for site in sorted(results)]


def overall(rows: Sequence[FloorRow]) -> FloorRow:
    """The run as a whole: every site counts the same.

    Raises:
        ConfigurationError: no row.
    """
    if not rows:
        raise ConfigurationError("floor", got="no site", expected="at least one site's row")
    return FloorRow(
        site="all sites",
        trained=math.fsum(row.trained for row in rows) / len(rows),
        untrained=math.fsum(row.untrained for row in rows) / len(rows),
        scratch=math.fsum(row.scratch for row in rows) / len(rows),
        structures=min(row.structures for row in rows),
    )


def judged(results: Mapping[str, Mapping[str, float]]) -> FloorRow | None:
    """The run as a whole; None where a site has nothing to judge by."""
    models = ("personal", "untrained", "scratch")
    if not results or not all(_shared(figures, models) for figures in results.values()):
        return None
    return overall(floor(results))


def verdict(run: FloorRow) -> str:
    """Whether the run as a whole keeps its floor, in words for somebody who knows Dice and not this project."""
    least, beside = run.untrained + ABOVE_UNTRAINED, run.scratch - BELOW_SCRATCH
    said = (
        f"floor {'kept' if run.holds else 'MISSED'}: the personal models reach a mean Dice of {run.trained:.3f}; "
        f"they should reach {least:.3f} ({ABOVE_UNTRAINED:g} more than untrained networks, {run.untrained:.3f}) "
        f"and {beside:.3f} (at most {BELOW_SCRATCH:g} less than local ones, {run.scratch:.3f})."
    )
    if run.trained < least - _ROUNDING:
        said += " They have hardly learned to segment: expected of a short trial, else look at data and rounds."
    elif not run.holds:
        said += " What was trained before helps less than the same training without it."
    return said


def _row(site: str, figures: Mapping[str, float], models: tuple[str, str, str]) -> FloorRow:
    found = [_dice_of(figures, model) for model in models]
    shared = _shared(figures, models)
    if not shared:
        raise ConfigurationError(
            f"floor: {site}",
            got=", ".join(f"{model}: {len(dice)} structures" for model, dice in zip(models, found, strict=True)),
            expected=f"a Dice of the same structure for each of {', '.join(models)}",
            remedy="list these models in the study's starts and run the evaluation stage",
        )
    means = [math.fsum(dice[name] for name in shared) / len(shared) for dice in found]
    return FloorRow(site=site, trained=means[0], untrained=means[1], scratch=means[2], structures=len(shared))


def _shared(figures: Mapping[str, float], models: tuple[str, str, str]) -> list[str]:
    """Structures with a Dice of each model."""
    first, *others = (_dice_of(figures, model) for model in models)
    return [name for name in first if all(name in other for other in others)]


def _dice_of(figures: Mapping[str, float], model: str) -> dict[str, float]:
    prefix = f"dice/{model}/"
    return {
        name.removeprefix(prefix): value
        for name, value in figures.items()
        if name.startswith(prefix) and value is not None and math.isfinite(value)
    }
