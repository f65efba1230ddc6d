"""Answers of an earlier call that was interrupted: taken over where the same model answered the same image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedmedseg.reporting.calcium import CalciumScore
from fedmedseg.reporting.structure_volumes import StructureVolume
from fedmedseg.segmentation.predicted_files import PIECES, Measured, Outputs
from fedmedseg.segmentation.prediction import Origin


def digests(image: Path, heart: Path | None) -> dict[str, str]:
    """SHA-256 of the files that an answer was made from.

    Raises:
        OSError: one cannot be read.
    """
    return {name: _sha256(path) for name, path in (("image", image), ("heart", heart)) if path is not None}


def earlier(name: str, outputs: Outputs, *, origin: Origin, flips: bool, inputs: dict[str, str]) -> Measured | None:
    """What an earlier call measured in image ``name``; None where it left less than all files of it, or where they are
    of another model, with or without ``flips``, or of another image or map of the heart."""
    if not all(path.is_file() for path in outputs.every):
        return None
    try:
        content = json.loads(outputs.figures.read_text(encoding="utf-8"))
        asked = {"model": asdict(origin), "flips": flips, "inputs_sha256": inputs}
        if any(content[key] != value for key, value in asked.items()) or not origin.tensors:
            return None
        return Measured(
            name=name,
            volumes={structure: _volume(structure, one) for structure, one in content["volumes"].items()},
            points={point: place and tuple(place) for point, place in content.get("points_mm", {}).items()},
            calcium=CalciumScore(**content["calcium"]) if "calcium" in content else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # damaged, or of a version that wrote less: it is made again
        return None


def _volume(structure: str, told: dict[str, Any]) -> StructureVolume:
    largest = told["largest"]
    return StructureVolume(
        voxels=told["voxels"],
        ml=told["ml"],
        pieces=told["pieces"],
        largest=float("nan") if largest is None else largest,
        natural=PIECES.get(structure, 1),
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
