"""What in a run record should worry somebody: collapse, standstill, updates unlike the others, models that find
nothing, a floor missed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedmedseg.reporting.floor import judged, verdict
from fedmedseg.reporting.point_table import PointRow
from fedmedseg.reporting.points import ALL
from fedmedseg.reporting.tables import (
    DiceRow,
    Record,
    encryption_of,
    evaluations,
    label_of,
    number,
    reply,
    rounds_of,
    sites_of,
)

STANDSTILL = 2
"""Rounds in a row without any change of the shared model from which it is told."""
FEWEST_TO_COMPARE = 3
"""Sites from which on one update can be unlike the others: of two, either is."""


def stage_of(one: Mapping[str, Any]) -> str:
    """A round's stage as people read it."""
    return str(one.get("stage", "?")).replace("_", " ")


def round_of(one: Mapping[str, Any]) -> int:
    """A round's number as people count."""
    return int(one.get("round") or 0) + 1


def spans(numbers: Iterable[int]) -> str:
    """Numbers as people write them.

    >>> spans([1, 2, 3, 7, 5])
    '1-3, 5, 7'
    """
    parts: list[list[int]] = []
    for one in sorted(set(numbers)):
        if parts and one == parts[-1][-1] + 1:
            parts[-1].append(one)
        else:
            parts.append([one])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def collapses(record: Record) -> list[str]:
    """Which sites reported that their targets or features collapse, and in which rounds."""
    found: dict[tuple[str, str], list[int]] = {}
    for one in rounds_of(record):
        for site in sites_of(record):
            if number((reply(one, site).get("metrics") or {}).get("collapse_alarm")):
                found.setdefault((site, stage_of(one)), []).append(round_of(one))
    return [f"{site}, {stage} {_rounds(numbers)}" for (site, stage), numbers in found.items()]


def watched(record: Record) -> bool:
    """Whether any reply told if something collapsed; few systems look, and a site may keep it."""
    return any(
        "collapse_alarm" in (reply(one, site).get("metrics") or {})
        for one in rounds_of(record)
        for site in sites_of(record)
    )


def all_quiet(record: Record) -> str:
    """What to say where nothing was alarming: what was looked for and did not happen, and what nobody looked for."""
    sealed, comparable = encryption_of(record) is not None, len(sites_of(record)) >= FEWEST_TO_COMPARE
    seen = [] if sealed else ["no standstill", *(["no update unlike the others"] if comparable else [])]
    seen = (["no collapse"] if watched(record) else []) + seen
    said = ["No alarm: " + ", ".join(seen) if seen else "No alarm"]
    if not watched(record):
        said.append("Collapse is not watched in this system or by these sites")
    if sealed:
        said.append("Standstill and updates unlike the others do not show where replies are encrypted")
    elif not comparable:
        said.append("Whether an update is unlike the others shows from three sites on")
    return ". ".join(said) + "."


def standstills(record: Record) -> list[str]:
    """Where the shared model did not change for ``STANDSTILL`` rounds or more, stage by stage."""
    found: dict[str, list[int]] = {}
    for one in rounds_of(record):
        still = int(number(one.get("unchanged")) or 0)
        if still >= STANDSTILL:
            last = round_of(one)
            found.setdefault(stage_of(one), []).extend(range(last - still + 1, last + 1))
    return [f"{stage} {_rounds(numbers)}" for stage, numbers in found.items()]


def outliers(record: Record) -> list[str]:
    """Sites whose updates were unlike the others', each once for all its rounds of a stage."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for one in rounds_of(record):
        for site, why in ((one.get("notes") or {}).get("outliers") or {}).items():
            found.setdefault((stage_of(one), site), {})[round_of(one)] = str(why)
    lines = []
    for (stage, site), by_round in found.items():
        said = list(by_round.values())
        first, last = said[0], said[-1]
        why = first if first == last else f"first {first}, last {last}"
        lines.append(f"{stage} {_rounds(list(by_round))}, {site}: {why}")
    return lines


def mismatches(record: Record) -> list[str]:
    """What was said of sites whose parts cannot correspond, each sentence once."""
    said = [line for one in rounds_of(record) for line in (one.get("notes") or {}).get("correspondence") or ()]
    return list(dict.fromkeys(map(str, said)))


def blind(rows: Sequence[DiceRow]) -> list[str]:
    """Which trained models met a structure in no test volume at all: Dice 0 everywhere, whatever they marked."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.model != "untrained" and row.dice == 0.0:
            found.setdefault((label_of(row.model), row.structure), []).append(row.site)
    return [f"{model} model, {structure}, at {', '.join(sites)}" for (model, structure), sites in found.items()]


def lost(rows: Sequence[PointRow]) -> list[str]:
    """Which trained models found a point in no test volume that holds it, as far as sites tell how many were missed."""
    found: dict[tuple[str, str], list[str]] = {}
    nowhere = [row for row in rows if row.model != "untrained" and row.points and row.missed == row.points]
    whole = {(row.site, row.model) for row in nowhere if row.point == ALL}
    for row in nowhere:
        if row.point == ALL or (row.site, row.model) not in whole:
            found.setdefault((label_of(row.model), row.point), []).append(row.site)
    return [f"{model} model, {point}, at {', '.join(sites)}" for (model, point), sites in found.items()]


def heads_left(record: Record) -> list[str]:
    """Which heads too few sites trained for a robust rule, and in which rounds."""
    found: dict[tuple[str, str], list[int]] = {}
    for one in rounds_of(record):
        for head in (one.get("notes") or {}).get("heads_left") or ():
            found.setdefault((str(head), stage_of(one)), []).append(round_of(one))
    return [f"{head.replace('_', ' ')}, {stage} {_rounds(numbers)}" for (head, stage), numbers in found.items()]


def missed_floor(record: Record) -> str | None:
    """The floor's own words where the run stays below it; see ``reporting.floor``."""
    run = judged(evaluations(record))
    return None if run is None or run.holds else verdict(run)


def _rounds(numbers: Sequence[int]) -> str:
    return f"round{'s' if len(set(numbers)) > 1 else ''} {spans(numbers)}"
