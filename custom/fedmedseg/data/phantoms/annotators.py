"""Who annotates what in the cardiac CT phantoms: hospitals of which each marks some tasks, and most scans nobody.

Numbers of the eight hospitals of Tölle et al., npj Digital Medicine 2025 (https://arxiv.org/abs/2407.07557), from
dataset_sizes.ipynb of the authors' code (Cardio-AI/fed-foundation-model-cardiac-ct).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.data.phantoms.style import LABELS, dealt_out

PARTS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "hps": ((), ("RCC", "LCC", "NCC", "RCA", "LCA")),
    "ms": ((), ("MS1", "MS2")),
    "calc": ((1,), ()),
    "coronaries": ((2,), ()),
}
"""Task -> label numbers and landmarks that it consists of."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What is annotated in one volume: label numbers and landmarks."""

    labels: tuple[int, ...] = ()
    landmarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """One hospital: annotated volumes per task, and all its scans."""

    name: str
    hps: int
    ms: int
    calc: int
    scans: int


PUBLISHED: tuple[Annotator, ...] = (
    Annotator(name="Heidelberg", hps=78, ms=73, calc=78, scans=813),
    Annotator(name="Munich", hps=30, ms=0, calc=20, scans=1819),
    Annotator(name="Münster", hps=27, ms=20, calc=0, scans=3001),
    Annotator(name="Göttingen", hps=42, ms=0, calc=0, scans=1829),
    Annotator(name="Berlin", hps=0, ms=0, calc=0, scans=534),
    Annotator(name="Frankfurt", hps=20, ms=0, calc=20, scans=42),
    Annotator(name="Hamburg", hps=34, ms=23, calc=0, scans=60),
    Annotator(name="Greifswald", hps=25, ms=0, calc=0, scans=26),
)
MOST_ANNOTATED = max(one.hps for one in PUBLISHED)
MOST_SCANS = max(one.scans for one in PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one simulated site holds: volumes per section, and what is marked in each training volume.

    ``marks`` None leaves it to the site's style. Volumes of validation are marked with everything that any training
    volume is.
    """

    counts: Mapping[str, int]
    marks: tuple[Marks, ...] | None = None


def share_of(section: PhantomSection, index: int) -> Share:
    """The share of site ``index`` (0, 1, ...) in a study's phantoms.

    >>> section = PhantomSection(family="cardiac_ct", annotation="published", training=6, unlabeled=12)
    >>> [share_of(section, index).counts["training"] for index in range(8)]
    [6, 3, 3, 4, 0, 2, 3, 2]
    >>> [share_of(section, index).counts["unlabeled"] for index in range(8)]
    [4, 8, 12, 8, 3, 1, 1, 1]
    """
    counts = {part: int(getattr(section, part)) for part in ("unlabeled", "training", "validation", "test")}
    if section.unseen == index + 1:
        return Share(counts={part: counts["test"] if part == "test" else 0 for part in counts})
    if section.annotation == "shared_out":
        return Share(counts=counts, marks=(_dealt_out(section, index),) * counts["training"])
    if section.annotation == "style":
        return Share(counts=counts)
    hospital = PUBLISHED[index % len(PUBLISHED)]
    amounts = {
        task: _part(getattr(hospital, task), MOST_ANNOTATED, counts["training"]) for task in ("hps", "ms", "calc")
    }
    # the coronary tree, which the published hospitals do not annotate, is the first one's
    amounts["coronaries"] = amounts["hps"] if hospital is PUBLISHED[0] else 0
    counts["training"] = max(amounts.values())
    counts["unlabeled"] = _part(hospital.scans, MOST_SCANS, counts["unlabeled"])
    marks = (
        marks_of(task for task, number in amounts.items() if number > place) for place in range(counts["training"])
    )
    return Share(counts=counts, marks=tuple(marks))


def marks_of(tasks: Iterable[str]) -> Marks:
    """What the annotation of these tasks consists of."""
    parts = [PARTS[task] for task in tasks]
    return Marks(
        labels=tuple(number for labels, _ in parts for number in labels),
        landmarks=tuple(name for _, names in parts for name in names),
    )


def together(marks: Iterable[Marks]) -> Marks:
    """Everything that any of them has, in the order of first appearance."""
    every = list(marks)
    return Marks(
        labels=tuple(dict.fromkeys(number for one in every for number in one.labels)),
        landmarks=tuple(dict.fromkeys(name for one in every for name in one.landmarks)),
    )


def _dealt_out(section: PhantomSection, index: int) -> Marks:
    if section.family != "cardiac_ct":
        return Marks(labels=dealt_out(list(LABELS[section.family]), index, section.sites))
    return marks_of(dealt_out(list(PARTS), index, section.sites))


def _part(number: int, of: int, amount: int) -> int:
    """``number`` scaled from ``of`` to ``amount``, rounded up: what there is at all stays."""
    return math.ceil(number * amount / of)
