"""Checks of a site's data lists: every volume through the gate of `data/checks.py`, then what only shows together."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmedseg.core.bounds import VOLUME_BUDGET_MB
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.findings import Finding, failed, passed, warned
from fedmedseg.data.cache import Cache
from fedmedseg.data.checks import CaseRejected, admit, read_header, read_voxels
from fedmedseg.data.datalist import Case, absent_files, case_key, leaks, listed_cases
from fedmedseg.data.geometry import canonical_orientation, oriented_grid, padding, target_grid
from fedmedseg.data.stacks import COVERAGE, DIRECTION, LEAST_SHARE, SLICES, Stack, stack_figures, stack_of

MOST_CLASSES = 255
"""Classes a label map can have at all."""
SHEAR_DEGREES = 1.0
"""Axes that are further from a right angle than this are sheared, which resampling does not undo."""
OUTLIER = 3.0
"""A spacing so many times the list's median, or so small a part of it, is probably a mistake of the header."""
POINT_BYTES = 12

LABELLED = ("training", "validation", "test")
"""Sections of a list whose cases may have labels."""
READABLE, GEOMETRY, ALIGNED, LABELS = "readable", "spacing and orientation", "alignment", "labels"
SIZE = "size"
_KINDS = (
    ("image and label differ", ALIGNED),
    ("label", LABELS),
    ("annotated_labels", LABELS),
    ("empty label", LABELS),
    ("landmark", LABELS),
    ("heart label", LABELS),
    ("affine", GEOMETRY),
    ("spacing", GEOMETRY),
)
MENDS = {
    READABLE: "export the file again, and compare it with the archive's copy",
    GEOMETRY: "export the volume again with its geometry, or correct the header",
    ALIGNED: "draw the label on this very image, or resample it onto the image's grid",
    LABELS: "correct the label or landmarks, or say annotated_labels or allow_empty in the data list",
    SIZE: "leave the volume out, or ask the study lead for a smaller data.crop",
}


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One listed case and what the gate said of it."""

    case: Case
    section: str
    reason: str | None
    affine: np.ndarray | None = None
    prepared: tuple[int, int, int] | None = None
    """Voxels on the study's grid."""
    stack: Stack | None = None
    """Its slices as a study of slices takes them."""
    content: str = ""
    """Digest of the voxel values, the same for a copy under any name, compression or number type."""


@dataclass(frozen=True, kw_only=True)
class ListReport:
    """What was found in one list, and the bytes its preprocessed volumes will take in the cache."""

    findings: list[Finding]
    cache_bytes: int = 0
    scan_voxels: int = 0
    """Voxels on the study's grid of all scans that may be learned from, labelled or not."""
    set_aside: Mapping[str, int] = field(default_factory=dict)


