"""What FedCRLD is worth: it, local training, FedAvg and FedBN with one network, its rounds and its steps.

    python benchmarks/fedcrld_worth.py sunnybrook --sites DIR/sites --trials
    python benchmarks/fedcrld_worth.py sunnybrook --sites DIR/sites --minutes 110
    python benchmarks/fedcrld_worth.py sunnybrook --table
    python benchmarks/fedcrld_worth.py sunnybrook --sites DIR/sites --methods no_contrast bank_slow

Every method is the same job under other settings (benchmarks/studies/, app_configs/presets/fedcrld/), run in one
process per method and seed (`fedmedseg.core.in_process`). A finished cell is a JSON file under
benchmarks/results/fedcrld_worth/; a call continues with those that are missing or whose settings have changed, starts
none after --minutes, and works on --workers cells at once. --table prints the tables of what there is. --trials runs
the trials of learning rates instead, the same for every method; they see validation cases alone, and the study's file
names the rate of each method that did best there.
"""

from __future__ import annotations

import logging
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worth import (
    HERE,
    AnyCell,
    Method,
    difference,
    digest_of,
    job_settings,
    markdown,
    mean_dice,
    mean_of,
    mean_present,
    options_of,
    paired_lines,
    patients_of,
    place_sites,
    read_results,
    require_sites,
    rounded,
    run_token,
    site_cells,
    studies_of,
    study_file,
    trial_table,
    work_on,
)

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, write_job
from fedmedseg.core.records import installed_versions

RESULTS = HERE / "results" / "fedcrld_worth"
TRIALS = HERE / "results" / "fedcrld_trials"
SYSTEM = "fedcrld"
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""

METHODS: dict[str, Method] = {
    "fedcrld": ([], {}),
    "local": (["local"], {}),
    "fedavg": (["fedavg"], {}),
    "fedbn": (["fedbn"], {}),
}
"""Presets and settings of each method."""

BASELINE = "local"
PROBES: dict[str, Method] = {
    "no_contrast": ([], {"fedcrld": {"loss": {"contrast": "off"}}}),
    "no_distillation": ([], {"fedcrld": {"loss": {"distillation_weight": 0.0}}}),
    "no_history": ([], {"fedcrld": {"loss": {"history_weight": 0.0}}}),
    "bank_slow": ([], {"fedcrld": {"bank": {"momentum": 0.99}}}),
    "moon": ([], {"fedcrld": {"loss": {"contrast": "moon"}}}),
    "published_losses": ([], {"fedcrld": {"loss": {"form": "published"}}}),
    "encoder_alone": (["fedavg"], {"fedcrld": {"share": "encoder"}}),
    "everything_with_terms": ([], {"fedcrld": {"share": "everything"}}),
    "longer": ([], {"stages": {"relocalization": {"rounds": 60}}}),
    "longer_fedavg": (["fedavg"], {"stages": {"relocalization": {"rounds": 60}}}),
}
"""Why it does as it does: each term left out, a slow bank, a contrast with a negative, the losses as published; the
encoder shared without any term, all terms with everything shared; three times the rounds, and as many of FedAvg."""

RATES = {"longer_fedavg": "fedavg"}
"""Probe -> the method whose learning rate it has; FedCRLD's otherwise."""

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
    "longer": "FedCRLD, three times the rounds",
    "longer_fedavg": "FedAvg, three times the rounds",
}


@dataclass(frozen=True)
class Cell(AnyCell):
    """One method under one seed; with a ``trial`` rate, a trial of it."""

    study: str
    method: str
    seed: int
    trial: float | None = None

    @property
    def file(self) -> Path:
        """Where its result lies."""
        if self.trial is not None:
            return TRIALS / self.study / f"{self.method}-{self.trial:g}.json"
        return RESULTS / self.study / f"{self.method}-seed{self.seed}.json"

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them."""
        study = study_file(SYSTEM, self.study)
        # a probe changes one thing about FedCRLD unless its name says whose rate it has
        like = self.method if self.method in METHODS else RATES.get(self.method, SYSTEM)
        rate = study["rates"][like] if self.trial is None else self.trial
        own = {
            "study": f"{SYSTEM}-worth-{self.study}",
            "seed": self.seed,
            SYSTEM: {"optimizer": {"learning_rate": rate}},
        }
        return job_settings(SYSTEM, study, (METHODS | PROBES)[self.method], [own])

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, and of ``REVISION``."""
        return digest_of(REVISION, self.settings())


def cells_of(study: str, methods: Iterable[str], seeds: Iterable[int] | None = None) -> list[Cell]:
    """All cells, of all the study's seeds unless some are named, the first of every method before the second of any."""
    return [Cell(study, method, seed) for seed in seeds or study_file(SYSTEM, study)["seeds"] for method in methods]


