"""Which patient goes to which site and to which section of its data list: pure functions, seeded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fedmedseg.core.errors import ConfigurationError, DataError, Reason, choose, nearest
from fedmedseg.core.seeding import generator
from fedmedseg.data.importers.base import Collection, SourceCase, Tick, slug

SECTIONS = ("training", "validation", "test", "unlabeled")
BY = ("random", "volume")
"""How patients are dealt out to a number of sites."""
SITE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}")


def patients_of(cases: Sequence[SourceCase]) -> dict[str, list[SourceCase]]:
    """Patient -> cases, in sorted order."""
    found: dict[str, list[SourceCase]] = {}
    for case in sorted(cases, key=lambda case: (case.patient, case.name)):
        found.setdefault(case.patient, []).append(case)
    return found


def assign_by_group(collection: Collection, wanted: Mapping[str, Sequence[str]] | None) -> dict[str, list[SourceCase]]:
    """Site -> cases by the set's own groups; without ``wanted`` every group is a site.

    Raises:
        ConfigurationError: the set has no groups, or a group is unknown or given to two sites.
    """
    groups = collection.groups
    if not groups:
        raise ConfigurationError(
            "--sites", got="groups", expected="a number of sites", remedy="this data set has no groups of its own"
        )
    plan = wanted if wanted is not None else {site_name(group): [group] for group in groups}
    taken: set[str] = set()
    for site, members in plan.items():
        check_site_name(site)
        for group in members:
            if group not in groups:
                guess = nearest(group, groups)
                raise ConfigurationError(
                    f"--sites {site}",
                    got=f"group {group!r}",
                    expected=f"groups among {', '.join(groups)}",
                    remedy=f"write {guess!r}" if guess else "",
                )
            if group in taken:
                raise ConfigurationError("--sites", got=f"group {group!r} twice", expected="each group at one site")
            taken.add(group)
    return {site: [case for case in collection.cases if case.group in members] for site, members in plan.items()}


def assign_by_number(
    collection: Collection, sites: int, *, by: str, seed: int, tick: Tick | None = None
) -> dict[str, list[SourceCase]]:
    """``site-1`` ... ``site-N`` -> cases with an equal number of patients (the first sites take the remainder).

    ``by="random"`` shuffles the patients; ``by="volume"`` sorts them by the mean size of their images in
    cubic millimetres, so that sites differ.

    Raises:
        ConfigurationError: fewer patients than sites, or an unknown ``by``.
    """
    patients = patients_of(collection.cases)
    if by not in BY:
        raise ConfigurationError("--by", got=repr(by), expected="random or volume", remedy=choose(by, BY))
    if not 1 <= sites <= len(patients):
        raise ConfigurationError("--sites", got=sites, expected=f"1 to {len(patients)}, the number of patients")
    names = list(patients)
    if by == "random":
        names = [names[index] for index in generator(seed, "sites").permutation(len(names))]
    else:
        size = {}
        for done, (name, cases) in enumerate(patients.items(), start=1):
            size[name] = sum(case.content.volume_mm3() for case in cases) / len(cases)
            if tick:
                tick(done, len(patients))
        names.sort(key=lambda name: (size[name], name))
    share, rest = divmod(len(names), sites)
    plan: dict[str, list[SourceCase]] = {}
    start = 0
    for index in range(sites):
        end = start + share + (index < rest)
        plan[f"site-{index + 1}"] = [case for name in names[start:end] for case in patients[name]]
        start = end
    return plan


def parse_sites(texts: Sequence[str]) -> int | dict[str, list[str]] | None:
    """``["3"]`` -> 3, ``["a=X,Y", "b=Z"]`` -> groups per site, ``[]`` -> None.

    Raises:
        ConfigurationError: neither a number nor ``site=group,group``.
    """
    if not texts:
        return None
    if len(texts) == 1 and re.fullmatch(r"\d+", texts[0]):
        return int(texts[0])
    plan: dict[str, list[str]] = {}
    for text in texts:
        site, equals, members = text.partition("=")
        names = [name.strip() for name in members.split(",") if name.strip()]
        if not equals or not names:
            raise ConfigurationError("--sites", got=repr(text), expected="one number, or site=group,group")
        if site in plan:
            raise ConfigurationError("--sites", got=f"site {site!r} twice", expected="each site once")
        plan[check_site_name(site)] = names
    return plan


def parse_split(text: str) -> tuple[float, ...]:
    """``"0.6,0.2,0.2"`` -> shares of training, validation, test and, as a fourth, unlabeled patients.

    Raises:
        ConfigurationError: not three or four shares that sum to 1, or no training or no test.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    good = len(shares) in (3, 4) and all(0 <= share <= 1 for share in shares) and abs(sum(shares) - 1) < 1e-6
    if not good or shares[0] == 0:
        raise ConfigurationError(
            "--split",
            got=repr(text),
            expected="shares of training, validation and test patients that sum to 1, such as 0.6,0.2,0.2 "
            "(a fourth share makes patients whose labels are left out)",
        )
    return shares + (0.0,) * (4 - len(shares))


