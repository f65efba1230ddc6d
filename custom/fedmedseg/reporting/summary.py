"""A run record as plain text, for the end of a run in a terminal or a log."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

from fedmedseg.reporting.alarms import blind, heads_left, lost
from fedmedseg.reporting.calcium_table import calcium_lines
from fedmedseg.reporting.floor import judged, verdict
from fedmedseg.reporting.point_table import point_lines
from fedmedseg.reporting.tables import (
    MODELS,
    DiceRow,
    Record,
    calcium_of,
    counted,
    decimal,
    dice_table,
    duration,
    encryption_of,
    evaluations,
    label_of,
    mean_title,
    models_in,
    number,
    ordered,
    outcome_of,
    points_of,
    rounds_of,
    short,
    site_means,
    sites_of,
    study_mean,
    withheld_whole,
    withholding,
    worst_site,
)
from fedmedseg.reporting.text_columns import TextColumns

WIDTH = 96
"""Characters of a line where nobody says how many there are, as in a log."""

_LEAST_WIDTH = 20
_MOST_LINES = 30
_MOST_BLIND = 3
_LEAST_BODY = 8
_MOST_ABSENT = 4
"""Lines of 96 on who took no part."""


def plain_text_summary(record: Record, width: int = WIDTH) -> str:
    """Outcome, Dice per site and structure, mean, worst site and floor of a run.

    Lines have at most ``width`` characters (and room for 20). There are at most 30 of 96, and as many more of fewer as
    hold the same text.
    """
    width = max(_LEAST_WIDTH, min(width, WIDTH))
    most = _MOST_LINES * WIDTH // width
    head = _wrapped(_headline(record), width)
    if record.get("reason"):
        head += _whole(f"reason: {' '.join(str(record['reason']).split())}", width)
    sealed = encryption_of(record)
    if sealed is not None and record["rounds"]:
        off = len(sealed["guards_off"])
        text = f"replies were encrypted ({sealed['scheme']}): {off} guards of the server were off, see the report"
        head += _wrapped(text, width)
    refused = _refused(record)
    if refused:
        counts = ", ".join(f"{site} {count}" for site, count in refused.items())
        head += _wrapped(short(f"replies not accepted: {counts}", WIDTH), width)
    head += _absent(record, width)
    rows, measured = dice_table(record), _measured(record, width)
    nowhere = _some([f"found in no test volume: {one}" for one in lost(points_of(record))], width)
    if untouched := heads_left(record):
        head += _whole(
            f"heads left as they were, trained by too few for the robust rule: {'; '.join(untouched)}", width
        )
    if not rows:
        measured = _cut(measured, most - len(head) - len(nowhere), width)
        silent = withheld_whole(record) or ["no evaluation was recorded"]
        return "\n".join([*head, *(measured or [part for line in silent for part in _wrapped(line, width)]), *nowhere])
    models = models_in(rows)
    columns = TextColumns([label_of(model) for model in models], width)
    body, tail = _body(rows, models, columns), _tail(rows, models, len(sites_of(record)), columns)
    run = judged(evaluations(record))
    if run is not None:
        tail += _wrapped(verdict(run), width)
    tail += _some([f"not one voxel right in any test volume: {one}" for one in blind(rows)], width) + nowhere
    silent = withholding(record)
    if silent:
        text = f"tested, and figures withheld by the site: {', '.join(silent)}"
        tail += _wrapped(short(text, WIDTH), width)
    tail += _cut(measured, most - len(head) - len(tail) - 2 - min(_lines(body), _LEAST_BODY), width)
    room = most - len(head) - len(tail) - 2
    if _lines(body) > room:
        told = _wrapped("(means over each site's structures; every structure is in the report)", width)
        body, room = _per_site(rows, models, columns), room - len(told)
        if _lines(body) > room:
            shown = max(1, (room - len(_more(len(body), width))) // len(body[0]))
            body = [*body[:shown], _more(len(body) - shown, width)]
        body = [told, *body]
    return "\n".join([*head, "", columns.head("Dice"), *itertools.chain(*body), *tail])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


def _measured(record: Record, width: int) -> list[str]:
    """Points and calcium of every site, of the models that were trained."""
    points = [row for row in points_of(record) if row.model != "untrained"]
    calcium = [row for row in calcium_of(record) if row.model != "untrained"]
    told = [
        *point_lines(points, ordered(row.model for row in points), MODELS),
        *calcium_lines(calcium, ordered(row.model for row in calcium), MODELS),
    ]
    return [part for line in told for part in _wrapped(line, width) or [""]]


def _whole(text: str, width: int) -> list[str]:
    """In as many lines as it takes, up to a few; what is left out is in the report."""
    lines, most = _wrapped(text, width), _MOST_ABSENT * WIDTH // width
    return lines if len(lines) <= most else [*lines[: most - 1], *_wrapped("  ... and more, in the report", width)]


def _more(sites: int, width: int) -> list[str]:
    return _wrapped(f"... {sites} more sites in the report", width)


def _lines(rows: Sequence[Sequence[str]]) -> int:
    return sum(map(len, rows))


def _cut(lines: Sequence[str], room: int, width: int) -> list[str]:
    """As many of ``lines`` as there is room for; what is left out is in the report."""
    if not lines or len(lines) <= room:
        return list(lines)
    return [*lines[: max(0, room - 1)], *_wrapped("... and more of points and calcium in the report", width)]


def _some(lines: Sequence[str], width: int) -> list[str]:
    """The first of ``lines``, and how many more there are."""
    more = len(lines) - _MOST_BLIND
    told = [short(one, WIDTH) for one in lines[:_MOST_BLIND]]
    if more > 0:
        told.append(f"... and {more} more of which nothing was found, in the report")
    return [part for line in told for part in _wrapped(line, width)]


def _absent(record: Record, width: int) -> list[str]:
    """Who took no part in which stage, and how many cases were set aside: a mean hides both."""
    lines = []
    declined: dict[str, str] = {}
    aside: dict[str, int] = {}
    for one in rounds_of(record):
        for site, answer in (one.get("sites") or {}).items():
            if answer.get("declined"):
                declined[f"{site} ({one.get('stage')})"] = str(answer.get("reason") or "no reason given")
            found = number((answer.get("metrics") or {}).get("set_aside"))
            if found:
                aside[f"{site} ({one.get('stage')})"] = int(found)
    if declined:
        lines += _whole("took no part: " + "; ".join(f"{who}: {why}" for who, why in declined.items()), width)
    if aside:
        text = "cases set aside: " + ", ".join(f"{who} {count}" for who, count in aside.items())
        lines += _wrapped(short(text, WIDTH), width)
    return lines


def _headline(record: Record) -> str:
    seconds = number(record.get("seconds"))
    parts = [f"{record.get('study', '?')} ({record.get('system', '?')}): {outcome_of(record)}"]
    if seconds is not None:
        parts.append(f"after {duration(seconds)}")
    parts.append(f"{counted(len(rounds_of(record)), 'round')}, {counted(len(sites_of(record)), 'site')}")
    return ", ".join(parts)


def _body(rows: Sequence[DiceRow], models: Sequence[str], columns: TextColumns) -> list[list[str]]:
    """The lines of every site and structure."""
    score = {(row.site, row.structure, row.model): row.dice for row in rows}
    return [
        columns.lines([site, structure], [decimal(score.get((site, structure, model))) for model in models])
        for site in dict.fromkeys(row.site for row in rows)
        for structure in dict.fromkeys(row.structure for row in rows if row.site == site)
    ]


def _per_site(rows: Sequence[DiceRow], models: Sequence[str], columns: TextColumns) -> list[list[str]]:
    means = {model: site_means(rows, model) for model in models}
    return [
        columns.lines([site], [decimal(means[model].get(site)) for model in models])
        for site in dict.fromkeys(row.site for row in rows)
    ]


def _tail(rows: Sequence[DiceRow], models: Sequence[str], sites: int, columns: TextColumns) -> list[str]:
    title = mean_title(len({row.site for row in rows}), sites)
    lines = columns.lines([title], [decimal(study_mean(rows, model)) for model in models])
    if sites == 1:
        return lines
    lowest = [worst_site(rows, model) for model in models]
    lines += columns.lines(["mean of the worst site"], [decimal(one[1] if one else None) for one in lowest])
    names = [one[0] if one else "-" for one in lowest]
    if columns.fit(names):
        return lines + columns.lines(["worst site is"], names)
    told = ", ".join(f"{label_of(model)} {name}" for model, name in zip(models, names, strict=True))
    return lines + _wrapped(f"worst site is: {told}", columns.width)


def _refused(record: Record) -> dict[str, int]:
    """Site -> replies that were asked for and not accepted; a site that declined took no part."""
    counts: dict[str, int] = {}
    for one in rounds_of(record):
        for site, answer in (one.get("sites") or {}).items():
            if not answer.get("accepted") and not answer.get("declined"):
                counts[site] = counts.get(site, 0) + 1
    return counts
