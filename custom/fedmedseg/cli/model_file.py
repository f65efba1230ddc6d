"""What a model file on the command line is, and the predictor or export that follows from it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedmedseg.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fedmedseg.cardiac_ct.foundation import Foundation
    from fedmedseg.export.network import Exportable
    from fedmedseg.segmentation.models import InferenceModel
    from fedmedseg.segmentation.prediction import Predictor

CARDIAC = "cardiac_ct"


def open_model(path: Path, *, start: str | None = None) -> InferenceModel | Foundation:
    """A site's own model, a run's shared model where it is a whole network, or networks of a cardiac CT run.

    Raises:
        ConfigurationError: no such file, one that does not say what it is, or that holds no whole network.
        FedMedSegError: its tensors do not suit the network.
    """
    from fedmedseg.cardiac_ct.foundation import load_foundation
    from fedmedseg.core.checkpoint import CheckpointError, load_file
    from fedmedseg.segmentation.models import load_for_inference
    from fedmedseg.segmentation.shared_model import from_shared
    from fedmedseg.segviz.publication import KIND

    if path.is_dir():
        raise ConfigurationError(
            "MODEL",
            got=f"the folder {path}",
            expected="a model file (.safetensors)",
            remedy="models of several sites as one are used by `fedmedseg fuse predict`",
        )
    try:
        tree = load_file(path)
    except CheckpointError as error:
        got = "a file that is not safetensors" if zipfile.is_zipfile(path) else error.got
        raise ConfigurationError("MODEL", got=f"{got}: {path}", expected="a model file of this package") from None
    if not isinstance(tree, Mapping):
        raise _unknown(path, "a file of another kind")
    if tree.get("system") == CARDIAC or str(tree.get("kind", "")).startswith(CARDIAC):
        _refuse_start(start)
        return load_foundation(path)
    if tree.get("kind") == KIND:
        raise _published(path)
    if "settings" in tree:
        return from_shared(tree, source=path.name, start=start)
    if "network" not in tree:
        raise _unknown(path, _said(tree))
    _refuse_start(start)
    return load_for_inference(path)


def open_predictor(
    path: Path,
    *,
    device: str,
    flips: bool,
    network: Literal["student", "cnn"] | None = None,
    start: str | None = None,
) -> Predictor:
    """The predictor of a model file. Raises as ``open_model`` does, and for options that the file has no use for."""
    from fedmedseg.segmentation.models import InferenceModel
    from fedmedseg.segmentation.prediction import SegmentationPredictor, require_device

    require_device(device)
    model = open_model(path, start=start)
    if isinstance(model, InferenceModel):
        if network is not None:
            raise _unread("--network", network, model)
        return SegmentationPredictor(model=model, device=device, flips=flips)
    from fedmedseg.cardiac_ct.prediction import TaskPredictor

    return TaskPredictor(foundation=model, device=device, which=network, flips=flips)


def open_exportable(
    path: Path,
    *,
    network: Literal["student", "cnn"] | None = None,
    task: str | None = None,
    start: str | None = None,
) -> Exportable:
    """The network of a model file, to be handed on. Raises as ``open_predictor`` does."""
    from fedmedseg.export.network import exportable
    from fedmedseg.segmentation.models import InferenceModel

    model = open_model(path, start=start)
    if isinstance(model, InferenceModel):
        for option, given in (("--network", network), ("--task", task)):
            if given is not None:
                raise _unread(option, given, model)
        return exportable(model)
    from fedmedseg.cardiac_ct.exporting import exportable as of_task

    return of_task(model, which=network, task=task)


def _unread(option: str, given: str, model: InferenceModel) -> ConfigurationError:
    return ConfigurationError(
        option, got=given, expected=f"nothing for a model of {model.system}", remedy="leave it out"
    )


def _refuse_start(start: str | None) -> None:
    if start is not None:
        raise ConfigurationError(
            "--start", got=start, expected="nothing: this file holds one model", remedy="leave --start out"
        )


def _said(tree: Mapping[str, Any]) -> str:
    if "tensors" in tree and "experiment" in tree:
        return "a run's tensors without the settings that build and feed its network"
    return "a file of another kind"


def _published(path: Path) -> ConfigurationError:
    return ConfigurationError(
        "MODEL",
        got=f"{path.name}, the head and norms that a site published, without the trunk",
        expected="a whole network",
        remedy="name the run's folder `models`, which holds both, and its experiment.yaml: "
        "`fedmedseg fuse predict IMAGE_OR_FOLDER OUT --models MODELS --experiment FILE`",
    )


def _unknown(path: Path, got: str) -> ConfigurationError:
    return ConfigurationError(
        "MODEL",
        got=f"{got}: {path.name}",
        expected="a file that says what network, labels, spacing and intensities it was trained with",
        remedy="use a site's own model (<models_dir>/<study>/*.safetensors), or a shared model that this version wrote",
    )
