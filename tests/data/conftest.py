"""A small hospital on disk: NIfTI files, data lists, sites and experiments for the tests of the data core."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.config import Experiment
from fedmedseg.data.site import Site
from fedmedseg.data.volumes import Volumes


class Hospital:
    """Writes files under one folder and opens them as Volumes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "files").mkdir(parents=True)

    def nifti(self, name: str, array: np.ndarray, affine: np.ndarray | None = None) -> str:
        """Write an array; the path as a data list names it."""
        image = nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine)
        nib.save(image, self.root / "files" / name)
        return f"files/{name}"

    def scan(self, shape: tuple[int, ...] = (20, 20, 20), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """A dark field with a grey body and, inside it, structures 1 and 2: image int16 and label uint8."""
        rng = np.random.default_rng(seed)
        label = np.zeros(shape, dtype=np.uint8)
        x, y, z = shape
        label[x // 4 : x // 2, y // 4 : 3 * y // 4, z // 5 : z] = 1
        label[x // 2 : 3 * x // 4, y // 4 : y // 2, z // 5 : z] = 2
        image = np.zeros(shape, dtype=np.float64)
        image[1:-1, 1:-1] = 200
        image += 150.0 * label + rng.normal(0, 4, shape)
        return np.clip(image, 0, None).astype(np.int16), label

    def case(
        self, patient: str, *, seed: int = 0, shape: tuple[int, ...] = (20, 20, 20), **more: Any
    ) -> dict[str, Any]:
        """A healthy labelled case as an entry of a data list."""
        image, label = self.scan(shape, seed)
        affine = more.pop("affine", None)
        return {
            "image": self.nifti(f"{patient}_{seed}.nii.gz", image, affine),
            "label": self.nifti(f"{patient}_{seed}_label.nii.gz", label, affine),
            "patient": patient,
            **more,
        }

    def patched(self, name: str, source: str, offset: int, values: np.ndarray) -> str:
        """A compressed copy of an entry's file whose header bytes at ``offset`` are ``values``."""
        content = bytearray(gzip.decompress((self.root / source).read_bytes()))
        content[offset : offset + values.nbytes] = values.tobytes()
        (self.root / "files" / name).write_bytes(gzip.compress(bytes(content)))
        return f"files/{name}"

    def datalist(self, **sections: Any) -> Path:
        """Write a data list with these sections."""
        path = self.root / "datalist.json"
        path.write_text(json.dumps(sections))
        return path

    def site(self, **changes: Any) -> Site:
        """The site whose only role is ``brain``."""
        settings: dict[str, Any] = {
            "name": "site-1",
            "state_root": self.root / "state",
            "cache": self.root / "cache",
            "models": self.root / "models",
            "device": "cpu",
            "datasets": {"brain": self.root / "datalist.json"},
            "salt": "pepper and salt",
            "simulated": True,
        }
        return Site(**{**settings, **changes})

    def experiment(self, **data: Any) -> Experiment:
        """A study of 3-D MR crops of 16 voxels unless ``data`` says otherwise."""
        section = {
            "role": "brain",
            "modality": "mr",
            "spatial_dims": 3,
            "labels": {1: "anterior", 2: "posterior"},
            "crop": (16, 16, 16),
            **data,
        }
        return Experiment.model_validate(
            {
                "system": "fedata",
                "study": "trial",
                "data": section,
                "network": {"name": "unetr"},
                "segmentation": {"steps": 1, "optimizer": {"learning_rate": 0.001}},
                "stages": {},
            }
        )

    def volumes(
        self, section: str = "training", *, fraction: float = 1.0, site: Site | None = None, **data: Any
    ) -> Volumes:
        """Volumes of one section of the data list written last."""
        return Volumes(site=site or self.site(), experiment=self.experiment(**data), section=section, fraction=fraction)


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """An empty hospital."""
    return Hospital(tmp_path / "hospital")