def check_list(
    path: Path,
    *,
    role: str,
    data: DataSection | None,
    salt: str,
    min_cases: int = 1,
    min_count: int = 0,
    budget_mb: int = VOLUME_BUDGET_MB,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> ListReport:
    """Every check of the data list at ``path``; its volumes are read anew, whatever the site's cache remembers.

    ``data`` is the study's section; without one the label names that Decathlon lists carry are used, and where there
    are none the labels are checked as far as they can be. ``min_count``: the site's own (``privacy.min_count``), 0
    where no filter asks for one.
    """
    if not path.is_file():
        mend = f"write the list, or correct datasets.{role}.list in the site file"
        return ListReport(findings=[failed(_check(role, "list"), "no file where the site file says", mend)])
    try:
        sections = listed_cases(path, salt=salt)
        names = data is None and _named_labels(path)
    except FedMedSegError as error:
        # what came may quote a patient; a wrong setting names a section at most
        told = "; ".join(part for part in (error.public, error.expected and f"expected {error.expected}") if part)
        return ListReport(findings=[failed(_check(role, "list"), told, error.remedy or "correct the data list")])
    settings = data or _without_study(names or MOST_CLASSES - 1)
    findings = [_counts(role, sections, min_cases), _present(role, sections), _split(role, sections, salt)]
    there = {section: [case for case in cases if _exists(case)] for section, cases in sections.items()}
    volumes = list(_volumes(there, data=settings, budget_mb=budget_mb, fit=data is not None, tick=tick))
    short = _too_few(volumes, min_cases)
    for kind in (READABLE, GEOMETRY, ALIGNED, LABELS, *((SIZE,) if data is not None else ())):
        unknown = kind == LABELS and data is None and not names
        findings.append(_kind(role, kind, volumes, short=short, unknown=unknown))
    findings.append(_duplicates(role, volumes))
    findings += _told(role, volumes, min_count)
    if data is not None and data.spatial_dims == 2:
        findings.append(_stacks(role, volumes))
    return ListReport(
        findings=findings,
        cache_bytes=cache_bytes(volumes, settings.classes) if data is not None else 0,
        scan_voxels=scan_voxels(volumes) if data is not None else 0,
        set_aside=Counter(volume.section for volume in volumes if volume.reason),
    )


def cache_bytes(volumes: Iterable[Volume], classes: int) -> int:
    """Bytes that the preprocessed volumes take: float32 images, uint8 labels and hearts, voxels to centre crops on."""
    from fedmedseg.data.preprocessing import POINTS_PER_CLASS

    total = 0
    seen: set[tuple[Path, Path | None]] = set()
    for volume in volumes:
        if volume.prepared is None or volume.reason is not None:
            continue
        voxels = math.prod(volume.prepared)
        # an image's entry and its heart map's are shared by sections, a label's belongs to its case
        entries: list[tuple[tuple[Path, Path | None], int]] = [((volume.case.image, None), 4)]
        if volume.case.heart is not None:
            entries.append(((volume.case.image, volume.case.heart), 1))
        for entry, size in entries:
            total += 0 if entry in seen else size * voxels
            seen.add(entry)
        if volume.case.label is not None:
            total += voxels + (classes - 1) * POINTS_PER_CLASS * POINT_BYTES
    return total


def scan_voxels(volumes: Iterable[Volume]) -> int:
    """Prepared voxels of training and unlabelled volumes, each image once."""
    scans = {
        volume.case.image: math.prod(volume.prepared)
        for volume in volumes
        if volume.prepared is not None and volume.reason is None and volume.section in ("training", "unlabeled")
    }
    return sum(scans.values())


def _volumes(
    sections: Mapping[str, list[Case]],
    *,
    data: DataSection,
    budget_mb: int,
    fit: bool,
    tick: Callable[[int, int], None],
) -> Iterable[Volume]:
    of, done = sum(len(cases) for cases in sections.values()), 0
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder=Path(folder))
        for section, cases in sections.items():
            for case in cases:
                yield _volume(case, section, data=data, budget_mb=budget_mb, fit=fit, cache=cache)
                done += 1
                tick(done, of)


def _volume(case: Case, section: str, *, data: DataSection, budget_mb: int, fit: bool, cache: Cache) -> Volume:
    refused = admit([case], data=data, budget_mb=budget_mb, cache=cache).quarantined
    for reason in refused.values():
        return Volume(case=case, section=section, reason=reason)
    try:
        grid = read_header(case.image, data=data, budget_mb=budget_mb)
        voxels = read_voxels(case.image)
    except CaseRejected as rejected:
        return Volume(case=case, section=section, reason=rejected.reason)
    except OSError:
        return Volume(case=case, section=section, reason="file cannot be read")
    content = hashlib.sha256(f"{voxels.shape}".encode())
    content.update(np.ascontiguousarray(voxels).data)
    oriented = oriented_grid(grid, canonical_orientation(grid.affine, data.spatial_dims))
    target = target_grid(oriented, data.spacing, data.longest_edge)
    widths = padding(target.shape, data.crop) if fit else ((0, 0),) * 3
    return Volume(
        case=case,
        section=section,
        reason="smaller than the crop" if widths is None else None,
        affine=grid.affine,
        prepared=None if widths is None else _padded(target.shape, widths),
        stack=stack_of(target.affine, target.shape[2]) if fit and data.spatial_dims == 2 else None,
        content=content.hexdigest(),
    )


