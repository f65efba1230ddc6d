"""Sites dealt out anew: each old site's patients go to the new ones in shares that a Dirichlet distribution draws.

As Hsu et al. 2019 (Measuring the effects of non-identical data distribution) split the classes of a pooled set, with
the old sites in the place of classes: with a large alpha every new site is the same mixture of all old ones, with a
small one each has its patients from few of them. Files stay where they are: a new site is a data list that names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.seeding import generator
from fedmedseg.data.datalist import SECTIONS, Case, read_datalist
from fedmedseg.data.folds import list_entry

Patient = tuple[str, str]
"""Old site and name there: two hospitals may call different people alike."""
MOST_DRAWS = 1000
HELD = ("test", "validation", "training", "unlabeled")
"""A patient counts in the first of these sections that has a case of hers, and all her cases go along."""


def deal(
    patients: Mapping[str, Mapping[str, Sequence[str]]], *, alpha: float, sites: int, seed: int
) -> list[dict[str, list[Patient]]]:
    """Per new site: section -> patients. ``patients``: old site -> section -> patients, each in one section.

    All sections of an old site are cut in the same shares, so that a new site is tested on what it trains on. Drawn
    again until every new site has a patient in each section that has enough for all.

    Raises:
        DataError: fewer patients than new sites in training or test, or no draw of a thousand will do (reason
            NO_CASES).
    """
    counts = {section: sum(len(of_site.get(section, ())) for of_site in patients.values()) for section in HELD}
    for section in ("training", "test"):
        if counts[section] < sites:
            raise DataError(
                f"section {section}",
                got=f"{counts[section]} patients at all sites",
                expected=f"at least {sites}, one for each new site",
                remedy="lower data.dirichlet.sites",
                reason=Reason.NO_CASES,
            )
    needed = [section for section in HELD if section != "unlabeled" and counts[section] >= sites]
    for draw in range(MOST_DRAWS):
        dealt: list[dict[str, list[Patient]]] = [{section: [] for section in HELD} for _ in range(sites)]
        for old in sorted(patients):
            rng = generator(seed, "dirichlet", draw, old)
            ends = np.cumsum(rng.dirichlet([alpha] * sites))
            for section in HELD:
                known = sorted(patients[old].get(section, ()))
                order = [known[place] for place in rng.permutation(len(known))]
                cuts = [0, *np.rint(ends[:-1] * len(known)).astype(int).tolist(), len(known)]
                for new in range(sites):
                    dealt[new][section] += [(old, name) for name in order[cuts[new] : cuts[new + 1]]]
        if all(one[section] for one in dealt for section in needed):
            return [{section: sorted(found) for section, found in one.items()} for one in dealt]
    raise DataError(
        "data.dirichlet",
        got=f"no draw of {MOST_DRAWS} with alpha {alpha:g} that leaves every one of {sites} sites a patient in each of "
        f"{', '.join(needed)}",
        expected="a split that every site can train and be tested on",
        remedy="raise alpha, or lower sites",
        reason=Reason.NO_CASES,
    )


def write_split(lists: Mapping[str, Path], *, out: Path, alpha: float, sites: int, seed: int) -> dict[str, Path]:
    """Data lists ``out/site-1.json``, ... of the new sites, made of the old sites' ``lists``.

    Raises:
        DataError: a damaged data list, or too few patients.
    """
    cases = {old: read_datalist(path, salt="dirichlet") for old, path in sorted(lists.items())}
    homes = {old: _homes(sections) for old, sections in cases.items()}
    dealt = deal(
        {
            old: {section: [name for name, home in of_site.items() if home == section] for section in HELD}
            for old, of_site in homes.items()
        },
        alpha=alpha,
        sites=sites,
        seed=seed,
    )
    written = {}
    for number, of_site in enumerate(dealt, 1):
        taken = {patient for patients in of_site.values() for patient in patients}
        content = {
            section: [
                {**list_entry(case, out), "patient": f"{old}:{case.patient}"}
                for old, sections in cases.items()
                for case in sections[section]
                if (old, case.patient) in taken
            ]
            for section in SECTIONS
        }
        written[f"site-{number}"] = out / f"site-{number}.json"
        write_atomic(written[f"site-{number}"], (json.dumps(content, indent=2) + "\n").encode())
    return written


def _homes(sections: Mapping[str, Sequence[Case]]) -> dict[str, str]:
    """Patient -> the section in which it counts."""
    homes: dict[str, str] = {}
    for section in reversed(HELD):
        homes.update({case.patient: section for case in sections[section]})
    return homes
