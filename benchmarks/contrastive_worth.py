"""What contrastive pretraining is worth: FCL, FCLOpt and their baselines, at a few labelled patients per site.

    fedmedseg data import sunnybrook $FEDMEDSEG_DATA/sunnybrook --out runs/sunnybrook
    fedmedseg data folds runs/sunnybrook/sites --out runs/sunnybrook-folds --folds 3
    python benchmarks/contrastive_worth.py sunnybrook --folds runs/sunnybrook-folds --minutes 110
    python benchmarks/contrastive_worth.py sunnybrook --table

Each of Sunnybrook's groups is a site. The patients are split into three folds, and each fold is run under a seed of
its own: in one pass every patient is tested once, and three seeds are seen. With more passes the folds meet the other
seeds, too. Every method pretrains the same encoder on all images of the fold's training patients (labels are not
read), then each site fine-tunes the same network on 1, 2 and 4 labelled patients of its own, with the same steps. The
same encoders are also fine-tuned on another set (--transfer names its folder of site files) and tested on its last
site, which took no part:

    fedmedseg data import decathlon $FEDMEDSEG_DATA/hippocampus --out runs/hippocampus --sites 4 --by volume
    python benchmarks/contrastive_worth.py sunnybrook --folds runs/sunnybrook-folds --transfer runs/hippocampus/sites

FedATA's encoder is not among them: it is of a network of tokens (UNETR, SwinUNETR), which this U-Net cannot start
from, so that a difference would be one of networks and not of pretraining.

Runs happen in one process per method, fold and seed (`fedmedseg.core.in_process`). A finished cell is a JSON file under
benchmarks/results/contrastive_worth/; a call continues with those that are missing or whose settings have changed,
starts none after --minutes, and works on --workers groups at once. --table prints the tables of what there is, --figure
FILE draws Dice against megabytes moved.
"""

from __future__ import annotations

import argparse
import logging
import math
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worth import (
    AnyCell,
    Method,
    difference,
    digest_of,
    job_settings,
    markdown,
    mean_dice,
    mean_of,
    mean_present,
    paired_lines,
    patients_of,
    place_sites,
    read_results,
    rounded,
    run_token,
    site_cells,
    studies_of,
    study_file,
    trial_table,
    work_on,
)

