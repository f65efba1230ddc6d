"""Importer of BTCV: abdominal CT with thirteen organs, of which the four of SegViz are read by default.

Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault (2015), Synapse syn3193805. Layout of the training
archive: ``img/img0001.nii.gz`` and ``label/label0001.nii.gz``; 1 spleen, 2 right kidney, 3 left kidney, 4 gallbladder,
5 esophagus, 6 liver, 7 stomach, 8 aorta, 9 inferior vena cava, 10 portal and splenic veins, 11 pancreas, 12 right and
13 left adrenal gland. Images of the test archive have no labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.importers.base import (
    Collection,
    FilePair,
    SourceCase,
    Tick,
    folder_exists,
    listing,
    suffix_of,
    volumes_in,
)
from fedmedseg.data.importers.relabel import Relabelled, parse_label_map, target_names

NAMES = {
    1: "spleen", 2: "kidneys", 3: "kidneys", 4: "gallbladder", 5: "esophagus", 6: "liver", 7: "stomach", 8: "aorta",
    9: "inferior_vena_cava", 10: "portal_and_splenic_veins", 11: "pancreas", 12: "right_adrenal", 13: "left_adrenal",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BTCVImporter:
    """``label_map`` numbers the organs as the study does; those that it does not name are background.

    By default 1 liver, 2 spleen, 3 pancreas and 4 both kidneys.
    """

    label_map: str = "6=1,1=2,11=3,2=4,3=4"
    name: str = "btcv"
    role: str | None = "abdominal_ct"

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        table = parse_label_map(self.label_map)
        if not (source / "img").is_dir():
            raise ConfigurationError(
                "btcv",
                got=listing(source),
                expected="img/img0001.nii.gz and label/label0001.nii.gz and so on",
                remedy="point at the archive's folder that holds img and label",
            )
        images = volumes_in(source / "img")
        labels = volumes_in(source / "label") if (source / "label").is_dir() else {}
        cases = []
        for done, (stem, image) in enumerate(images.items(), start=1):
            number = stem.removeprefix("img")
            label = labels.pop(f"label{number}", None)
            cases.append(
                SourceCase(
                    name=f"case_{number}",
                    patient=f"case_{number}",
                    content=Relabelled(content=FilePair(image=image, label=label), table=table, drop_others=True),
                    suffix=suffix_of(image) or ".nii.gz",
                )
            )
            tick(done, len(images))
        if labels or not cases:
            raise ConfigurationError(
                "btcv",
                got=f"{len(cases)} image(s), {len(labels)} label(s) without an image",
                expected="an image img0001.nii.gz for each label0001.nii.gz",
                remedy="unpack the archive again",
            )
        return Collection(cases=cases, labels=target_names(table, NAMES), role=self.role)
