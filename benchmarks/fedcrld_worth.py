"""What FedCRLD is worth: it, local training, FedAvg and FedBN with one network, its rounds and its steps.

    python benchmarks/fedcrld_worth.py sunnybrook --sites DIR/sites --minutes 110
    python benchmarks/fedcrld_worth.py sunnybrook --table
    python benchmarks/fedcrld_worth.py sunnybrook --sites DIR/sites --methods no_contrast bank_slow

Every method is the same job under other settings (benchmarks/studies/, app_configs/presets/fedcrld/), run in one
process per method and seed (`fedmedseg.core.in_process`). A finished cell is a JSON file under
benchmarks/results/fedcrld_worth/; a call continues with those that are missing or whose settings have changed, starts
none after --minutes, and works on --workers cells at once. --table prints the table of what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import platform
import shutil
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worth import dice_of, difference, mean_dice, mean_of, patients_of, place_sites, read_results

from fedmedseg.core.checkpoint import content_sha256, write_atomic
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, find_preset, read_settings, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.core.schema import read_yaml

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fedcrld_worth"
SYSTEM = "fedcrld"
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""

METHODS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "fedcrld": ([], {}),
    "local": (["local"], {}),
    "fedavg": (["fedavg"], {}),
    "fedbn": (["fedbn"], {}),
}
"""Presets and settings of each method."""

BASELINE = "local"
PROBES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "no_contrast": ([], {"fedcrld": {"loss": {"contrast": "off"}}}),
    "no_distillation": ([], {"fedcrld": {"loss": {"distillation_weight": 0.0}}}),
    "no_history": ([], {"fedcrld": {"loss": {"history_weight": 0.0}}}),
    "bank_slow": ([], {"fedcrld": {"bank": {"momentum": 0.99}}}),
    "moon": ([], {"fedcrld": {"loss": {"contrast": "moon"}}}),
    "published_losses": ([], {"fedcrld": {"loss": {"form": "published"}}}),
    "encoder_alone": (["fedavg"], {"fedcrld": {"share": "encoder"}}),
    "everything_with_terms": ([], {"fedcrld": {"share": "everything"}}),
}
"""Why it does as it does: each term left out, a slow bank, a contrast with a negative, the losses as published; the
encoder shared without any term, and all terms with everything shared."""

NAMES = {
    "fedcrld": "FedCRLD",
    "local": "local training",
    "fedavg": "FedAvg",
    "fedbn": "FedBN",
    "no_contrast": "FedCRLD without contrast",
    "no_distillation": "FedCRLD without momentum distillation",
    "no_history": "FedCRLD without history",
    "bank_slow": "FedCRLD, bank momentum 0.99",
    "moon": "FedCRLD, MOON's contrast",
    "published_losses": "FedCRLD, losses as published",
    "encoder_alone": "shared encoder, segmentation loss alone",
    "everything_with_terms": "FedCRLD, everything shared",
}


@dataclass(frozen=True)
class Cell:
    """One method under one seed."""

    study: str
    method: str
    seed: int

    @property
    def file(self) -> Path:
        """Where its result lies."""
        return RESULTS / self.study / f"{self.method}-seed{self.seed}.json"

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them."""
        study = read_yaml(HERE / "studies" / f"{SYSTEM}_{self.study}.yaml")
        presets, changes = (METHODS | PROBES)[self.method]
        data = read_yaml(find_preset(SYSTEM, study["preset"]))
        method = [read_yaml(find_preset(SYSTEM, name)) for name in presets]
        own = {"study": f"{SYSTEM}-worth-{self.study}", "seed": self.seed}
        return read_settings(find_job(SYSTEM), [data, study["settings"], *method, changes, own])[0]

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, and of ``REVISION``."""
        return hashlib.sha256(json.dumps([REVISION, self.settings()], sort_keys=True).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether a result of exactly these settings is there."""
        return self.file.is_file() and json.loads(self.file.read_text())["settings_sha256"] == self.key


def cells_of(study: str, methods: Iterable[str]) -> list[Cell]:
    """All cells, the first seed of every method before the second of any."""
    content = read_yaml(HERE / "studies" / f"{SYSTEM}_{study}.yaml")
    return [Cell(study, method, seed) for seed in content["seeds"] for method in methods]