def _padded(shape: tuple[int, int, int], widths: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    x, y, z = (edge + before + after for edge, (before, after) in zip(shape, widths, strict=True))
    return x, y, z


def _counts(role: str, sections: Mapping[str, list[Case]], min_cases: int) -> Finding:
    check = _check(role, "list")
    told = ", ".join(
        f"{section} {len(cases)} of {len({case.patient for case in cases})} patients"
        for section, cases in sections.items()
        if cases
    )
    images = len({case.image for section in ("training", "unlabeled") for case in sections[section]})
    if images < min_cases:
        text = (
            f"{images} image(s) to train on, at least {min_cases} needed (min_cases); the list has {told or 'no case'}"
        )
        return failed(check, text, "add cases to training or unlabeled, or the site declines every training")
    lacking = [section for section in ("training", "validation", "test") if not sections[section]]
    if lacking:
        mend = (
            "without training the site takes part in pretraining only, without validation the last weights are kept "
            "instead of the best, without test it reports no score"
        )
        return warned(check, f"no case in {' and '.join(lacking)}; {told}", mend)
    return passed(check, told)


def _present(role: str, sections: Mapping[str, list[Case]]) -> Finding:
    check = _check(role, "files")
    absent, named = absent_files(sections)
    if not absent:
        return passed(check, f"all {named} named files are there")
    gone = set(absent)
    cases = [case for listed in sections.values() for case in listed if gone & set(case.files)]
    text = f"{len(absent)} of {named} named files absent: the site would refuse the list"
    return failed(check, text, "correct the paths, which start at the folder of the data list", **_who(cases))


def _split(role: str, sections: Mapping[str, list[Case]], salt: str) -> Finding:
    check = _check(role, "patients")
    shared = leaks(sections)
    if not shared:
        return passed(check, "every patient in only one of training, validation and test")
    keys = tuple(case_key(salt, name) for name in sorted(shared))
    places = Counter(" and ".join(sorted(found)) for found in shared.values())
    text = f"{len(shared)} patient(s) or image(s) in " + ", ".join(f"{where} ({n})" for where, n in places.items())
    return failed(check, text, "split by patient, never by volume", cases=keys, names=tuple(sorted(shared)))


def _kind(role: str, kind: str, volumes: list[Volume], *, short: str, unknown: bool) -> Finding:
    check = _check(role, kind)
    bad = [volume for volume in volumes if volume.reason is not None and _kind_of(volume.reason) == kind]
    if bad:
        counted = Counter(str(volume.reason) for volume in bad)
        text = f"{len(bad)} of {len(volumes)} set aside: " + ", ".join(f"{r} ({n})" for r, n in sorted(counted.items()))
        who = _who([volume.case for volume in bad])
        if short:
            return failed(check, f"{text}; {short}", f"{MENDS[kind]}; `fedmedseg data check` names the files", **who)
        return warned(check, text, f"{MENDS[kind]}; `fedmedseg data check` names the files", **who)
    good = [volume for volume in volumes if volume.reason is None]
    if unknown:
        text = f"the list names no labels: {len(good)} are whole numbers, whether in the map is not known"
        return warned(check, text, "add --experiment, which has the label map")
    if kind == GEOMETRY and good:
        return _geometry(check, good)
    return passed(check, f"{len(good)} of {len(volumes)}")


def _geometry(check: str, volumes: list[Volume]) -> Finding:
    from nibabel.orientations import aff2axcodes

    affines = [volume.affine for volume in volumes if volume.affine is not None]
    spacings = np.array([np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) for affine in affines])
    ranges = " x ".join(f"{low:.3g}..{high:.3g}" for low, high in zip(spacings.min(0), spacings.max(0), strict=True))
    codes = Counter("".join(aff2axcodes(affine)) for affine in affines)
    text = f"{ranges} mm; " + ", ".join(f"{code} {n}" for code, n in codes.most_common())
    sheared = [volume for volume, affine in zip(volumes, affines, strict=True) if shear(affine) > SHEAR_DEGREES]
    if sheared:
        text = f"{len(sheared)} with axes that are not at right angles (sheared); {text}"
        mend = "resample them onto an upright grid before they are listed (a tilted CT gantry makes such volumes)"
        return warned(check, text, mend, **_who([volume.case for volume in sheared]))
    # sorted, so that stacks stored in another order of axes are compared alike
    ordered = np.sort(spacings, axis=1)
    ratio = ordered / np.median(ordered, axis=0)
    odd = [volume for volume, one in zip(volumes, ratio, strict=True) if max(one.max(), 1 / one.min()) > OUTLIER]
    if odd:
        text = f"{len(odd)} with a spacing {OUTLIER:g} times off the list's median; {text}"
        return warned(check, text, MENDS[GEOMETRY], **_who([volume.case for volume in odd]))
    return passed(check, text)


