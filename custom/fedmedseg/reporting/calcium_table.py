"""What a run record says about calcium, as rows and as plain text: how far off volume and Agatston score are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEGINNINGS = {"volume": "calcium/volume_error/", "agatston": "calcium/agatston_error/"}


@dataclass(frozen=True, kw_only=True)
class CalciumRow:
    """One model at one site: mean absolute errors over its test volumes; None where the site does not tell one."""

    site: str
    model: str
    volume: float | None
    """mm3."""
    agatston: float | None

    @property
    def told(self) -> str:
        """``10.0 mm3, score 40.0``."""
        volume, score = ("-" if one is None else f"{one:.1f}" for one in (self.volume, self.agatston))
        return f"{volume} mm3, score {score}"


def calcium_table(evaluations: Mapping[str, Mapping[str, Any]]) -> list[CalciumRow]:
    """Rows of each site's flat figures (``calcium/volume_error/<model>``, ``calcium/agatston_error/<model>``)."""
    rows = []
    for site, figures in evaluations.items():
        models = dict.fromkeys(
            name.removeprefix(beginning)
            for name in figures
            for beginning in BEGINNINGS.values()
            if name.startswith(beginning)
        )
        for model in models:
            told = {what: figures.get(f"{beginning}{model}") for what, beginning in BEGINNINGS.items()}
            errors = {what: None if value is None else float(value) for what, value in told.items()}
            rows.append(CalciumRow(site=site, model=model, **errors))
    return rows


def calcium_lines(rows: Sequence[CalciumRow], models: Sequence[str], label: Mapping[str, str]) -> list[str]:
    """A line per site with every model's errors, for the end of a run; none without calcium."""
    if not rows:
        return []
    lines = ["", "calcium, mean absolute error of volume and Agatston score over a site's test volumes"]
    for site in dict.fromkeys(row.site for row in rows):
        own = {row.model: row for row in rows if row.site == site}
        told = "; ".join(f"{label.get(model, model)} {own[model].told}" for model in models if model in own)
        lines.append(f"{site}: {told}")
    return lines
