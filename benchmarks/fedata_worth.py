"""What FedATA is worth: it and its baselines on real hospitals' data, at several shares of the labels.

    python benchmarks/fedata_worth.py sunnybrook --sites DIR/sites --minutes 110
    python benchmarks/fedata_worth.py sunnybrook --table
    python benchmarks/fedata_worth.py sunnybrook --sites DIR/sites --fractions 0.25 --methods still longer

Every method is the same job under other settings (benchmarks/studies/, app_configs/presets/fedata/), run in one
process per method and seed (`fedmedseg.core.in_process`). A finished cell is a JSON file under
benchmarks/results/fedata_worth/; a call continues with those that are missing or whose settings have changed, starts
none after --minutes, and works on --workers groups at once. --table prints the table of what there is.
"""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from worth import (
    HERE,
    AnyCell,
    Method,
    difference,
    digest_of,
    job_settings,
    markdown,
    mean_dice,
    options_of,
    patients_of,
    place_sites,
    read_results,
    require_sites,
    rounded,
    run_token,
    site_cells,
    studies_of,
    study_file,
    work_on,
)

from fedmedseg.comparison.patients import bench_of
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.in_process import InProcessFederation, carry
from fedmedseg.core.jobs import find_job, write_job
from fedmedseg.core.records import installed_versions

RESULTS = HERE / "results" / "fedata_worth"
SYSTEM = "fedata"
FEDERATED_ROUNDS = 5
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""

MIXING = {"granularity": "head", "normalise": True, "step": 0.1}
"""Mixing that moves: at the published step of 1.0 on elements its weights stay within 1e-6 of 1 (see the probe)."""

METHODS: dict[str, Method] = {
    "fedata": ([], {"fedata": {"starts": ["personal"], "ala": MIXING}}),
    "fed_mae": (["fed_mae"], {"fedata": {"starts": ["shared"]}}),
    "fed_simmim": (["fed_simmim"], {"fedata": {"starts": ["shared"]}}),
    "fedema": (["fedema"], {"fedata": {"starts": ["personal"]}}),
    "local_only": (["local_only"], {}),
    "no_pretraining": (["no_pretraining"], {}),
    "fedavg_scratch": (["fedavg_scratch"], {"stages": {"fine_tuning": {"rounds": FEDERATED_ROUNDS}}}),
}
"""Presets and settings of each method. Where a pretraining ends with one model for all, sites start from that one;
where it ends with personal ones, from their own."""

BASELINE = "no_pretraining"
STILL = {"encoder_rate_factor": 1.0e-9, "encoder_rate_share": 1.0}
PROBES: dict[str, Method] = {
    "fedata_together": (
        ["federated_fine_tuning"],
        {"fedata": {"ala": MIXING}, "stages": {"fine_tuning": {"rounds": FEDERATED_ROUNDS}}},
    ),
    "published_mixing": ([], {"fedata": {"starts": ["personal"]}}),
    "still": ([], {"fedata": {"starts": ["personal"], "ala": MIXING}, "segmentation": STILL}),
    "one_step_still": (
        [],
        {
            "fedata": {"starts": ["personal"], "ala": MIXING, "local_steps": 1},
            "stages": {"pretraining": {"rounds": 1}},
            "segmentation": STILL,
        },
    ),
    "longer": ([], {"fedata": {"starts": ["personal"], "ala": MIXING}, "stages": {"pretraining": {"rounds": 40}}}),
    "longest": ([], {"fedata": {"starts": ["personal"], "ala": MIXING}, "stages": {"pretraining": {"rounds": 100}}}),
    "slow_encoder": (
        [],
        {
            "fedata": {"starts": ["personal"], "ala": MIXING},
            "segmentation": {"encoder_rate_factor": 0.3, "encoder_rate_share": 1.0},
        },
    ),
    "long_tuning": (
        [],
        {"fedata": {"starts": ["personal"], "ala": MIXING}, "segmentation": {"steps": 600, "validate_every": 150}},
    ),
    "long_tuning_scratch": (["no_pretraining"], {"segmentation": {"steps": 600, "validate_every": 150}}),
    "small_crops": ([], {"fedata": {"starts": ["personal"], "ala": MIXING}, "data": {"crop": [64, 64]}}),
    "small_crops_scratch": (["no_pretraining"], {"data": {"crop": [64, 64]}}),
}
"""Why FedATA does as it does: fine-tuned together, as FedAvg from scratch is; the encoder held still after pretraining
and after one step of it (so that only what it learned tells); mixing as published; four and ten times the pretraining;
a slower encoder; four times the fine-tuning with and without pretraining; crops that see less with and without."""

NAMES = {
    "fedata": "FedATA",
    "fed_mae": "Fed-MAE",
    "fed_simmim": "Fed-SimMIM",
    "fedema": "FedEMA's mixing, our pretext",
    "local_only": "local self-distillation",
    "no_pretraining": "no pretraining, local",
    "fedavg_scratch": "FedAvg from scratch",
    "fedata_together": "FedATA, fine-tuned together (FedAvg)",
    "still": "FedATA, encoder held still",
    "one_step_still": "one step of pretraining, encoder held still",
    "longer": "FedATA, four times the pretraining",
    "longest": "FedATA, ten times the pretraining",
    "slow_encoder": "FedATA, encoder at 0.3 of the rate",
    "published_mixing": "FedATA, mixing at the published step",
    "long_tuning": "FedATA, 600 steps of fine-tuning",
    "long_tuning_scratch": "no pretraining, 600 steps of fine-tuning",
    "small_crops": "FedATA, crops of 64 x 64",
    "small_crops_scratch": "no pretraining, crops of 64 x 64",
}


