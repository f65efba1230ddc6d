"""Patient folds of a site's labelled cases: every patient is tested once, in the fold that holds it back.

Files stay where they are: a fold is a data list that names them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.core.schema import read_yaml
from fedmedseg.core.seeding import generator
from fedmedseg.data.datalist import Case, read_datalist
from fedmedseg.data.importers.sites import claim, write_manifest, write_site_file

LABELLED = ("training", "validation", "test")


def fold_sections(
    patients: Sequence[str], *, folds: int, fold: int, validation: float, seed: int, site: str
) -> dict[str, str]:
    """Patient -> section in fold number ``fold`` (from 0).

    An order that seed and site fix is dealt out in turn: the patients of one hand are tested, of the others the first
    ``validation`` (a share, rounded up; none where it is 0) are for choices and the rest for training.

    Raises:
        DataError: fewer patients than ``folds``, or nobody left for training (reason NO_CASES).
    """
    known = sorted(set(patients))
    order = [known[place] for place in generator(seed, "folds", site).permutation(len(known))]
    tested = set(order[fold::folds])
    rest = [patient for patient in order if patient not in tested]
    chosen = math.ceil(validation * len(rest) - 1e-9)
    if len(known) < folds or len(rest) <= chosen:
        raise DataError(
            f"site {site}",
            got=f"{len(known)} labelled patients",
            expected=f"at least {folds}, and one for training beside {chosen} for validation",
            remedy="use fewer folds or a smaller --validation",
            reason=Reason.NO_CASES,
        )
    return {
        patient: "test" if patient in tested else "validation" if patient in rest[:chosen] else "training"
        for patient in known
    }


def write_folds(sites: Path, *, out: Path, folds: int, validation: float, seed: int, force: bool = False) -> list[Path]:
    """Write ``out/fold-1/sites`` to ``out/fold-<folds>/sites`` from the folder of site files ``sites``.

    The labelled cases of all three sections are dealt out anew; ``unlabeled`` stays as it is (a patient who is tested
    or validated on is left out of pretraining when the list is read). Returns the folds' folders of site files.

    Raises:
        ConfigurationError: no site file, or one without data lists; fewer than two folds; ``out`` holds files.
        DataError: a damaged data list, or too few patients.
    """
    files = sorted(sites.glob("*.yaml"))
    if not files:
        raise ConfigurationError(
            "sites", got=f"no site file in {sites}", expected="<site>.yaml, as `fedmedseg data import` writes them"
        )
    if folds < 2:
        raise ConfigurationError("--folds", got=folds, expected="at least 2")
    if not 0.0 <= validation < 1.0:
        raise ConfigurationError("--validation", got=validation, expected="a share from 0 to below 1")
    content = {file.stem: _lists_of(file) for file in files}
    dealt = {
        (fold, site, role): _dealt(cases, folds=folds, fold=fold, validation=validation, seed=seed, site=site)
        for site, lists in content.items()
        for role, (cases, _) in lists.items()
        for fold in range(folds)
    }
    claim(out, force=force)
    written = []
    for fold in range(folds):
        folder = out / f"fold-{fold + 1}"
        for site, lists in content.items():
            places = {}
            for role, (_, head) in lists.items():
                places[role] = folder / site / f"{role}.json"
                sections = {
                    section: [list_entry(case, places[role].parent) for case in cases]
                    for section, cases in dealt[fold, site, role].items()
                }
                write_atomic(places[role], (json.dumps({**head, **sections}, indent=2) + "\n").encode())
            write_site_file(folder, site, places)
        written.append(folder / "sites")
    names = [f"fold-{fold + 1}" for fold in range(folds)]
    write_manifest(out, {"folds": folds, "validation": validation, "seed": seed, "sites": names})
    return written


def _lists_of(file: Path) -> dict[str, tuple[dict[str, list[Case]], dict[str, Any]]]:
    """Role -> cases by section, and what else the list says (its name and labels)."""
    content = read_yaml(file)
    datasets = content.get("datasets") if isinstance(content, Mapping) else None
    if not isinstance(datasets, Mapping) or not datasets:
        raise ConfigurationError(f"{file.name}: datasets", got=datasets, expected="role: {list: FILE}")
    found = {}
    for role, one in datasets.items():
        path = (file.parent / str(one["list"])).resolve()
        # no key of a case is written anywhere, so any salt will do
        cases = read_datalist(path, salt="folds")
        listed = json.loads(path.read_text(encoding="utf-8"))
        found[str(role)] = (cases, {key: listed[key] for key in ("name", "labels") if key in listed})
    return found


def _dealt(
    cases: Mapping[str, Sequence[Case]], *, folds: int, fold: int, validation: float, seed: int, site: str
) -> dict[str, list[Case]]:
    labelled = [case for section in LABELLED for case in cases[section]]
    section_of = fold_sections(
        [case.patient for case in labelled], folds=folds, fold=fold, validation=validation, seed=seed, site=site
    )
    sections: dict[str, list[Case]] = {section: [] for section in LABELLED}
    for case in labelled:
        sections[section_of[case.patient]].append(case)
    return {**sections, "unlabeled": list(cases["unlabeled"])}


def list_entry(case: Case, folder: Path) -> dict[str, Any]:
    """The case as a data list in ``folder`` names it."""
    files = {"image": case.image, "label": case.label, "landmarks": case.landmarks, "heart": case.heart}
    entry: dict[str, Any] = {name: os.path.relpath(file, folder) for name, file in files.items() if file is not None}
    entry["patient"] = case.patient
    if case.annotated_labels is not None:
        entry["annotated_labels"] = list(case.annotated_labels)
    if case.allow_empty:
        entry["allow_empty"] = True
    return entry
