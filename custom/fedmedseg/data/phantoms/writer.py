"""Write one simulated hospital: NIfTI files, landmarks and a Decathlon-form data list, the list last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmedseg.core.errors import ConfigurationError, nearest
from fedmedseg.core.seeding import generator
from fedmedseg.data.phantoms.annotators import Marks, together
from fedmedseg.data.phantoms.geometry import Phantom, Point
from fedmedseg.data.phantoms.style import LABELS, LANDMARKS, SiteStyle, check_family, site_style

SECTIONS = ("training", "validation", "test", "unlabeled")
"""Sections of a data list, in the order in which patients are numbered."""
LEAST_SIZE: dict[str, tuple[int, int, int]] = {
    "cine_mr": (48, 48, 4),
    "late_enhancement_mr": (48, 48, 4),
    "abdominal_ct": (32, 32, 24),
    "cardiac_ct": (32, 32, 24),
}
"""Fewer voxels than this no longer show the anatomy."""

Draw = Callable[..., Phantom]


def write_site(
    family: str,
    *,
    site_index: int,
    out: Path,
    seed: int,
    counts: Mapping[str, int],
    size: tuple[int, int, int] | None = None,
    full_annotation: bool = False,
    marks: Sequence[Marks] | None = None,
    heart: bool = False,
) -> Path:
    """Write the phantoms of one site and return the path of its data list.

    The content depends on the arguments alone. ``datalist.json`` is written last and replaced as a
    whole: while it is missing, the writing was interrupted and is repeated. A list written before
    with the same arguments is returned as it is.

    Args:
        family: ``cine_mr``, ``late_enhancement_mr``, ``abdominal_ct`` or ``cardiac_ct``.
        site_index: 0, 1, 2, ...; chooses the hospital's style.
        out: Folder for ``images``, ``labels``, ``landmarks``, ``hearts`` and ``datalist.json``.
        counts: Patients per section (``unlabeled``, ``training``, ``validation``, ``test``); a missing one is 0.
        size: Voxels along right, anterior, superior; unset: the style's own.
        full_annotation: Label every structure even where the style annotates a subset.
        marks: What is annotated in each training volume, in place of what the style annotates in all of them.
            Volumes of validation are then annotated with all that any training volume is.
        heart: Write the heart's structures beside every volume, annotated or not; cardiac CT has them.

    Raises:
        ConfigurationError: unknown family or section, negative count or index, size too small.
        ValueError: ``marks`` for another number of volumes, or ``heart`` for a family without.
    """
    check_family(family)
    style = site_style(family, site_index)
    numbers = _checked_counts(counts)
    if marks is not None and len(marks) != numbers["training"]:
        raise ValueError(f"{len(marks)} marks for {numbers['training']} training volumes")
    if heart and family != "cardiac_ct":
        raise ValueError(f"{family} phantoms have no map of the heart's structures")
    shape = _checked_size(family, size or style.size)
    target = out / "datalist.json"
    identity = _identity(style, family, seed, numbers, shape, full_annotation, (marks, heart))
    if target.is_file() and _written_before(target, identity):
        return target
    target.unlink(missing_ok=True)
    further = ("landmarks", *(("hearts",) if heart else ())) if family == "cardiac_ct" else ()
    for folder in ("images", "labels", *further):
        (out / folder).mkdir(parents=True, exist_ok=True)
    draw = _drawer(family)
    content: dict[str, Any] = {
        "name": f"phantom {family}",
        "description": identity,
        "labels": {"0": "background"} | {str(number): name for number, name in LABELS[family].items()},
    }
    patient = 0
    for section in SECTIONS:
        content[section] = []
        for index in range(numbers[section]):
            patient += 1
            rng = generator(seed, "phantom", family, site_index, section, index)
            phantom = draw(rng, style=style, size=shape)
            annotated = _annotated(style, section, index, marks, full=full_annotation)
            name = f"phantom-{patient:03d}"
            content[section].append(_write_case(phantom, style, out, name, rng, annotated=annotated, heart=heart))
    _replace(target, lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8"))
    return target


def affine_of(style: SiteStyle, size: tuple[int, int, int], shift: tuple[float, float, float]) -> np.ndarray:
    """Affine (4, 4) of the canonical grid, voxel to RAS mm: spacing, oblique tilt, centre at ``shift``."""
    rotation = np.eye(3)
    for axis, degrees in enumerate(style.oblique):
        a, b = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn[a, a], turn[b, b], turn[a, b], turn[b, a] = cosine, cosine, -sine, sine
        rotation = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(style.spacing)
    affine[:3, 3] = np.array(shift) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def _write_case(
    phantom: Phantom,
    style: SiteStyle,
    out: Path,
    patient: str,
    rng: np.random.Generator,
    *,
    annotated: SiteStyle | None,
    heart: bool,
) -> dict[str, Any]:
    """Write one volume with what ``annotated`` says of labels and landmarks; None: nothing is annotated."""
    shift = tuple(float(v) for v in rng.uniform(-60, 60, size=3))
    size = (phantom.image.shape[0], phantom.image.shape[1], phantom.image.shape[2])
    affine = affine_of(style, size, (shift[0], shift[1], shift[2]))
    entry: dict[str, Any] = {"image": f"images/{patient}.nii.gz", "patient": patient}
    image = np.clip(np.rint(phantom.image), -32768, 32767).astype(np.int16)
    _save_nifti(image, affine, style.axcodes, out / entry["image"])
    if heart and phantom.heart is not None:
        entry["heart"] = f"hearts/{patient}.nii.gz"
        _save_nifti(phantom.heart, affine, style.axcodes, out / entry["heart"])
    if annotated is None:
        return entry
    names = [name for name in annotated.annotated_landmarks if name in phantom.landmarks]
    if names:
        entry["landmarks"] = f"landmarks/{patient}.json"
        _save_landmarks({n: phantom.landmarks[n] for n in names}, affine, phantom, out / entry["landmarks"])
    label = phantom.label
    if annotated.annotated_labels is not None:
        entry["annotated_labels"] = list(annotated.annotated_labels)
        if not annotated.annotated_labels:
            return entry
        label = np.where(np.isin(label, annotated.annotated_labels), label, 0).astype(np.uint8)
    entry["label"] = f"labels/{patient}.nii.gz"
    _save_nifti(label, affine, style.axcodes, out / entry["label"])
    return entry


def _annotated(
    style: SiteStyle, section: str, index: int, marks: Sequence[Marks] | None, *, full: bool
) -> SiteStyle | None:
    """The style with what is annotated in volume ``index`` of a section; None where nothing is."""
    if section == "unlabeled":
        return None
    if full or section == "test":
        return replace(style, annotated_labels=None, annotated_landmarks=LANDMARKS)
    if marks is None:
        return style
    own = marks[index] if section == "training" else together(marks)
    return replace(style, annotated_labels=own.labels, annotated_landmarks=own.landmarks)


def _save_landmarks(points: Mapping[str, Point], affine: np.ndarray, phantom: Phantom, path: Path) -> None:
    """Name to world coordinates (x, y, z) in mm, RAS, and null for a landmark outside the volume; a landmark this site
    does not annotate is not in the file."""
    shape = np.array(phantom.image.shape)
    world: dict[str, list[float] | None] = {}
    for name, place in points.items():
        voxel = np.array(place) / np.array(phantom.spacing) + (shape - 1) / 2
        inside = (voxel >= 0).all() and (voxel <= shape - 1).all()
        mm = affine[:3, :3] @ voxel + affine[:3, 3]
        world[name] = [round(float(value), 4) for value in mm] if inside else None
    _replace(path, lambda temporary: temporary.write_text(json.dumps(world, indent=1), encoding="utf-8"))


def _save_nifti(array: np.ndarray, affine: np.ndarray, axcodes: str, path: Path) -> None:
    """Store an array of the canonical grid in the site's own orientation; voxel positions in mm stay the same."""
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    source = nib.Nifti1Image(array, affine)
    stored = source.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axcodes))))
    stored = nib.Nifti1Image(np.ascontiguousarray(np.asanyarray(stored.dataobj)), stored.affine)
    stored.header.set_data_dtype(array.dtype)
    stored.header.set_xyzt_units("mm")
    stored.set_sform(stored.affine, code="scanner")
    stored.set_qform(stored.affine, code="scanner")
    _replace(path, lambda temporary: nib.save(stored, temporary))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file of the same ending, then put it in place in one step."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _drawer(family: str) -> Draw:
    from fedmedseg.data.phantoms import abdominal_ct, cardiac_ct, cardiac_mr

    return {
        "cine_mr": cardiac_mr.draw_cine,
        "late_enhancement_mr": cardiac_mr.draw_late_enhancement,
        "abdominal_ct": abdominal_ct.draw_abdomen,
        "cardiac_ct": cardiac_ct.draw_aortic_root,
    }[family]


