"""What SegViz is worth: sites that mark one structure each, and a hospital that took no part.

    fedmedseg data import decathlon $FEDMEDSEG_DATA/hippocampus --out runs/hippocampus --sites 4 --by volume
    python benchmarks/segviz_worth.py --sites runs/hippocampus/sites --minutes 110
    python benchmarks/segviz_worth.py --table

The first two or three of the imported sites keep the label of one structure each, in turn; the last site keeps both
and is the external hospital on whose patients every method is tested, in their own space. Every method has the same
network, data, batches and steps per site; the pool has the steps of all sites together. Sites' models are fused by
probability. A finished cell is a JSON file under benchmarks/results/segviz_worth/; a call continues with those that are
missing or whose settings have changed, starts none after --minutes, and works on --workers cells at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import multiprocessing
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

from fedmedseg.core.checkpoint import write_atomic
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, find_preset, merged, read_settings, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.core.schema import read_yaml
from fedmedseg.data.datalist import read_datalist
from fedmedseg.reporting.metrics import CaseScore, per_patient
from fedmedseg.reporting.paired import paired
from fedmedseg.segmentation.models import InferenceModel, load_for_inference
from fedmedseg.segviz.fusion import score_fused

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "segviz_worth"
SYSTEM, PRESET, ROLE = "segviz", "hippocampus", "hippocampus"
SEEDS = (1, 2, 3)
SITES = (2, 3)
SALT = "external-hospital"
BASELINE = "local"
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""

SETTINGS: dict[str, Any] = {
    "network": {"channels": [8, 16, 32, 64]},
    "segmentation": {
        "steps": 300,
        "batch": 2,
        "validate_every": 30,
        "overlap": 0.25,
        "foreground_share": 0.67,
        "augment": False,
        "test_untrained": False,
        "optimizer": {"learning_rate": 2.0e-3},
    },
    "segviz": {"local_baseline": False},
    "stages": {"training": {"rounds": 10}},
}

METHODS: dict[str, dict[str, Any]] = {
    "segviz": {"share": "fedbn"},
    "fedavg": {"share": "fedavg"},
    "local": {},
    "pooled": {"mode": "one_model"},
    "one_model": {"mode": "one_model"},
    "condist": {"mode": "one_model", "distillation": {}},
}
"""``local``: every site trains a network of its own; ``pooled``: one network on all sites' cases, with the marginal
and the exclusion loss, so that what a case does not mark is never called background."""

NAMES = {
    "segviz": "SegViz (FedBN)",
    "fedavg": "SegViz (FedAvg)",
    "local": "single-structure models, local",
    "pooled": "one network on the pooled data",
    "one_model": "one federated network for all, marginal and exclusion loss",
    "condist": "the same with conditional distillation",
}


@dataclass(frozen=True)
class Cell:
    """One method with so many sites under one seed."""

    sites: int
    method: str
    seed: int

    @property
    def file(self) -> Path:
        """Where its result lies."""
        return RESULTS / f"{self.sites}_sites" / f"{self.method}-seed{self.seed}.json"

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them."""
        own: dict[str, Any] = {"study": f"{SYSTEM}-worth-{ROLE}", "seed": self.seed, SYSTEM: METHODS[self.method]}
        if self.method == "pooled":
            section = SETTINGS["segmentation"]
            longer = {name: self.sites * section[name] for name in ("steps", "validate_every")}
            own["segmentation"] = longer
        return read_settings(find_job(SYSTEM), [read_yaml(find_preset(SYSTEM, PRESET)), SETTINGS, own])[0]

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, and of ``REVISION``."""
        return hashlib.sha256(json.dumps([REVISION, self.sites, self.settings()], sort_keys=True).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether a result of exactly these settings is there."""
        return self.file.is_file() and json.loads(self.file.read_text())["settings_sha256"] == self.key


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
    """Run one federation to its evaluation; its sites' models and test figures."""
    job = write_job(find_job(SYSTEM), cell.settings(), folder / "job")
    local = folder / "w" / "local" / "sites"
    local.mkdir(parents=True)
    for site, listed in lists.items():
        content = {"datasets": {ROLE: {"list": str(listed.resolve())}}, "salt": SALT}
        home = folder / "w.fedmedseg" / site
        own = {"cache_dir": str(cache / site)} | {key: str(home / key) for key in ("state_dir", "models_dir")}
        (local / f"{site}.yaml").write_text(yaml.safe_dump(merged(content, own)), encoding="utf-8")
    federation = InProcessFederation(
        job=job, workspace=folder / "w", sites=list(lists), run=f"{cell.method}{cell.seed}".replace("_", "")
    )
    for stage in ("training", "evaluation"):
        figures = federation.run_stage(stage)[-1]
    benches = [federation.learner(site, "evaluation").bench for site in federation.sites]
    return [load_for_inference(bench.model_file("personal")) for bench in benches], figures


