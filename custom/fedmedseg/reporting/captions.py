"""Captions of figures whose meaning depends on how the study aggregates."""

from __future__ import annotations

from collections.abc import Mapping

from fedmedseg.reporting.figures import between_sites
from fedmedseg.reporting.tables import Record, number, rounds_of


def captions(record: Record) -> dict[str, str]:
    """Name of a figure -> what stands under it; ``attention_alt``: what its field shows, for who does not see it."""
    of, attention = "layer and site", "Layer-wise weights of the last round that recorded them."
    if between_sites(record):
        of = "two sites"
        attention = "What each site (across) gives to each site's own model (down), in the last round that recorded it."
    return {
        "weights": weights_caption(record),
        "attention": attention,
        "attention_alt": f"A field for each {of}, darker where the weight is larger",
    }


def weights_caption(record: Record) -> str:
    """What a site's weight is: under a robust rule none in a mean; else by examples, capped, or the same for all."""
    rule = _rule(record)
    if rule != "mean":
        return f"What each site counted before the rule {rule}, which is no weighted mean: all alike."
    unequal = levelled = capped = False
    for one in rounds_of(record):
        answers = [answer for answer in (one.get("sites") or {}).values() if number(answer.get("weight"))]
        weights = {round(number(answer.get("weight")) or 0.0, 6) for answer in answers}
        unequal = unequal or len(weights) > 1
        # equal counts are equal weights by either rule, and tell nothing of which it was
        levelled = levelled or len(weights) == 1 < len({answer.get("examples") for answer in answers})
        capped = capped or any("capped" in str(said) for said in (one.get("notes") or {}).get("weighting") or ())
    if levelled and not unequal:
        return "Each site's weight in the aggregate, the same for all."
    bounded = ", capped where a site has many more than the others" if capped else ""
    return f"Each site's weight in the aggregate, by its number of examples{bounded}."


def _rule(record: Record) -> str:
    found: object = record.get("settings")
    for name in ("federation", "robust", "rule"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return str(found or "mean")
