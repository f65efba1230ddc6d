"""What SegViz is worth: sites that mark one structure each, and a hospital that took no part.

    fedmedseg data import decathlon $FEDMEDSEG_DATA/hippocampus --out runs/hippocampus --sites 4 --by volume
    python benchmarks/segviz_worth.py --sites runs/hippocampus/sites --trials
    python benchmarks/segviz_worth.py --sites runs/hippocampus/sites --minutes 110
    python benchmarks/segviz_worth.py --table

The first two or three of the imported sites keep the label of one structure each, in turn; the last site keeps both
and is the external hospital on whose patients every method is tested, in their own space. Every method has the same
network, data, batches and steps per site; the pool has the steps of all sites together. Sites' models are fused by
probability. A finished cell is a JSON file under benchmarks/results/segviz_worth/; a call continues with those that are
missing or whose settings have changed, starts none after --minutes, and works on --workers cells at once. --trials runs
the trials of learning rates instead, the same for every method; they look at validation cases alone, and
the study's file (benchmarks/studies/) names the rate of each method that did best there.
"""

from __future__ import annotations

import json
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

import nibabel as nib
import numpy as np
from worth import (
    HERE,
    AnyCell,
    by_patient,
    digest_of,
    job_settings,
    markdown,
    mean_present,
    options_of,
    paired_lines,
    place_site,
    read_results,
    require_sites,
    rounded,
    run_token,
    study_file,
    trial_table,
    with_spread,
    work_on,
)

from fedmedseg.comparison.patients import bench_of
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.core.schema import read_yaml
from fedmedseg.data.datalist import read_datalist
from fedmedseg.reporting.metrics import CaseScore, per_patient
from fedmedseg.segmentation.models import InferenceModel, load_for_inference
from fedmedseg.segviz.fusion import score_fused

RESULTS = HERE / "results" / "segviz_worth"
TRIALS = HERE / "results" / "segviz_trials"
SYSTEM, ROLE = "segviz", "hippocampus"
STUDY = study_file(SYSTEM, ROLE)
SITES = (2, 3)
SALT = "external-hospital"
BASELINE = "local"
VALIDATED = "validation_dice/personal"
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""

METHODS: dict[str, dict[str, Any]] = {
    "segviz": {"share": "fedbn"},
    "fedavg": {"share": "fedavg"},
    "local": {},
    "pooled": {"mode": "one_model"},
}
"""``local``: every site trains a network of its own; ``pooled``: one network on all sites' cases, with the marginal
and the exclusion loss, so that what a case does not mark is never called background."""

ONE = {"mode": "one_model", "share": "fedavg", "candidates": "received"}
PROBES: dict[str, dict[str, Any]] = {
    "received": {"share": "fedbn", "candidates": "received"},
    "fedavg_received": {"share": "fedavg", "candidates": "received"},
    "one_model": ONE,
    "condist": ONE | {"distillation": {}},
    "one_model_trained": ONE | {"candidates": "trained"},
    "other_rate": METHODS["segviz"],
    "longer": METHODS["segviz"],
    "longer_local": METHODS["local"],
}
"""Why it does as it does: sites choose among models as they are received, whose trunk is the federation's; the options
of one federated model for all, which is the one that sites receive, since what a site's own training leaves knows least
of what the site does not mark; and that one too; FedBN at FedAvg's rate; three times the rounds with and without a
federation."""

NAMES = {
    "segviz": "SegViz (FedBN)",
    "fedavg": "SegViz (FedAvg)",
    "local": "single-structure models, local",
    "pooled": "one network on the pooled data",
    "one_model": "one federated network for all, marginal and exclusion loss",
    "condist": "the same with conditional distillation",
    "received": "SegViz (FedBN), models as received",
    "fedavg_received": "SegViz (FedAvg), models as received",
    "one_model_trained": "one federated network for all, models as trained",
    "other_rate": "SegViz (FedBN), at FedAvg's rate",
    "longer": "SegViz (FedBN), three times the rounds",
    "longer_local": "local, three times the steps",
}
LIKE = {
    "received": "segviz",
    "fedavg_received": "fedavg",
    "one_model": "pooled",
    "condist": "pooled",
    "one_model_trained": "pooled",
    "other_rate": "fedavg",
    "longer": "segviz",
    "longer_local": "local",
}
"""Whose learning rate a probe has."""


