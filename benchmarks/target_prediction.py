"""What predicting the target network saves and costs: fidelity of the prediction, bytes of every mode, Dice afterwards.

    python benchmarks/target_prediction.py --minutes 110
    python benchmarks/target_prediction.py --table
    python benchmarks/target_prediction.py --parts traffic --minutes 30

Three parts, in cells: ``fidelity`` runs the sites' targets beside their prediction for some rounds and measures, as a
share of how far the target moved in a round, how far the prediction lies from the mean of the sites' own targets:
naive, closed form, and closed form with the measured distance. ``traffic`` runs every mode over 40 rounds and adds up
the bytes of tasks and replies as FLARE encodes them. ``dice`` runs ``both`` and ``ptnu_dp`` over 40 rounds and then the
fine-tuning and the test of the same study, under three seeds.

All of it on phantoms of cine cardiac MR at two sites, in one process (`fedmedseg.core.in_process`): each message is
encoded with FLARE's own encoder and its length taken (`fedmedseg.core.traffic`), none is sent. A finished cell is a
JSON file under benchmarks/results/target_prediction/; a call continues with those that are missing or whose settings
have changed, and starts none after --minutes. --table prints the tables of what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worth import mean_of

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, merged, read_settings, write_job
from fedmedseg.core.records import installed_versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "target_prediction"
SYSTEM, STAGE = "fclopt", "pretraining"
SITES = ["site-1", "site-2"]
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""
MODES = ("both", "ptnu", "ptnu_dp", "closed_form", "naive", "keep_local", "online")
SEEDS = (1, 2, 3)
FIDELITY = ((20, 0.99), (20, 0.996), (40, 0.99))
"""T and m, as in the specification's toy check."""
LIMIT = 0.55
"""Of the bytes of ``both``, at most, with anchors every tenth round over 40 rounds or more."""

