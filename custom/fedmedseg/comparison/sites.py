"""The sites of a comparison: where their data lists come from, and what a cell's workspace holds of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedmedseg.comparison.study import Comparison
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.core.homes import homes_beside
from fedmedseg.core.jobs import merged
from fedmedseg.core.schema import parse, read_yaml
from fedmedseg.data.datalist import SECTIONS, read_datalist
from fedmedseg.data.dirichlet import write_split
from fedmedseg.data.folds import list_entry
from fedmedseg.data.site import Site, SiteFile, open_site, write_phantoms
from fedmedseg.data.volumes import training_volumes

SiteFiles = dict[str, dict[str, Any]]
"""Site -> what its file says, with absolute paths of data lists."""
POOL = "pool"


class Sites(NamedTuple):
    """The sites of a study."""

    files: SiteFiles
    sha256: str
    """Digest of the data lists that they were made from; stands in every result."""
    salt: str
    """Of the patients' hashes in results. Made of the same lists, so that all cells have it, and told in no result."""


def prepare_sites(comparison: Comparison, *, role: str, work: Path, sites: Path | None = None) -> Sites:
    """The site files of the study, and what its data lists are known by.

    ``sites``: a folder of site files in place of the one that the study names. Phantoms and split lists are written
    below ``work``.

    Raises:
        ConfigurationError: no or a wrong site file, or one without ``role``.
        DataError: too few patients to split.
    """
    source = comparison.section.data
    folder = sites or (None if source.sites is None else comparison.base / source.sites)
    if source.phantom is not None:
        if sites is not None:
            raise ConfigurationError(
                "--sites",
                got=f"{sites}, and data.phantom in the study",
                expected="one of the two",
                remedy="leave --sites out: this study makes its own phantoms",
            )
        names = [f"site-{number + 1}" for number in range(source.phantom.sites)]
        lists = {
            name: write_phantoms(source.phantom, seed=source.seed, name=name, home=work / "phantoms" / name)
            for name in names
        }
        files: SiteFiles = {name: {} for name in names}
    else:
        files = _read_site_files(folder)
        lists = {name: _list_of(content, role, name) for name, content in files.items()}
    listed = b"".join(f"{name}\n".encode() + lists[name].read_bytes() for name in sorted(lists))
    sha256, salt = (hashlib.sha256(prefix + listed).hexdigest() for prefix in (b"", b"salt of patients\n"))
    if source.dirichlet is not None:
        made = source.dirichlet
        out = work / "split" / f"{sha256[:12]}-{made.alpha:g}-{made.sites}-{made.seed}"
        lists = write_split(lists, out=out, alpha=made.alpha, sites=made.sites, seed=made.seed)
        files = {name: {} for name in lists}
    files = {name: files[name] | {"datasets": _listed(role, lists[name])} for name in sorted(files)}
    return Sites(files, sha256, salt)


def place_site(site: str, content: Mapping[str, Any], workspace: Path, cache: Path) -> None:
    """Write one site's file, whose state and models lie beside the workspace and whose cache all cells share."""
    target = workspace / "local" / "sites"
    target.mkdir(parents=True, exist_ok=True)
    home = homes_beside(workspace) / site
    # nobody looks at a page for each of hundreds of cells, and drawing them takes time
    own: dict[str, Any] = {"cache_dir": str((cache / site).resolve()), "report": False}
    own |= {key: str((home / key).resolve()) for key in ("state_dir", "models_dir")}
    (target / f"{site}.yaml").write_text(yaml.safe_dump(merged(content, own)), encoding="utf-8")


def open_sites(experiment: Experiment, names: Mapping[str, Any], workspace: Path) -> dict[str, Site]:
    """The placed sites as the study sees them."""
    return {
        name: open_site(experiment, name=name, local=workspace / "local", workspace=workspace, simulated=True)
        for name in sorted(names)
    }


