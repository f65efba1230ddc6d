"""A run record as plain text, for the end of a run in a terminal or a log."""

from __future__ import annotations

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

_WIDTH = 96
_MOST_LINES = 30
_MOST_BLIND = 3
_LEAST_BODY = 8
_MOST_ABSENT = 4
"""Lines on who took no part."""


def plain_text_summary(record: Record) -> str:
    """At most 30 lines for the end of a run: outcome, Dice per site and structure, mean, worst site, floor."""
    head = [_headline(record)]
    if record.get("reason"):
        head.append(f"reason: {short(str(record['reason']), _WIDTH - 8)}")
    sealed = encryption_of(record)
    if sealed is not None and record["rounds"]:
        off = len(sealed["guards_off"])
        head.append(f"replies were encrypted ({sealed['scheme']}): {off} guards of the server were off, see the report")
    refused = _refused(record)
    if refused:
        counts = ", ".join(f"{site} {count}" for site, count in refused.items())
        head.append(short(f"replies not accepted: {counts}", _WIDTH))
    head += _absent(record)
    rows, measured = dice_table(record), _measured(record)
    nowhere = _some([f"found in no test volume: {one}" for one in lost(points_of(record))])
    if untouched := heads_left(record):
        head += _whole(f"heads left as they were, trained by too few for the robust rule: {'; '.join(untouched)}")
    if not rows:
        measured = _cut(measured, _MOST_LINES - len(head) - len(nowhere))
        return "\n".join([*head, *(measured or withheld_whole(record) or ["no evaluation was recorded"]), *nowhere])
    models = models_in(rows)
    body, tail = _body(rows, models), _tail(rows, models, len(sites_of(record)))
    run = judged(evaluations(record))
    if run is not None:
        tail += textwrap.wrap(verdict(run), _WIDTH)
    tail += [*_some([f"not one voxel right in any test volume: {one}" for one in blind(rows)]), *nowhere]
    silent = withholding(record)
    if silent:
        tail.append(short(f"tested, and figures withheld by the site: {', '.join(silent)}", _WIDTH))
    tail += _cut(measured, _MOST_LINES - len(head) - len(tail) - 2 - min(len(body), _LEAST_BODY))
    room = _MOST_LINES - len(head) - len(tail) - 2
    if len(body) > room:
        body = ["(means over each site's structures; every structure is in the report)", *_per_site(rows, models)]
    if len(body) > room:
        left = len(body) - (room - 1)
        body = [*body[: room - 1], f"... {left} more sites in the report"]
    title = f"{'Dice':<40}" + "".join(f"{label_of(model):>12}" for model in models)
    return "\n".join([*head, "", title.rstrip(), *body, *tail])


def _measured(record: Record) -> list[str]:
    """Points and calcium of every site, of the models that were trained."""
    points = [row for row in points_of(record) if row.model != "untrained"]
    calcium = [row for row in calcium_of(record) if row.model != "untrained"]
    told = [
        *point_lines(points, ordered(row.model for row in points), MODELS),
        *calcium_lines(calcium, ordered(row.model for row in calcium), MODELS),
    ]
    return [part for line in told for part in textwrap.wrap(line, _WIDTH, subsequent_indent="  ") or [""]]


def _whole(text: str) -> list[str]:
    """In as many lines as it takes, up to a few; what is left out is in the report."""
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    return lines if len(lines) <= _MOST_ABSENT else [*lines[: _MOST_ABSENT - 1], "  ... and more, in the report"]


def _cut(lines: Sequence[str], room: int) -> list[str]:
    """As many of ``lines`` as there is room for; what is left out is in the report."""
    if len(lines) <= room:
        return list(lines)
    return [*lines[: max(0, room - 1)], "... and more of points and calcium in the report"]


def _some(lines: Sequence[str]) -> list[str]:
    """The first of ``lines``, and how many more there are."""
    more = len(lines) - _MOST_BLIND
    told = [short(one, _WIDTH) for one in lines[:_MOST_BLIND]]
    return told if more <= 0 else [*told, f"... and {more} more of which nothing was found, in the report"]


def _absent(record: Record) -> list[str]:
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
        lines += _whole("took no part: " + "; ".join(f"{who}: {why}" for who, why in declined.items()))
    if aside:
        lines.append(short("cases set aside: " + ", ".join(f"{who} {count}" for who, count in aside.items()), _WIDTH))
    return lines


def _headline(record: Record) -> str:
    seconds = number(record.get("seconds"))
    parts = [f"{record.get('study', '?')} ({record.get('system', '?')}): {outcome_of(record)}"]
    if seconds is not None:
        parts.append(f"after {duration(seconds)}")
    parts.append(f"{counted(len(rounds_of(record)), 'round')}, {counted(len(sites_of(record)), 'site')}")
    return ", ".join(parts)


def _body(rows: Sequence[DiceRow], models: Sequence[str]) -> list[str]:
    score = {(row.site, row.structure, row.model): row.dice for row in rows}
    lines = []
    for site in dict.fromkeys(row.site for row in rows):
        for structure in dict.fromkeys(row.structure for row in rows if row.site == site):
            name = f"{short(site, 18):<19}{short(structure, 20):<21}"
            lines.append(name + "".join(f"{decimal(score.get((site, structure, model))):>12}" for model in models))
    return lines


def _per_site(rows: Sequence[DiceRow], models: Sequence[str]) -> list[str]:
    means = {model: site_means(rows, model) for model in models}
    return [
        f"{short(site, 39):<40}" + "".join(f"{decimal(means[model].get(site)):>12}" for model in models)
        for site in dict.fromkeys(row.site for row in rows)
    ]


def _tail(rows: Sequence[DiceRow], models: Sequence[str], sites: int) -> list[str]:
    means = "".join(f"{decimal(study_mean(rows, model)):>12}" for model in models)
    lowest = [worst_site(rows, model) for model in models]
    lines = [f"{mean_title(len({row.site for row in rows}), sites):<40}{means}"]
    lines.append(
        f"{'mean of the worst site':<40}" + "".join(f"{decimal(one[1] if one else None):>12}" for one in lowest)
    )
    names = "".join(f"{short(one[0], 11) if one else '-':>12}" for one in lowest)
    return [*lines, f"{'worst site is':<40}{names}"]


def _refused(record: Record) -> dict[str, int]:
    """Site -> replies that were asked for and not accepted; a site that declined took no part."""
    counts: dict[str, int] = {}
    for one in rounds_of(record):
        for site, answer in (one.get("sites") or {}).items():
            if not answer.get("accepted") and not answer.get("declined"):
                counts[site] = counts.get(site, 0) + 1
    return counts
