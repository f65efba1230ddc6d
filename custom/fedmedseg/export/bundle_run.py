"""What an exported bundle's ``run`` does: every image of a folder through its network, as `fedmedseg predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmedseg.core.bounds import VOLUME_BUDGET_MB
from fedmedseg.core.errors import DataError, FedMedSegError
from fedmedseg.data.images import images_at
from fedmedseg.segmentation.models import InferenceModel, load_tensors, study_of
from fedmedseg.segmentation.predicted_files import (
    FAILED,
    TABLES,
    outputs_for,
    remove,
    require_new,
    require_outside,
    require_writable,
    write_tables,
)
from fedmedseg.segmentation.predicting import Batch, predict_all
from fedmedseg.segmentation.prediction import SegmentationPredictor

REPLACE = "choose another with --output_dir, or add --force true"


class BundlePrediction:
    """A bundle's network on the images of a folder.

    Args:
        network: what the bundle's configuration builds.
        weights: path of its state dict.
        settings: what the model file said: preparation, label map, window.
        images: a NIfTI file, or a folder of such and DICOM series.
        out: the folder to write into.
        device: where the network runs.
        run_id: the run that trained it, as its record calls itself.
        budget_mb: MiB one volume may occupy.
        force: replace files that are there.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str,
        settings: Mapping[str, Any],
        images: str,
        out: str,
        device: str = "cpu",
        run_id: str = "",
        budget_mb: int = VOLUME_BUDGET_MB,
        force: bool = False,
    ) -> None:
        self.network, self.weights, self.settings = network, weights, settings
        self.images, self.out, self.device, self.run_id = images, out, device, run_id
        self.budget_mb, self.force = budget_mb, force

    def main(self) -> Batch:
        """``run`` for MONAI's command line, which would show a traceback of its own beneath every error.

        Raises:
            SystemExit: what went wrong, which ends the program with code 1.
        """
        try:
            return self.run()
        except FedMedSegError as error:
            raise SystemExit(f"Error: {error}") from None
        except KeyboardInterrupt:
            raise SystemExit("interrupted: the images that are done lie whole in the output folder") from None

    def run(self) -> Batch:
        """Predict and write; images that cannot be used are left out, and the rest is done.

        Raises:
            ConfigurationError: settings, paths or weights that cannot be used.
            DataError: images were left out; which and why is in ``failed.csv`` beside the others' answers.
        """
        place, out = Path(self.images), Path(self.out)
        require_outside(out, place, option="out")
        predictor = SegmentationPredictor(model=self._model(), device=self.device)
        sources = images_at(place).sources
        outputs = {one.name: outputs_for(one.name, predictor, out) for one in sources}
        tables = [out / name for name in TABLES]
        require_new([path for one in outputs.values() for path in one.every] + tables, force=self.force, remedy=REPLACE)
        require_writable(out, option="out")
        remove(tables)
        batch = predict_all(predictor, sources, outputs, flips=False, budget_mb=self.budget_mb)
        write_tables(out, batch.done, {}, batch.failed)
        if batch.failed:
            # whoever runs the bundle learns of it by its status, as of `fedmedseg predict`
            raise DataError(
                "images",
                got=f"{len(batch.failed)} of {len(sources)} that could not be done",
                expected="images that the model can read",
                remedy=f"{'the others are done; ' if batch.done else ''}{out / FAILED} says which are not, and why",
            )
        return batch

    def _model(self) -> InferenceModel:
        settings = {**self.settings, "labels": {int(n): name for n, name in self.settings["labels"].items()}}
        study = study_of(settings, source="inference.json")
        load_tensors(
            self.network,
            torch.load(self.weights, map_location="cpu", weights_only=True),
            source=Path(self.weights).name,
        )
        return InferenceModel.of(
            self.network,
            study,
            start=str(settings["start"]),
            digest=str(settings["experiment"]),
            settings=settings,
            run=self.run_id,
        )
