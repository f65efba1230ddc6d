"""Run records with numbers worked out by hand, as the server writes them."""

from __future__ import annotations

from typing import Any

STRUCTURES = {"1": "left_ventricle", "2": "myocardium", "3": "right_ventricle"}
LEVEL = {"personal": 0.86, "shared": 0.82, "scratch": 0.78, "untrained": 0.06}


def answer(**changes: Any) -> dict[str, Any]:
    base = {
        "accepted": True,
        "declined": False,
        "reason": None,
        "bytes_down": 3 * 2**20,
        "bytes_up": 2 * 2**20,
        "train_seconds": 4.0,
        "move_seconds": 1.0,
        "examples": 10,
        "weight": None,
        "metrics": {},
    }
    return base | changes


def one_round(stage: str, number: int, rounds: int, sites: dict[str, Any], **changes: Any) -> dict[str, Any]:
    accepted = sorted(site for site, reply in sites.items() if reply["accepted"])
    return {
        "stage": stage,
        "round": number,
        "rounds": rounds,
        "attempts": 1,
        "needed": 2,
        "accepted": accepted,
        "sites": sites,
        "aggregate_seconds": 0.25,
        "wall_seconds": 6.0,
        "shared_sha256": "ab" * 32,
        "notes": {},
    } | changes


def scores(shift: float) -> dict[str, float]:
    """Dice falls by 0.1 from structure to structure and by ``shift`` as a whole; HD95 is 10 times what is missing."""
    metrics: dict[str, float] = {"cases": 4.0}
    for model, level in LEVEL.items():
        for place, structure in enumerate(STRUCTURES.values()):
            dice = max(0.0, round(level - 0.1 * place - shift, 4))
            metrics[f"dice/{model}/{structure}"] = dice
            metrics[f"hd95/{model}/{structure}"] = round(10 * (1 - dice), 4)
            metrics[f"failures/{model}/{structure}"] = 2.0 if model == "untrained" else 0.0
    return metrics


def finished(sites: tuple[str, ...] = ("site-1", "site-2", "site-3"), rounds: int = 6) -> dict[str, Any]:
    """A run in which the last site fails round 2, declines nothing, and the second site's targets collapse late."""
    history = []
    for number in range(rounds):
        replies = {}
        for place, site in enumerate(sites):
            alarm = float(place == 1 and number == rounds - 1)
            metrics = {
                "loss": 0.9 / (1 + number) + 0.05 * place,
                "teacher_std": 0.02 if alarm else 0.8 - 0.02 * number + 0.03 * place,
                "collapse_alarm": alarm,
            }
            replies[site] = answer(metrics=metrics, weight=1 / len(sites))
        if number == 1:
            reason = "NOT_FINITE: encoder.norm"
            replies[sites[-1]] = answer(accepted=False, reason=reason, bytes_up=0, train_seconds=0.0, examples=None)
        groups = {f"layer {layer}": {site: 1 / len(sites) for site in sites} for layer in range(5)}
        history.append(one_round("pretraining", number, rounds, replies, notes={"attention": groups, "weighting": []}))
    history.append(one_round("fine_tuning", 0, 1, {site: answer(bytes_up=0, train_seconds=9.0) for site in sites}))
    tested = {site: answer(bytes_down=0, bytes_up=0, metrics=scores(0.02 * place)) for place, site in enumerate(sites)}
    history.append(one_round("evaluation", 0, 1, tested))
    return {
        "study": "cardiac-study",
        "system": "fedata",
        "seed": 1,
        "experiment_sha256": "cd" * 32,
        "shared_sha256": "ab" * 32,
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "hardware": "x86_64, Linux",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 125.0,
        "outcome": "finished",
        "reason": None,
        "labels": STRUCTURES,
        "sites": list(sites),
        "rounds": history,
    }


def stopped() -> dict[str, Any]:
    """A run that lost its quorum in the second round of pretraining."""
    record = finished()
    record["rounds"] = record["rounds"][:2]
    return record | {"outcome": "stopped", "reason": "pretraining round 1: 1 of 3 needed replies were accepted"}


POINTS = ("RCC", "LCC", "NCC", "RCA", "LCA", "MS1", "MS2", "all points")
CARDIAC_SITES = ("site-1", "a-hospital-with-a-name-that-is-rather-long", "site-3")


def cardiac_scores(place: int) -> dict[str, float]:
    """Points, masks with their spread, and calcium. The first site withholds small counts; at the last the transformer
    finds no point at all."""
    metrics: dict[str, float] = {} if place == 0 else {"cases": 8.0}
    for number, model in enumerate(("cnn", "student", "untrained")):
        nowhere = model == "untrained" or (model == "student" and place == 2)
        for point in POINTS:
            where = f"{model}/{point}"
            metrics[f"points/{where}"] = 8.0
            if not nowhere:
                told = {"median": 2.0 + number + place, "q25": 1.5, "mean": 3.2 + number}
                metrics |= {f"distance/{what}/{where}": value for what, value in told.items()}
            if nowhere or place:
                metrics[f"missed/{where}"] = 8.0 if nowhere else 2.0
        for structure in ("calcification", "coronaries"):
            where = f"{model}/{structure}"
            metrics |= {f"dice/{where}": 0.6 - 0.2 * number, f"hd95/{where}": 8.4 + 11.0 * number}
            metrics |= {f"spread/dice/{where}": 0.071, f"spread/hd95/{where}": 2.25}
            if place:
                metrics[f"failures/{where}"] = float(number)
        metrics |= {f"calcium/volume_error/{model}": 85.2 + number, f"calcium/agatston_error/{model}": 120.4}
    return metrics


def cardiac_ct() -> dict[str, Any]:
    """All that a page can hold and ``finished`` does not: points, calcium, spreads, what was withheld, encryption, and
    notes on updates unlike the others and on parts that may not correspond."""
    first, second, third = CARDIAC_SITES
    history = []
    for number in range(2):
        replies = {site: answer(metrics={"loss": 0.4 - 0.2 * number}, weight=0.5) for site in (first, second)}
        replies[third] = answer(accepted=False, declined=True, reason="NO_CASES: section training", examples=None)
        history.append(one_round("teacher_hps", number, 2, replies))
    for number in range(3):
        metrics = {"loss": -0.5 - 0.1 * number, "validation_dice/student": 0.3 + 0.1 * number}
        replies = {site: answer(metrics=metrics, weight=1 / 3) for site in CARDIAC_SITES}
        notes = {
            "outliers": {third: f"{number + 4} times the median length"},
            "correspondence": ["site-3 lacks a part"],
            "heads_left": ["septum"] if number else [],
        }
        history.append(one_round("distillation", number, 3, replies, notes=notes, unchanged=number))
    tested = {site: answer(metrics=cardiac_scores(place)) for place, site in enumerate(CARDIAC_SITES)}
    tested[first] |= {"examples": None}
    history.append(one_round("evaluation", 0, 1, tested))
    guards = ["norm of the differences (at the site before encryption)", "rules that compare replies"]
    return finished() | {
        "study": "hearts-in-ct",
        "system": "cardiac_ct",
        "labels": {"1": "calcification", "2": "coronaries"},
        "sites": list(CARDIAC_SITES),
        "rounds": history,
        "encryption": {"scheme": "ckks", "guards_off": guards},
        "models": [{"file": "models/shared.safetensors", "bytes": 10**7}],
    }
