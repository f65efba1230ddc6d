"""The shared model that a run leaves at its server: where it is a whole network, it predicts from that file alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.segmentation.models import InferenceModel, describe, load_tensors
from fedmedseg.segmentation.stages import is_federated, network_of
from fedmedseg.segmentation.starts import initial_network

SHARED = "shared"


def from_shared(tree: Mapping[str, Any], *, source: str, start: str | None = None) -> InferenceModel:
    """The network in ``tree``, the content of ``shared.safetensors``.

    Of a federated fine-tuning from several starts, ``start`` says which. Buffers of whole numbers follow from the
    settings and are not in the file.

    Raises:
        ConfigurationError: settings that are not valid, no network or several, or only a part of one.
        FedMedSegError: tensors that do not suit the network.
    """
    experiment = parse_experiment(tree["settings"], source=source)
    name, tensors = _chosen(experiment, tree["tensors"], source=source, start=start)
    model = initial_network(experiment)
    state = model.state_dict()
    missing = [one for one, tensor in state.items() if tensor.is_floating_point() and one not in tensors]
    if missing:
        own = " or ".join(f"{one}.safetensors" for one in experiment.wing.starts)
        raise ConfigurationError(
            source,
            got=f"a shared model without {len(missing)} of the network's {len(state)} tensors, first {missing[0]}",
            expected="a whole network: the sites of this study keep the rest to themselves",
            remedy=f"use a site's own model, {own} in its models_dir under {experiment.study}; models of several sites "
            "go together by `fedmedseg fuse predict`",
        )
    load_tensors(model, {one: tensors.get(one, state[one]) for one in state}, source=source)
    settings = describe(experiment, name)
    return InferenceModel.of(
        model, experiment, start=name, digest=experiment.digest, settings=settings, run=str(tree.get("run", ""))
    )


def _chosen(
    experiment: Experiment, tensors: Mapping[str, torch.Tensor], *, source: str, start: str | None
) -> tuple[str, Mapping[str, torch.Tensor]]:
    """What the network is called, and its tensors by their names in it."""
    if not is_federated(experiment):
        if start is not None:
            raise ConfigurationError(
                "--start", got=start, expected="nothing: this file holds one network", remedy="leave --start out"
            )
        return SHARED, tensors
    found = {name: network for name in experiment.wing.starts if (network := network_of(name, tensors))}
    name = next(iter(found)) if start is None and len(found) == 1 else start
    if name is None or name not in found:
        raise ConfigurationError(
            "--start", got=name, expected=f"one of {', '.join(found) or 'none'}, whose networks {source} holds"
        )
    return name, found[name]