def run_cell(cell: Cell, sites: Path, work: Path, deadline: float) -> None:
    """Train, test, and write the result; nothing where the deadline has passed."""
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    if time.time() > deadline:
        return
    folder = work / cell.study / f"{cell.method}-{cell.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    job = write_job(find_job(SYSTEM), cell.settings(), folder / "job")
    names = place_sites(sites, folder / "w", work / "cache")
    run = f"{cell.method}{cell.seed}".replace("_", "")
    federation = InProcessFederation(job=job, workspace=folder / "w", sites=names, run=run)
    began = time.monotonic()
    rounds = {stage: federation.run_stage(stage) for stage in federation.contracts}
    tested, trained = rounds["evaluation"][-1], rounds["relocalization"]
    result = {
        "study": cell.study,
        "method": cell.method,
        "seed": cell.seed,
        "settings_sha256": cell.key,
        "experiment_sha256": federation.experiment.digest,
        "shared_sha256": content_sha256(federation.shared),
        "sites": {site: {name: round(value, 5) for name, value in tested[site].items()} for site in names},
        "validation": {
            site: [round(one[site]["validation_dice/personal"], 5) for one in trained
                   if "validation_dice/personal" in one[site]]
            for site in names
        },
        "best_round": {site: trained[-1][site].get("best_round/personal") for site in names},
        "last_round": trained[-1],
        "patients": {
            site: {figure: patients_of(federation, site, figure) for figure in ("dice", "hd95")} for site in names
        },
        "seconds": round(time.monotonic() - began, 1),
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {federation.experiment.compute.threads} thread",
    }  # fmt: skip
    write_atomic(cell.file, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    print(f"{time.strftime('%H:%M:%S')} {cell.file.stem}: mean Dice {mean_dice(result):.3f}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def table(study: str, methods: Iterable[str]) -> str:
    """Markdown: each method's Dice per site, mean and worst, HD95 in mm, over seeds (mean and SD)."""
    known = read_results(RESULTS / study)
    found = [one for one in known if one["method"] in set(methods)]
    if not found:
        return "no finished cell"
    baseline = [one for one in known if one["method"] == BASELINE]
    sites = sorted(found[0]["sites"])
    lines = [
        f"| method | {' | '.join(sites)} | mean Dice | worst site | HD95 (mm) | worst HD95 | "
        f"against {NAMES[BASELINE]} | seeds |",
        "|---" * (len(sites) + 7) + "|",
    ]
    for method, name in NAMES.items():
        runs = [one for one in found if one["method"] == method]
        if not runs:
            continue
        per_site = [statistics.fmean(dice_of(one["sites"][site]) for one in runs) for site in sites]
        means = [mean_dice(one) for one in runs]
        worst = [min(dice_of(one["sites"][site]) for site in sites) for one in runs]
        far = [[mean_of(one["sites"][site], "hd95") for site in sites] for one in runs]
        spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
        lines.append(
            f"| {name} | {' | '.join(f'{value:.3f}' for value in per_site)} "
            f"| {statistics.fmean(means):.3f}{spread} | {statistics.fmean(worst):.3f} "
            f"| {statistics.fmean(map(statistics.fmean, far)):.1f} | {statistics.fmean(map(max, far)):.1f} "
            f"| {difference(runs, baseline)} | {len(runs)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = sorted(file.stem.removeprefix(f"{SYSTEM}_") for file in (HERE / "studies").glob(f"{SYSTEM}_*"))
    parser.add_argument("study", choices=studies)
    parser.add_argument("--sites", type=Path, help="folder of site files, as the import writes them")
    parser.add_argument("--work", type=Path, default=Path("runs/fedcrld_worth"), help="states and cached volumes")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS | PROBES), default=list(METHODS))
    parser.add_argument("--minutes", type=float, default=110.0, help="begin no cell after so many minutes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.table:
        if options.sites is None or not list(options.sites.glob("*.yaml")):
            parser.error("--sites must name a folder of site files (<site>.yaml), as `fedmedseg data import` writes it")
        deadline = time.time() + 60 * options.minutes
        cells = [cell for cell in cells_of(options.study, options.methods) if not cell.is_done()]
        print(f"{len(cells)} cells are missing", flush=True)
        work = options.work.resolve()
        # spawn: a forked torch may hang in its thread pool
        with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
            jobs = [(cell, options.sites.resolve(), work, deadline) for cell in cells]
            pool.starmap(run_cell, jobs, chunksize=1)
    print(table(options.study, options.methods))


if __name__ == "__main__":
    main()
