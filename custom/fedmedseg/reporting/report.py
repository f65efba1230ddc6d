"""The run report: one HTML file that needs nothing else, the record beside it, and the figures as files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedmedseg.core.atomic import write_atomic
from fedmedseg.reporting import alarms
from fedmedseg.reporting.against import reduced
from fedmedseg.reporting.alarms import round_of, spans, stage_of
from fedmedseg.reporting.captions import captions
from fedmedseg.reporting.costs import by_round, by_site
from fedmedseg.reporting.curves import MOST_PANELS, curves
from fedmedseg.reporting.figures import figures
from fedmedseg.reporting.in_words import in_words
from fedmedseg.reporting.page import jsonable, render_page, svg_uri
from fedmedseg.reporting.scores import (
    calcium_section,
    pair_section,
    point_section,
    previous_section,
    score_table,
    tiles,
)
from fedmedseg.reporting.summary import plain_text_summary
from fedmedseg.reporting.tables import (
    Record,
    counted,
    dice_table,
    duration,
    encryption_of,
    has_ended,
    moment,
    number,
    outcome_of,
    points_of,
    reply,
    rounds_of,
    sites_of,
    size,
    stages_of,
    withheld_whole,
    withholding,
)

TEMPLATE = "report.html.jinja"


class HTMLReporter:
    """The reporter that a job's server configuration names: HTML for people, text for the log."""

    def write(self, record: Record, folder: Path) -> Path:
        """See ``write_report``."""
        return write_report(record, folder)

    def summary(self, record: Record) -> str:
        """See ``plain_text_summary``."""
        return plain_text_summary(record)


def write_report(record: Record, folder: Path, *, previous: Record | None = None) -> Path:
    """Write ``report.html``, ``report.json`` and ``figures/*.svg`` below ``folder`` and return the HTML file.

    A record may stop anywhere: a section without numbers is left out, and the report says so. ``previous`` is the
    record of an earlier run, which this one is compared with; what is needed of it goes into ``report.json``.

    Raises:
        OSError: the folder cannot be written.
    """
    whole = record if previous is None else {**record, "previous": reduced(previous)}
    drawn = figures(whole)
    for name, svg in drawn.items():
        write_atomic(folder / "figures" / f"{name}.svg", svg.encode())
    write_atomic(folder / "report.json", json.dumps(jsonable(whole), indent=1, sort_keys=True).encode())
    path = folder / "report.html"
    write_atomic(path, render(whole, drawn).encode())
    return path


def render(record: Record, drawn: Mapping[str, str]) -> str:
    """The HTML text. Every value of the record is escaped."""
    return render_page(TEMPLATE, context(record, drawn))


def context(record: Record, drawn: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows, as plain text and lists."""
    rows = dice_table(record)
    seconds = number(record.get("seconds"))
    return {
        "study": str(record.get("study") or "unnamed study"),
        "system": str(record.get("system") or "?"),
        "finished": record.get("outcome") == "finished",
        "ended": has_ended(record),
        "outcome": outcome_of(record),
        "reason": record.get("reason"),
        "started": moment(record.get("started")),
        "continued": moment(record["continued"]) if record.get("continued") else None,
        "took": "unknown time" if seconds is None else duration(seconds),
        "sites": sites_of(record),
        "rounds": len(rounds_of(record)),
        "size": f"{counted(len(sites_of(record)), 'site')}, {counted(len(rounds_of(record)), 'round')}",
        "tiles": tiles(rows),
        "score": score_table(record, rows),
        "withholding": withholding(record),
        "withheld_whole": withheld_whole(record),
        "points": point_section(record),
        "calcium": calcium_section(record),
        "pairs": pair_section(record),
        "previous": previous_section(record),
        "collapses": alarms.collapses(record),
        "standstills": alarms.standstills(record),
        "mismatches": alarms.mismatches(record),
        "outliers": alarms.outliers(record),
        "blind": alarms.blind(rows),
        "lost": alarms.lost(points_of(record)),
        "heads_left": alarms.heads_left(record),
        "all_quiet": alarms.all_quiet(record),
        "missed_floor": alarms.missed_floor(record),
        "encryption": encryption_of(record),
        "words": in_words(record),
        "captions": captions(record),
        "more_curves": max(0, len(curves(record)) - MOST_PANELS),
        "refusals": _refusals(record),
        "by_site": by_site(record),
        "by_round": by_round(record),
        "models": _models(record),
        "figures": {name: svg_uri(svg) for name, svg in drawn.items()},
        "facts": _facts(record),
        "settings": _settings(record),
    }


def _refusals(record: Record) -> list[dict[str, str]]:
    """What was asked for and did not count, alike rounds of a site in one line; also what asking again made good."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for one in rounds_of(record):
        for site, answer in (one.get("sites") or {}).items():
            if not answer.get("accepted"):
                what = "declined" if answer.get("declined") else "not accepted"
                reason = str(answer.get("reason") or "no reason recorded")
                found.setdefault((stage_of(one), site, what, reason), []).append(round_of(one))
        for refusal in one.get("refusals") or ():
            site, reason = str(refusal.get("site")), str(refusal.get("reason"))
            answer = reply(one, site)
            if answer.get("reason") == refusal.get("reason"):
                continue
            what = "refused at first, then accepted" if answer.get("accepted") else "refused at first"
            found.setdefault((stage_of(one), site, what, reason), []).append(round_of(one))
    return [
        {"stage": stage, "rounds": spans(rounds), "site": site, "what": what, "reason": reason}
        for (stage, site, what, reason), rounds in found.items()
    ]


def _models(record: Record) -> list[dict[str, str]]:
    return [
        {"file": str(one.get("file")), "size": size(number(one.get("bytes")) or 0.0)}
        for one in record.get("models") or ()
        if isinstance(one, Mapping)
    ]


def _facts(record: Record) -> list[tuple[str, str]]:
    labels = record.get("labels") or {}
    others = [name for name in record.get("structures") or () if name not in labels.values()]
    aggregate = math.fsum(number(one.get("aggregate_seconds")) or 0.0 for one in rounds_of(record))
    stages = [f"{stage.replace('_', ' ')} ({len(rounds_of(record, stage))})" for stage in stages_of(record)]
    facts = [
        ("sites", ", ".join(sites_of(record)) or None),
        ("stages, with their rounds", ", ".join(stages) or None),
        ("seed", record.get("seed")),
        ("structures", ", ".join(f"{key} {name}" for key, name in labels.items()) or None),
        ("structures of some sites alone", ", ".join(others) or None),
        ("hardware of the server", record.get("hardware")),
        ("seconds aggregating", f"{aggregate:.2f}"),
        ("experiment SHA-256", record.get("experiment_sha256")),
        ("shared model SHA-256", record.get("shared_sha256")),
    ]
    facts += [(f"{name} of the server", version) for name, version in (record.get("versions") or {}).items()]
    return [(name, str(value)) for name, value in facts if value is not None]


def _settings(record: Record) -> str:
    """The study's settings as experiment.yaml would hold them, defaults included; nothing of older records."""
    settings = record.get("settings")
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if isinstance(settings, Mapping) else ""