def _stacks(role: str, volumes: list[Volume]) -> Finding:
    """Whether the list's stacks run one way and cover about as much: parts of them then correspond, within the site."""
    check = _check(role, "slice order")
    good = [volume for volume in volumes if volume.stack is not None and volume.reason is None]
    stacks = [volume.stack for volume in good if volume.stack is not None]
    if not stacks:
        return passed(check, "no volume to look at")
    figures = stack_figures(stacks)
    text = f"{figures[SLICES]:g} slices over {figures[COVERAGE]:g} mm (medians); {figures[DIRECTION]:.0%} run one way"
    if figures[DIRECTION] < LEAST_SHARE:
        mend = "export the others with their geometry again; studies that compare parts of stacks mix them up else"
        return warned(check, text, mend)
    return passed(check, text)


def shear(affine: np.ndarray) -> float:
    """The largest departure from a right angle between two axes, in degrees."""
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    cosines = [abs(float(axes[:, one] @ axes[:, other])) for one, other in ((0, 1), (0, 2), (1, 2))]
    return math.degrees(math.asin(min(1.0, max(cosines))))


def _duplicates(role: str, volumes: list[Volume]) -> Finding:
    """Equal voxels under several names: a leak between splits, or a case that counts twice.

    An unlabelled image may also be a training one, which pretraining uses once if the file is the same.
    """
    check = _check(role, "duplicates")
    groups: defaultdict[str, list[Volume]] = defaultdict(list)
    for volume in volumes:
        if volume.content:
            groups[volume.content].append(volume)
    # one file listed in two sections is told under "patients"
    copies = [group for group in groups.values() if len({volume.case.image for volume in group}) > 1]
    leaking = [group for group in copies if _leaks(group)]
    if leaking:
        who = _who([volume.case for group in leaking for volume in group])
        text = f"{len(leaking)} volume(s) stand in two sections under different names, test or validation among them"
        return failed(check, text, "keep one of each, and split by patient", **who)
    if copies:
        who = _who([volume.case for group in copies for volume in group])
        return warned(
            check, f"{len(copies)} volume(s) are listed more than once under different names", "keep one", **who
        )
    return passed(check, "no two volumes are the same")


def _leaks(group: list[Volume]) -> bool:
    sections = {volume.section for volume in group}
    return len(sections) > 1 and bool(sections & {"validation", "test"})


def _too_few(volumes: list[Volume], min_cases: int) -> str:
    """What the cases set aside leave too little for, or an empty text."""
    for section, needed in (("training", min_cases), ("validation", 1), ("test", 1)):
        listed = [volume for volume in volumes if volume.section == section]
        left = sum(volume.reason is None for volume in listed)
        if listed and left < needed:
            return f"{left} left in {section}, at least {needed} needed"
    return ""


