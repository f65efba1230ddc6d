"""Figures in words, for whoever does not see them: of those whose numbers stand in no table of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedmedseg.reporting.curves import MOST_PANELS, all_series, curves, ends_of
from fedmedseg.reporting.figures import attention_of
from fedmedseg.reporting.tables import Record, number, reply, rounds_of, sites_of


def in_words(record: Record) -> dict[str, str]:
    """Name of a figure -> what it says; empty where there is none."""
    layers = attention_of(record)
    by_layer = {site: [weights[site] for weights in layers.values() if site in weights] for site in sites_of(record)}
    by_round = {
        site: [value for one in rounds_of(record) if (value := number(reply(one, site).get("weight"))) is not None]
        for site in sites_of(record)
    }
    return {
        "curves": "; ".join(curve.told for curve in curves(record)[:MOST_PANELS]),
        "teacher": ends_of(all_series(record, "teacher_std")),
        "features": ends_of(all_series(record, "feature_std")),
        "weights": _ranges(by_round),
        "attention": _ranges(by_layer),
    }


def _ranges(values: Mapping[str, Sequence[float]]) -> str:
    """Least and largest of each site's.

    >>> _ranges({"a": [0.25, 0.5], "b": [0.5], "c": []})
    'a 0.25 to 0.5, b 0.5'
    """
    said = {
        site: f"{min(of):.3g}" if min(of) == max(of) else f"{min(of):.3g} to {max(of):.3g}"
        for site, of in values.items()
        if of
    }
    return ", ".join(f"{site} {text}" for site, text in said.items())
