"""What the gate says about a site's data before any study starts."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.bounds import VOLUME_BUDGET_MB
from fedmedseg.core.data_settings import MOST_LABELS, DataSection
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import parse, read_yaml
from fedmedseg.data.cache import Cache
from fedmedseg.data.checks import admit, unlogged_cases
from fedmedseg.data.datalist import Case, read_datalist
from fedmedseg.data.site import SiteFile
from fedmedseg.data.views import data_sets


@dataclass(frozen=True, kw_only=True)
class SectionReport:
    """One section of one data list. ``set_aside``: image file, as the list's folder sees it, -> reason."""

    role: str
    section: str
    patients: int
    admitted: int
    set_aside: Mapping[str, str]


def lists_in(path: Path, *, job: str | None) -> list[tuple[str, Path, int]]:
    """(role, data list, memory budget in MiB): the list itself, or every list a site file names.

    With ``job``, a site file's lists of that job's roles alone.

    Raises:
        ConfigurationError: no such file, an invalid site file, or a role it lacks.
    """
    if not path.is_file():
        raise ConfigurationError("check", got=f"no file at {path}", expected="a data list (JSON) or a site file (YAML)")
    roles = _data_of(job).roles if job else ()
    if path.suffix.lower() not in (".yaml", ".yml"):
        return [(roles[0] if roles else "-", path, VOLUME_BUDGET_MB)]
    settings = parse(SiteFile, read_yaml(path), source=path.name)
    lists = {
        name: path.parent / entry.list.expanduser()
        for name, entry in settings.datasets.items()
        if not roles or name in roles
    }
    if not lists:
        raise ConfigurationError(
            "datasets",
            got=f"roles {', '.join(sorted(settings.datasets))}",
            expected=f"role {' or '.join(map(repr, roles))} of job {job!r}",
        )
    return [(name, list_, settings.volume_budget_mb) for name, list_ in lists.items()]


def survey(
    path: Path, *, role: str, job: str | None, labels: int | None, budget_mb: int, tick: Callable[[int, int], None]
) -> list[SectionReport]:
    """Check every case of a data list anew, as a site does when a study starts.

    Raises:
        ConfigurationError: the number of structures is not known, or the list is invalid.
        DataError: the list names absent files or mixes patients between sections.
    """
    sections = read_datalist(path, salt=secrets.token_hex(16))
    with unlogged_cases():
        return _survey(sections, path, role=role, job=job, labels=labels, budget_mb=budget_mb, tick=tick)


def _survey(
    sections: Mapping[str, Sequence[Case]],
    path: Path,
    *,
    role: str,
    job: str | None,
    labels: int | None,
    budget_mb: int,
    tick: Callable[[int, int], None],
) -> list[SectionReport]:
    data = next(one for one in data_sets(_data_of(job)) if one.role == role) if job else _plain(path, labels)
    of, done, reports = sum(len(cases) for cases in sections.values()), 0, []
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder=Path(folder))
        for section, cases in sections.items():
            aside = {}
            for case in cases:
                for reason in admit([case], data=data, budget_mb=budget_mb, cache=cache).quarantined.values():
                    aside[os.path.relpath(case.image, path.parent)] = reason
                done += 1
                tick(done, of)
            patients = len({case.patient for case in cases})
            admitted = len(cases) - len(aside)
            reports.append(
                SectionReport(role=role, section=section, patients=patients, admitted=admitted, set_aside=aside)
            )
    return reports


def _plain(path: Path, labels: int | None) -> DataSection:
    """The settings a check needs, from the label names that Decathlon lists carry."""
    named = json.loads(path.read_text(encoding="utf-8")).get("labels")
    if labels is None and isinstance(named, dict):
        labels = max((int(number) for number in named if str(number).isdigit()), default=0)
    if not labels:
        raise ConfigurationError(
            "check",
            got="a data list that does not name its labels",
            expected="the number of structures",
            remedy="add --labels N, or --job to check against a study",
        )
    if not 1 <= labels <= MOST_LABELS:
        raise ConfigurationError("--labels", got=labels, expected=f"1 to {MOST_LABELS}")
    names = {number: f"label_{number}" for number in range(1, labels + 1)}
    return DataSection.model_validate(
        {"role": "check", "modality": "mr", "spatial_dims": 3, "labels": names, "crop": (32, 32, 32)}
    )


def _data_of(job: str) -> DataSection:
    from fedmedseg.core.jobs import find_job, read_settings

    return read_settings(find_job(job), [])[1].data
