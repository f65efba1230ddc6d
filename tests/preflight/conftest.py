"""A federation's root key, a small site on disk and a study for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from kits import Federation


@pytest.fixture(autouse=True)
def _calm() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """One federation's root key."""
    return Federation(tmp_path)


class Site:
    """Writes a site's volumes and lists; the names of its patients must never be seen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def volume(self, file: str, *, seed: int, shape: tuple[int, ...] = (40, 64, 6), **more: Any) -> str:
        """An image of noise on a bright body, and the name a list gives it."""
        affine = more.pop("affine", np.diag([1.5, 1.5, 8.0, 1.0]))
        voxels = np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)
        nib.Nifti1Image(more.pop("voxels", voxels), affine).to_filename(self.root / file)
        return file

    def label(self, file: str, *, top: int = 2, shape: tuple[int, ...] = (40, 64, 6), **more: Any) -> str:
        """A label map with the values 0, 1 and ``top``."""
        voxels = np.zeros(shape, np.uint8)
        voxels[10:20, 10:20], voxels[20:30, 20:30] = 1, top
        affine = more.get("affine", np.diag([1.5, 1.5, 8.0, 1.0]))
        nib.Nifti1Image(voxels, affine).to_filename(self.root / file)
        return file

    def case(self, patient: str, seed: int, **more: Any) -> dict[str, Any]:
        """A healthy labelled case."""
        image, label = f"{patient}.nii.gz", f"{patient}_label.nii.gz"
        return {"image": self.volume(image, seed=seed, **more), "label": self.label(label), "patient": patient}

    def healthy(self) -> dict[str, list[dict[str, Any]]]:
        """Sections with nothing to mend."""
        counts = {"training": 3, "validation": 1, "test": 1}
        sections: dict[str, list[dict[str, Any]]] = {}
        for section, count in counts.items():
            base = 10 * len(sections)
            sections[section] = [self.case(f"DOE_{section}_{index}", base + index) for index in range(count)]
        return sections

    def datalist(self, content: Mapping[str, Any]) -> Path:
        """The list on the disk."""
        path = self.root / "datalist.json"
        path.write_text(json.dumps(content))
        return path

    def file(self, path: Path | None = None, **settings: Any) -> Path:
        """The site file, in a folder of its own or at ``path``."""
        target = path or self.root / "site.yaml"
        folders = {key: str(self.root / key) for key in ("state_dir", "cache_dir", "models_dir")}
        lists = {"datasets": {"cmr": {"list": str(self.root / "datalist.json")}}}
        target.write_text(json.dumps({**lists, **folders, "device": "cpu", "salt": "pepper and salt", **settings}))
        return target


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site without files."""
    return Site(tmp_path / "site")


@pytest.fixture
def study() -> Callable[..., Any]:
    """study(crop=...): a small FedATA study of two structures."""
    from fedmedseg.core.jobs import find_job, read_settings

    def make(**data: Any) -> Any:
        change = {"labels": {1: "one", 2: "two"}, "crop": [32, 64], "phantom": None, **data}
        return read_settings(find_job("fedata"), [{"data": change}])[1]

    return make
