"""What a run record says about models, as rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedmedseg.reporting.calcium_table import CalciumRow, calcium_table
from fedmedseg.reporting.point_table import PointRow, point_table

Record = Mapping[str, Any]

MODELS = {
    "personal": "personal",
    "shared": "shared",
    "continued": "continued",
    "scratch": "local",
    "cnn": "CNN",
    "student": "transformer",
    "untrained": "untrained",
}
"""Models in reporting order: their name in the record -> the name people read."""
TEST = "evaluation"


@dataclass(frozen=True, kw_only=True)
class DiceRow:
    """One model on one structure at one site. Dice 0..1, HD95 in mm; None where nothing could be measured."""

    site: str
    structure: str
    model: str
    dice: float | None
    hd95: float | None
    failures: int
    """Test volumes in which only the truth or only the prediction holds the structure."""
    cases: int | None
    dice_sd: float | None = None
    """Sample standard deviations over the site's patients; None where a site does not tell them."""
    hd95_sd: float | None = None


def rounds_of(record: Record, stage: str | None = None) -> list[Mapping[str, Any]]:
    """The record's rounds, of one stage or of all, in their order."""
    return [one for one in record.get("rounds") or [] if stage is None or one.get("stage") == stage]


def stages_of(record: Record) -> list[str]:
    """Stages in the order in which they began."""
    return list(dict.fromkeys(str(one.get("stage", "?")) for one in rounds_of(record)))


def sites_of(record: Record) -> list[str]:
    """Every site the record knows, also one that only a round mentions."""
    named = list(record.get("sites") or [])
    seen = sorted({site for one in rounds_of(record) for site in one.get("sites") or {}} - set(named))
    return named + seen


def reply(one: Mapping[str, Any], site: str) -> Mapping[str, Any]:
    """What a site's reply to a round is recorded as; empty where the site was not asked."""
    return (one.get("sites") or {}).get(site) or {}


def outcome_of(record: Record) -> str:
    """How the run ended, for people; of a record whose run still goes on, or was killed, that this is not known."""
    outcome = str(record.get("outcome") or "unknown")
    return outcome if outcome == "finished" or has_ended(record) else "no end recorded"


def has_ended(record: Record) -> bool:
    """Whether the run told its end; records of older versions were read afterwards alone."""
    return record.get("ended") is not False


def encryption_of(record: Record) -> dict[str, Any] | None:
    """The scheme that replies were encrypted with and the guards that were off for it; None where they were plain."""
    entry = record.get("encryption")
    if not isinstance(entry, Mapping):
        return None
    return {"scheme": str(entry.get("scheme", "?")), "guards_off": [str(one) for one in entry.get("guards_off") or []]}


def number(value: object) -> float | None:
    """``value`` as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def moved_bytes(answer: Mapping[str, Any], way: str) -> float:
    """Bytes that a site was sent (``down``) or sent (``up``) in a round: as encoded, of older records the tensors'."""
    encoded = number(answer.get(f"payload_{way}"))
    return encoded if encoded is not None else number(answer.get(f"bytes_{way}")) or 0.0


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers among ``values``, or None where there is none."""
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def dice_table(record: Record) -> list[DiceRow]:
    """One row per site, structure and model of each site's last accepted evaluation.

    Sites in the record's order, structures in the order of its label map, models in that of ``MODELS``.
    """
    rows = []
    for site, metrics in evaluations(record).items():
        found: dict[tuple[str, str], dict[str, float | None]] = {}
        for key, value in metrics.items():
            spread = key.startswith("spread/")
            parts = key.removeprefix("spread/").split("/", 2)
            if len(parts) == 3 and parts[0] in ("dice", "hd95", "failures"):
                name = f"{parts[0]}_sd" if spread else parts[0]
                found.setdefault((parts[2], parts[1]), {})[name] = number(value)
        cases = number(metrics.get("cases"))
        for structure, model in sorted(found, key=_order(record)):
            scores = found[structure, model]
            rows.append(
                DiceRow(
                    site=site,
                    structure=structure,
                    model=model,
                    dice=scores.get("dice"),
                    hd95=scores.get("hd95"),
                    failures=int(scores.get("failures") or 0),
                    cases=None if cases is None else int(cases),
                    dice_sd=scores.get("dice_sd"),
                    hd95_sd=scores.get("hd95_sd"),
                )
            )
    return rows


def models_in(rows: Sequence[DiceRow]) -> list[str]:
    """Models that occur, in reporting order."""
    return ordered(row.model for row in rows)


def ordered(models: Iterable[str]) -> list[str]:
    """Each of ``models`` once, in reporting order."""
    found = set(models)
    return [model for model in MODELS if model in found] + sorted(found - set(MODELS))


def points_of(record: Record) -> list[PointRow]:
    """Landmarks of each site's last accepted evaluation; empty of a study without any."""
    return point_table(evaluations(record))


