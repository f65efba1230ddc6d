"""What a run record says about landmarks, as rows and as plain text: how far off, and how many were not found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmedseg.reporting.points import ALL


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """One point under one model at one site, mm over ``points`` test volumes that hold it.

    A median or quartile is None where so many points were missed that it is infinite, ``mean`` where none was found.
    """

    site: str
    point: str
    model: str
    median: float | None
    q25: float | None
    q75: float | None
    mean: float | None
    missed: int
    points: int

    @property
    def told(self) -> str:
        """``3.2 (2.1-4.0) mm``, with how many were missed where any was."""
        middle = "none" if self.median is None else f"{self.median:.1f}"
        ends = "-".join("none" if one is None else f"{one:.1f}" for one in (self.q25, self.q75))
        missed = f", {self.missed} of {self.points} missed" if self.missed else ""
        return f"{middle} ({ends}) mm{missed}"


def point_table(evaluations: Mapping[str, Mapping[str, Any]]) -> list[PointRow]:
    """Rows of each site's flat figures (``distance/median/<model>/<point>``, ``missed/...``, ``points/...``).

    Sites and points in the order they come in, that over all points last.
    """
    rows = []
    for site, figures in evaluations.items():
        places = [name.removeprefix("points/") for name in figures if name.startswith("points/")]
        for place in places:
            model, _, point = place.partition("/")

            def of(what: str, place: str = place, figures: Mapping[str, Any] = figures) -> float | None:
                value = figures.get(f"distance/{what}/{place}")
                return None if value is None else float(value)

            rows.append(
                PointRow(
                    site=site,
                    point=point,
                    model=model,
                    median=of("median"),
                    q25=of("q25"),
                    q75=of("q75"),
                    mean=of("mean"),
                    missed=int(figures.get(f"missed/{place}") or 0),
                    points=int(figures[f"points/{place}"]),
                )
            )
    names = dict.fromkeys(row.point for row in rows if row.point != ALL)
    order = {name: place for place, name in enumerate([*names, ALL])}
    return sorted(rows, key=lambda row: (list(evaluations).index(row.site), order[row.point]))


def point_lines(rows: Sequence[PointRow], models: Sequence[str], label: Mapping[str, str]) -> list[str]:
    """A line per site with every model's median over all points, for the end of a run; none without points."""
    if not rows:
        return []
    lines = ["", "points, median (quartiles) over all of a site's test volumes"]
    for site in dict.fromkeys(row.site for row in rows):
        own = {row.model: row for row in rows if row.site == site and row.point == ALL}
        told = "; ".join(f"{label.get(model, model)} {own[model].told}" for model in models if model in own)
        lines.append(f"{site}: {told}")
    return lines