def trials_of(study: str, methods: Iterable[str]) -> list[Cell]:
    """Every rate for every method."""
    trials = study_file(SYSTEM, study)["trials"]
    return [Cell(study, method, trials["seed"], float(rate)) for method in methods for rate in trials["rates"]]


def run_cell(cell: Cell, sites: Path, work: Path, deadline: float) -> None:
    """Train, test, and write the result; nothing where the deadline has passed. A trial is not tested."""
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    if time.time() > deadline:
        return
    folder = work / cell.study / cell.file.stem
    shutil.rmtree(folder, ignore_errors=True)
    job = write_job(find_job(SYSTEM), cell.settings(), folder / "job")
    names = place_sites(sites, folder / "w", work / "cache")
    if cell.trial is not None:
        names = study_file(SYSTEM, cell.study)["trials"]["sites"]
    federation = InProcessFederation(job=job, workspace=folder / "w", sites=names, run=run_token(cell))
    began = time.monotonic()
    trained = federation.run_stage("relocalization")
    result: dict[str, Any] = {
        "study": cell.study,
        "method": cell.method,
        "seed": cell.seed,
        "experiment_sha256": federation.experiment.digest,
        "shared_sha256": content_sha256(federation.shared),
        "validation": {
            site: [
                round(one[site]["validation_dice/personal"], 5)
                for one in trained
                if "validation_dice/personal" in one[site]
            ]
            for site in names
        },
        "best_round": {site: trained[-1][site].get("best_round/personal") for site in names},
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {federation.experiment.compute.threads} thread",
    }
    if cell.trial is not None:
        figure = statistics.fmean(map(max, result["validation"].values()))
        result |= {"rate": cell.trial, "chosen_by": round(figure, 5)}
    else:
        tested = federation.run_stage("evaluation")[-1]
        result |= {
            "sites": {site: rounded(tested[site]) for site in names},
            "rounds": [{site: rounded(one[site]) for site in names} for one in trained],
            "patients": {
                site: {figure: patients_of(federation, site, figure) for figure in ("dice", "hd95")} for site in names
            },
        }
        figure = mean_dice(result)
    cell.write({**result, "seconds": round(time.monotonic() - began, 1)}, figure)
    shutil.rmtree(folder, ignore_errors=True)


def patient_figures(result: Mapping[str, Any], figure: str) -> list[float]:
    """Each test patient's mean over structures, site after site: the same order for every method and seed."""
    sites = sorted(result["patients"])
    return [mean_present(patient.values()) for site in sites for patient in result["patients"][site][figure]]


def table(study: str, methods: Iterable[str]) -> str:
    """Markdown: each method's Dice per site, mean and worst, HD95 in mm, over seeds (mean and SD); then by patient."""
    known = read_results(RESULTS / study)
    runs = {name: [one for one in known if one["method"] == name] for name in NAMES if name in set(methods)}
    runs = {name: found for name, found in runs.items() if found}
    if not runs:
        return "no finished cell"
    baseline = [one for one in known if one["method"] == BASELINE]
    sites = sorted(known[0]["sites"])
    header = [
        "method",
        *sites,
        "mean Dice",
        "worst site",
        "HD95 (mm)",
        "worst HD95",
        f"against {NAMES[BASELINE]}",
        "seeds",
    ]
    rows = []
    for name, found in runs.items():
        far = [[mean_of(one["sites"][site], "hd95") for site in sites] for one in found]
        distances = [f"{statistics.fmean(map(statistics.fmean, far)):.1f}", f"{statistics.fmean(map(max, far)):.1f}"]
        rows.append([NAMES[name], *site_cells(found, sites), *distances, difference(found, baseline), str(len(found))])
    others = {name: found for name, found in runs.items() if name != SYSTEM}
    main = [one for one in known if one["method"] == SYSTEM]
    return "\n".join([*markdown(header, rows), *paired_lines(main, others, NAMES, patient_figures)])


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = options_of(__doc__, "runs/fedcrld_worth", list(METHODS), list(PROBES))
    parser.add_argument("--trials", action="store_true", help="the trials of learning rates instead")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the study's")
    parser.add_argument("study", choices=studies_of(SYSTEM))
    options = parser.parse_args()
    every = (
        trials_of(options.study, options.methods)
        if options.trials
        else cells_of(options.study, options.methods, options.seeds)
    )
    if not options.table:
        require_sites(parser, options)
        missing = [cell for cell in every if not cell.is_done()]
        print(f"{len(missing)} of {len(every)} cells are missing", flush=True)
        work_on(run_cell, missing, options)
    if options.trials:
        print(trial_table(read_results(TRIALS / options.study), NAMES))
    else:
        print(table(options.study, options.methods))


if __name__ == "__main__":
    main()
