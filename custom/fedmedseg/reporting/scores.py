"""The report's tables of scores: Dice and HD95 with their spread, landmarks, and who told nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedmedseg.reporting.against import (
    DICE,
    DISTANCE,
    MEASURES,
    Against,
    Measure,
    changed,
    medians_of,
    pairs,
    scores_of,
    since,
)
from fedmedseg.reporting.meanings import legend
from fedmedseg.reporting.point_table import WITHHELD, hidden_missed
from fedmedseg.reporting.tables import (
    DiceRow,
    Record,
    calcium_of,
    counted,
    decimal,
    dice_table,
    evaluations,
    label_of,
    mean_title,
    models_in,
    moment,
    ordered,
    points_of,
    site_means,
    site_spread,
    sites_of,
    study_mean,
    worst_site,
)

MINUS = "\N{MINUS SIGN}"
SAME_RUN = "both records are of the same run: there is nothing to compare"
BELOW = "below 0 is better"
"""Of what is a distance in mm."""


def tiles(rows: Sequence[DiceRow]) -> list[dict[str, str]]:
    """Mean Dice per model in large type, each with its worst site where it was tested at several."""
    found = []
    several = len({row.site for row in rows}) > 1
    for model in models_in(rows):
        value, worst = study_mean(rows, model), worst_site(rows, model)
        if value is not None:
            under = f"worst site {worst[0]}: {decimal(worst[1])}" if worst and several else ""
            found.append({"name": label_of(model), "key": model, "value": decimal(value), "under": under})
    return found


def score_table(record: Record, rows: Sequence[DiceRow]) -> dict[str, Any] | None:
    """Sites, their structures and a cell for each model; None without scores."""
    if not rows:
        return None
    models = models_in(rows)
    by = {(row.site, row.structure, row.model): row for row in rows}
    sites = []
    for site in dict.fromkeys(row.site for row in rows):
        own = [row for row in rows if row.site == site]
        lines = []
        for structure in dict.fromkeys(row.structure for row in own):
            cells = [_cell(by.get((site, structure, model))) for model in models]
            best = max((cell["order"] for cell in cells), default=-1.0)
            for cell in cells:
                cell["best"] = cell["order"] == best and best >= 0
            lines.append({"structure": structure.replace("_", " "), "cells": cells})
        means = [decimal(site_means(own, model).get(site)) for model in models]
        sites.append({"name": site, "cases": _cases(own[0].cases), "lines": lines, "means": means})
    spreads = [site_spread(rows, model) for model in models]
    return {
        "legend": legend(record, models),
        "models": [label_of(model) for model in models],
        "sites": sites,
        "mean_title": mean_title(len(sites), len(sites_of(record))),
        "means": [_mean_of(rows, model, of=len(sites)) for model in models],
        "spreads": ["" if one is None else f"± {one:.3f}" for one in spreads],
        "within": any(row.dice_sd is not None or row.hd95_sd is not None for row in rows),
        "failures": any(row.failures for row in rows),
        "hidden": _withheld(hidden_failures(record), "such volumes"),
    }


def hidden_failures(record: Record) -> list[str]:
    """Sites that told a Dice without how many volumes failed: a count below their threshold, which need not be 0."""
    return [
        site
        for site, figures in evaluations(record).items()
        if any(name.startswith("dice/") and f"failures/{name.removeprefix('dice/')}" not in figures for name in figures)
    ]


def point_section(record: Record) -> dict[str, Any] | None:
    """Landmarks: a line per site and point, a cell per model."""
    rows = points_of(record)
    if not rows:
        return None
    models = ordered(row.model for row in rows)
    by = {(row.site, row.point, row.model): {"middle": row.middle, "under": row.under} for row in rows}
    places = dict.fromkeys((row.site, row.point) for row in rows)
    lines = [
        {
            "site": site,
            "point": point,
            "cells": [by.get((site, point, model), {"middle": "-", "under": ""}) for model in models],
        }
        for site, point in places
    ]
    return {
        "models": [label_of(model) for model in models],
        "lines": lines,
        "hidden": _withheld(hidden_missed(rows), "points missed"),
    }


def calcium_section(record: Record) -> dict[str, Any] | None:
    """Errors in calcium: two lines per site, a cell per model."""
    rows = calcium_of(record)
    if not rows:
        return None
    models = ordered(row.model for row in rows)
    errors = {
        "volume, mm\N{SUPERSCRIPT THREE}": {(row.site, row.model): row.volume for row in rows},
        "Agatston score": {(row.site, row.model): row.agatston for row in rows},
    }
    lines = [
        {"site": site, "what": what, "cells": [decimal(by.get((site, model)), 1) for model in models]}
        for site in dict.fromkeys(row.site for row in rows)
        for what, by in errors.items()
    ]
    return {"models": [label_of(model) for model in models], "lines": lines}


def _withheld(sites: Sequence[str], what: str) -> str:
    """The legend of counts that sites keep back; empty where none does."""
    return f"{', '.join(sites)}: {WITHHELD.format(what)}." if sites else ""


def pair_section(record: Record) -> dict[str, Any] | None:
    """Model against model, site by site, a table per measure; None where no site tested two that are asked about."""
    found = pairs(dice_table(record), points_of(record))
    if not found:
        return None
    tables = _compared(
        found,
        lambda one: f"{label_of(one.first)} less {label_of(one.second)}",
        what="of one model less that of the other",
        both="both were tested on",
        all_sites=sites_of(record),
    )
    return {"title": _title(found), "tables": tables}


def _title(found: Sequence[Against]) -> str:
    """What is compared with what: ``Personal against shared and local, shared against local model``."""
    beside: dict[str, list[str]] = {}
    for one in found:
        beside.setdefault(label_of(one.first), []).append(label_of(one.second))
    said = ", ".join(f"{first} against {' and '.join(dict.fromkeys(others))}" for first, others in beside.items())
    said += " model"
    return said[:1].upper() + said[1:]


def previous_section(record: Record) -> dict[str, Any] | None:
    """This run against the one before, where the record carries it (``against.reduced``)."""
    earlier = record.get("previous")
    if not isinstance(earlier, Mapping):
        return None
    if _is_same_run(record, earlier):
        return {"same": SAME_RUN}
    found = since(dice_table(record), scores_of(earlier), points_of(record), medians_of(earlier))
    return {
        "same": "",
        "study": str(earlier.get("study") or "unnamed study"),
        "started": moment(earlier.get("started")),
        "changed": changed(record, earlier),
        "tables": _compared(
            found,
            lambda one: label_of(one.first),
            what="of this run less that of the run before",
            both="both tested",
            all_sites=_of_either(record, earlier),
        ),
    }


def previous_lines(record: Record, earlier: Record) -> list[str]:
    """The comparison with an earlier run for a terminal: by measure and model, this run's mean less the other's."""
    if _is_same_run(record, earlier):
        return [SAME_RUN]
    found = since(dice_table(record), dice_table(earlier), points_of(record), points_of(earlier))
    if not found:
        return ["against the previous run: no site, structure and model in common"]
    lines = []
    either = _of_either(record, earlier)
    for measure, own in _by_measure(found).items():
        means = [f"{label_of(one.first)} {signed(one.difference or 0.0, measure.places)}" for one in own]
        better = "" if measure.more_is_better else f" ({BELOW})"
        shared = _sites_in(own)
        which = "where both are finite" if measure is DISTANCE else "which both tested"
        at = "" if len(shared) == len(either) else f" at {', '.join(shared)}, {which}"
        lines.append(f"against the previous run, {measure.name}{at}{better}: {', '.join(means)}")
    return lines


def _is_same_run(record: Record, earlier: Mapping[str, Any]) -> bool:
    return record.get("started") is not None and all(
        record.get(name) == earlier.get(name) for name in ("study", "started", "experiment_sha256")
    )


def _of_either(record: Record, earlier: Record) -> list[str]:
    """Sites of this run or of the one before."""
    return list(dict.fromkeys([*sites_of(record), *sites_of(earlier)]))


def _sites_in(found: Sequence[Against]) -> list[str]:
    return list(dict.fromkeys(site for one in found for site in one.sites))


def _by_measure(found: Sequence[Against]) -> dict[Measure, list[Against]]:
    own = {measure: [one for one in found if one.measure is measure] for measure in MEASURES}
    return {measure: some for measure, some in own.items() if some}


def _compared(
    found: Sequence[Against], column: Callable[[Against], str], *, what: str, both: str, all_sites: Sequence[str]
) -> list[dict[str, Any]]:
    """A table per measure: a line per site, a column per comparison with the difference and under it both values."""
    tables = []
    for measure, own in _by_measure(found).items():
        over = f"over the structures that {both}"
        if measure is DISTANCE:
            over = "over all points, at sites where neither is infinite"
        name = measure.name[:1].upper() + measure.name[1:]
        sites = _sites_in(own)
        tables.append(
            {
                "caption": f"{name} {what}, {over}{'' if measure.more_is_better else f'; {BELOW}'}; "
                "taken before rounding",
                "columns": [column(one) for one in own],
                "lines": [
                    {"site": site, "cells": [_difference(one.sites.get(site), measure.places) for one in own]}
                    for site in sites
                ],
                "mean_title": mean_title(len(sites), len(all_sites)),
                "means": ["-" if one.difference is None else signed(one.difference, measure.places) for one in own],
                "ahead": [f"{one.ahead} of {len(one.sites)}" for one in own],
            }
        )
    return tables


def _difference(values: tuple[float, float] | None, places: int) -> dict[str, str]:
    if values is None:
        return {"difference": "-", "values": ""}
    first, second = values
    return {
        "difference": signed(first - second, places),
        "values": f"{first:.{places}f} {MINUS} {second:.{places}f}",
    }


def signed(value: float, places: int = DICE.places) -> str:
    """A difference with its sign; what rounds to nothing has none.

    >>> signed(0.0124), signed(-0.3) == f"{MINUS}0.300", signed(-0.0001), signed(2.04, 1)
    ('+0.012', True, '0.000', '+2.0')
    """
    text, sign = f"{abs(value):.{places}f}", "+" if value > 0 else MINUS
    return text if float(text) == 0 else f"{sign}{text}"


def _mean_of(rows: Sequence[DiceRow], model: str, *, of: int) -> str:
    """A column's mean over sites, with their number where not every site of the table tested that model."""
    tested = len(site_means(rows, model))
    return decimal(study_mean(rows, model)) + (f" ({counted(tested, 'site')})" if 0 < tested < of else "")


def _cases(number: int | None) -> str:
    return "number of cases withheld" if number is None else counted(number, "case")


def _cell(row: DiceRow | None) -> dict[str, Any]:
    if row is None:
        return {"dice": "-", "hd95": "-", "dice_sd": "", "hd95_sd": "", "failures": 0, "order": -1.0}
    return {
        "dice": decimal(row.dice),
        "hd95": decimal(row.hd95, 1),
        "dice_sd": "" if row.dice_sd is None else f"± {row.dice_sd:.3f}",
        "hd95_sd": "" if row.hd95_sd is None else f"± {row.hd95_sd:.1f}",
        "failures": row.failures,
        "order": -1.0 if row.dice is None else round(row.dice, 3),
    }