@dataclass(frozen=True)
class Cell(AnyCell):
    """One method with so many sites under one seed; with a ``trial`` rate, a trial of it."""

    sites: int
    method: str
    seed: int
    trial: float | None = None

    @property
    def file(self) -> Path:
        """Where its result lies."""
        if self.trial is not None:
            return TRIALS / ROLE / f"{self.method}-{self.trial:g}.json"
        return RESULTS / f"{self.sites}_sites" / f"{self.method}-seed{self.seed}.json"

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them."""
        rate = STUDY["rates"][LIKE.get(self.method, self.method)] if self.trial is None else self.trial
        own: dict[str, Any] = {
            "study": f"{SYSTEM}-worth-{ROLE}",
            "seed": self.seed,
            "segmentation": {"optimizer": {"learning_rate": rate}},
        }
        if self.method == "pooled":
            section = STUDY["settings"]["segmentation"]
            own["segmentation"] |= {name: self.sites * section[name] for name in ("steps", "validate_every")}
        if self.method.startswith("longer"):
            own["segmentation"]["steps"] = 3 * STUDY["settings"]["segmentation"]["steps"]
            own["stages"] = {"training": {"rounds": 3 * STUDY["settings"]["stages"]["training"]["rounds"]}}
        return job_settings(SYSTEM, STUDY, ([], {SYSTEM: (METHODS | PROBES)[self.method]}), [own])

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, and of ``REVISION``."""
        return digest_of(REVISION, self.sites, self.settings())


def data_list_of(site_file: Path) -> Path:
    """The data list that a site file names for the study's role."""
    return (site_file.parent / read_yaml(site_file)["datasets"][ROLE]["list"]).resolve()


def keep_one(listed: Path, number: int, out: Path) -> Path:
    """A copy of a data list whose cases mark label ``number`` alone; images stay where they are."""
    target = out / "datalist.json"
    if target.is_file():
        return target
    (out / "labels").mkdir(parents=True, exist_ok=True)
    content = json.loads(listed.read_text())
    for section in ("training", "validation", "test"):
        for entry in content[section]:
            source = listed.parent / entry["label"]
            image = nib.Nifti1Image.from_filename(source)
            kept = (np.asanyarray(image.dataobj) == number).astype(np.uint8) * number
            written = out / "labels" / source.name
            nib.Nifti1Image(kept, image.affine).to_filename(written)
            entry |= {
                "image": str((listed.parent / entry["image"]).resolve()),
                "label": str(written.resolve()),
                "annotated_labels": [number],
            }
    content["unlabeled"] = []
    # last, so that an interrupted copy is made again
    write_atomic(target, json.dumps(content).encode())
    return target


def partial_lists(sites: Path, count: int, structures: int, work: Path) -> dict[str, Path]:
    """Data lists of the first ``count`` sites, which mark structure 1, 2, ... in turn."""
    files = sorted(sites.glob("*.yaml"))[:count]
    lists = {}
    for index, file in enumerate(files):
        number = index % structures + 1
        lists[file.stem] = keep_one(data_list_of(file), number, work / "data" / f"{file.stem}-label{number}")
    return lists


def pooled_list(lists: dict[str, Path], out: Path) -> Path:
    """One list of all sites' cases."""
    contents = [json.loads(path.read_text()) for path in lists.values()]
    sections = ("training", "validation", "test", "unlabeled")
    pooled = {section: [entry for content in contents for entry in content[section]] for section in sections}
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "datalist.json", json.dumps(pooled).encode())
    return out / "datalist.json"


