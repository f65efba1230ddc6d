"""Importer of KiTS19: abdominal CT with kidneys and their tumours, which are one label here.

Heller et al., The KiTS19 Challenge Data, arXiv:1904.00445. Layout of the repository neheller/kits19 after its download
script: ``data/case_00000/imaging.nii.gz`` and, for the 210 cases with labels, ``segmentation.nii.gz`` beside it (1
kidney, 2 tumour). The array's first axis is the slices', as the affine says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.importers.base import Collection, FilePair, SourceCase, Tick, folder_exists, listing
from fedmedseg.data.importers.relabel import Relabelled, parse_label_map, target_names

NAMES = {1: "kidneys", 2: "tumour"}
IMAGE, LABEL = "imaging.nii.gz", "segmentation.nii.gz"


@dataclass(frozen=True, kw_only=True)
class KiTS19Importer:
    """``label_map`` numbers kidney (1) and tumour (2) as the study does; both are its label 1 unless it says else."""

    label_map: str = "1=1,2=1"
    name: str = "kits19"
    role: str | None = "abdominal_ct"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        table = parse_label_map(self.label_map)
        root = source / "data" if (source / "data").is_dir() else source
        folders = sorted(path.parent for path in root.glob(f"case_*/{IMAGE}"))
        if not folders:
            raise ConfigurationError(
                "kits19",
                got=listing(source),
                expected=f"case_00000/{IMAGE} and so on",
                remedy="point at the repository's data folder after its download script has run",
            )
        cases = []
        for done, folder in enumerate(folders, start=1):
            label = folder / LABEL
            pair = FilePair(image=folder / IMAGE, label=label if label.is_file() else None)
            cases.append(
                SourceCase(
                    name=folder.name,
                    patient=folder.name,
                    content=Relabelled(content=pair, table=table),
                    annotated_labels=tuple(sorted(set(table.values()))),
                )
            )
            tick(done, len(folders))
        return Collection(cases=cases, labels=target_names(table, NAMES), role=self.role)
