"""Segmentation models on the disk: tensors together with everything needed to use them, and checked when read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmedseg.core import checkpoint
from fedmedseg.core.config import Experiment
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason, called
from fedmedseg.core.schema import parse
from fedmedseg.core.wire import is_finite
from fedmedseg.networks.factory import build_segmentation

FORMAT = 1
UNUSUAL = ("whole_depth", "longest_edge", "intensity")
"""Settings of the data that a file names only where they differ from their defaults: older files name none."""
FIELDS = ("role", "modality", "labels", "spatial_dims", "crop", "spacing", "window")
"""Settings of the data that every file names."""
SETTINGS = (*FIELDS, "network", "system", "study", "start", "experiment", "overlap")
"""All that a file must say besides its tensors."""


@dataclass(frozen=True)
class InferenceModel:
    """A trained network with what it must be fed and what its classes mean."""

    model: nn.Module
    data: DataSection
    """Modality, spacing (mm), window (HU), crop and labels: how to prepare a volume and read the result."""
    overlap: float
    """Sliding-window overlap."""
    study: str
    system: str
    start: str
    experiment: str
    """Digest of the experiment that trained it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What ``describe`` says of it, from which ``study_of`` builds the network again."""
    run: str = ""
    """The run that trained it, as that run's record names itself; empty where none did."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        experiment: Experiment,
        *,
        start: str,
        digest: str,
        settings: Mapping[str, Any] | None = None,
        run: str = "",
    ) -> InferenceModel:
        """``model``, in evaluation mode from now on, with what ``experiment`` says of it; ``digest`` is that of the
        experiment that trained it, of which this one may be a part.
        """
        return cls(
            model=model.eval(),
            data=experiment.data,
            overlap=experiment.segmentation.overlap,
            study=experiment.study,
            system=experiment.system,
            start=start,
            experiment=digest,
            settings=settings or {},
            run=run,
        )


def describe(experiment: Experiment, start: str) -> dict[str, Any]:
    """All a model file says besides its tensors. Nothing in it comes from a patient or names a path."""
    data = experiment.data
    return {
        "format": FORMAT,
        "study": experiment.study,
        "experiment": experiment.digest,
        "system": experiment.system,
        "start": start,
        "role": data.role,
        "modality": data.modality,
        "labels": dict(data.labels),
        "spatial_dims": data.spatial_dims,
        "crop": list(data.crop),
        "spacing": list(data.spacing),
        "window": list(data.window),
        "overlap": experiment.segmentation.overlap,
        "network": experiment.network.model_dump(mode="json"),
        **_unusual(data),
    }


def save_model(
    path: Path, tensors: Mapping[str, torch.Tensor], *, experiment: Experiment, start: str, run: str = ""
) -> None:
    """Write one model atomically; the one before it stays as ``<name>.previous``.

    ``tensors`` is the network's state dict, ``start`` names what it was fine-tuned from, ``run`` the run it is of.

    Raises:
        OSError: disk full or not writable.
    """
    checkpoint.save(path, describe(experiment, start) | {"run": run, "tensors": dict(tensors)})


def load_model(path: Path, model: nn.Module, *, experiment: Experiment, start: str) -> None:
    """Load a model file into ``model``, which this experiment built.

    Raises:
        ConfigurationError: no such file, or the first thing in which it differs from the experiment.
        FedMedSegError: its tensors are not this network's, or not finite.
        CheckpointError: the file is damaged.
    """
    tree = _read(path)
    for setting, expected in describe(experiment, start).items():
        if setting == "experiment":
            continue
        if tree.get(setting) != expected:
            raise ConfigurationError(
                f"{path.name}: {setting}",
                got=tree.get(setting),
                expected=f"this experiment's {expected}",
                remedy="use the experiment.yaml the model was trained with, or fine-tune again",
            )
    if tree.get("experiment") != experiment.digest:
        raise ConfigurationError(
            f"{path.name}: experiment",
            got=str(tree.get("experiment"))[:16],
            expected=f"the digest of this experiment, {experiment.digest[:16]}",
            remedy="some setting besides the network and the data was changed since: fine-tune again",
        )
    load_tensors(model, tree["tensors"], source=path.name)