def calcium_of(record: Record) -> list[CalciumRow]:
    """Errors in calcium of each site's last accepted evaluation; empty of a study without any."""
    return calcium_table(evaluations(record))


def structures_in(rows: Sequence[DiceRow]) -> list[str]:
    """Structures that occur, in the order of the rows."""
    return list(dict.fromkeys(row.structure for row in rows))


def site_means(rows: Sequence[DiceRow], model: str) -> dict[str, float]:
    """Site -> mean Dice over its structures under one model; a site without any measured Dice is left out."""
    means = {
        site: mean(row.dice for row in rows if row.site == site and row.model == model)
        for site in dict.fromkeys(row.site for row in rows)
    }
    return {site: value for site, value in means.items() if value is not None}


def site_spread(rows: Sequence[DiceRow], model: str) -> float | None:
    """Sample standard deviation of the sites' mean Dice under a model, or None below two sites."""
    values = list(site_means(rows, model).values())
    return statistics.stdev(values) if len(values) > 1 else None


def study_mean(rows: Sequence[DiceRow], model: str) -> float | None:
    """Mean over sites of the sites' means: every hospital counts alike."""
    return mean(site_means(rows, model).values())


def mean_title(tested: int, sites: int) -> str:
    """What a mean over ``tested`` of a study's ``sites`` is called."""
    if sites == 1:
        return "mean"
    return "mean over sites" if tested == sites else f"mean over {tested} of {sites} sites"


def worst_site(rows: Sequence[DiceRow], model: str) -> tuple[str, float] | None:
    """The site with the lowest mean Dice under a model, and that mean."""
    means = site_means(rows, model)
    return min(means.items(), key=lambda item: (item[1], item[0])) if means else None


def label_of(model: str) -> str:
    """The model's name for people."""
    return MODELS.get(model, model)


def counted(number: int, what: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds + 0.5)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(value: object) -> str:
    """A time of the record, ISO 8601 with its zone, to the minute and in UTC; what is none is given as it is."""
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        return "unknown time" if value is None else str(value)
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def decimal(value: float | None, places: int = 3) -> str:
    """A number with fixed places, or a dash."""
    return "-" if value is None else f"{value:.{places}f}"


def evaluations(record: Record) -> dict[str, Mapping[str, Any]]:
    """Site -> the figures of its last accepted evaluation, in the record's order; a site that told none is left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in rounds_of(record):
        for site in sites_of(record):
            answer = reply(one, site)
            metrics = answer.get("metrics") or {}
            if answer.get("accepted") and any(key.startswith(("dice/", "points/", "calcium/")) for key in metrics):
                found[site] = metrics
    return {site: found[site] for site in sites_of(record) if site in found}


def withholding(record: Record) -> list[str]:
    """Sites whose reply to the test was accepted and told no figure: too few cases, or their own people's word."""
    told = evaluations(record)
    return [
        site
        for site in sites_of(record)
        if site not in told and any(reply(one, site).get("accepted") for one in rounds_of(record, TEST))
    ]


def withheld_whole(record: Record) -> list[str]:
    """What to say, a sentence a line, where every site that was tested withheld its figures; empty where one told."""
    silent, sites = withholding(record), len(sites_of(record))
    if not silent or evaluations(record):
        return []
    tested = f"all {sites} sites were" if len(silent) == sites else f"{len(silent)} of {sites} sites were"
    if len(silent) == 1:
        tested = f"{silent[0]} was" if sites > 1 else "the site was"
    return [
        f"No test score came here: {tested} tested, and {'each ' if len(silent) > 1 else ''}withheld its figures.",
        "Fewer test patients stand behind them than the site's privacy.min_count, or its site file",
        "lets no figure out (privacy.metrics).",
        "To see scores here: list at least min_count test patients at a site, or let its own people",
        "decide on a lower min_count. Each site has its own scores in its models_dir.",
    ]


def _order(record: Record) -> Any:
    structures = list(record.get("structures") or (record.get("labels") or {}).values())
    models = list(MODELS)

    def rank(key: tuple[str, str]) -> tuple[int, str, int, str]:
        structure, model = key
        place = structures.index(structure) if structure in structures else len(structures)
        return place, structure, models.index(model) if model in models else len(models), model

    return rank


def short(text: str, width: int = 24) -> str:
    """One line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."
