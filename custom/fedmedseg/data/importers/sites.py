"""Write the sites of an imported data set: each whole or not at all, with its data list and its site file."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.data_settings import ROLE_PATTERN, ROLE_WORDS
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.importers.assignment import SECTIONS, SITE_NAME, check_site_name, sections_of
from fedmedseg.data.importers.base import SourceCase, Tick, place, writing
from fedmedseg.data.importers.counting import label_voxels

logger = logging.getLogger(__name__)

MANIFEST = "import.json"


@dataclass(frozen=True, kw_only=True)
class SiteSummary:
    """What one site received. ``volumes`` counts per section, ``voxels`` per label number over its label files."""

    site: str
    patients: int
    volumes: Mapping[str, int]
    voxels: Mapping[int, int]
    withheld: int
    """Unlabelled volumes of validation and test patients: left out, or pretraining would see test patients."""


def write_sites(
    plan: Mapping[str, Sequence[SourceCase]],
    *,
    out: Path,
    role: str,
    name: str,
    labels: Mapping[int, str],
    shares: Sequence[float],
    seed: int,
    link: bool = False,
    force: bool = False,
    tick: Callable[[str, int, int], None] | None = None,
) -> list[SiteSummary]:
    """Write every site of ``plan`` below ``out`` and its site file below ``out/sites``.

    A site appears under its name only when it is complete. All splits are made before the first file is
    written, so that a plan which cannot work leaves nothing behind.

    Raises:
        ConfigurationError: ``out`` holds files and ``force`` is not set, it cannot be written (its disk is full, say),
            or a name is not usable.
        DataError: a site has too few patients, or a source file cannot be read.
    """
    require_role(role)
    for site in plan:
        check_site_name(site)
    splits = {site: sections_of(cases, shares, seed=seed, site=site) for site, cases in plan.items()}
    with writing(out):
        claim(out, force=force)
        summaries = []
        for site, (sections, withheld) in splits.items():

            def step(done: int, of: int, site: str = site) -> None:
                if tick:
                    tick(site, done, of)

            voxels = _write_site(out, site, sections, name=name, labels=labels, link=link, tick=step)
            write_site_file(out, site, {role: out / site / "datalist.json"})
            cases = [case for section in sections.values() for case in section]
            summaries.append(
                SiteSummary(
                    site=site,
                    patients=len({case.patient for case in cases}),
                    volumes={section: len(sections[section]) for section in SECTIONS},
                    voxels=voxels,
                    withheld=withheld,
                )
            )
            logger.info("site %s: %d volumes written", site, len(cases))
        write_manifest(out, {"data set": name, "role": role, "seed": seed, "split": list(shares), "sites": list(plan)})
    return summaries


def write_manifest(out: Path, content: Mapping[str, object]) -> None:
    """Note what was written: ``sites`` in it tells a later ``--force`` which folders are ours to replace."""
    write_atomic(out / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def require_free(out: Path, *, force: bool) -> None:
    """Refuse what ``claim`` would refuse, before anything is read for it; nothing is changed.

    Raises:
        ConfigurationError: no folder can be there, or it holds files and ``force`` is not set.
    """
    blocked = next((one for one in (out, *out.parents) if one.exists() and not one.is_dir()), None)
    if blocked is not None:
        got = f"the file {out}" if blocked == out else f"{out}, below the file {blocked}"
        raise ConfigurationError("--out", got=got, expected="a folder")
    if not force and out.exists() and any(out.iterdir()):
        raise ConfigurationError(
            "--out", got=f"{out}, which holds files", expected="a new or empty folder", remedy="--force replaces it"
        )


def require_role(role: str) -> None:
    """Refuse a role that no study could ask for.

    Raises:
        ConfigurationError: naming it.
    """
    if not re.fullmatch(ROLE_PATTERN, role):
        raise ConfigurationError("--role", got=repr(role), expected=ROLE_WORDS, remedy="such as cmr or abdominal_ct")


def claim(out: Path, *, force: bool) -> None:
    """Make ``out`` ready: new or empty, or with ``force`` rid of the sites that an earlier import listed.

    Raises:
        ConfigurationError: no folder can be there, or it holds files and ``force`` is not set.
    """
    require_free(out, force=force)
    if not out.exists():
        return
    manifest = out / MANIFEST
    if manifest.is_file():
        try:
            earlier = json.loads(manifest.read_text(encoding="utf-8"))["sites"]
        except (OSError, ValueError, KeyError, TypeError):
            earlier = []
        for site in (name for name in earlier if isinstance(name, str) and SITE_NAME.fullmatch(name)):
            (out / "sites" / f"{site}.yaml").unlink(missing_ok=True)
            shutil.rmtree(out / site, ignore_errors=True)
        manifest.unlink()


def write_site_file(out: Path, site: str, datasets: Mapping[str, Path]) -> Path:
    """Write ``out/sites/<site>.yaml``; its paths start at its own folder, so that ``out`` may be moved whole."""
    path = out / "sites" / f"{site}.yaml"
    content = {"datasets": {role: {"list": os.path.relpath(list_, path.parent)} for role, list_ in datasets.items()}}
    head = f"# What site {site} has. Every key that app_configs/sites/example.yaml shows may be added.\n"
    write_atomic(path, (head + yaml.safe_dump(content, sort_keys=False)).encode())
    return path


def _write_site(
    out: Path,
    site: str,
    sections: Mapping[str, Sequence[SourceCase]],
    *,
    name: str,
    labels: Mapping[int, str],
    link: bool,
    tick: Tick,
) -> dict[int, int]:
    partial, final = out / f".{site}.partial", out / site
    shutil.rmtree(partial, ignore_errors=True)
    voxels: dict[int, int] = {}
    listed: dict[str, list[dict[str, object]]] = {}
    of, done = sum(len(cases) for cases in sections.values()), 0
    try:
        for folder in ("images", "labels"):
            (partial / folder).mkdir(parents=True)
        for section, cases in sections.items():
            listed[section] = []
            for case in cases:
                listed[section].append(_write_case(partial, case, with_label=section != "unlabeled", link=link))
                if "label" in listed[section][-1]:
                    for value, number in label_voxels(partial / str(listed[section][-1]["label"])).items():
                        voxels[value] = voxels.get(value, 0) + number
                done += 1
                tick(done, of)
        # what the set does not name is marked all the same, and whoever reads the list should know
        marked = {value: f"label {value}" for value in voxels if value > 0} | dict(labels)
        names = {"0": "background", **{str(value): text for value, text in sorted(marked.items())}}
        content = {"name": name, "labels": names, **listed}
        write_atomic(partial / "datalist.json", (json.dumps(content, indent=2) + "\n").encode())
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dict(sorted(voxels.items()))


def _write_case(folder: Path, case: SourceCase, *, with_label: bool, link: bool) -> dict[str, object]:
    file = f"{case.name}{case.suffix}"
    entry: dict[str, object] = {"image": f"images/{file}"}
    label = folder / "labels" / file if with_label and case.content.has_label else None
    if label is not None:
        entry["label"] = f"labels/{file}"
        if case.annotated_labels is not None:
            entry["annotated_labels"] = list(case.annotated_labels)
    entry["patient"] = case.patient
    case.content.write(folder / "images" / file, label, link=link)
    if with_label and case.landmarks is not None:
        entry["landmarks"] = f"landmarks/{case.name}.json"
        place(case.landmarks, _inside(folder / "landmarks") / f"{case.name}.json", link=link)
    if case.heart is not None:
        entry["heart"] = f"hearts/{case.name}.nii.gz"
        case.heart.write(_inside(folder / "hearts") / f"{case.name}.nii.gz")
    return entry


def _inside(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
