"""What distilling task CNNs into one transformer is worth: hospitals that annotate little, and one that took no part.

    python benchmarks/cardiac_ct_worth.py
    python benchmarks/cardiac_ct_worth.py --table

Five phantom hospitals: the first four annotate what the first four of the published study do, in proportion, and hold
many more scans than annotations; the fifth is only tested. The student has the annotated and all other scans, labelled
by the federation's CNNs; every other method has the annotations alone, and the same steps at each site. A model that a
site trained for itself is tested there and at the fifth hospital. What follows a distillation (tuning its heads, a new
last layer for the coronaries from 1, 2 and all labelled patients, on the student and on a CNN, and the options of
distillation) starts from that very run. A finished cell is a JSON file under benchmarks/results/cardiac_ct_worth/; a
call continues with those that are missing or whose settings have changed, and starts none after --minutes.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from worth import (
    HERE,
    AnyCell,
    Method,
    digest_of,
    markdown,
    options_of,
    place_sites,
    read_results,
    run_token,
    study_file,
    with_spread,
    work_on,
)

from fedmedseg.cardiac_ct.evaluation import score_cases, to_plain
from fedmedseg.cardiac_ct.foundation import load_foundation
from fedmedseg.cardiac_ct.models import Networks
from fedmedseg.cardiac_ct.plan import STUDENT, TEACHER
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.config import parse_experiment
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import CONFIG, find_job, find_preset, read_settings, write_job
from fedmedseg.core.schema import read_yaml
from fedmedseg.core.start_file import START_FILE, save_start, tensors_of
from fedmedseg.core.versions import installed_versions
from fedmedseg.data.site import Site, write_phantoms
from fedmedseg.data.tasks import TASKS, TaskVolumes, counts_by_task
from fedmedseg.data.volumes import Volumes
from fedmedseg.reporting.paired import paired
from fedmedseg.reporting.points import ALL, PointCase, compare_points, summarise_points

RESULTS = HERE / "results" / "cardiac_ct_worth"
SYSTEM, ROLE = "cardiac_ct", "cardiac_ct"
STUDY = study_file(SYSTEM, "phantoms")
SALT = "phantom hospitals"
REVISION = 1
"""Raise it when the code or a default changes what a finished cell would say."""

NO_TRAINING: dict[str, Any] = {f"teacher_{task}": {"rounds": 0} for task in ("hps", "ms", "calc")}
BASE = "distilled"
METHODS: dict[str, Method] = {
    BASE: ([], {}),
    "labels_only": (["labels_only"], {SYSTEM: {"transfer": None}}),
    "local_cnn": (["local_cnn"], {}),
    "local_transformer": (["local_transformer"], {}),
}
"""The federated CNNs are those of the run that is distilled."""


def _transfer(patients: int | None) -> Method:
    """Only the stage transfer, from at most so many patients."""
    alone = NO_TRAINING | {"pseudo_labelling": {"rounds": 0}, "distillation": {"rounds": 0}, "transfer": {"rounds": 1}}
    section = {"gate": None, "transfer": {**STUDY["transfer"], "patients": patients}}
    return [], {SYSTEM: section, "stages": alone}


AFTER: dict[str, Method] = {
    "tuned": (
        [],
        {
            SYSTEM: {"gate": None, "head_steps": STUDY["head_steps"]},
            "stages": NO_TRAINING
            | {"pseudo_labelling": {"rounds": 0}, "distillation": {"rounds": 0}, "head_tuning": {"rounds": 1}},
        },
    ),
    "transfer_1": _transfer(1),
    "transfer_2": _transfer(2),
    "transfer_all": _transfer(None),
}
"""What starts from the distilled run: its student with tuned heads, and a new last layer for the coronaries."""

LONGER: dict[str, Any] = {"segmentation": {"steps": 3 * STUDY["settings"]["segmentation"]["steps"]}}
PROBES: dict[str, Method] = {
    "soft": ([], {SYSTEM: {"distillation": {"targets": "soft"}}, "stages": NO_TRAINING}),
    "confident": ([], {SYSTEM: {"distillation": {"weighting": "confidence"}}, "stages": NO_TRAINING}),
    "pseudo_only": ([], {SYSTEM: {"distillation": {"real_labels": False}}, "stages": NO_TRAINING}),
    "longer": ([], {**LONGER, "stages": NO_TRAINING}),
}
"""Other students of the same CNNs: soft targets, answers weighed by the CNNs' confidence, no real label, more steps."""
BESIDE: dict[str, Method] = {"labels_only_longer": (["labels_only"], {SYSTEM: {"transfer": None}, **LONGER})}
"""What a longer distillation is compared with."""
FROM_NOTHING = METHODS | BESIDE