from fedmedseg.comparison.patients import bench_of
from fedmedseg.core.config import load_experiment
from fedmedseg.core.executor import EXPERIMENT_FILE
from fedmedseg.core.in_process import InProcessFederation, carry
from fedmedseg.core.jobs import CONFIG, find_job, merged, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.data.site import open_site
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.metrics import per_patient
from fedmedseg.segmentation.evaluation import evaluate
from fedmedseg.segmentation.models import load_model

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "contrastive_worth"
TRIALS = HERE / "results" / "contrastive_trials"
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""
TRANSFER = "transfer"
"""In place of a number of labelled patients: fine-tuning on the other set."""
NAME = "contrastive"
METHODS: dict[str, tuple[str, Method]] = {
    "fcl": ("fcl", ([], {"fcl": {"starts": ["shared"]}})),
    "random": ("fcl", ([], {"stages": {"pretraining": {"rounds": 0}}, "fcl": {"starts": ["scratch"]}})),
    "fclopt": ("fclopt", ([], {"fclopt": {"starts": ["shared"], "mode": "ptnu_dp"}})),
    "local_contrastive": ("fcl", (["local_contrastive"], {"fcl": {"starts": ["personal"]}})),
    "fedsimclr": ("fcl", (["fedsimclr"], {"fcl": {"starts": ["shared"]}})),
    "fedbyol": ("fclopt", (["fedbyol"], {"fclopt": {"starts": ["shared"]}})),
    "fedema": ("fclopt", (["fedema_byol"], {"fclopt": {"starts": ["shared"]}})),
    "fclopt_both": ("fclopt", ([], {"fclopt": {"starts": ["shared"], "mode": "both"}})),
}
"""System, presets and settings of each method."""
FROZEN = {"segmentation": {"encoder_rate_factor": 0.001, "encoder_rate_share": 1.0}}
"""The decoder alone learns, nearly: what the encoder's features are worth as they are."""
SHORT = {"segmentation": {"steps": 120, "validate_every": 120, "optimizer": {"learning_rate": 3.0e-3}}}
"""Fine-tuning that ends before random initialisation has learned the task: what a pretrained encoder saves of it."""
PROBES: dict[str, tuple[str, Method]] = {
    name: ("fcl", ([], merged({"fcl": {"starts": ["shared"]}}, changes)))
    for name, changes in {
        "fcl_fp16": {"fcl": {"transport": "fp16"}},
        "fcl_int8": {"fcl": {"transport": "int8"}},
        "fcl_noise": {"fcl": {"noise": {"sigma": 0.1}}},
        "fcl_much_noise": {"fcl": {"noise": {"sigma": 0.3}}},
        "no_matching": {"fcl": {"structural": False, "warmup_rounds": 5}},
        "no_other_volumes": {"fcl": {"positives": "view"}},
        "exclude_same_partition": {"fcl": {"denominator": "exclude_same_partition"}},
        "longer": {"stages": {"pretraining": {"rounds": 90}}},
        "slow_encoder": {"segmentation": {"encoder_rate_factor": 0.1}},
        "short": SHORT,
        "random_short": merged(SHORT, {"stages": {"pretraining": {"rounds": 0}}, "fcl": {"starts": ["scratch"]}}),
        "frozen": FROZEN,
        "untrained_frozen": merged(
            FROZEN, {"stages": {"pretraining": {"rounds": 1}}, "fcl": {"optimizer": {"learning_rate": 1e-9}}}
        ),
    }.items()
}
"""What a thinner wire and noise cost, each idea of FCL left out, and what it might lack; at FCL's own rate."""
ALONE = frozenset({"local_contrastive"})
"""Methods that pretrain without a server."""
BASELINE = "random"
NAMES = {
    "random": "random initialisation",
    "local_contrastive": "local contrastive pretraining",
    "fedsimclr": "FedSimCLR (no exchange)",
    "fcl": "FCL",
    "fedbyol": "FedBYOL",
    "fedema": "FedEMA",
    "fclopt_both": "FCLOpt, both networks sent",
    "fclopt": "FCLOpt, target predicted",
    "fcl_fp16": "FCL, features in fp16",
    "fcl_int8": "FCL, features in int8",
    "fcl_noise": "FCL, noise of 0.1 on features",
    "fcl_much_noise": "FCL, noise of 0.3 on features",
    "no_matching": "FCL without structural matching",
    "no_other_volumes": "FCL, the second view alone as local positive",
    "exclude_same_partition": "FCL, no negatives of the same part",
    "longer": "FCL, three times the rounds",
    "slow_encoder": "FCL, a tenth of the rate for the encoder at first",
    "short": "FCL, half the steps of fine-tuning at a third of the rate",
    "random_short": "random initialisation, the same",
    "frozen": "FCL, the encoder as pretrained",
    "untrained_frozen": "the encoder as initialised",
}


@dataclass(frozen=True)
class Cell(AnyCell):
    """One method in one fold under one seed with so many labelled patients per site, or on the other set; with a
    ``trial`` rate, a trial of it."""

    study: str
    method: str
    fold: int
    seed: int
    labelled: str
    trial: float | None = None

    @property
    def file(self) -> Path:
        """Where its result lies."""
        if self.trial is not None:
            return TRIALS / self.study / f"{self.method}-{self.trial:g}.json"
        return RESULTS / self.study / f"{self.method}-{self.labelled}-fold{self.fold}-seed{self.seed}.json"

    @property
    def system(self) -> str:
        """The system whose job runs it."""
        return (METHODS | PROBES)[self.method][0]

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them."""
        study = study_file(NAME, self.study)
        rate = study["rates"]["fcl" if self.method in PROBES else self.method] if self.trial is None else self.trial
        pretraining = merged(study[self.system], {"optimizer": {"learning_rate": rate}})
        settings = merged(study["settings"], {self.system: pretraining, "stages": study["stages"]})
        if not self.method.startswith(BASELINE):
            settings = merged(settings, {"segmentation": study["encoder"]})
        own: dict[str, Any] = {"study": f"contrastive-worth-{self.study}", "seed": self.seed}
        if self.labelled == TRANSFER:
            own |= study["transfer"]
        else:
            own["data"] = {"labelled_patients": int(self.labelled)}
        if self.trial is not None:
            own["segmentation"] = study["trials"]["segmentation"]
        data = {"preset": study["preset"], "settings": settings}
        return job_settings(self.system, data, (METHODS | PROBES)[self.method][1], [own])

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, and of ``REVISION``."""
        return digest_of(REVISION, self.fold, self.settings())


