"""What a running study tells those who look on: where it is and how its sites stand, of nothing that a site withheld.

The server answers FLARE's own question for a job's statistics, which needs the right to view and no other. All figures
are means over at least three sites whose replies counted, so that nobody can read or reckon another's own; what a
site's filters kept back (counts and figures of too few cases) never reached the server and so is not in them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

GROUP = "fedmedseg"
"""Under which the study's own words stand among FLARE's statistics of a job."""
AT_WORK, REPLIED = "at work", "replied"
FEWEST = 3
"""Sites whose mean is told: of one it is that site's figure, and of two each knows the other's."""


def status(
    *,
    study: str,
    stage: str,
    number: int,
    rounds: Mapping[str, int],
    steps: Mapping[str, int],
    seconds: float,
    asked: Collection[str],
    replies: Mapping[str, Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The state of a study in the middle of a round, as JSON.

    Args:
        study: its name.
        stage: the stage that runs.
        number: its round, from 0.
        rounds: rounds of every stage, in their order.
        steps: steps one site does in one round of each stage.
        seconds: since the round began.
        asked: the sites of the round.
        replies: what has come: ``reason`` (None where it counts) per site.
        history: records of the rounds before (``core.rounds.round_record``).
    """
    walls = {name: [float(one["wall_seconds"]) for one in history if one["stage"] == name] for name in rounds}
    told = next((one for one in reversed(history) if _means(one)), None)
    return {
        "study": study,
        "stage": stage,
        "round": number,
        "rounds": rounds[stage],
        "stages": list(rounds),
        "seconds": round(seconds, 1),
        "sites": {site: _state(replies.get(site)) for site in sorted({*asked, *replies})},
        "metrics": {} if told is None else _means(told),
        "metrics_of": None if told is None else {"stage": told["stage"], "round": told["round"]},
        "too_few": told is None and any(map(_sent, history)),
        "left": seconds_left(rounds=rounds, steps=steps, walls=walls, current=seconds),
        "time": time.time(),
    }


def seconds_left(
    *, rounds: Mapping[str, int], steps: Mapping[str, int], walls: Mapping[str, Sequence[float]], current: float
) -> float | None:
    """Seconds until the last round ends, or None before any round has ended.

    A stage's rounds take as long as those of it that ended; one that has not begun takes as long a step as the others.

    Args:
        rounds: rounds of each stage, in their order.
        steps: steps of one round of each stage.
        walls: seconds of the rounds that ended, by stage.
        current: seconds since the present round began.
    """
    ended = {stage: list(walls.get(stage, ())) for stage in rounds}
    paced = [stage for stage in rounds if ended[stage] and steps.get(stage)]
    taken = sum(sum(ended[stage]) for stage in paced)
    pace = taken / sum(len(ended[stage]) * steps[stage] for stage in paced) if paced else None
    left, first = 0.0, True
    for stage, number in rounds.items():
        missing = number - len(ended[stage])
        if missing <= 0:
            continue
        if ended[stage]:
            each = sum(ended[stage]) / len(ended[stage])
        elif pace is None:
            return None
        else:
            each = pace * steps.get(stage, 0)
        left += missing * each - (min(current, each) if first else 0.0)
        first = False
    return round(left, 1)


def _state(reply: Mapping[str, Any] | None) -> str:
    if reply is None:
        return AT_WORK
    # the code alone: what follows it is for the record
    return REPLIED if reply["reason"] is None else str(reply["reason"]).partition(":")[0]


def _means(record: Mapping[str, Any]) -> dict[str, float]:
    """Each figure of a round that at least ``FEWEST`` sites sent, as their mean."""
    sent = sorted(_sent(record).items())
    return {name: round(sum(values) / len(values), 4) for name, values in sent if len(values) >= FEWEST}


def _sent(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Every figure of a round, of the sites that sent it."""
    sent: dict[str, list[float]] = {}
    for site in record["sites"].values():
        for name, value in site["metrics"].items():
            if isinstance(value, int | float) and math.isfinite(value):
                sent.setdefault(name, []).append(float(value))
    return sent