ROWS: dict[str, tuple[str, str]] = {
    "student": (BASE, "student"),
    "cnn": (BASE, "cnn"),
    "labels_only": ("labels_only", "student"),
    "local_cnn": ("local_cnn", "cnn"),
    "local_transformer": ("local_transformer", "student"),
    "tuned": ("tuned", "student"),
    **{probe: (probe, "student") for probe in PROBES | BESIDE},
}
"""Rows of the tables: a method and which of its models."""
NAMES = {
    "student": "distilled transformer",
    "cnn": "CNN of each task, federated",
    "labels_only": "transformer, federated on labels only",
    "local_cnn": "CNN of each task, local",
    "local_transformer": "transformer, local",
    "tuned": "distilled transformer, heads tuned",
    "soft": "distilled from soft targets",
    "confident": "distilled, weighed by confidence",
    "pseudo_only": "distilled, without real labels",
    "longer": "distilled for three times the steps",
    "labels_only_longer": "transformer, federated on labels only, three times the steps",
}
TESTED = {"hps": "Hinge points and ostia", "ms": "Membranous septum", "calc": "Valve calcification"}
GROUPS = {
    "owners": "sites that annotate it",
    "others": "sites that take part without annotating it",
    "unseen": "the site that took no part",
}
POINT_COLUMNS = ("median (mm)", "quartiles", "mean of those found", "missed", "points", "student closer by (mm)", "p")
MASK_COLUMNS = ("Dice", "patients", "student ahead by", "p")
Row = Mapping[str, Any]
"""What one model made of one test case, as ``cardiac_ct.evaluation`` writes it, without its key."""


@dataclass(frozen=True)
class Cell(AnyCell):
    """One method under one seed."""

    method: str
    seed: int

    @property
    def file(self) -> Path:
        """Where its result lies."""
        return RESULTS / f"{self.method}-seed{self.seed}.json"

    def settings(self) -> dict[str, Any]:
        """The job's settings under this cell, as its experiment.yaml would say them, but for what it starts from."""
        presets, changes = (FROM_NOTHING | AFTER | PROBES)[self.method]
        overlays = [read_yaml(find_preset(SYSTEM, name)) for name in presets]
        own = {"study": f"cardiac-ct-worth-{self.method.replace('_', '-')}", "seed": self.seed}
        layers = [STUDY["settings"], *overlays, changes, own]
        if self.method in AFTER or self.method in PROBES:
            # a study that trains no CNN must name what it starts from; the file's digest takes this place
            layers.append({SYSTEM: {"start": "0" * 64}})
        return read_settings(find_job(SYSTEM), layers)[0]

    @property
    def key(self) -> str:
        """SHA-256 of the settings as they are written, of those of the run it starts from, and of ``REVISION``."""
        before = [] if self.method in FROM_NOTHING else [Cell(BASE, self.seed).key]
        return digest_of(REVISION, self.settings(), *before)


def sites_of(study: Mapping[str, Any] = STUDY) -> list[str]:
    """Names of the hospitals; the last one takes no part."""
    return [f"site-{number}" for number in range(1, study["sites"] + 1)]


def write_hospitals(seed: int, sites: Path) -> None:
    """Phantoms of one seed and a site file for each hospital, once, whichever methods come."""
    section = parse_experiment(Cell(BASE, seed).settings()).data.phantom
    assert section is not None, "the study is one of phantoms"
    for name in sites_of():
        listed = write_phantoms(section, seed=seed, name=name, home=sites / f"phantoms-{seed}" / name)
        content = {"datasets": {ROLE: {"list": str(listed.resolve())}}, "salt": SALT}
        file = sites / f"seed-{seed}" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, yaml.safe_dump(content).encode())


def run_group(cells: list[Cell], sites: Path, work: Path, deadline: float) -> None:
    """Run cells of one seed one after another; those that start from the distilled run come after it."""
    logging.getLogger("fedmedseg").setLevel(logging.ERROR)
    for cell in cells:
        if time.time() > deadline:
            return
        run_cell(cell, sites, work)


