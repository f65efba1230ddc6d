"""What a run record says about landmarks, as rows and as plain text: how far off, and how many were not found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmedseg.reporting.points import ALL

WITHHELD = "numbers of {} are withheld where they are small, so that none shown does not mean none"
"""Of whom nobody should think that nothing failed."""


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """One point under one model at one site, mm over ``points`` test volumes that hold it.

    A median or quartile is None where so many points were missed that it is infinite, ``mean`` where none was found,
    ``missed`` where the site withholds it, as it does with small counts: it need not be 0 then.
    """

    site: str
    point: str
    model: str
    median: float | None
    q25: float | None
    q75: float | None
    mean: float | None
    missed: int | None
    points: int

    @property
    def middle(self) -> str:
        """``3.2 (2.1-4.0)``; ``none`` where all three are infinite."""
        if self.median is None and self.q25 is None and self.q75 is None:
            return "none"
        median, first, third = ("none" if one is None else f"{one:.1f}" for one in (self.median, self.q25, self.q75))
        return f"{median} ({first}-{third})"

    @property
    def under(self) -> str:
        """``mean 3.1 mm``, with how many were missed where any was, or where that is withheld."""
        mean = "none found" if self.mean is None else f"mean {self.mean:.1f} mm"
        missed = f", {self.missed} of {self.points} missed" if self.missed else ""
        return f"{mean}{', missed: withheld' if self.missed is None else missed}"

    @property
    def told(self) -> str:
        """All of it in one line."""
        return f"{self.middle}, {self.under}"


def point_table(evaluations: Mapping[str, Mapping[str, Any]]) -> list[PointRow]:
    """Rows of each site's flat figures (``distance/median/<model>/<point>``, ``missed/...``, ``points/...``).

    Sites and points in the order they come in, that over all points last.
    """
    rows = []
    for site, figures in evaluations.items():
        places = [name.removeprefix("points/") for name in figures if name.startswith("points/")]
        for place in places:
            model, _, point = place.partition("/")

            def of(what: str, figures: Mapping[str, Any] = figures) -> float | None:
                value = figures.get(what)
                return None if value is None else float(value)

            missed = of(f"missed/{place}")
            rows.append(
                PointRow(
                    site=site,
                    point=point,
                    model=model,
                    median=of(f"distance/median/{place}"),
                    q25=of(f"distance/q25/{place}"),
                    q75=of(f"distance/q75/{place}"),
                    mean=of(f"distance/mean/{place}"),
                    missed=None if missed is None else int(missed),
                    points=int(figures[f"points/{place}"]),
                )
            )
    names = dict.fromkeys(row.point for row in rows if row.point != ALL)
    order = {name: place for place, name in enumerate([*names, ALL])}
    return sorted(rows, key=lambda row: (list(evaluations).index(row.site), order[row.point]))


def hidden_missed(rows: Sequence[PointRow]) -> list[str]:
    """Sites that told distances without how many points were missed: a small count, which need not be 0."""
    return list(dict.fromkeys(row.site for row in rows if row.missed is None))


def point_lines(rows: Sequence[PointRow], models: Sequence[str], label: Mapping[str, str]) -> list[str]:
    """A line per site with every model's figures over all points, for the end of a run; none without points."""
    if not rows:
        return []
    lines = ["", "points, median (quartiles) over all of a site's test volumes, mean of those found"]
    for site in dict.fromkeys(row.site for row in rows):
        own = {row.model: row for row in rows if row.site == site and row.point == ALL}
        told = "; ".join(f"{label.get(model, model)} {own[model].told}" for model in models if model in own)
        lines.append(f"{site}: {told}")
    hidden = hidden_missed(rows)
    if hidden:
        lines.append(f"{', '.join(hidden)}: {WITHHELD.format('points missed')}")
    return lines
