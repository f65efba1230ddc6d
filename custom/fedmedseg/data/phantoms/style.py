"""How hospitals differ: scanner, protocol, file orientation, patients and what they annotate, by site number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedmedseg.core.errors import ConfigurationError, choose
from fedmedseg.core.seeding import generator
from fedmedseg.data.phantoms.hospitals import ABDOMINAL_CT, CARDIAC_CT, CINE, LATE_ENHANCEMENT

ThingT = TypeVar("ThingT")

LABELS: dict[str, dict[int, str]] = {
    "cine_mr": {1: "left_ventricle", 2: "myocardium", 3: "right_ventricle"},
    "late_enhancement_mr": {
        1: "left_ventricle",
        2: "myocardium",
        3: "infarct",
        4: "no_reflow",
    },
    "abdominal_ct": {1: "liver", 2: "spleen", 3: "pancreas", 4: "kidneys"},
    "cardiac_ct": {1: "calcification", 2: "coronaries"},
}
LANDMARKS: tuple[str, ...] = ("RCC", "LCC", "NCC", "RCA", "LCA", "MS1", "MS2")
"""Hinge points of the three cusps, the two coronary ostia, and the two ends of the membranous septum."""


@dataclass(frozen=True, kw_only=True)
class SiteStyle:
    """What one hospital does to its images.

    Attributes:
        size: Default voxels per axis of the canonical (right, anterior, superior) grid.
        spacing: mm per axis of that grid.
        axcodes: Orientation of the stored array; the slice axis stays last.
        oblique: Tilt of the image plane in degrees; 0 for CT.
        tissue: Mean intensity per tissue, relative units for MR and HU for CT.
        spread: Standard deviation between patients of each tissue's intensity, same units.
        gain: Scale of stored MR numbers; unused for CT.
        gamma: Exponent of the MR contrast curve on the 0..1 range.
        bias: Spread of the MR coil's log sensitivity, or of CT cupping in units of 100 HU.
        noise: Standard deviation of the noise, relative units or HU.
        blur: In-plane point spread, mm.
        turn: Mean in-plane rotation of the anatomy in degrees (planning habit).
        anatomy: Probability per kind of patient.
        annotated_labels: Label numbers this site annotates; None for all.
        annotated_landmarks: Landmarks this site annotates.
    """

    index: int
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axcodes: str
    tissue: Mapping[str, float]
    spread: float
    oblique: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gain: float = 1.0
    gamma: float = 1.0
    bias: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    turn: float = 0.0
    anatomy: Mapping[str, float] = field(default_factory=dict)
    annotated_labels: tuple[int, ...] | None = None
    annotated_landmarks: tuple[str, ...] = ()


AXCODES = ("LPS", "RAS", "PLI", "ALS", "RPS", "LAI")

_STYLES: dict[str, tuple[dict[str, Any], ...]] = {
    "cine_mr": CINE,
    "late_enhancement_mr": LATE_ENHANCEMENT,
    "abdominal_ct": ABDOMINAL_CT,
    "cardiac_ct": CARDIAC_CT,
}
_SPREAD = {"cine_mr": 0.03, "late_enhancement_mr": 0.03, "abdominal_ct": 6.0, "cardiac_ct": 15.0}


def families() -> tuple[str, ...]:
    """Names of the families that can be written."""
    return tuple(_STYLES)


def check_family(family: str) -> None:
    """Refuse a family nobody can draw.

    Raises:
        ConfigurationError: names the nearest family.
    """
    if family not in _STYLES:
        raise ConfigurationError(
            "data.phantom.family",
            got=repr(family),
            expected=f"one of {', '.join(_STYLES)}",
            remedy=choose(family, _STYLES),
        )


def site_style(family: str, index: int) -> SiteStyle:
    """The style of site ``index`` (0, 1, 2, ...): four distinct hospitals, then blends of two of them.

    Raises:
        ConfigurationError: unknown family or negative index.
    """
    check_family(family)
    if index < 0:
        raise ConfigurationError("site_index", got=index, expected="0 or more")
    known = _STYLES[family]
    settings = known[index] if index < len(known) else _blend(family, index)
    return SiteStyle(index=index, axcodes=AXCODES[index % len(AXCODES)], spread=_SPREAD[family], **settings)


def dealt_out(things: Sequence[ThingT], index: int, sites: int) -> tuple[ThingT, ...]:
    """What of ``things`` falls to site ``index`` (0, 1, ...) when all are dealt out in turn among ``sites`` sites.

    Each has a site that marks it, and with more sites than things they begin again at the first.

    >>> [dealt_out((1, 2, 3, 4), index, 2) for index in (0, 1, 2)]
    [(1, 3), (2, 4), (1, 3)]
    >>> [dealt_out((1, 2, 3, 4), index, 6) for index in (0, 5)]
    [(1,), (2,)]
    """
    hands = min(sites, len(things))
    return tuple(things[index % sites % hands :: hands])


def _blend(family: str, index: int) -> dict[str, Any]:
    """A further hospital between two of the first ones, with its own mixture per setting."""
    rng = generator(0, "phantom style", family, index)
    known = _STYLES[family]
    first, second = (known[i] for i in rng.choice(len(known), size=2, replace=False))

    def mix(a: Any, b: Any) -> Any:
        if isinstance(a, Mapping):
            share = rng.uniform(0, 1)
            return {name: (1 - share) * a[name] + share * b[name] for name in a}
        if isinstance(a, float):
            share = rng.uniform(0, 1)
            return (1 - share) * a + share * b
        return a if rng.uniform() < 0.5 else b

    return {name: mix(first[name], second[name]) for name in first}
