"""What a prediction leaves on the disk: label maps, a file of figures for each image, tables over all of them.

No file holds a time or a path, so that the same images under the same model give the same bytes on
one machine's CPU.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedmedseg import __version__
from fedmedseg.core.atomic import file_sha256, write_atomic
from fedmedseg.core.errors import ConfigurationError, why
from fedmedseg.data.checks import read_voxels
from fedmedseg.data.geometry import axial, spacing_of
from fedmedseg.data.label_files import ENDINGS, ROOM, write_label_map
from fedmedseg.data.landmarks import Place
from fedmedseg.data.preprocessing import native_grid
from fedmedseg.data.tasks import TASKS
from fedmedseg.reporting.calcium import CalciumScore, calcium_score
from fedmedseg.reporting.structure_volumes import StructureVolume, Ventricle, structure_volumes
from fedmedseg.segmentation.prediction import Answer, LabelMap, Predictor

NOTICE = "Research, not for diagnosis."
CALCIFICATION = TASKS["calc"].names[0]
"""The structure whose Agatston score is told, wherever a model of CT has it."""
PIECES: dict[str, int | None] = {CALCIFICATION: None, TASKS["coronaries"].names[0]: 2}
"""Structures that no organ holds together, and how many pieces they have: calcifications any number, coronaries two."""
VOLUMES, POINTS, CALCIUM, FUNCTION = "volumes.csv", "points.csv", "calcium.csv", "function.csv"
FAILED = "failed.csv"
AGAIN = "choose another, or add --resume to go on with what an earlier call left, or --force"
TABLES = (VOLUMES, POINTS, CALCIUM, FUNCTION, FAILED)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured in one image. ``volumes`` is by structure; ml."""

    name: str
    volumes: Mapping[str, StructureVolume]
    points: Mapping[str, Place | None] = field(default_factory=dict)
    calcium: CalciumScore | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where the files of one image go."""

    maps: Mapping[str, Path]
    """By what ``Answer.maps`` calls them."""
    figures: Path
    landmarks: Path | None

    @property
    def every(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.beside_figures, self.figures)

    @property
    def beside_figures(self) -> tuple[Path, ...]:
        """Label maps and landmarks, of which the file of the figures has the digests."""
        return (*self.maps.values(), *((self.landmarks,) if self.landmarks else ()))


def outputs_for(name: str, predictor: Predictor, out: Path) -> Outputs:
    """The files of image ``name``: in folder ``out``, or, where that ends with .nii.gz or .nii, beside this one map."""
    ending = next((one for one in ENDINGS if out.name.endswith(one)), None)
    stem = out.with_name(out.name.removesuffix(ending)) if ending else out / name
    return Outputs(
        maps={one: beside(stem, f"{'_' if one else ''}{one}{ending or ENDINGS[0]}") for one in predictor.names},
        figures=beside(stem, ".json"),
        landmarks=beside(stem, "_landmarks.json") if predictor.points else None,
    )


def beside(stem: Path, ending: str) -> Path:
    """``stem`` with ``ending`` at the end of its name, dots in it or not."""
    return stem.with_name(stem.name + ending)


def measured(name: str, answer: Answer, image: Path, *, modality: str) -> Measured:
    """Volumes of every solid structure, and the score of calcification in CT, on the image's own grid.

    Raises:
        CaseRejected: the image can no longer be read.
    """
    grid = native_grid(image)
    solid = [one for one in answer.maps.values() if one.solid]
    volumes: dict[str, StructureVolume] = {}
    for one in solid:
        volumes |= structure_volumes(one.labels, one.names, grid.affine, natural=PIECES)
    calcium = None
    for one in solid if modality == "ct" else ():
        for number, structure in one.names.items():
            if structure == CALCIFICATION:
                calcium = calcium_score(
                    read_voxels(image),
                    one.labels == number,
                    spacing=spacing_of(grid.affine),
                    slice_axis=axial(grid.affine),
                )
    return Measured(name=name, volumes=volumes, points=answer.points, calcium=calcium)


def asked(outputs: Outputs, predictor: Predictor, *, flips: bool, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What an answer is an answer to, as the file of its figures tells it.

    ``inputs`` are the digests of what is read.
    """
    return {
        "model": asdict(predictor.origin),
        "fedmedseg": __version__,
        "flips": flips,
        "inputs_sha256": dict(inputs),
        "labels": {
            path.name: {str(number): structure for number, structure in predictor.names[name].items()}
            for name, path in outputs.maps.items()
        },
    }


def write_prediction(
    found: Measured, maps: Mapping[str, LabelMap], outputs: Outputs, image: Path, question: Mapping[str, Any]
) -> None:
    """Write the files of one image, that of the figures last. Landmarks are in the form that data lists take
    (``data.landmarks``); ``question`` is what ``asked`` says.

    Raises:
        ConfigurationError: a file that cannot be written.
        CaseRejected: the image can no longer be read.
    """
    for name, path in outputs.maps.items():
        write_label_map(path, maps[name].labels, image)
    if outputs.landmarks is not None:
        _write(outputs.landmarks, _json({name: place and list(place) for name, place in found.points.items()}))
    content: dict[str, Any] = {
        "notice": NOTICE,
        **question,
        "files_sha256": {path.name: file_sha256(path) for path in outputs.beside_figures},
        "volumes": {name: _volume(one) for name, one in found.volumes.items()},
    }
    if found.points:
        content["points_mm"] = {name: place and list(place) for name, place in found.points.items()}
    if found.calcium is not None:
        content["calcium"] = asdict(found.calcium)
    _write(outputs.figures, _json(content))