def cells_of(study: str, methods: Iterable[str], *, transfer: bool) -> list[Cell]:
    """All cells, a pass of every method before the next of any, and in it the first fold before the second."""
    content = study_file(NAME, study)
    labelled = [str(number) for number in content["labelled_patients"]] + [TRANSFER] * transfer
    return [
        Cell(study, method, fold, seed_in(content, fold, number), count)
        for number in range(content["passes"])
        for fold in range(1, content["folds"] + 1)
        for method in methods
        for count in labelled
        # one encoder of each seed is enough for the other set, of whose patients none is in any fold; a pretraining
        # without a server leaves no encoder that another site could start from
        if count != TRANSFER or (number == 0 and method not in ALONE)
    ]


def seed_in(content: Mapping[str, Any], fold: int, number: int) -> int:
    """The seed that a fold has in a pass: each its own in any one, and another in each."""
    seeds = content["seeds"]
    return int(seeds[(fold - 1 + number) % len(seeds)])


def trials_of(study: str, methods: Iterable[str]) -> list[Cell]:
    """Every rate for every method that pretrains."""
    trials = study_file(NAME, study)["trials"]
    return [
        Cell(study, method, trials["fold"], trials["seed"], trials["labelled"], float(rate))
        for method in methods
        if method != BASELINE
        for rate in trials["rates"]
    ]


@dataclass(frozen=True)
class Group:
    """Cells that share a pretraining, and where the other set lies."""

    cells: tuple[Cell, ...]
    transfer: Path | None


def run_group(group: Group, folds: Path, work: Path, deadline: float) -> None:
    """Pretrain once, then fine-tune and test for each cell, which is written when it is done. A trial is not tested."""
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    if time.time() > deadline:
        return
    first = group.cells[0]
    folder = work / first.study / first.file.stem
    shutil.rmtree(folder, ignore_errors=True)
    sites = folds / f"fold-{first.fold}" / "sites"
    # the encoder reads no labels: that of the fewest serves all
    least = Cell(first.study, first.method, first.fold, first.seed, "1", first.trial)
    began = time.monotonic()
    pretrained, _ = federation_of(least, sites, folder / "pretraining", work / "cache" / f"fold{first.fold}")
    rounds = pretrained.run_stage("pretraining")
    moved = [sum(one[way] for one in traffic.values()) for traffic in pretrained.traffic for way in ("down", "up")]
    pretraining = {
        "seconds": round(time.monotonic() - began, 1),
        "megabytes_per_site": round(sum(moved) / 1e6 / len(pretrained.sites), 3),
        "first_round": {site: rounded(one) for site, one in rounds[0].items()} if rounds else None,
        "last_round": {site: rounded(one) for site, one in rounds[-1].items()} if rounds else None,
    }
    for cell in group.cells:
        if time.time() > deadline:
            break
        began = time.monotonic()
        if cell.labelled == TRANSFER:
            assert group.transfer is not None
            result = transferred(cell, pretrained, group.transfer, folder / TRANSFER, work / "cache" / TRANSFER)
        else:
            place = folder / cell.labelled
            federation, _ = federation_of(cell, sites, place, work / "cache" / f"fold{cell.fold}")
            federation.shared.update(pretrained.shared)
            carry("personal", pretrained, federation, stages=("pretraining", "fine_tuning"))
            result = tuned(federation, test=cell.trial is None)
        experiment = load_experiment(folder / cell.labelled / "job" / CONFIG / EXPERIMENT_FILE)
        result |= {
            "study": cell.study,
            "method": cell.method,
            "fold": cell.fold,
            "seed": cell.seed,
            "labelled": cell.labelled,
            "experiment_sha256": experiment.digest,
            "pretraining": pretraining,
            "seconds": round(time.monotonic() - began, 1),
            "versions": installed_versions(),
            "hardware": f"{platform.machine()}, {experiment.compute.threads} thread",
        }
        if cell.trial is not None:
            result |= {"rate": cell.trial, "chosen_by": round(statistics.fmean(result["validation"].values()), 5)}
        figure = statistics.fmean(result["validation"].values()) if cell.trial is not None else dice_of_patients(result)
        cell.write(result, figure)
    shutil.rmtree(folder, ignore_errors=True)