def run_cell(cell: Cell, sites: Path, work: Path) -> None:
    """Train, test everywhere, write."""
    began = time.monotonic()
    folder = work / cell.file.stem
    shutil.rmtree(folder, ignore_errors=True)
    settings = cell.settings()
    start = _start(cell, sites, work)
    if start is not None:
        settings[SYSTEM]["start"] = save_start(folder / START_FILE, start)
    job = write_job(find_job(SYSTEM), settings, folder / "job")
    if start is not None:
        save_start(job / CONFIG / START_FILE, start)
    names = place_sites(sites / f"seed-{cell.seed}", folder / "w", work / f"cache-{cell.seed}")
    federation = InProcessFederation(job=job, workspace=folder / "w", sites=names, run=run_token(cell))
    figures = {
        stage: federation.run_stage(stage) for stage, section in federation.experiment.stages.items() if section.rounds
    }
    unseen = names[-1]
    tested = {site: tested_at(federation, site) for site in names if site in figures["evaluation"][-1]}
    if federation.experiment.wing.share == "nothing":
        tested[unseen] = foreign_models(federation, names[:-1], unseen)
    result = {
        "method": cell.method,
        "seed": cell.seed,
        "unseen": unseen,
        "owners": owners(federation),
        "tested": tested,
        "stages": {stage: rounds[-1] for stage, rounds in figures.items() if stage != "evaluation"},
        "seconds": round(time.monotonic() - began, 1),
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {federation.experiment.compute.threads} thread",
    }
    if cell.method == BASE:
        save_start(_kept(cell, work), federation.shared)
    cell.write(result, main_figure(result))
    shutil.rmtree(folder, ignore_errors=True)


def _kept(cell: Cell, work: Path) -> Path:
    """Where the tensors of a distilled run lie for what follows it, under the digest of all they depend on."""
    return work / "distilled" / f"{cell.key[:16]}.safetensors"


def _start(cell: Cell, sites: Path, work: Path) -> dict[str, torch.Tensor] | None:
    """What a cell begins from: all of the distilled run, its CNNs for another student, nothing for a method.

    A distilled run whose tensors are gone is made again, to the same bytes.
    """
    if cell.method in FROM_NOTHING:
        return None
    base = Cell(BASE, cell.seed)
    if not _kept(base, work).is_file():
        run_cell(base, sites, work)
    tensors = tensors_of(_kept(base, work))
    within = (TEACHER,) if cell.method in PROBES else (TEACHER, STUDENT)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(within)}


def tested_at(federation: InProcessFederation, site: str) -> dict[str, list[list[Row]]]:
    """Model -> rows of the site's test cases, as the site's own test wrote them; one list, for one model."""
    folder: Path = federation.learner(site, "evaluation").folder  # type: ignore[attr-defined]
    content = json.loads((folder / "test_scores.json").read_text())
    return {model: [plain(cases)] for model, cases in content["models"].items()}


def foreign_models(federation: InProcessFederation, trained: Iterable[str], unseen: str) -> dict[str, list[list[Row]]]:
    """Model -> for each site that trained one for itself, rows of the unseen site's test cases."""
    experiment = federation.experiment
    site: Site = federation.learner(unseen, "evaluation").site  # type: ignore[attr-defined]
    test = Volumes(site=site, experiment=experiment, section="test")
    found: dict[str, list[list[Row]]] = {}
    for name in trained:
        folder: Path = federation.learner(name, "evaluation").folder  # type: ignore[attr-defined]
        for model in ("cnn", "student"):
            file = folder / f"{model}.safetensors"
            if not file.is_file():
                continue
            networks = Networks(experiment=experiment, site=site, tensors=load_foundation(file).tensors)
            predict = networks.predict_cnn() if model == "cnn" else networks.predict_student()
            known = [task for task in experiment.wing.tasks if _knows(federation, name, task)]
            marked = {task: TaskVolumes(volumes=test, task=task, radius=experiment.wing.radius) for task in known}
            cases = score_cases(predict, volumes=test, marked=marked, experiment=experiment, salt=site.salt)
            found.setdefault(model, []).append(plain([to_plain(case) for case in cases]))
    return found


def _knows(federation: InProcessFederation, site: str, task: str) -> bool:
    """Whether a site had a label of the task to learn from."""
    return site in owners(federation)[task]


def owners(federation: InProcessFederation) -> dict[str, list[str]]:
    """Task -> the sites that annotate it."""
    experiment = federation.experiment
    counts = {
        name: counts_by_task(federation.learner(name, "evaluation").site, experiment)  # type: ignore[attr-defined]
        for name in federation.sites
    }
    return {task: [name for name in federation.sites if counts[name][task]] for task in (*TESTED, "coronaries")}


