"""Importer of ImageCAS: a thousand CT angiographies with the coronary tree as label.

Zeng et al., "ImageCAS: A Large-Scale Dataset and Benchmark for Coronary Artery Segmentation based on Computed
Tomography Angiography Images", Computerized Medical Imaging and Graphics 2023, arXiv:2211.01607. Layout of its
archives: folders ``1-200``, ``201-400`` and so on with ``1.img.nii.gz`` and ``1.label.nii.gz`` (1 coronary artery).
Points and the heart's structures, which the set does not have, may be given beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.importers.base import Collection, FilePair, SourceCase, Tick, folder_exists, listing
from fedmedseg.data.importers.beside import all_used, hearts_in, landmarks_in
from fedmedseg.data.importers.relabel import Relabelled, parse_label_map, target_names

NAMES = {1: "coronaries"}
IMAGE, LABEL = ".img.nii.gz", ".label.nii.gz"


@dataclass(frozen=True, kw_only=True)
class ImageCASImporter:
    """``label_map`` gives the coronary tree the number it has in the study, 2 by default; calcification has 1.

    ``hearts`` and ``landmarks`` are folders (``importers.beside``) with files named as the cases, ``case_1`` and so on,
    or as the set numbers them, ``1``.
    """

    label_map: str = "1=2"
    hearts: Path | None = None
    landmarks: Path | None = None
    name: str = "imagecas"
    role: str | None = "cardiac_ct"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        table = parse_label_map(self.label_map)
        images = {
            path.name.removesuffix(IMAGE): path
            for path in sorted([*source.glob(f"*{IMAGE}"), *source.glob(f"*/*{IMAGE}")])
            if not path.name.startswith(".")
        }
        if not images:
            raise ConfigurationError(
                "imagecas",
                got=listing(source),
                expected=f"folders 1-200 and so on with 1{IMAGE} and 1{LABEL}",
                remedy="unpack the archives and point at the folder that holds them",
            )
        hearts = hearts_in(self.hearts) if self.hearts else {}
        points = landmarks_in(self.landmarks) if self.landmarks else {}
        hearts = {name.removeprefix("case_"): heart for name, heart in hearts.items()}
        points = {name.removeprefix("case_"): file for name, file in points.items()}
        all_used("--hearts", hearts, set(images))
        all_used("--landmarks", points, set(images))
        cases = []
        for done, (number, image) in enumerate(sorted(images.items(), key=_in_order), start=1):
            label = image.with_name(number + LABEL)
            pair = FilePair(image=image, label=label if label.is_file() else None)
            cases.append(
                SourceCase(
                    name=f"case_{number}",
                    patient=f"case_{number}",
                    content=Relabelled(content=pair, table=table),
                    annotated_labels=tuple(sorted(set(table.values()))),
                    landmarks=points.get(number),
                    heart=hearts.get(number),
                )
            )
            tick(done, len(images))
        return Collection(cases=cases, labels=target_names(table, NAMES), role=self.role)


def _in_order(item: tuple[str, Path]) -> tuple[int, str]:
    number = item[0]
    return (int(number), "") if number.isdigit() else (0, number)