def train(cell: Cell, lists: dict[str, Path], folder: Path, cache: Path) -> tuple[list[InferenceModel], dict[str, Any]]:
    """Run one federation; its sites' models and test figures. Of a trial: no models, and how its sites validated."""
    job = write_job(find_job(SYSTEM), cell.settings(), folder / "job")
    for site, listed in lists.items():
        content = {"datasets": {ROLE: {"list": str(listed.resolve())}}, "salt": SALT}
        place_site(site, content, folder / "w", cache)
    federation = InProcessFederation(job=job, workspace=folder / "w", sites=list(lists), run=run_token(cell))
    trained = federation.run_stage("training")[-1]
    if cell.trial is not None and all(VALIDATED in one for one in trained.values()):
        return [], {site: {VALIDATED: one[VALIDATED]} for site, one in trained.items()}
    tested = federation.run_stage("evaluation")[-1]
    if cell.trial is not None:
        # models as they are received are chosen only now; the test's own figures are not kept
        return [], {site: {VALIDATED: one[VALIDATED]} for site, one in tested.items()}
    benches = [bench_of(federation, site) for site in federation.sites]
    return [load_for_inference(bench.model_file("personal")) for bench in benches], tested


def run_cell(cell: Cell, sites: Path, work: Path, deadline: float) -> None:
    """Train, fuse, test on the external hospital, write; nothing after the deadline. A trial is not tested."""
    if time.time() > deadline:
        return
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    began = time.monotonic()
    folder = work / f"{cell.sites}_sites" / cell.file.stem
    shutil.rmtree(folder, ignore_errors=True)
    labels = {int(number): name for number, name in cell.settings()["data"]["labels"].items()}
    lists = partial_lists(sites, cell.sites, len(labels), work)
    if cell.method == "pooled":
        groups = [{"pool": pooled_list(lists, folder / "pool")}]
    elif LIKE.get(cell.method, cell.method) == "local":
        groups = [{site: listed} for site, listed in lists.items()]
    else:
        groups = [lists]
    experts: list[InferenceModel] = []
    figures: dict[str, Any] = {}
    for index, group in enumerate(groups):
        models, found = train(cell, group, folder / str(index), work / "cache" / f"{cell.sites}_sites")
        experts += models
        figures |= found
    result: dict[str, Any] = {
        "sites": cell.sites,
        "method": cell.method,
        "seed": cell.seed,
        "internal": {site: rounded(one) for site, one in figures.items()},
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {cell.settings()['compute']['threads']} thread",
    }
    if cell.trial is not None:
        figure = statistics.fmean(one[VALIDATED] for one in figures.values())
        result |= {"rate": cell.trial, "chosen_by": round(figure, 5)}
    else:
        external = read_datalist(data_list_of(sorted(sites.glob("*.yaml"))[-1]), salt=SALT)
        cases = [case for section in ("training", "validation", "test") for case in external[section]]
        scores = per_patient(score_fused(experts, cases, labels=labels))
        result["patients"] = [plain(score) for score in sorted(scores, key=lambda score: score.key)]
        figure = dice_of(result)
    cell.write({**result, "seconds": round(time.monotonic() - began, 1)}, figure)
    shutil.rmtree(folder, ignore_errors=True)


def plain(score: CaseScore) -> dict[str, dict[str, float | None]]:
    """A patient's Dice and HD95 (mm) per structure; no key is kept."""
    return {
        name: {
            "dice": None if math.isnan(one.dice) else round(one.dice, 5),
            "hd95": None if math.isnan(one.hd95) else round(one.hd95, 3),
        }
        for name, one in score.structures.items()
    }


def patient_figures(result: Mapping[str, Any], figure: str) -> list[float]:
    """Each external patient's mean over structures, in the same order for every method; nan where none counts."""
    return [mean_present(one[figure] for one in row.values()) for row in result["patients"]]