def plain(cases: Sequence[Row]) -> list[Row]:
    """Rows in the order of their keys, which are the same under every method of a seed, and without them."""
    ordered = sorted(cases, key=lambda case: case["key"])
    return [{name: value for name, value in case.items() if name not in ("key", "patient")} for case in ordered]


def rows_of(result: Mapping[str, Any], model: str, task: str, group: str) -> Iterator[tuple[str, str, Row]]:
    """Patient, key and row of every test case of a group of sites; several of a patient whom several models saw.

    A model that a site trained for itself knows nothing of what the site does not annotate.
    """
    own = result["owners"][task]
    if group == "others" and result["method"].startswith("local"):
        return
    for site, models in result["tested"].items():
        kind = "unseen" if site == result["unseen"] else "owners" if site in own else "others"
        if kind != group:
            continue
        for which, rows in enumerate(models.get(model, [])):
            for place, row in enumerate(rows):
                patient = f"{result['seed']}/{site}/{place}"
                yield patient, f"{patient}/{which}", row


def point_cases(results: Iterable[Mapping[str, Any]], model: str, task: str, group: str) -> list[PointCase]:
    """A group's cases of a points task over all seeds, of those models that learnt it."""
    cases = []
    for result in results:
        for patient, key, row in rows_of(result, model, task, group):
            own = {name: value for name, value in row["distances"].items() if name in TASKS[task].names}
            if own:
                distances = {name: math.inf if value is None else value for name, value in own.items()}
                cases.append(PointCase(key=key, patient=patient, distances=distances))
    return cases


def dice_by_patient(
    results: Iterable[Mapping[str, Any]], model: str, task: str, group: str
) -> dict[int, dict[str, float]]:
    """Seed -> patient -> Dice of a mask task, a mean where several models saw the patient."""
    structure = TASKS[task].names[0]
    found: dict[int, dict[str, list[float]]] = {}
    for result in results:
        for patient, _, row in rows_of(result, model, task, group):
            dice = row["structures"].get(structure, {}).get("dice")
            if dice is not None:
                found.setdefault(result["seed"], {}).setdefault(patient, []).append(dice)
    return {seed: {name: statistics.fmean(values) for name, values in one.items()} for seed, one in found.items()}


def main_figure(result: Mapping[str, Any]) -> float:
    """What is said of a finished cell: the median distance in mm over all points of all sites' last model."""
    distances = [
        math.inf if value is None else value
        for models in result["tested"].values()
        for rows in list(models.values())[-1]
        for row in rows
        for value in row["distances"].values()
    ]
    return statistics.median(distances) if distances else math.nan