def federation_of(
    cell: Cell, sites: Path, folder: Path, cache: Path, without: int = 0
) -> tuple[InProcessFederation, list[str]]:
    """The cell's federation of all sites but the last ``without``, and those."""
    job = write_job(find_job(cell.system), cell.settings(), folder / "job")
    names = place_sites(sites, folder / "w", cache)
    taking_part = names[: len(names) - without]
    federation = InProcessFederation(job=job, workspace=folder / "w", sites=taking_part, run=run_token(cell))
    return federation, names[len(taking_part) :]


def tuned(federation: InProcessFederation, *, test: bool) -> dict[str, Any]:
    """Fine-tune at every site; validation Dice, and with ``test`` each patient's test figures."""
    figures = federation.run_stage("fine_tuning")[-1]
    validation = validation_of(figures)
    if not test:
        return {"validation": validation}
    federation.run_stage("evaluation")
    patients = {
        site: {figure: patients_of(federation, site, figure) for figure in ("dice", "hd95")}
        for site in federation.sites
    }
    return {"validation": validation, "patients": patients}


def transferred(cell: Cell, pretrained: InProcessFederation, sites: Path, folder: Path, cache: Path) -> dict[str, Any]:
    """Fine-tune the encoder at all sites of another set but the last, and test every site's model on the last one's
    patients; a patient's figure is the mean over models."""
    federation, (outside,) = federation_of(cell, sites, folder, cache, without=1)
    experiment = federation.experiment
    # structures differ in the decoder alone, which is not among the shared tensors
    federation.shared.update(pretrained.shared)
    figures = federation.run_stage("fine_tuning")[-1]
    place = folder / "w"
    site = open_site(experiment, name=outside, local=place / "local", workspace=place, simulated=True)
    volumes = Volumes(site=site, experiment=experiment, section="test")
    scores = []
    for name in federation.sites:
        bench = bench_of(federation, name, "fine_tuning")
        (start,) = bench.tuned
        load_model(bench.model_file(start), bench.model, experiment=experiment, start=start)
        found = evaluate(bench.model, volumes=volumes, experiment=experiment, device="cpu", salt=site.salt)
        scores.append(per_patient(found))
    labels = list(experiment.data.labels.values())
    patients = {
        figure: [
            {label: mean_of_models([getattr(one.structures[label], figure) for one in of_patient]) for label in labels}
            for of_patient in zip(*scores, strict=True)
        ]
        for figure in ("dice", "hd95")
    }
    return {"validation": validation_of(figures), "patients": {outside: patients}}


