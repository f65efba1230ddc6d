"""What each round cost, and each site over the whole run: bytes as encoded, and seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmedseg.reporting.alarms import round_of, stage_of
from fedmedseg.reporting.tables import Record, duration, moved_bytes, number, reply, rounds_of, sites_of, size


@dataclass(frozen=True, kw_only=True)
class RoundCost:
    """One round: bytes of all sites together; seconds of its slowest site, since sites work at the same time."""

    stage: str
    number: int
    accepted: int
    asked: int
    down: float
    up: float
    training: float
    moving: float
    aggregating: float
    whole: float | None
    """Seconds from the first question to the checkpoint."""


def costs_of(record: Record) -> list[RoundCost]:
    """Of every round, in order."""
    costs = []
    for one in rounds_of(record):
        answers = [answer for answer in (one.get("sites") or {}).values() if isinstance(answer, Mapping)]
        slowest = max(answers, key=_seconds, default={})
        costs.append(
            RoundCost(
                stage=stage_of(one),
                number=round_of(one),
                accepted=sum(bool(answer.get("accepted")) for answer in answers),
                asked=len(answers),
                down=math.fsum(moved_bytes(answer, "down") for answer in answers),
                up=math.fsum(moved_bytes(answer, "up") for answer in answers),
                training=number(slowest.get("train_seconds")) or 0.0,
                moving=number(slowest.get("move_seconds")) or 0.0,
                aggregating=number(one.get("aggregate_seconds")) or 0.0,
                whole=number(one.get("wall_seconds")),
            )
        )
    return costs


def by_round(record: Record) -> list[dict[str, str]]:
    """``costs_of`` as a table's cells."""
    return [
        {
            "stage": cost.stage,
            "round": str(cost.number),
            "accepted": f"{cost.accepted} of {cost.asked}",
            "down": size(cost.down),
            "up": size(cost.up),
            "training": duration(cost.training),
            "moving": duration(cost.moving),
            "aggregating": duration(cost.aggregating),
            "whole": "-" if cost.whole is None else duration(cost.whole),
        }
        for cost in costs_of(record)
    ]


def by_site(record: Record) -> list[dict[str, str]]:
    """Per site: replies, examples, bytes each way, seconds training and moving over the whole run.

    A number of examples that no accepted reply told was withheld by the site.
    """
    lines = []
    for site in sites_of(record):
        answers = [answer for one in rounds_of(record) if (answer := reply(one, site))]
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
        accepted = sum(bool(answer.get("accepted")) for answer in answers)
        examples = [int(value) for answer in answers if (value := number(answer.get("examples"))) is not None]
        lines.append(
            {
                "site": site,
                "replies": f"{accepted} of {len(answers)}",
                "examples": str(max(examples)) if examples else "withheld" if accepted else "-",
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


def _seconds(answer: Mapping[str, Any]) -> float:
    return (number(answer.get("train_seconds")) or 0.0) + (number(answer.get("move_seconds")) or 0.0)
