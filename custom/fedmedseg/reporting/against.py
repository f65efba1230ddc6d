"""One model against another, and one run against the run before: differences of what two columns both measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmedseg.reporting.tables import DiceRow, Record, dice_table, mean, models_in, outcome_of, site_means

PAIRS = (("personal", "shared"), ("personal", "scratch"), ("shared", "scratch"), ("student", "cnn"))
"""Pairs of models that people ask about: what is the second worth beside the first?"""
KEPT = ("study", "system", "seed", "started", "outcome", "ended", "experiment_sha256", "sites", "versions", "labels")
"""Of the run before, beside its scores, what the report needs."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """Two columns, site by site, over the structures that both measured there. Dice 0..1."""

    first: str
    second: str
    sites: Mapping[str, tuple[float, float]]

    @property
    def difference(self) -> float | None:
        """Mean over sites of first less second."""
        return mean(one - other for one, other in self.sites.values())

    @property
    def ahead(self) -> int:
        """Sites at which the first is better."""
        return sum(one > other for one, other in self.sites.values())


def pairs(rows: Sequence[DiceRow]) -> list[Against]:
    """Each of ``PAIRS`` of which at least one site tested both models."""
    known = set(models_in(rows))
    found = [_against(rows, rows, *pair) for pair in PAIRS if known.issuperset(pair)]
    return [one for one in found if one.sites]


def reduced(record: Record) -> dict[str, Any]:
    """What of an earlier run a report carries: who, when, with what, and how it scored."""
    rows = [
        {"site": row.site, "structure": row.structure, "model": row.model, "dice": row.dice, "hd95": row.hd95}
        for row in dice_table(record)
    ]
    return {name: record.get(name) for name in KEPT} | {"scores": rows}


def scores_of(earlier: Mapping[str, Any]) -> list[DiceRow]:
    """The inverse of ``reduced``, of its scores."""
    return [
        DiceRow(
            **{name: one.get(name) for name in ("site", "structure", "model", "dice", "hd95")}, failures=0, cases=None
        )
        for one in earlier.get("scores") or []
    ]


def since(rows: Sequence[DiceRow], before: Sequence[DiceRow]) -> list[Against]:
    """Per model: this run against the one before, at the sites and structures of both."""
    known = set(models_in(before))
    found = [_against(rows, before, model, model) for model in models_in(rows) if model in known]
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
        f"{name} {new.get(name, 'none')}, then {old.get(name, 'none')}"
        for name in sorted({*new, *old})
        if new.get(name) != old.get(name)
    ]
    return lines


def _against(rows: Sequence[DiceRow], others: Sequence[DiceRow], first: str, second: str) -> Against:
    """Only structures with a Dice on both sides count, so that no mean is over more than the other's."""
    one = {(row.site, row.structure): row for row in rows if row.model == first and row.dice is not None}
    two = {(row.site, row.structure): row for row in others if row.model == second and row.dice is not None}
    both = [place for place in one if place in two]
    firsts, seconds = (
        site_means([table[place] for place in both], name) for table, name in ((one, first), (two, second))
    )
    return Against(first=first, second=second, sites={site: (firsts[site], seconds[site]) for site in firsts})