def _identity(
    style: SiteStyle,
    family: str,
    seed: int,
    counts: Mapping[str, int],
    size: tuple[int, int, int],
    full: bool,
    more: tuple[object, ...],
) -> str:
    """What a list was written from, with a digest over the settings of its style and the numbers of its structures."""
    digest = hashlib.sha256(repr((style, LABELS[family], *more)).encode()).hexdigest()[:16]
    amounts = ", ".join(f"{name} {counts[name]}" for name in SECTIONS)
    voxels = "x".join(map(str, size))
    annotation = "full" if full else "style"
    return (
        f"synthetic; family {family}; site index {style.index}; seed {seed}; {amounts}; "
        f"size {voxels}; annotation {annotation}; style {digest}"
    )


def _written_before(target: Path, identity: str) -> bool:
    try:
        content = json.loads(target.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("description") == identity


def _checked_counts(counts: Mapping[str, int]) -> dict[str, int]:
    for name, number in counts.items():
        if name not in SECTIONS:
            guess = nearest(name, SECTIONS)
            raise ConfigurationError(
                "counts",
                got=f"an unknown section {name!r}",
                expected=f"one of {', '.join(SECTIONS)}",
                remedy=f"write {guess!r}" if guess else "remove it",
            )
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ConfigurationError(f"counts.{name}", got=repr(number), expected="a whole number, 0 or more")
    return {name: counts.get(name, 0) for name in SECTIONS}


def _checked_size(family: str, size: tuple[int, int, int]) -> tuple[int, int, int]:
    least = LEAST_SIZE[family]
    if len(size) != 3 or any(have < need for have, need in zip(size, least, strict=True)):
        raise ConfigurationError(
            "data.phantom.size",
            got="x".join(map(str, size)),
            expected=f"at least {'x'.join(map(str, least))} voxels for {family}",
            remedy="choose a larger size, or leave it out for the site's own",
        )
    return int(size[0]), int(size[1]), int(size[2])