SMALL: dict[str, Any] = {
    "study": "target-prediction",
    "data": {
        "crop": [48, 48],
        "phantom": {"family": "cine_mr", "sites": 2, "unlabeled": 6, "training": 4, "validation": 2, "test": 4},
    },
    "network": {"features": [8, 16, 32, 64, 64]},
    "fclopt": {"hidden": 32, "projection": 32, "volumes_per_step": 3, "parts": 2, "momentum": 0.99},
    "segmentation": {"steps": 80, "validate_every": 40, "test_untrained": False},
}
"""A network of which a step takes some hundredths of a second; heads small beside the encoder, as at full size."""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    part: str
    name: str
    changes: dict[str, Any]
    results: Path | None = None
    """Folder of all results; unset: ``RESULTS``."""

    @property
    def file(self) -> Path:
        """Where its result lies."""
        return (self.results or RESULTS) / self.part / f"{self.name}.json"

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them."""
        return read_settings(find_job(SYSTEM), [merged(SMALL, self.changes)])[0]

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, and of ``REVISION``."""
        return hashlib.sha256(json.dumps([REVISION, self.settings()], sort_keys=True).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether a result of exactly these settings is there."""
        return self.file.is_file() and json.loads(self.file.read_text())["settings_sha256"] == self.key


def fidelity_cells() -> list[Cell]:
    """Mode ``ptnu``, in which sites return their targets in every round, at several T and m."""
    found = []
    for steps, momentum in FIDELITY:
        for seed in SEEDS[:2]:
            changes = {
                "seed": seed,
                "stages": {STAGE: {"rounds": 8}},
                "fclopt": {"mode": "ptnu", "local_steps": steps, "momentum": momentum},
            }
            found.append(Cell("fidelity", f"steps{steps}-momentum{momentum}-seed{seed}", changes))
    return found


def traffic_cells() -> list[Cell]:
    """Every mode over 40 rounds of a single step: the bytes do not depend on how long a round is."""
    return [
        Cell("traffic", mode, {"stages": {STAGE: {"rounds": 40}}, "fclopt": {"mode": mode, "local_steps": 1}})
        for mode in MODES
    ]


def dice_cells() -> list[Cell]:
    """``both`` and ``ptnu_dp`` under the same seeds, the first seed of each before the second of any."""
    return [
        Cell(
            "dice",
            f"{mode}-seed{seed}",
            {"seed": seed, "stages": {STAGE: {"rounds": 40}}, "fclopt": {"mode": mode, "local_steps": 6}},
        )
        for seed in SEEDS
        for mode in ("both", "ptnu_dp")
    ]


PARTS: dict[str, Callable[[], list[Cell]]] = {
    "fidelity": fidelity_cells,
    "traffic": traffic_cells,
    "dice": dice_cells,
}


def run_cell(cell: Cell, work: Path) -> None:
    """Run its study and write the result."""
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    folder = work / cell.part / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    job = write_job(find_job(SYSTEM), cell.settings(), folder / "job")
    run = "".join(letter for letter in cell.name if letter.isalnum())
    # one workspace name for all, so that phantoms and prepared volumes are made once
    federation = InProcessFederation(job=job, workspace=work / "w", sites=SITES, run=run)
    began = time.process_time()
    rounds = federation.run_stage(STAGE)
    notes = [one["notes"].get("target", {}) for one in federation.history]
    result: dict[str, Any] = {
        "part": cell.part,
        "name": cell.name,
        "settings_sha256": cell.key,
        "experiment_sha256": federation.experiment.digest,
        "mode": federation.experiment.wing.mode,
        "seed": federation.experiment.seed,
        "local_steps": federation.experiment.wing.local_steps,
        "momentum": federation.experiment.wing.momentum,
        "rounds": len(rounds),
        "traffic": list(federation.traffic),  # so far: the stages after this one go on counting
        "loss": [round(statistics.fmean(one[site]["loss"] for site in SITES), 5) for one in rounds],
        "spread": [round(statistics.fmean(one[site]["feature_std"] for site in SITES), 5) for one in rounds],
        "error": [one["error"] for one in notes if "error" in one],
        "corrected_error": [one["corrected_error"] for one in notes if "corrected_error" in one],
        "naive_error": [one["naive_error"] for one in notes if "naive_error" in one],
        "shared_sha256": content_sha256(federation.shared),
    }
    if cell.part == "dice":
        federation.run_stage("fine_tuning")
        tested = federation.run_stage("evaluation")[-1]
        result["dice"] = {
            start: {
                site: round(mean_of({k: v for k, v in tested[site].items() if f"/{start}/" in k}, "dice"), 5)
                for site in SITES
            }
            for start in ("shared", "scratch")
        }
    result |= {
        "cpu_seconds": round(time.process_time() - began, 1),
        "machine": platform.machine(),
        "versions": installed_versions(),
    }
    write_atomic(cell.file, json.dumps(result, indent=1).encode())


def cells(part: str, folder: Path | None = None) -> list[Cell]:
    """Those of one part, whose results lie in ``folder``."""
    return [replace(cell, results=folder) for cell in PARTS[part]()]


def results(part: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """What there is of one part, in the order of its cells."""
    return [json.loads(cell.file.read_text()) for cell in cells(part, folder) if cell.is_done()]


def moved(result: dict[str, Any], way: str) -> float:
    """Bytes per site and round."""
    return statistics.fmean(one[site][way] for one in result["traffic"] for site in one)


def print_fidelity(folder: Path | None = None) -> None:
    """Errors, averaged over rounds after the first and over seeds."""
    print("| T | m | naive | closed form | with distance | seeds |\n|---|---|---|---|---|---|")
    found = results("fidelity", folder)
    for steps, momentum in FIDELITY:
        ours = [one for one in found if (one["local_steps"], one["momentum"]) == (steps, momentum)]
        if ours:
            errors = [
                statistics.fmean(statistics.fmean(one[name][1:]) for one in ours)
                for name in ("naive_error", "error", "corrected_error")
            ]
            print(f"| {steps} | {momentum} | " + " | ".join(f"{error:.3f}" for error in errors) + f" | {len(ours)} |")


def print_traffic(folder: Path | None = None) -> None:
    """Bytes of each mode per site and round, and as a share of ``both``."""
    print("| mode | up | down | both ways | of `both` |\n|---|---|---|---|---|")
    found = {one["mode"]: one for one in results("traffic", folder)}
    whole = sum(moved(found["both"], way) for way in ("up", "down")) if "both" in found else None
    for mode, one in found.items():
        up, down = moved(one, "up"), moved(one, "down")
        share = "" if whole is None else f"{(up + down) / whole:.3f}"
        print(f"| `{mode}` | {up / 1e3:.1f} kB | {down / 1e3:.1f} kB | {(up + down) / 1e3:.1f} kB | {share} |")


def print_dice(folder: Path | None = None) -> None:
    """Mean test Dice after fine-tuning, per mode and seed."""
    print("| seed | `both` | `ptnu_dp` | difference | scratch |\n|---|---|---|---|---|")
    found = {(one["mode"], one["seed"]): one["dice"] for one in results("dice", folder)}
    differences = []
    for seed in SEEDS:
        pair = [found.get((mode, seed)) for mode in ("both", "ptnu_dp")]
        if None in pair:
            continue
        both, predicted = (statistics.fmean(one["shared"].values()) for one in pair if one is not None)
        scratch = statistics.fmean(pair[0]["scratch"].values()) if pair[0] else float("nan")
        differences.append(predicted - both)
        print(f"| {seed} | {both:.3f} | {predicted:.3f} | {predicted - both:+.3f} | {scratch:.3f} |")
    if len(differences) > 1:
        spread = statistics.stdev(differences)
        print(f"\ndifference over {len(differences)} seeds: {statistics.fmean(differences):+.3f} ± {spread:.3f}")


def main() -> None:
    """Run what is missing, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=110.0, help="start no cell after so many")
    parser.add_argument("--work", type=Path, default=Path("runs/target_prediction"), help="phantoms and caches")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    given = parser.parse_args()
    if not given.table:
        deadline = time.monotonic() + 60.0 * given.minutes
        for cell in [cell for part in given.parts for cell in cells(part, given.results)]:
            if cell.is_done() or time.monotonic() > deadline:
                continue
            began = time.monotonic()
            run_cell(cell, given.work)
            print(f"{cell.part} {cell.name}: {time.monotonic() - began:.0f} s", flush=True)
    for part, show in (("fidelity", print_fidelity), ("traffic", print_traffic), ("dice", print_dice)):
        if part in given.parts:
            print(f"\n{part}\n")
            show(given.results)


if __name__ == "__main__":
    main()
