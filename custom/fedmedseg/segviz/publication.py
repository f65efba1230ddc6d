"""What a site that agrees publishes of its model: head, norms and statistics, in the shape of the study's own network.

Sites predict different organs, so their heads have different sizes, while the wire declares one shape per tensor. A
head is therefore laid into that of a network for all organs; ``published.organs`` says which of its channels are real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from fedmedseg.core import checkpoint
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.segmentation.models import InferenceModel, load_tensors
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.network import private_tensors
from fedmedseg.segviz.organs import own_study
from fedmedseg.segviz.plan import PUBLISHED

ORGANS = f"{PUBLISHED}organs"
KIND = "published"


def blank(model: nn.Module, experiment: Experiment) -> dict[str, torch.Tensor]:
    """Zeros in the place of all that a site may publish; ``model`` is the study's network, with every organ."""
    private = {
        name: tensor for name, tensor in private_tensors(model, experiment).items() if tensor.is_floating_point()
    }
    tensors = {PUBLISHED + name: torch.zeros_like(tensor) for name, tensor in private.items()}
    return {**tensors, ORGANS: torch.zeros(experiment.data.classes)}


def laid_out(
    private: Mapping[str, torch.Tensor], organs: Sequence[int], places: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What a site that predicts ``organs`` publishes: its private tensors in ``places``, as ``blank`` makes them."""
    channels = [0, *organs]
    mask = torch.zeros_like(places[ORGANS])
    mask[channels] = 1.0
    laid = {ORGANS: mask}
    for name, place in places.items():
        if name == ORGANS:
            continue
        tensor, target = private[name.removeprefix(PUBLISHED)], torch.zeros_like(place)
        target[_inside(tensor.shape, target.shape, channels)] = tensor
        laid[name] = target
    return laid


def taken_out(
    published: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
    """The organs a site published for, and its private tensors in the shapes of ``own``, its network's state."""
    channels = [int(number) for number in torch.nonzero(published[ORGANS]).flatten()]
    tensors = {}
    for name, tensor in published.items():
        if name != ORGANS:
            inner = name.removeprefix(PUBLISHED)
            tensors[inner] = tensor[_inside(own[inner].shape, tensor.shape, channels)].clone()
    return tuple(channels[1:]), tensors


def save_published(path: Path, published: Mapping[str, torch.Tensor], *, experiment: Experiment) -> None:
    """Write what one site published.

    Raises:
        OSError: disk full or not writable.
    """
    tree = {"format": 1, "kind": KIND, "experiment": experiment.digest, "tensors": dict(published)}
    checkpoint.save(path, tree)


def published_models(folder: Path, *, experiment: Experiment) -> dict[str, InferenceModel]:
    """Each publishing site's model: the study's shared trunk with that site's own parts, ready for ``segviz.fusion``.

    ``folder`` is the run's ``models``, with ``shared.safetensors`` and ``published/<site>.safetensors``.

    Raises:
        ConfigurationError: nothing there, or files of another study.
        FedMedSegError: tensors that are not the study's.
        CheckpointError: a damaged file.
    """
    shared = _read(folder / "shared.safetensors", experiment)
    found = {}
    for file in sorted((folder / KIND).glob("*.safetensors")):
        published = _read(file, experiment)
        organs = tuple(int(number) for number in torch.nonzero(published[ORGANS]).flatten())[1:]
        own = own_study(experiment, organs)
        model = initial_network(own)
        state = model.state_dict()
        trunk = {name: tensor for name, tensor in shared.items() if not name.startswith(PUBLISHED)}
        load_tensors(model, {**state, **trunk, **taken_out(published, state)[1]}, source=file.name)
        found[file.stem] = InferenceModel.of(model, own, start=KIND, digest=experiment.digest)
    if not found:
        raise ConfigurationError(
            f"{folder.name}/{KIND}",
            got="no file",
            expected="what at least one site published",
            remedy="name the sites' own models (personal.safetensors of each), or run the study with "
            "stages.publication.rounds 1, and publish: true in site files",
        )
    return found


def _read(file: Path, experiment: Experiment) -> dict[str, torch.Tensor]:
    tree = checkpoint.load(file)
    digest = tree.get("experiment") if isinstance(tree, dict) else None
    if tree is None or digest != experiment.digest:
        raise ConfigurationError(
            file.name,
            got="no file" if tree is None else f"a file of experiment {str(digest)[:16]}",
            expected=f"one of this study, {experiment.digest[:16]}",
            remedy="use the experiment.yaml of the run that wrote it",
        )
    return dict(tree["tensors"])


def _inside(small: torch.Size, large: torch.Size, channels: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Where a tensor of shape ``small`` lies in one of ``large``: at ``channels`` along every axis on which they
    differ, which are those that count the network's outputs."""
    axes = [
        torch.arange(wide) if narrow == wide else torch.tensor(channels)
        for narrow, wide in zip(small, large, strict=True)
    ]
    return tuple(torch.meshgrid(*axes, indexing="ij")) if axes else ()
