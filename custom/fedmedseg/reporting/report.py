"""The run report: one HTML file that needs nothing else, the record beside it, and the figures as files."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedseg.core.checkpoint import write_atomic
from fedmedseg.reporting.figures import figures
from fedmedseg.reporting.tables import (
    DiceRow,
    Record,
    decimal,
    dice_table,
    duration,
    encryption_of,
    label_of,
    models_in,
    moved_bytes,
    number,
    ordered,
    plain_text_summary,
    points_of,
    reply,
    rounds_of,
    site_means,
    sites_of,
    size,
    stages_of,
    study_mean,
    worst_site,
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


def write_report(record: Record, folder: Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``figures/*.svg`` below ``folder`` and return the HTML file.

    A record may stop anywhere: a section without numbers is left out, and the report says so.

    Raises:
        OSError: the folder cannot be written.
    """
    drawn = figures(record)
    for name, svg in drawn.items():
        write_atomic(folder / "figures" / f"{name}.svg", svg.encode())
    write_atomic(folder / "report.json", json.dumps(_jsonable(record), indent=1, sort_keys=True).encode())
    path = folder / "report.html"
    write_atomic(path, render(record, drawn).encode())
    return path


def render(record: Record, drawn: Mapping[str, str]) -> str:
    """The HTML text. Every value of the record is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fedmedseg.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(**context(record, drawn))


def context(record: Record, drawn: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows, as plain text and lists."""
    rows = dice_table(record)
    seconds = number(record.get("seconds"))
    return {
        "study": str(record.get("study") or "unnamed study"),
        "system": str(record.get("system") or "?"),
        "finished": record.get("outcome") == "finished",
        "outcome": str(record.get("outcome") or "unknown"),
        "reason": record.get("reason"),
        "started": str(record.get("started") or "unknown"),
        "took": "unknown time" if seconds is None else duration(seconds),
        "sites": sites_of(record),
        "rounds": len(rounds_of(record)),
        "stages": stages_of(record),
        "tiles": _tiles(rows),
        "score": _scores(record, rows),
        "points": _points(record),
        "alarms": _alarms(record),
        "mismatches": _mismatches(record),
        "outliers": _outliers(record),
        "encryption": encryption_of(record),
        "refusals": _refusals(record),
        "movement": _movement(record),
        "figures": {name: _data_uri(svg) for name, svg in drawn.items()},
        "facts": _facts(record),
    }


def _tiles(rows: Sequence[DiceRow]) -> list[dict[str, str]]:
    """Mean Dice per model in large type, each with its worst site."""
    tiles = []
    for model in models_in(rows):
        value, worst = study_mean(rows, model), worst_site(rows, model)
        if value is not None:
            under = f"worst site {worst[0]}: {decimal(worst[1])}" if worst else ""
            tiles.append({"name": label_of(model), "key": model, "value": decimal(value), "under": under})
    return tiles


MEANINGS = {
    "personal": "{} starts from the site's own pretrained encoder",
    "shared": "{} starts from the federation's encoder",
    "scratch": "{} is the same training without any pretraining",
    "untrained": "{} has seen no label",
}
IN_TRAINING = {
    "personal": "{} is the site's own network, trained in the federation",
    "scratch": "{} is the same training without the other sites",
    "untrained": "{} has seen no label",
}
"""Of studies whose federation trains on labels itself; they have a stage ``training``."""
CHOSEN = "Each trained column is a site's network as of the round that validated best there. "
TOGETHER = (
    "Fine-tuning was federated: each trained column is one network of all sites, tested as of the round that validated "
    "best at the site. "
)


def _legend(record: Record, models: Sequence[str]) -> str:
    """What the columns are, in a sentence; a federated fine-tuning is known by the round each site chose."""
    trains = any(one.get("stage") == "training" for one in rounds_of(record))
    meanings = IN_TRAINING if trains else MEANINGS
    said = [meanings[model].format(label_of(model)) for model in models if model in meanings]
    sentence = "; ".join(said)
    figures = (
        name for one in rounds_of(record) for answer in (one.get("sites") or {}).values() for name in _figures(answer)
    )
    together = any(name.startswith("best_round/") for name in figures)
    chosen = (CHOSEN if trains else TOGETHER) if together else ""
    return chosen + sentence[:1].upper() + sentence[1:] + ("." if said else "")


def _figures(answer: object) -> list[str]:
    metrics = answer.get("metrics") if isinstance(answer, Mapping) else None
    return [str(name) for name in metrics] if isinstance(metrics, Mapping) else []


def _scores(record: Record, rows: Sequence[DiceRow]) -> dict[str, Any] | None:
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
        sites.append({"name": site, "cases": own[0].cases, "lines": lines, "means": means})
    return {
        "legend": _legend(record, models),
        "models": [label_of(model) for model in models],
        "sites": sites,
        "means": [decimal(study_mean(rows, model)) for model in models],
        "failures": any(row.failures for row in rows),
    }


