"""What a site that agrees publishes of its model: head, norms and statistics, in the shape of the study's own network.

Sites predict different organs, so their heads have different sizes, while the wire declares one shape per tensor. A
head is therefore laid into that of a network for all organs; ``published.organs`` says which of its channels are real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmedseg.core import checkpoint
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.segmentation.models import InferenceModel, load_tensors
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.network import private_tensors
from fedmedseg.segviz.organs import own_study
from fedmedseg.segviz.plan import PUBLISHED

ORGANS = f"{PUBLISHED}organs"
KIND = "published"
SHARED_FILE = "shared.safetensors"


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

    ``folder`` is the run's ``models``, with ``shared.safetensors``, which says what study it is of, and
    ``published/<site>.safetensors``. ``experiment`` counts where it does not say so, as files of early versions.

    Raises:
        ConfigurationError: nothing there, or files of several studies.
        FedMedSegError: tensors that are not the study's.
        CheckpointError: a damaged file.
    """
    tree = checkpoint.load(folder / SHARED_FILE)
    if tree is None:
        raise _no_run(folder)
    if isinstance(tree, dict) and "settings" in tree:
        experiment = parse_experiment(tree["settings"], source=SHARED_FILE)
    shared = _tensors(tree, SHARED_FILE, experiment)
    run = str(tree.get("run", ""))
    found = {}
    for file in sorted((folder / KIND).glob("*.safetensors")):
        published = _tensors(checkpoint.load(file), file.name, experiment)
        organs = tuple(int(number) for number in torch.nonzero(published[ORGANS]).flatten())[1:]
        own = own_study(experiment, organs)
        model = initial_network(own)
        state = model.state_dict()
        trunk = {name: tensor for name, tensor in shared.items() if not name.startswith(PUBLISHED)}
        load_tensors(model, {**state, **trunk, **taken_out(published, state)[1]}, source=file.name)
        found[file.stem] = InferenceModel.of(model, own, start=KIND, digest=experiment.digest, run=run)
    if not found:
        raise ConfigurationError(
            f"{folder.name}/{KIND}",
            got="no file",
            expected="what at least one site published",
            remedy="name the sites' own models (personal.safetensors of each), or run the study with "
            "stages.publication.rounds 1, and publish: true in site files",
        )
    return found


def _tensors(tree: Any, name: str, experiment: Experiment) -> dict[str, torch.Tensor]:
    digest = tree.get("experiment") if isinstance(tree, dict) else None
    if digest != experiment.digest:
        raise ConfigurationError(
            name,
            got=f"a file of experiment {str(digest)[:16]}",
            expected=f"one of the study {experiment.study}, {experiment.digest[:16]}",
            remedy="keep each run's files in a folder of their own, as the run left them",
        )
    return dict(tree["tensors"])


def _no_run(folder: Path) -> ConfigurationError:
    """What to say of a folder without a shared model: where below it one lies, as it may be the run's own folder."""
    below = [folder / place for place in ("models", "server/simulate_job/models", "workspace/models")]
    meant = next((one for one in below if (one / SHARED_FILE).is_file()), None)
    return ConfigurationError(
        "--models",
        got=f"no {SHARED_FILE} in {folder}",
        expected="a run's folder `models`, which its server keeps, or a site's model file",
        remedy=f"name {meant}" if meant else "name the folder that holds shared.safetensors and published",
    )


def _inside(small: torch.Size, large: torch.Size, channels: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Where a tensor of shape ``small`` lies in one of ``large``: at ``channels`` along every axis on which they
    differ, which are those that count the network's outputs."""
    axes = [
        torch.arange(wide) if narrow == wide else torch.tensor(channels)
        for narrow, wide in zip(small, large, strict=True)
    ]
    return tuple(torch.meshgrid(*axes, indexing="ij")) if axes else ()