def _volume(found: StructureVolume) -> dict[str, Any]:
    largest = None if math.isnan(found.largest) else found.largest
    told = {"voxels": found.voxels, "ml": found.ml, "pieces": found.pieces, "largest": largest}
    return {**told, "doubt": found.doubt}


def write_tables(
    folder: Path, every: Sequence[Measured], hearts: Mapping[str, Ventricle], failed: Mapping[str, str]
) -> list[Path]:
    """Write a table for each kind of figure that there is, over all images, and of what ``failed`` (name -> reason):
    CSV. One of an earlier call goes.

    Raises:
        ConfigurationError: a file that cannot be written.
    """
    tables: dict[str, tuple[Sequence[str], list[Sequence[Any]]]] = {
        VOLUMES: (
            ("image", "structure", "voxels", "ml", "pieces", "doubt"),
            [
                (one.name, name, v.voxels, _figure(v.ml), v.pieces, v.doubt or "")
                for one in every
                for name, v in one.volumes.items()
            ],
        ),
        POINTS: (
            ("image", "point", "x_mm", "y_mm", "z_mm"),
            [(one.name, name, *_coordinates(place)) for one in every for name, place in one.points.items()],
        ),
        CALCIUM: (
            ("image", "volume_mm3", "dense_mm3", "agatston", "regions"),
            [
                (one.name, *map(_figure, (c.volume_mm3, c.dense_mm3, c.agatston)), c.regions)
                for one in every
                if (c := one.calcium) is not None
            ],
        ),
        FUNCTION: (
            ("patient", "diastolic_ml", "systolic_ml", "stroke_ml", "ejection_fraction_percent", "doubt"),
            [
                (
                    name,
                    *map(_figure, (h.diastolic_ml, h.systolic_ml, h.stroke_ml)),
                    _share(h),
                    h.doubt or "",
                )
                for name, h in hearts.items()
            ],
        ),
        FAILED: (("image", "reason"), list(failed.items())),
    }
    written = []
    for name, (header, rows) in tables.items():
        if rows:
            _write(folder / name, _csv([header, *rows]))
            written.append(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    return written


def remove(files: Iterable[Path]) -> None:
    """What an earlier call left.

    Raises:
        ConfigurationError: a file that cannot be removed.
    """
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from None


def require_new(files: Iterable[Path], *, force: bool, resume: bool = False, remedy: str = AGAIN) -> None:
    """Refuse to replace a file, unless told to or where it holds reasons alone, and to write one twice. With ``resume``
    what is there is looked at image by image (``segmentation.earlier_answers``).

    Raises:
        ConfigurationError: one is there, or belongs to two images.
    """
    files = list(files)
    twice = [path for path, times in Counter(files).items() if times > 1]
    if twice:
        raise ConfigurationError(
            "IMAGE",
            got=f"two images whose answers would both be {twice[0].name}",
            expected="images of other names",
            remedy="rename one, or give them to two calls",
        )
    there = [path for path in files if path.exists()]
    if [path.name for path in there] == [FAILED] and there[0].is_file() and _is_ours(there[0]):
        # an earlier call found nothing that it could do: its reasons are no answers
        return
    if there and not ((force or resume) and all(path.is_file() for path in there)):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ConfigurationError(
            "OUT",
            got=f"{there[0]}, which is there{more}",
            expected="new files",
            remedy=remedy,
        )


def require_apart(files: Iterable[Path], read: Iterable[Path]) -> None:
    """Refuse to write over what is read, even where files are to be replaced: an answer of before goes before its image
    is opened.

    Raises:
        ConfigurationError: names the file.
    """
    inputs = {path.resolve() for path in read}
    for path in files:
        if path.resolve() in inputs:
            raise ConfigurationError(
                "OUT",
                got=f"{path}, which is read",
                expected="a file that is no image, no model and no map of this call",
                remedy="choose another: --force replaces answers of earlier calls alone",
            )


def require_outside(out: Path, images: Path, *, option: str = "OUT") -> None:
    """Refuse to write among the images that are read.

    Raises:
        ConfigurationError: ``out`` is or lies in the folder ``images``.
    """
    if images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise ConfigurationError(
            option,
            got=f"{out}, inside the folder that is read ({images.resolve()})",
            expected="a place outside it: another call would take what this one writes for images",
            remedy="name another folder",
        )


def require_writable(out: Path, *, option: str = "OUT") -> None:
    """Refuse a place that cannot be written, before anything is computed for it. Nothing is left there.

    Args:
        out: the folder, or the one map, that is to be written.
        option: what named it.

    Raises:
        ConfigurationError: naming the reason: read-only, full, no rights, a file in the way.
    """
    folder = out.parent if out.name.endswith(ENDINGS) and not out.is_dir() else out
    try:
        # what of it is there already
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b" ")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise _unwritable(out, error, option) from None


def _share(heart: Ventricle) -> str:
    return "" if heart.diastolic_ml <= 0 else _figure(heart.ejection_fraction)


def _is_ours(failed: Path) -> bool:
    with open(failed, encoding="utf-8", errors="replace") as stream:
        return stream.readline() == "image,reason\n"


def _figure(value: float) -> str:
    """Four decimal places without zeros at their end, and never a power of ten: a spreadsheet shows it as it is."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _coordinates(place: Place | None) -> tuple[str, str, str]:
    if place is None:
        return "", "", ""
    x, y, z = (f"{value:.3f}" for value in place)
    return x, y, z


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError, option: str = "OUT") -> ConfigurationError:
    return ConfigurationError(option, got=f"{path} ({why(error)})", expected="files that can be written", remedy=ROOM)