def _points(record: Record) -> dict[str, Any] | None:
    """Landmarks: a line per site and point, a cell per model."""
    rows = points_of(record)
    if not rows:
        return None
    models = ordered(row.model for row in rows)
    by = {(row.site, row.point, row.model): row.told for row in rows}
    places = dict.fromkeys((row.site, row.point) for row in rows)
    lines = [
        {"site": site, "point": point, "cells": [by.get((site, point, model), "-") for model in models]}
        for site, point in places
    ]
    return {"models": [label_of(model) for model in models], "lines": lines}


def _cell(row: DiceRow | None) -> dict[str, Any]:
    if row is None:
        return {"dice": "-", "hd95": "-", "failures": 0, "order": -1.0}
    order = -1.0 if row.dice is None else round(row.dice, 3)
    return {"dice": decimal(row.dice), "hd95": decimal(row.hd95, 1), "failures": row.failures, "order": order}


def _alarms(record: Record) -> list[str]:
    """Which sites reported that their targets collapse, and when."""
    found = []
    for one in rounds_of(record):
        for site in sites_of(record):
            if number((reply(one, site).get("metrics") or {}).get("collapse_alarm")):
                found.append(f"{site}, {_stage(one)} round {_round(one)}")
    return found


def _refusals(record: Record) -> list[dict[str, str]]:
    return [
        {
            "stage": _stage(one),
            "round": _round(one),
            "site": site,
            "what": "declined" if answer.get("declined") else "not accepted",
            "reason": str(answer.get("reason") or "no reason recorded"),
        }
        for one in rounds_of(record)
        for site, answer in (one.get("sites") or {}).items()
        if not answer.get("accepted")
    ]


def _movement(record: Record) -> list[dict[str, str]]:
    """Per site: replies, examples, bytes each way, seconds training and moving over the whole run."""
    lines = []
    for site in sites_of(record):
        answers = [reply(one, site) for one in rounds_of(record)]
        answers = [answer for answer in answers if answer]
        total = {
            key: math.fsum(number(answer.get(key)) or 0.0 for answer in answers)
            for key in ("train_seconds", "move_seconds")
        }
        features = {
            key: math.fsum(number((answer.get(key) or {}).get("bytes")) or 0.0 for answer in answers)
            for key in ("features_down", "features_up")
            if any(answer.get(key) for answer in answers)
        }
        moved = {way: math.fsum(moved_bytes(answer, way) for answer in answers) for way in ("down", "up")}
        examples = [int(value) for answer in answers if (value := number(answer.get("examples"))) is not None]
        lines.append(
            {
                "site": site,
                "replies": f"{sum(bool(answer.get('accepted')) for answer in answers)} of {len(answers)}",
                "examples": str(max(examples)) if examples else "-",
                "down": size(moved["down"]) + _of_which(features.get("features_down")),
                "up": size(moved["up"]) + _of_which(features.get("features_up")),
                "train": duration(total["train_seconds"]),
                "move": duration(total["move_seconds"]),
            }
        )
    return lines


def _of_which(features: float | None) -> str:
    """How much of a site's traffic was features, in a study that exchanges any."""
    return "" if features is None else f", of which features {size(features)}"


def _mismatches(record: Record) -> list[str]:
    """What was said of sites whose parts cannot correspond, each sentence once."""
    said = [line for one in rounds_of(record) for line in (one.get("notes") or {}).get("correspondence") or ()]
    return list(dict.fromkeys(map(str, said)))


def _outliers(record: Record) -> list[str]:
    """Sites whose updates were unlike the others', round by round."""
    return [
        f"{_stage(one)} round {_round(one)}, {site}: {why}"
        for one in rounds_of(record)
        for site, why in ((one.get("notes") or {}).get("outliers") or {}).items()
    ]


def _facts(record: Record) -> list[tuple[str, str]]:
    labels = record.get("labels") or {}
    others = [name for name in record.get("structures") or () if name not in labels.values()]
    aggregate = math.fsum(number(one.get("aggregate_seconds")) or 0.0 for one in rounds_of(record))
    facts = [
        ("seed", record.get("seed")),
        ("hardware of the server", record.get("hardware")),
        ("seconds aggregating", f"{aggregate:.2f}"),
        ("structures", ", ".join(f"{key} {name}" for key, name in labels.items()) or None),
        ("structures of some sites alone", ", ".join(others) or None),
        ("experiment SHA-256", record.get("experiment_sha256")),
        ("shared model SHA-256", record.get("shared_sha256")),
    ]
    facts += [(str(name), version) for name, version in (record.get("versions") or {}).items()]
    return [(name, str(value)) for name, value in facts if value is not None]


def _stage(one: Mapping[str, Any]) -> str:
    return str(one.get("stage", "?")).replace("_", " ")


def _round(one: Mapping[str, Any]) -> str:
    return str(int(one.get("round") or 0) + 1)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _jsonable(value: Any) -> Any:
    """The record as strict JSON: a number that is not finite becomes null, as no JSON reader takes NaN."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