def _told(role: str, volumes: list[Volume], min_count: int) -> list[Finding]:
    """A warning where the test's figures will stay here: they stand on fewer patients than the site lets be told."""
    patients = {volume.case.patient for volume in volumes if volume.section == "test" and volume.reason is None}
    if not patients or len(patients) >= min_count:
        return []
    text = (
        f"test scores of this site will be withheld: {len(patients)} test patient(s), fewer than privacy.min_count "
        f"({min_count}); they stay in models_dir"
    )
    mend = "list more test patients, or decide here on a lower privacy.min_count: figures of few tell of each of them"
    return [warned(_check(role, "test scores"), text, mend)]


def _kind_of(reason: str) -> str:
    if reason.startswith("smaller than the crop"):
        return SIZE
    return next((kind for start, kind in _KINDS if reason.startswith(start)), READABLE)


def _who(cases: Iterable[Case]) -> dict[str, tuple[str, ...]]:
    names = {case.key: case.image.name for case in cases}
    return {"cases": tuple(names), "names": tuple(names.values())}


def _exists(case: Case) -> bool:
    return all(file.is_file() for file in case.files)


def _check(role: str, what: str) -> str:
    return f"data {role}: {what}"


def label_names(path: Path, *, role: str, data: DataSection) -> list[Finding]:
    """Warnings where the list at ``path`` gives a number another name than the study does, and where it does not name
    a structure that its cases count as annotated for.

    Numbers alone cannot tell: a label of 1 is in the map of every study, whatever it marks, and a map without a 3 is
    that of a patient who has no such structure. A list that names nothing is no finding.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        named = content.get("labels")
    except (OSError, ValueError, AttributeError, RecursionError):
        # the check of the list says so
        return []
    if not isinstance(named, dict):
        return []
    theirs = {int(key): str(name) for key, name in named.items() if str(key).isdigit() and int(key) > 0}
    differing = [number for number in sorted(theirs) if _words(theirs[number]) != _words(data.labels.get(number, ""))]
    return [*_differing(differing, theirs, role=role, data=data), *_unnamed(content, theirs, role=role, data=data)]


def _differing(differing: list[int], theirs: Mapping[int, str], *, role: str, data: DataSection) -> list[Finding]:
    if not differing:
        return []
    told = "; ".join(
        f"{number} is {theirs[number]!r} in the list, {data.labels.get(number, 'nothing')!r} in the study"
        for number in differing[:5]
    )
    mend = "if the same structure is meant, well; else give the labels the study's numbers, or set labels in the list"
    return [warned(_check(role, "label names"), told, mend)]


def _unnamed(content: Mapping[str, Any], theirs: Mapping[int, str], *, role: str, data: DataSection) -> list[Finding]:
    known = [_words(name) for name in theirs.values()]
    unnamed = [name for name in data.labels.values() if _words(name) not in known]
    sections = [content.get(section) for section in LABELLED]
    cases = [case for one in sections if isinstance(one, list) for case in one if isinstance(case, dict)]
    whole = sum("label" in case and case.get("annotated_labels") is None for case in cases)
    if not theirs or not unnamed or not whole:
        return []
    told = (
        f"the list does not name {', '.join(map(repr, unnamed))}, and {whole} of its cases count as annotated for all "
        "structures of the study: what is not marked there is learned as background"
    )
    mend = "choose the preset that is made for these labels, or give the cases annotated_labels"
    return [warned(_check(role, "structures"), told, mend)]


def _words(name: str) -> list[str]:
    """A structure's name without what writers do differently: case, underscores, dashes."""
    return name.casefold().replace("_", " ").replace("-", " ").split()


def _named_labels(path: Path) -> int:
    """Number of the labels that a Decathlon list names, or 0."""
    named = json.loads(path.read_text(encoding="utf-8")).get("labels")
    return max((int(key) for key in named if str(key).isdigit()), default=0) if isinstance(named, dict) else 0


def _without_study(labels: int) -> DataSection:
    names = {number: f"label_{number}" for number in range(1, min(labels, MOST_CLASSES - 1) + 1)}
    return DataSection.model_validate(
        {"role": "check", "modality": "mr", "spatial_dims": 3, "labels": names, "crop": (32, 32, 32)}
    )