def run_cell(cell: Cell, sites: Path, work: Path, deadline: float) -> None:
    """Train, fuse, test on the external hospital, write."""
    if time.time() > deadline:
        return
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    began = time.monotonic()
    folder = work / f"{cell.sites}_sites" / f"{cell.method}-{cell.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    labels = {int(number): name for number, name in cell.settings()["data"]["labels"].items()}
    lists = partial_lists(sites, cell.sites, len(labels), work)
    if cell.method == "pooled":
        groups = [{"pool": pooled_list(lists, folder / "pool")}]
    elif cell.method == "local":
        groups = [{site: listed} for site, listed in lists.items()]
    else:
        groups = [lists]
    experts: list[InferenceModel] = []
    figures: dict[str, Any] = {}
    for index, group in enumerate(groups):
        models, tested = train(cell, group, folder / str(index), work / "cache" / f"{cell.sites}_sites")
        experts += models
        figures |= tested
    external = read_datalist(data_list_of(sorted(sites.glob("*.yaml"))[-1]), salt=SALT)
    cases = [case for section in ("training", "validation", "test") for case in external[section]]
    scores = per_patient(score_fused(experts, cases, labels=labels))
    result = {
        "sites": cell.sites,
        "method": cell.method,
        "seed": cell.seed,
        "settings_sha256": cell.key,
        "patients": [plain(score) for score in sorted(scores, key=lambda score: score.key)],
        "internal": {site: {name: round(value, 5) for name, value in one.items()} for site, one in figures.items()},
        "seconds": round(time.monotonic() - began, 1),
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {cell.settings()['compute']['threads']} thread",
    }
    write_atomic(cell.file, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    print(f"{time.strftime('%H:%M:%S')} {cell.sites} sites, {cell.file.stem}: {dice_of(result):.3f}", flush=True)
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


def patient_dice(result: dict[str, Any]) -> list[float]:
    """Each external patient's mean Dice over structures, in the same order for every method."""
    return [
        statistics.fmean(found)
        if (found := [one["dice"] for one in row.values() if one["dice"] is not None])
        else math.nan
        for row in result["patients"]
    ]


def dice_of(result: dict[str, Any]) -> float:
    """Mean over patients."""
    return statistics.fmean(value for value in patient_dice(result) if not math.isnan(value))


def mean_figure(results: Sequence[dict[str, Any]], structure: str, figure: str) -> float:
    """Mean over patients, then seeds, of one structure's figure."""
    per_seed = [
        statistics.fmean(row[structure][figure] for row in one["patients"] if row[structure][figure] is not None)
        for one in results
    ]
    return statistics.fmean(per_seed)


def against(runs: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> str:
    """Paired over patients, each the mean of the seeds that both have: mean difference and Wilcoxon's p."""
    seeds = sorted({one["seed"] for one in runs} & {one["seed"] for one in baseline})
    if not seeds or runs == baseline:
        return ""

    def means(results: Sequence[dict[str, Any]]) -> list[float]:
        chosen = [patient_dice(one) for one in results if one["seed"] in seeds]
        return [statistics.fmean(values) for values in zip(*chosen, strict=True)]

    found = paired(means(runs), means(baseline))
    return f"{found.difference:+.3f}, p {found.p:.2g} ({found.n} patients)"


def read_results(sites: int) -> list[dict[str, Any]]:
    """All finished cells with so many sites."""
    return [json.loads(file.read_text()) for file in sorted((RESULTS / f"{sites}_sites").glob("*.json"))]


def table(methods: Iterable[str]) -> str:
    """Markdown: per number of sites, each method's Dice and HD95 per structure at the external hospital."""
    lines: list[str] = []
    for sites in SITES:
        found = read_results(sites)
        if not found:
            continue
        structures = list(found[0]["patients"][0])
        columns = [f"{name}: Dice" for name in structures] + [f"{name}: HD95 (mm)" for name in structures]
        lines += ["", f"**{sites} sites**, {len(found[0]['patients'])} patients of the external hospital", ""]
        lines += [f"| method | {' | '.join(columns)} | mean Dice | against {NAMES[BASELINE]} | seeds |"]
        lines += ["|---" * (len(columns) + 4) + "|"]
        baseline = [one for one in found if one["method"] == BASELINE]
        for method in (name for name in NAMES if name in set(methods)):
            runs = [one for one in found if one["method"] == method]
            if not runs:
                continue
            cells = [f"{mean_figure(runs, name, 'dice'):.3f}" for name in structures]
            cells += [f"{mean_figure(runs, name, 'hd95'):.2f}" for name in structures]
            means = [dice_of(one) for one in runs]
            spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
            lines.append(
                f"| {NAMES[method]} | {' | '.join(cells)} | {statistics.fmean(means):.3f}{spread} "
                f"| {against(runs, baseline)} | {len(runs)} |"
            )
    return "\n".join(lines).strip() or "no finished cell"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=Path, help="folder of site files, as the import writes them")
    parser.add_argument("--work", type=Path, default=Path("runs/segviz_worth"), help="labels, states, cached volumes")
    parser.add_argument("--numbers", nargs="+", type=int, choices=SITES, default=list(SITES), help="numbers of sites")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=110.0, help="begin no cell after so many minutes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.table:
        if options.sites is None or len(list(options.sites.glob("*.yaml"))) <= max(options.numbers):
            parser.error("--sites must name a folder with a site file more than sites take part: the external hospital")
        deadline = time.time() + 60 * options.minutes
        every = [Cell(n, method, seed) for seed in options.seeds for n in options.numbers for method in options.methods]
        missing = [cell for cell in every if not cell.is_done()]
        print(f"{len(missing)} of {len(every)} cells are missing", flush=True)
        work, sites = options.work.resolve(), options.sites.resolve()
        labels = Cell(SITES[0], BASELINE, SEEDS[0]).settings()["data"]["labels"]
        for number in options.numbers:
            # once, before the workers share them
            partial_lists(sites, number, len(labels), work)
        # spawn: a forked torch may hang in its thread pool
        with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
            pool.starmap(run_cell, [(cell, sites, work, deadline) for cell in missing], chunksize=1)
    print(table(options.methods))


if __name__ == "__main__":
    main()
