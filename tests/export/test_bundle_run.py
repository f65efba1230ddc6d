"""A bundle's run: every image that can be used is done, and whoever runs it learns which cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedmedseg.core.errors import DataError
from fedmedseg.export.bundle_run import BundlePrediction
from fedmedseg.export.network import exportable
from fedmedseg.segmentation.models import load_for_inference


def write_image(path: Path) -> None:
    voxels = np.random.default_rng(1).normal(size=(20, 18, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.5, 2.0, 8.0, 1.0])), path)


def test_an_image_that_cannot_be_used_is_told_by_error_and_table_and_the_rest_is_done(
    model_file: Callable[..., Path], tmp_path: Path
) -> None:
    source = exportable(load_for_inference(model_file()))
    torch.save(source.network.state_dict(), tmp_path / "model.pt")
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    write_image(images / "good.nii.gz")
    (images / "torn.nii.gz").write_bytes(b"no image")

    def prediction(force: bool) -> BundlePrediction:
        weights = str(tmp_path / "model.pt")
        return BundlePrediction(source.network, weights, source.settings, str(images), str(out), force=force)

    def run() -> None:
        prediction(True).run()

    with pytest.raises(DataError, match=r"1 of 2 that could not be done.*failed\.csv"):
        run()
    assert {path.name for path in out.iterdir()} == {"good.json", "good.nii.gz", "volumes.csv", "failed.csv"}
    head, row = (out / "failed.csv").read_text().splitlines()
    assert head == "image,reason"
    assert row.startswith("torn,")
    assert len(row) > len("torn,")
    write_image(images / "torn.nii.gz")
    run()
    assert not (out / "failed.csv").exists(), "an earlier call's"
    # under MONAI's command line an error is a line and a status, no traceback
    with pytest.raises(SystemExit, match=r"^Error: OUT: got .*which is there.*--output_dir, or add --force true\.$"):
        prediction(False).main()
    assert len(prediction(True).main().done) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BundlePrediction, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit, match=r"^interrupted: the images that are done lie whole"):
            prediction(True).main()
    (images / "good.nii.gz").unlink()
    (images / "torn.nii.gz").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"1 of 1 that could not be done\. Expected .*Remedy: /.*failed\.csv says"):
        prediction(True).main()