def split_patients(patients: Sequence[str], shares: Sequence[float], *, seed: int, site: str) -> dict[str, str]:
    """Patient -> section. Whole patients by largest remainder; every share above 0 has at least one patient.

    Raises:
        DataError: fewer patients than sections (reason NO_CASES).
    """
    wanted = [index for index, share in enumerate(shares) if share > 0]
    if len(patients) < len(wanted):
        raise DataError(
            f"site {site}",
            got=f"{len(patients)} labelled patient(s)",
            expected=f"at least {len(wanted)}, one per section",
            remedy="use fewer sites or a --split with fewer sections",
            reason=Reason.NO_CASES,
        )
    exact = [share * len(patients) for share in shares]
    counts = [max(int(value + 1e-9), 1) if share > 0 else 0 for value, share in zip(exact, shares, strict=True)]
    while sum(counts) < len(patients):
        counts[max(wanted, key=lambda index: (exact[index] - counts[index], -index))] += 1
    while sum(counts) > len(patients):
        counts[max((i for i in wanted if counts[i] > 1), key=lambda i: (counts[i] - exact[i], i))] -= 1
    order = generator(seed, "split", site).permutation(len(patients))
    sections = [SECTIONS[index] for index, number in enumerate(counts) for _ in range(number)]
    ordered = sorted(patients)
    return {ordered[place]: section for place, section in zip(order, sections, strict=True)}


def sections_of(
    cases: Sequence[SourceCase], shares: Sequence[float], *, seed: int, site: str
) -> tuple[dict[str, list[SourceCase]], int]:
    """Section -> cases, and how many unlabelled volumes were withheld because their patient is evaluated on.

    A site none of whose volumes is annotated has all of them in ``unlabeled``.
    """
    patients = patients_of(cases)
    labelled = [name for name, own in patients.items() if any(case.annotated for case in own)]
    section_of = split_patients(labelled, shares, seed=seed, site=site) if labelled else {}
    sections: dict[str, list[SourceCase]] = {section: [] for section in SECTIONS}
    withheld = 0
    for name, own in patients.items():
        section = section_of.get(name, "unlabeled")
        for case in own:
            if case.annotated:
                sections[section].append(case)
            elif section in ("training", "unlabeled"):
                sections["unlabeled"].append(case)
            else:
                withheld += 1
    return sections, withheld


def site_name(text: str) -> str:
    """A name that FLARE accepts, made from a group's name."""
    name = slug(text)
    return name if name[:1].isalpha() else f"site-{name}"


def check_site_name(site: str) -> str:
    """``site`` itself where FLARE can take it.

    Raises:
        ConfigurationError: anything but letters, digits and dashes, or the reserved ``sites`` and ``server``.
    """
    if not SITE_NAME.fullmatch(site) or site in ("sites", "server"):
        raise ConfigurationError(
            "site name",
            got=repr(site),
            expected="a letter, then letters, digits and dashes; not 'sites' or 'server'",
            remedy=f"write {site_name(site)!r}" if slug(site) not in ("", "sites", "server") else "",
        )
    return site