def for_trial(files: SiteFiles, role: str, out: Path) -> SiteFiles:
    """Site files whose test section holds the validation cases again: a trial runs and measures like any cell, and no
    file of the test set is named to it.

    The images get names of their own, for a list may not name one in two sections.

    Raises:
        DataError: a site without validation cases (reason NO_CASES).
    """
    made: SiteFiles = {}
    for name, content in files.items():
        listed = _list_of(content, role, name)
        cases = read_datalist(listed, salt="trial")
        if not cases["validation"]:
            raise DataError(
                f"{name}: section validation",
                got="no case",
                expected="cases that trials are judged by",
                remedy="add some to the data list, or remove trials from the study",
                reason=Reason.NO_CASES,
            )
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        sections: dict[str, list[dict[str, Any]]] = {
            section: [{**list_entry(case, folder), "patient": case.patient} for case in cases[section]]
            for section in SECTIONS
            if section != "test"
        }
        sections["test"] = []
        for number, case in enumerate(cases["validation"]):
            image = folder / f"{number:05d}-{case.image.name}"
            image.unlink(missing_ok=True)
            os.symlink(case.image.resolve(), image)
            sections["test"].append(
                {**list_entry(case, folder), "image": image.name, "patient": f"again:{case.patient}"}
            )
        write_atomic(folder / "trial.json", json.dumps(sections).encode())
        made[name] = content | {"datasets": _listed(role, folder / "trial.json")}
    return made


def pool(sites: Mapping[str, Site], experiment: Experiment, out: Path) -> dict[str, Any]:
    """The file of one site that holds what all have, each patient under the name of its site and its own.

    It trains on what each site would train on (``data.labelled_fraction``, ``data.labelled_patients``); the images of
    the others are unlabelled there.
    """
    role = experiment.data.role
    pooled: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for name, site in sites.items():
        sections = read_datalist(site.data_list(role), salt=site.salt)
        try:
            used = {case.patient for case in training_volumes(site, experiment).cases}
        except DataError as error:
            if error.reason != Reason.NO_CASES:
                raise
            used = set()
        for section, cases in sections.items():
            for case in cases:
                entry = {**list_entry(case, out), "patient": f"{name}:{case.patient}"}
                if section == "training" and case.patient not in used:
                    pooled["unlabeled"].append(
                        {key: entry[key] for key in ("image", "heart", "patient") if key in entry}
                    )
                else:
                    pooled[section].append(entry)
    write_atomic(out / "pool.json", json.dumps(pooled).encode())
    return {"datasets": _listed(role, out / "pool.json")}


def _listed(role: str, path: Path) -> dict[str, Any]:
    return {role: {"list": str(path.resolve())}}


def _read_site_files(folder: Path | None) -> SiteFiles:
    found = [] if folder is None else sorted(folder.glob("*.yaml"))
    if not found:
        raise ConfigurationError(
            "data.sites",
            got="no folder" if folder is None else f"no site file in {folder}",
            expected="a folder of site files (<site>.yaml), as `fedmedseg data import` writes it",
            remedy="name it in the study, or with --sites",
        )
    files: SiteFiles = {}
    for file in found:
        if file.stem == POOL:
            # its patients would be looked for under the names of the pool, and all be taken for failures
            raise ConfigurationError(
                f"data.sites: {file.name}",
                got=f"a site called {POOL}",
                expected="another name: so the site of central training is called",
                remedy="rename the site's file",
            )
        content = parse(SiteFile, read_yaml(file), source=file.name).model_dump(mode="json", exclude_none=True)
        for entry in content["datasets"].values():
            entry["list"] = str((file.parent / Path(entry["list"]).expanduser()).resolve())
        files[file.stem] = content
    return files


def _list_of(content: Mapping[str, Any], role: str, site: str) -> Path:
    datasets = content["datasets"]
    if role not in datasets:
        raise ConfigurationError(
            f"{site}.yaml: datasets",
            got=", ".join(sorted(datasets)),
            expected=f"the role {role!r}, which the study asks for (data.role)",
        )
    path = Path(datasets[role]["list"])
    if not path.is_file():
        raise ConfigurationError(f"{site}.yaml: datasets.{role}.list", got=f"no file at {path}", expected="a data list")
    return path
