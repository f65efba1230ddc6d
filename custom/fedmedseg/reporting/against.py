"""One model against another, and one run against the run before: differences of what two columns both measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmedseg.reporting.point_table import PointRow
from fedmedseg.reporting.points import ALL
from fedmedseg.reporting.tables import DiceRow, Record, dice_table, mean, ordered, outcome_of, points_of

PAIRS = (("personal", "shared"), ("personal", "scratch"), ("shared", "scratch"), ("student", "cnn"))
"""Pairs of models that people ask about: what is the second worth beside the first?"""
KEPT = ("study", "system", "seed", "started", "outcome", "ended", "experiment_sha256", "sites", "versions", "labels")
"""Of the run before, beside its scores, what the report needs."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What two columns are compared by."""

    name: str
    places: int
    """Decimal places."""
    more_is_better: bool


DICE = Measure(name="mean Dice", places=3, more_is_better=True)
HD95 = Measure(name="mean HD95 in mm", places=1, more_is_better=False)
DISTANCE = Measure(name="median point distance in mm", places=1, more_is_better=False)
MEASURES = (DICE, HD95, DISTANCE)
Values = Mapping[str, Mapping[tuple[str, str], float]]
"""Model -> (site, structure) -> value."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """Two columns, site by site, over the structures that both measured there."""

    first: str
    second: str
    sites: Mapping[str, tuple[float, float]]
    measure: Measure = DICE

    @property
    def difference(self) -> float | None:
        """Mean over sites of first less second."""
        return mean(one - other for one, other in self.sites.values())

    @property
    def ahead(self) -> int:
        """Sites at which the first is better."""
        better = 1 if self.measure.more_is_better else -1
        return sum(better * (one - other) > 0 for one, other in self.sites.values())


def pairs(rows: Sequence[DiceRow], points: Sequence[PointRow] = ()) -> list[Against]:
    """Each of ``PAIRS`` of which at least one site tested both models, by every measure that there is."""
    found = []
    for measure in MEASURES:
        values = _values(measure, rows, points)
        found += [_against(measure, values, values, *pair) for pair in PAIRS if set(values).issuperset(pair)]
    return [one for one in found if one.sites]


def reduced(record: Record) -> dict[str, Any]:
    """What of an earlier run a report carries: who, when, with what, and how it scored."""
    rows = [
        {"site": row.site, "structure": row.structure, "model": row.model, "dice": row.dice, "hd95": row.hd95}
        for row in dice_table(record)
    ]
    medians = [
        {"site": row.site, "model": row.model, "median": row.median} for row in points_of(record) if row.point == ALL
    ]
    return {name: record.get(name) for name in KEPT} | {"scores": rows, "points": medians}


def scores_of(earlier: Mapping[str, Any]) -> list[DiceRow]:
    """The inverse of ``reduced``, of its scores."""
    return [
        DiceRow(
            **{name: one.get(name) for name in ("site", "structure", "model", "dice", "hd95")}, failures=0, cases=None
        )
        for one in earlier.get("scores") or []
    ]


def medians_of(earlier: Mapping[str, Any]) -> list[PointRow]:
    """The inverse of ``reduced``, of its points."""
    return [
        PointRow(
            site=one["site"],
            model=one["model"],
            median=one["median"],
            point=ALL,
            q25=None,
            q75=None,
            mean=None,
            missed=None,
            points=0,
        )
        for one in earlier.get("points") or []
    ]


def since(
    rows: Sequence[DiceRow],
    before: Sequence[DiceRow],
    points: Sequence[PointRow] = (),
    points_before: Sequence[PointRow] = (),
) -> list[Against]:
    """Per measure and model: this run against the one before, at the sites and structures of both."""
    found = []
    for measure in MEASURES:
        now, then = _values(measure, rows, points), _values(measure, before, points_before)
        found += [_against(measure, now, then, model, model) for model in ordered(now) if model in then]
    return [one for one in found if one.sites]


def changed(record: Record, earlier: Mapping[str, Any]) -> list[str]:
    """In what the two runs differ besides their scores, in words; a comparison is only as good as this is short."""
    lines = []
    for name in ("system", "seed", "outcome"):
        told = [outcome_of(one) if name == "outcome" else str(one.get(name)) for one in (record, earlier)]
        if told[0] != told[1]:
            lines.append(f"{name} {told[0]}, then {told[1]}")
    if record.get("experiment_sha256") != earlier.get("experiment_sha256"):
        lines.append("other settings")
    now, then = set(record.get("sites") or []), set(earlier.get("sites") or [])
    lines += [f"only now: {', '.join(sorted(now - then))}"] if now - then else []
    lines += [f"only then: {', '.join(sorted(then - now))}"] if then - now else []
    new, old = dict(record.get("versions") or {}), dict(earlier.get("versions") or {})
    lines += [
        f"{name} of the server {new.get(name, 'none')}, then {old.get(name, 'none')}"
        for name in sorted({*new, *old})
        if new.get(name) != old.get(name)
    ]
    return lines


def _values(measure: Measure, rows: Sequence[DiceRow], points: Sequence[PointRow]) -> Values:
    """What ``rows`` hold of a measure: of points the median over all of them, where it is not infinite."""
    if measure is DISTANCE:
        told = [(row.model, row.site, row.point, row.median) for row in points if row.point == ALL]
    else:
        told = [(row.model, row.site, row.structure, row.dice if measure is DICE else row.hd95) for row in rows]
    found: dict[str, dict[tuple[str, str], float]] = {}
    for model, site, structure, value in told:
        if value is not None:
            found.setdefault(model, {})[site, structure] = value
    return found


def _against(measure: Measure, values: Values, others: Values, first: str, second: str) -> Against:
    """Only structures with a value on both sides count, so that no mean is over more than the other's."""
    one, two = values[first], others[second]
    both: dict[str, list[tuple[float, float]]] = {}
    for place in one:
        if place in two:
            both.setdefault(place[0], []).append((one[place], two[place]))
    sites = {
        site: (math.fsum(a for a, _ in found) / len(found), math.fsum(b for _, b in found) / len(found))
        for site, found in both.items()
    }
    return Against(first=first, second=second, sites=sites, measure=measure)