@dataclass(frozen=True)
class Cell(AnyCell):
    """One method at one share of the labels under one seed."""

    study: str
    method: str
    fraction: float
    seed: int

    @property
    def file(self) -> Path:
        """Where its result lies."""
        return RESULTS / self.study / f"{self.method}-{round(100 * self.fraction):03d}-seed{self.seed}.json"

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them."""
        own = {
            "study": f"{SYSTEM}-worth-{self.study}",
            "seed": self.seed,
            "data": {"labelled_fraction": self.fraction},
        }
        return job_settings(SYSTEM, study_file(SYSTEM, self.study), (METHODS | PROBES)[self.method], [own])

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, and of ``REVISION``."""
        return digest_of(REVISION, self.settings())


def cells_of(study: str, methods: Iterable[str]) -> list[Cell]:
    """All cells, the first seed of every method before the second of any."""
    content = study_file(SYSTEM, study)
    return [
        Cell(study, method, fraction, seed)
        for seed in content["seeds"]
        for method in methods
        for fraction in content["fractions"]
    ]


def run_group(cells: list[Cell], sites: Path, work: Path, deadline: float) -> None:
    """Pretrain once, then fine-tune and test at each share of the labels; each cell is written when it is done."""
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    first = cells[0]
    folder = work / first.study / f"{first.method}-{first.seed}"
    pretrained: InProcessFederation | None = None
    encoder: dict[str, torch.Tensor] = {}
    pretraining: list[Any] = []
    for cell in cells:
        if time.time() > deadline:
            return
        job = write_job(find_job(SYSTEM), cell.settings(), folder / f"job-{cell.fraction:g}")
        names = place_sites(sites, folder / "w", work / "cache")
        federation = InProcessFederation(job=job, workspace=folder / "w", sites=names, run=run_token(cell))
        began = time.monotonic()
        if pretrained is None:
            pretraining = federation.run_stage("pretraining")
            pretrained, encoder = federation, dict(federation.shared)
            seconds = time.monotonic() - began
        else:
            # pretraining does not read labels: its outcome is that of the group's first cell. What fine-tuning has
            # since made of the first cell's own tensors stays there
            federation.shared.update(encoder)
            carry("personal", pretrained, federation, stages=("pretraining", "fine_tuning"))
            seconds = 0.0
        tuned = federation.run_stage("fine_tuning")
        tested = federation.run_stage("evaluation")[-1]
        result = {
            "study": cell.study,
            "method": cell.method,
            "labelled_fraction": cell.fraction,
            "seed": cell.seed,
            "experiment_sha256": federation.experiment.digest,
            "shared_sha256": content_sha256(federation.shared),
            "labelled_patients": {site: labelled_patients(federation, site) for site in names},
            "sites": {site: rounded(tested[site]) for site in names},
            "validation": {
                site: {
                    name: round(value, 5)
                    for name, value in {**tuned[-1][site], **tested[site]}.items()
                    if name.startswith("validation_dice")
                }
                for site in names
            },
            "patients": {site: patients_of(federation, site) for site in names},
            "pretraining": {
                "first_round": pretraining[0] if pretraining else None,
                "last_round": pretraining[-1] if pretraining else None,
                "seconds": round(seconds, 1),
            },
            "seconds": round(time.monotonic() - began, 1),
            "versions": installed_versions(),
            "hardware": f"{platform.machine()}, {federation.experiment.compute.threads} thread",
        }
        cell.write(result, mean_dice(result))
    shutil.rmtree(folder, ignore_errors=True)


def labelled_patients(federation: InProcessFederation, site: str) -> int:
    """Labelled patients the site fine-tuned on."""
    return len(bench_of(federation, site, "fine_tuning").training.patients)


def table(study: str, methods: Iterable[str]) -> str:
    """Markdown: per share of the labels, each method's Dice per site, mean and worst, over seeds (mean and SD)."""
    found = [one for one in read_results(RESULTS / study) if one["method"] in set(methods)]
    lines: list[str] = []
    for fraction in sorted({one["labelled_fraction"] for one in found}):
        here = [one for one in found if one["labelled_fraction"] == fraction]
        baseline = [
            one
            for one in read_results(RESULTS / study)
            if (one["method"], one["labelled_fraction"]) == (BASELINE, fraction)
        ]
        sites = sorted(here[0]["sites"])
        counts = ", ".join(f"{site} {here[0]['labelled_patients'][site]}" for site in sites)
        lines += ["", f"**{fraction:.0%} of the labels** (labelled patients: {counts})", ""]
        runs = {name: [one for one in here if one["method"] == name] for name in NAMES}
        rows = [
            [NAMES[name], *site_cells(those, sites), difference(those, baseline), str(len(those))]
            for name, those in runs.items()
            if those
        ]
        lines += markdown(["method", *sites, "mean", "worst site", f"against {NAMES[BASELINE]}", "seeds"], rows)
    return "\n".join(lines).strip() or "no finished cell"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = options_of(__doc__, "runs/fedata_worth", list(METHODS), list(PROBES))
    parser.add_argument("study", choices=studies_of(SYSTEM))
    parser.add_argument("--fractions", nargs="+", type=float, help="shares of the labels; default: the study's")
    options = parser.parse_args()
    if not options.table:
        require_sites(parser, options)
        groups: dict[tuple[str, int], list[Cell]] = {}
        for cell in cells_of(options.study, options.methods):
            if (not options.fractions or cell.fraction in options.fractions) and not cell.is_done():
                groups.setdefault((cell.method, cell.seed), []).append(cell)
        print(f"{sum(map(len, groups.values()))} cells in {len(groups)} groups are missing", flush=True)
        work_on(run_group, list(groups.values()), options)
    print(table(options.study, options.methods))


if __name__ == "__main__":
    main()