def load_for_inference(path: Path) -> InferenceModel:
    """Rebuild the network from the file alone, in evaluation mode on the CPU.

    The file's settings are validated as an experiment's are, so a file from elsewhere cannot name
    anything but the networks this package knows.

    Raises:
        ConfigurationError: no such file, or settings in it that are not valid.
        FedMedSegError: its tensors do not suit the network it names.
        CheckpointError: the file is damaged.
    """
    tree = _read(path)
    experiment = study_of(tree, source=path.name)
    model = build_segmentation(experiment)
    load_tensors(model, tree["tensors"], source=path.name)
    settings = {name: value for name, value in tree.items() if name in (*SETTINGS, *UNUSUAL)}
    return InferenceModel.of(
        model,
        experiment,
        start=str(tree["start"]),
        digest=str(tree["experiment"]),
        settings=settings,
        run=str(tree.get("run", "")),
    )


def study_of(settings: Mapping[str, Any], *, source: str = "model file") -> Experiment:
    """The least study that builds the network of ``settings``, as ``describe`` says them.

    Raises:
        ConfigurationError: one that is missing or not valid.
    """
    return parse(Experiment, _as_experiment(settings), source=source)


def load_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Load exactly the network's tensors.

    Raises:
        FedMedSegError: a tensor is missing, unknown, of another shape or type, or not finite; the model
            is then untouched.
    """
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise FedMedSegError(
            f"{source}: tensors",
            got=f"{len(missing)} missing and {len(unknown)} unknown, first {(missing or unknown)[0]}",
            expected=f"the network's {len(own)} tensors",
            remedy="load it into the network it was saved from",
            reason=Reason.MISSING_TENSORS if missing else Reason.UNKNOWN_TENSORS,
        )
    check_tensors(tensors, own, source=source)
    model.load_state_dict(dict(tensors))


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Compare shape and type with the tensors of the same name in ``expected``, and look for NaN and infinity.

    Raises:
        FedMedSegError: the first tensor that differs.
    """
    for name, tensor in tensors.items():
        own = expected[name]
        if tensor.shape != own.shape:
            raise FedMedSegError(
                f"{source}: {name}", got=tuple(tensor.shape), expected=str(tuple(own.shape)), reason=Reason.TENSOR_SHAPE
            )
        if tensor.dtype != own.dtype:
            raise FedMedSegError(
                f"{source}: {name}", got=tensor.dtype, expected=str(own.dtype), reason=Reason.TENSOR_TYPE
            )
        if not is_finite(tensor):
            raise FedMedSegError(
                f"{source}: {name}", got="NaN or infinity", expected="finite numbers", reason=Reason.NOT_FINITE
            )


def _unusual(data: DataSection) -> dict[str, Any]:
    return data.model_dump(mode="json", include=set(UNUSUAL), exclude_defaults=True)


def _read(path: Path) -> dict[str, Any]:
    tree = checkpoint.load(path)
    if tree is None:
        raise ConfigurationError(
            path.name, got="no file", expected="a fine-tuned model", remedy="run the fine-tuning stage at this site"
        )
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or not isinstance(tree.get("tensors"), dict):
        raise ConfigurationError(
            f"{path.name}: format",
            got=tree.get("format") if isinstance(tree, dict) else called(tree),
            expected=f"a segmentation model of format {FORMAT}",
            remedy="use the package version that wrote it",
        )
    return tree


def _as_experiment(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The least experiment that builds the file's network. What training alone needs is filled in and unused."""
    missing = [name for name in SETTINGS if name not in tree]
    if missing:
        raise ConfigurationError("model file", got=f"no {', '.join(missing)}", expected="all settings of a model")
    return {
        "system": tree["system"],
        "study": tree["study"],
        "data": {name: tree[name] for name in (*FIELDS, *UNUSUAL) if name in tree},
        "network": tree["network"],
        "segmentation": {"steps": 1, "overlap": tree["overlap"], "optimizer": {"learning_rate": 1.0}},
        "stages": {},
    }
