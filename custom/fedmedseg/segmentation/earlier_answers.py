"""Answers of an earlier call that was interrupted: taken over where the same model answered the same image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmedseg.core.atomic import file_sha256
from fedmedseg.reporting.calcium import CalciumScore
from fedmedseg.reporting.structure_volumes import StructureVolume
from fedmedseg.segmentation.predicted_files import PIECES, Measured, Outputs


def digests(image: Path, heart: Path | None) -> dict[str, str]:
    """SHA-256 of the files that an answer was made from.

    Raises:
        OSError: one cannot be read.
    """
    return {name: file_sha256(path) for name, path in (("image", image), ("heart", heart)) if path is not None}


def earlier(name: str, outputs: Outputs, question: Mapping[str, Any]) -> Measured | None:
    """What an earlier call measured in image ``name``; None where it was asked another question
    (``predicted_files.asked``), left less than all files, or where one is not as it left it."""
    try:
        content = json.loads(outputs.figures.read_text(encoding="utf-8"))
        left = {path.name: file_sha256(path) for path in outputs.beside_figures}
        if any(content[key] != value for key, value in {**question, "files_sha256": left}.items()):
            return None
        return Measured(
            name=name,
            volumes={structure: _volume(structure, one) for structure, one in content["volumes"].items()},
            points={point: place and tuple(place) for point, place in content.get("points_mm", {}).items()},
            calcium=CalciumScore(**content["calcium"]) if "calcium" in content else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