def table(rows: Iterable[str], results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: per task and group of sites every method's figures over all seeds, and the student less each other."""
    shown = list(rows)
    lines: list[str] = []
    for task, title in TESTED.items():
        for group, where in GROUPS.items():
            body = [_line(row, task, group, results) for row in shown]
            found = [line for line in body if line]
            if found:
                figures = POINT_COLUMNS if TASKS[task].kind == "points" else MASK_COLUMNS
                lines += ["", f"**{title}**, {where}", "", *markdown(["method", *figures, "seeds"], found)]
    lines += transfer_table(results)
    lines += seeds_table(results)
    return "\n".join(lines).strip() or "no finished cell"


def _line(row: str, task: str, group: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    method, model = ROWS[row]
    runs, main = results.get(method, []), results.get(BASE, [])
    seeds = str(len(runs))
    if TASKS[task].kind == "points":
        cases = point_cases(runs, model, task, group)
        if not cases:
            return []
        one = next(found for found in summarise_points({row: cases}) if found.point == ALL)
        figures = [f"{one.median:.2f}", f"{one.q25:.2f} to {one.q75:.2f}", f"{one.mean:.2f}"]
        figures += [f"{one.failure_rate:.1%}", str(one.n)]
        return [NAMES[row], *figures, *_closer(row, cases, main, task, group), seeds]
    dice = dice_by_patient(runs, model, task, group)
    if not dice:
        return []
    means = [statistics.fmean(one.values()) for one in dice.values()]
    figures = [with_spread(means), str(sum(map(len, dice.values())))]
    return [NAMES[row], *figures, *_ahead(row, dice, main, task, group), seeds]


def _closer(
    row: str, cases: list[PointCase], main: Sequence[Mapping[str, Any]], task: str, group: str
) -> tuple[str, str]:
    """The other's distances less the student's over points that both found, paired by patient, and p."""
    if row == "student":
        return "", ""
    own = {case.patient: case for case in point_cases(main, "student", task, group)}
    # the student's one answer beside each of the other's
    beside = [
        PointCase(key=case.key, patient=case.patient, distances=own[case.patient].distances)
        for case in cases
        if case.patient in own
    ]
    found = compare_points(cases, beside).distances
    return (f"{found.difference:+.2f}", f"{found.p:.2g}") if found.n else ("", "")


def _ahead(
    row: str, dice: Mapping[int, Mapping[str, float]], main: Sequence[Mapping[str, Any]], task: str, group: str
) -> tuple[str, str]:
    """The student's Dice less the other's, paired by patient, and p."""
    if row == "student":
        return "", ""
    own = dice_by_patient(main, "student", task, group)
    pairs = [
        (own[seed][patient], value)
        for seed, one in dice.items()
        for patient, value in one.items()
        if patient in own.get(seed, {})
    ]
    found = paired([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return (f"{found.difference:+.3f}", f"{found.p:.2g}") if found.n else ("", "")


def transfer_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Lines: Dice of the coronaries from 1, 2 and all labelled patients, on the frozen student and the frozen CNN."""
    columns = {"transfer_1": "1 patient", "transfer_2": "2 patients", "transfer_all": "all"}
    body = []
    for model, name in (("student", "distilled transformer"), ("cnn", "CNN of hinge points and ostia, federated")):
        for group, where in GROUPS.items():
            found = [dice_by_patient(results.get(method, []), model, "coronaries", group) for method in columns]
            if any(found):
                means = [[statistics.fmean(one.values()) for one in seeds.values()] for seeds in found]
                body.append([name, where, *(with_spread(values) if values else "" for values in means)])
    if not body:
        return []
    title = "**Coronaries by a new last layer** on what is frozen, Dice"
    return ["", title, "", *markdown(["frozen", "tested at", *columns.values()], body)]


def seeds_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Lines: each hinge point and ostium in each seed, median distance at the sites that annotate it.

    What the means hide: a probe runs under some seeds alone, and a model may never have learned one of the points.
    """
    points, body = TASKS["hps"].names, []
    for row, (method, model) in ROWS.items():
        for result in results.get(method, []):
            cases = point_cases([result], model, "hps", "owners")
            if not cases:
                continue
            found = {one.point: one for one in summarise_points({row: cases})}
            told = [found.get(name) for name in points]
            cells = ["-" if one is None else f"{one.median:.1f} ({one.failure_rate:.0%})" for one in told]
            body.append([NAMES[row], str(result["seed"]), *cells, f"{found[ALL].median:.1f}"])
    if not body:
        return []
    title = f"**{TESTED['hps']}, point by point**, {GROUPS['owners']}: median in mm (missed)"
    return ["", title, "", *markdown(["method", "seed", *points, "all"], body)]


def groups_of(methods: Sequence[str], seeds: Iterable[int]) -> list[list[Cell]]:
    """What is missing, in groups that one worker takes: a distilled run and what follows it, and each other method."""
    groups = []
    for seed in seeds:
        chain = [Cell(name, seed) for name in (BASE, *AFTER, *PROBES) if name in methods]
        alone = [[Cell(name, seed)] for name in FROM_NOTHING if name in methods and name != BASE]
        groups += [[cell for cell in group if not cell.is_done()] for group in (chain, *alone)]
    return [group for group in groups if group]


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = options_of(__doc__, "runs/cardiac_ct_worth", [*METHODS, *AFTER], [*PROBES, *BESIDE])
    # the longest cell of the study took an hour of one core beside other work
    parser.set_defaults(minutes=55.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=STUDY["seeds"])
    options = parser.parse_args()
    if not options.table:
        groups = groups_of(options.methods, options.seeds)
        print(f"{sum(map(len, groups))} cells in {len(groups)} groups are missing", flush=True)
        # the hospitals are phantoms of the study itself
        options.sites = options.work / "hospitals"
        for seed in sorted({group[0].seed for group in groups}):
            write_hospitals(seed, options.sites.resolve())
        work_on(run_group, groups, options)
    found = read_results(RESULTS)
    results = {name: [one for one in found if one["method"] == name] for name in FROM_NOTHING | AFTER | PROBES}
    print(table(ROWS, results))


if __name__ == "__main__":
    main()