def validation_of(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each site's best validation Dice, of its one model."""
    return {
        site: round(value, 5)
        for site, one in figures.items()
        for name, value in one.items()
        if name.startswith("validation_dice")
    }


def mean_of_models(values: Sequence[float]) -> float | None:
    """A patient's mean over models that have a figure of a structure; None where none has."""
    found = [value for value in values if not math.isnan(value)]
    return round(statistics.fmean(found), 5) if found else None


def runs_of(study: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(method, labelled) -> every finished cell: its patients' figures and each site's means over its patients.

    Cells are paired between methods by ``seed``, which holds the fold, too.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in read_results(RESULTS / study):
        found.setdefault((one["method"], one["labelled"]), []).append(
            _summary(
                one["method"],
                one["patients"],
                seed=(one["seed"], one["fold"]),
                moved=one["pretraining"]["megabytes_per_site"],
            )
        )
    return found


def whole_passes(study: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(method, labelled) -> a result per pass of which all folds are there: every patient's figures, each tested once,
    and each site's means over its patients. On the other set every seed's cell is a pass: its patients are the same."""
    content = study_file(NAME, study)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (method, labelled), runs in runs_of(study).items():
        if labelled == TRANSFER:
            found[method, labelled] = runs
            continue
        by_cell = {one["seed"]: one for one in runs}
        for number in range(content["passes"]):
            wanted = [(seed_in(content, fold, number), fold) for fold in range(1, content["folds"] + 1)]
            if not all(cell in by_cell for cell in wanted):
                continue
            parts = [by_cell[cell] for cell in wanted]
            patients = {
                site: {
                    figure: [patient for one in parts for patient in one["patients"][site][figure]]
                    for figure in ("dice", "hd95")
                }
                for site in parts[0]["patients"]
            }
            moved = statistics.fmean(one["megabytes"] for one in parts)
            found.setdefault((method, labelled), []).append(_summary(method, patients, seed=number, moved=moved))
    return found


def _summary(method: str, patients: Mapping[str, Any], *, seed: Any, moved: float) -> dict[str, Any]:
    means = {
        site: {f"{figure}/mean": mean_present(per_structure(of_site[figure])) for figure in of_site}
        for site, of_site in patients.items()
    }
    return {"method": method, "seed": seed, "patients": patients, "sites": means, "megabytes": moved}


def dice_of_patients(result: Mapping[str, Any]) -> float:
    """Mean Dice over sites of a cell's patients."""
    return statistics.fmean(mean_present(per_structure(of_site["dice"])) for of_site in result["patients"].values())


def per_structure(patients: Sequence[Mapping[str, float | None]]) -> list[float | None]:
    """Each patient's mean over structures; None where it has no figure."""
    means = [mean_present(patient.values()) for patient in patients]
    return [None if math.isnan(value) else value for value in means]


def table(study: str, methods: Iterable[str]) -> str:
    """Markdown: per number of labelled patients, Dice per site, mean and worst site, HD95 in mm, megabytes a site moved
    in pretraining; then FCL and FCLOpt less each other method, patient by patient. Spreads are over cells, each a seed
    and a fold."""
    passes, cells, chosen = whole_passes(study), runs_of(study), set(methods)
    lines: list[str] = []
    for labelled in dict.fromkeys(key[1] for key in sorted(passes)):
        runs = {name: passes[name, labelled] for name in NAMES if name in chosen and (name, labelled) in passes}
        if not runs:
            # probes run on some folds: their cells are read one by one
            continue
        sites = sorted(next(iter(runs.values()))[0]["sites"])
        count = f"{labelled} labelled patient(s) a site" if labelled != TRANSFER else "another set, an outside site"
        rows = []
        for name, found in runs.items():
            far = statistics.fmean(
                statistics.fmean(mean_of(one["sites"][site], "hd95") for site in sites) for one in found
            )
            moved = f"{statistics.fmean(one['megabytes'] for one in found):.1f}"
            own = cells[name, labelled]
            against = difference(own, cells.get((BASELINE, labelled), []))
            spread = f"{statistics.stdev(mean_dice(one) for one in own):.3f}" if len(own) > 1 else ""
            shown = [*site_cells(found, sites), spread, f"{far:.1f}", moved, against, str(len(own))]
            rows.append([NAMES[name], *shown])
        figures = ["mean Dice", "worst site", "SD", "HD95 (mm)", "MB a site", f"against {NAMES[BASELINE]}", "cells"]
        header = ["method", *sites, *figures]
        lines += ["", f"**{count}**", "", *markdown(header, rows)]
        for main in ("fcl", "fclopt"):
            if main in runs:
                others = {name: found for name, found in runs.items() if name != main}
                lines += paired_lines(runs[main], others, NAMES, patient_figures, times="times tested")
    return "\n".join(lines).strip() or "no finished cell"


def patient_figures(result: Mapping[str, Any], figure: str) -> list[float]:
    """Each test patient's mean over structures, site after site: the same order for every method and pass."""
    return [
        mean_present(patient.values())
        for site in sorted(result["patients"])
        for patient in result["patients"][site][figure]
    ]


def draw(study: str, file: Path) -> None:
    """Mean Dice against the megabytes that a site moved in pretraining, a panel for each number of labelled patients.

    Bars are standard deviations, over seeds and folds, of the difference to random initialisation of the same fold and
    seed: what folds have in common says nothing of a method.
    """
    import matplotlib

    matplotlib.use("svg" if file.suffix == ".svg" else "agg")
    import matplotlib.pyplot as plt

    passes, cells = whole_passes(study), runs_of(study)
    numbers = sorted({labelled for _, labelled in passes if labelled != TRANSFER}, key=int)
    figure, axes = plt.subplots(1, len(numbers), figsize=(4.2 * len(numbers), 4.0), squeeze=False, layout="constrained")
    for axis, labelled in zip(axes[0], numbers, strict=True):
        beside = {one["seed"]: mean_dice(one) for one in cells.get((BASELINE, labelled), ())}
        for marker, name in zip("osD^vPX*", METHODS, strict=True):
            runs = passes.get((name, labelled))
            if runs:
                dice = statistics.fmean(mean_dice(one) for one in runs)
                apart = [mean_dice(one) - beside[one["seed"]] for one in cells[name, labelled] if one["seed"] in beside]
                moved = statistics.fmean(one["megabytes"] for one in runs)
                bar = statistics.stdev(apart) if len(apart) > 1 and name != BASELINE else 0.0
                shown = axis.errorbar(moved, dice, yerr=bar, fmt=marker, capsize=3, label=NAMES[name])
                for line in (*shown[1], *shown[2]):
                    line.set_alpha(0.5)
        if beside:
            axis.axhline(statistics.fmean(beside.values()), color="0.7", linewidth=1, zorder=0)
        of = "patient" if labelled == "1" else "patients"
        axis.set(xlabel="MB a site moved in pretraining", title=f"{labelled} labelled {of} a site")
    axes[0][0].set_ylabel("mean Dice; bars: SD of the difference\nto random initialisation")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(file)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies_of(NAME))
    parser.add_argument("--folds", type=Path, help="folder of folds, as `fedmedseg data folds` writes them")
    parser.add_argument("--transfer", type=Path, help="folder of site files of the other set; its last site is tested")
    parser.add_argument("--work", type=Path, default=Path("runs/contrastive_worth"), help="states and cached volumes")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *PROBES], default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the study's")
    parser.add_argument("--minutes", type=float, default=110.0, help="begin no cell after so many minutes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", action="store_true", help="the trials of learning rates instead")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--figure", type=Path, help="draw Dice against megabytes moved (SVG or PNG), run nothing")
    options = parser.parse_args()
    if options.figure is not None:
        draw(options.study, options.figure)
        return
    if not options.table:
        if options.folds is None or not list(options.folds.glob("fold-*/sites/*.yaml")):
            parser.error("--folds must name a folder that `fedmedseg data folds` wrote")
        options.sites = options.folds
        transfer = None if options.transfer is None else options.transfer.resolve()
        every = (
            trials_of(options.study, options.methods)
            if options.trials
            else cells_of(options.study, options.methods, transfer=transfer is not None)
        )
        groups: dict[tuple[str, int, int, float | None], list[Cell]] = {}
        for cell in every:
            if (not options.seeds or cell.seed in options.seeds) and not cell.is_done():
                groups.setdefault((cell.method, cell.fold, cell.seed, cell.trial), []).append(cell)
        print(f"{sum(map(len, groups.values()))} of {len(every)} cells are missing", flush=True)
        work_on(run_group, [Group(tuple(cells), transfer) for cells in groups.values()], options)
    if options.trials:
        print(trial_table(read_results(TRIALS / options.study), NAMES))
    else:
        print(table(options.study, options.methods))


if __name__ == "__main__":
    main()
