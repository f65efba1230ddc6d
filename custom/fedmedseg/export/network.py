"""One network as it is handed on: what goes in, what comes out, and what builds it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.network_settings import BasicUNetSection, RelocalizationSection
from fedmedseg.networks.factory import build_segmentation, stock
from fedmedseg.segmentation.models import InferenceModel, study_of
from fedmedseg.segmentation.prediction import Origin, origin_of

TOLERANCE = 1e-4
"""Largest difference of a probability between the network and what was made of it."""
TRIALS = 2
NETS = "monai.networks.nets."
NEW_LAYER = "transfer"
"""The stage that trains a new last layer on a frozen network, where a system has it."""
OURS = "fedmedseg.export.network.build"


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A network from images (B, channels, *shape) to logits (B, classes, *shape), float32, on the CPU."""

    network: nn.Module
    definition: Mapping[str, Any]
    """``_target_`` and arguments, plain values, as MONAI's ConfigParser takes them."""
    data: DataSection
    channels: tuple[str, ...]
    """What each channel of the input holds."""
    labels: Mapping[int, str]
    """Channels of the output from 1 on; 0 is background."""
    activation: Literal["softmax", "sigmoid"]
    """From logits to probabilities."""
    shape: tuple[int, ...]
    """Voxels of what the network is given at once."""
    whole: bool = False
    """Whether ``shape`` is the middle of a scan in one pass, not a patch of a sliding window."""
    overlap: float
    """Of the sliding window."""
    origin: Origin
    trained_in: tuple[str, ...] = ()
    """The stages of the run that trained it, where others trained other networks; empty: all that train."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What a model file says of the network; empty of one that no such file can hold."""
    marks: Literal["structures", "spheres", "heat maps"] = "structures"
    """What the channels of the output are: structures, or points as spheres or Gaussian heat maps around them."""
    before: str = ""
    """What was trained before its study, in words; empty where nothing was."""
    taken_over: bool = False
    """Whether its study did not train the network at all, or its heads alone."""

    @property
    def classes(self) -> int:
        """Channels of the output, background included."""
        return len(self.labels) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors."""
        return content_sha256(self.network.state_dict())

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def by_monai(self) -> bool:
        """Whether MONAI alone builds it."""
        return str(self.definition["_target_"]).startswith(NETS)

    def example(self, seed: int = 0) -> torch.Tensor:
        """Noise (1, channels, *shape) in the range of prepared images."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((1, len(self.channels), *self.shape), generator=generator)


def exportable(model: InferenceModel) -> Exportable:
    """A segmentation model of any system, as its file says."""
    study = study_of(model.settings)
    network = study.network
    if isinstance(network, RelocalizationSection | BasicUNetSection):
        # changed after MONAI built it, or none of MONAI's
        definition = {"_target_": OURS, "settings": dict(model.settings)}
    else:
        kind, arguments = stock(model.data, network)
        definition = {"_target_": f"{NETS}{kind}", **arguments}
    return Exportable(
        network=model.model.eval(),
        definition=definition,
        data=model.data,
        channels=("image",),
        labels=dict(model.data.labels),
        activation="softmax",
        shape=tuple(model.data.crop),
        overlap=model.overlap,
        origin=origin_of(model),
        settings=dict(model.settings),
    )


def build(settings: Mapping[str, Any]) -> nn.Module:
    """The network that a model file's settings describe, with random weights: what a bundle's configuration names.

    Raises:
        ConfigurationError: a setting that is missing or not valid.
    """
    # JSON has no whole numbers for keys
    whole = dict(settings) | {"labels": {int(number): name for number, name in settings["labels"].items()}}
    return build_segmentation(study_of(whole))


def require_agreement(
    source: Exportable, other: Callable[[torch.Tensor], torch.Tensor], *, what: str, tolerance: float = TOLERANCE
) -> float:
    """The largest difference of any probability between the network and ``other``, over inputs neither has seen.

    Raises:
        FedMedSegError: it is above ``tolerance``, or the shapes differ.
    """
    largest = 0.0
    for seed in range(1, TRIALS + 1):
        images = source.example(seed)
        with torch.inference_mode():
            expected = _probabilities(source, source.network(images))
            found = _probabilities(source, torch.as_tensor(other(images)).float())
        if found.shape != expected.shape:
            raise _differs(what, f"an output of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
        difference = float((found - expected).abs().max())
        # not the other way round: nan is never at most anything
        if not difference <= tolerance:
            raise _differs(what, f"probabilities that differ by {difference:.2g}")
        largest = max(largest, difference)
    return largest


def _probabilities(source: Exportable, logits: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(logits) if source.activation == "sigmoid" else torch.softmax(logits, dim=1)


def _differs(what: str, got: str) -> FedMedSegError:
    return FedMedSegError(
        what,
        got=got,
        expected=f"the network's own within {TOLERANCE:g}",
        remedy="report it with the versions of torch and MONAI; the file was not kept",
        reason=Reason.INTERNAL,
    )