def dice_of(result: dict[str, Any]) -> float:
    """Mean over patients."""
    return statistics.fmean(value for value in patient_figures(result, "dice") if not math.isnan(value))


def mean_figure(results: Sequence[dict[str, Any]], structure: str, figure: str) -> float:
    """Mean over patients, then seeds, of one structure's figure."""
    return statistics.fmean(mean_present(row[structure][figure] for row in one["patients"]) for one in results)


def against(runs: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> str:
    """Paired over patients, each the mean of the seeds that both have: mean difference and Wilcoxon's p."""
    found = None if runs == baseline else by_patient(runs, baseline, lambda one: patient_figures(one, "dice"))
    return "" if found is None else f"{found.difference:+.3f}, p {found.p:.2g} ({found.n} patients)"


def table(methods: Iterable[str], numbers: Iterable[int] = SITES) -> str:
    """Markdown: per number of sites, each method's Dice and HD95 per structure at the external hospital."""
    lines: list[str] = []
    for sites in numbers:
        found = read_results(RESULTS / f"{sites}_sites")
        runs = {name: [one for one in found if one["method"] == name] for name in NAMES}
        shown = {name: runs[name] for name in NAMES if runs[name] and name in set(methods)}
        if not shown:
            continue
        structures = list(found[0]["patients"][0])
        columns = [f"{name}: Dice" for name in structures] + [f"{name}: HD95 (mm)" for name in structures]
        lines += ["", f"**{sites} sites**, {len(found[0]['patients'])} patients of the external hospital", ""]
        rows = [
            [
                NAMES[name],
                *(f"{mean_figure(those, structure, 'dice'):.3f}" for structure in structures),
                *(f"{mean_figure(those, structure, 'hd95'):.2f}" for structure in structures),
                with_spread([dice_of(one) for one in those]),
                against(those, runs[BASELINE]),
                str(len(those)),
            ]
            for name, those in shown.items()
        ]
        lines += markdown(["method", *columns, "mean Dice", f"against {NAMES[BASELINE]}", "seeds"], rows)
        others = {name: those for name, those in shown.items() if name != SYSTEM}
        lines += paired_lines(runs[SYSTEM], others, NAMES, patient_figures)
    return "\n".join(lines).strip() or "no finished cell"


def cells_of(seeds: Iterable[int], numbers: Sequence[int], methods: Sequence[str]) -> list[Cell]:
    """All cells, the first seed of every method before the second of any."""
    return [Cell(number, method, seed) for seed in seeds for number in numbers for method in methods]


def trials_of(methods: Iterable[str]) -> list[Cell]:
    """Every rate for every method."""
    trials = STUDY["trials"]
    return [
        Cell(trials["sites"], method, trials["seed"], float(rate)) for method in methods for rate in trials["rates"]
    ]


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = options_of(__doc__, "runs/segviz_worth", list(METHODS), list(PROBES))
    parser.add_argument("--trials", action="store_true", help="the trials of learning rates instead")
    parser.add_argument("--numbers", nargs="+", type=int, choices=SITES, default=list(SITES), help="numbers of sites")
    parser.add_argument("--seeds", nargs="+", type=int, default=STUDY["seeds"])
    options = parser.parse_args()
    every = trials_of(options.methods)
    if not options.trials:
        every = cells_of(options.seeds, options.numbers, options.methods)
    if not options.table:
        # the external hospital comes on top
        require_sites(parser, options, max(options.numbers) + 1)
        missing = [cell for cell in every if not cell.is_done()]
        print(f"{len(missing)} of {len(every)} cells are missing", flush=True)
        labels = missing[0].settings()["data"]["labels"] if missing else {}
        for number in {cell.sites for cell in missing}:
            # once, before the workers share them
            partial_lists(options.sites, number, len(labels), options.work.resolve())
        work_on(run_cell, missing, options)
    if options.trials:
        print(trial_table(read_results(TRIALS / ROLE), NAMES))
    else:
        print(table(options.methods, options.numbers))


if __name__ == "__main__":
    main()
