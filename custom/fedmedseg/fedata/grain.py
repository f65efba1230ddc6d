"""How finely a tensor is mixed: which of its elements share one mixing weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Granularity = Literal["element", "tensor", "head"]


@dataclass(frozen=True)
class Grain:
    """Mixing weights of one tensor: of shape ``weights``, broadcast against the tensor seen in the shape ``view``."""

    view: tuple[int, ...]
    weights: tuple[int, ...]

    def ones(self, like: torch.Tensor) -> torch.Tensor:
        """Weights that take everything from the server, of the type and on the device of ``like``."""
        return like.new_ones(self.weights)

    def lerp(self, local: torch.Tensor, shared: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """local + (shared - local) * weights; exactly ``shared`` where they are 1 and ``local`` where they are 0."""
        return torch.lerp(local.reshape(self.view), shared.reshape(self.view), weights).reshape(local.shape)

    def gather(self, elements: torch.Tensor) -> torch.Tensor:
        """Sum over the elements that share a weight: the gradient of the weights from that of every element's."""
        return elements.reshape(self.view).sum_to_size(self.weights)


def element(shape: torch.Size | tuple[int, ...]) -> Grain:
    """A weight for every element."""
    return Grain(tuple(shape), tuple(shape))


def whole(shape: torch.Size | tuple[int, ...]) -> Grain:
    """One weight for the tensor."""
    return Grain(tuple(shape), (1,) * len(shape))


def head_grains(attention: nn.Module) -> dict[str, Grain]:
    """One weight per head of a MONAI self-attention module, by the names of its parameters.

    Rows of ``qkv`` are (query/key/value, head, channel); columns of the output projection are (head, channel);
    columns of the table of position biases are heads. The bias of the output projection belongs to all heads.
    """
    heads = int(attention.num_heads)  # type: ignore[arg-type]
    grains = {}
    for name, parameter in attention.named_parameters():
        shape = tuple(parameter.shape)
        if name.startswith("qkv."):
            rest = shape[1:]
            grains[name] = Grain((3, heads, shape[0] // (3 * heads), *rest), (1, heads, 1, *(1 for _ in rest)))
        elif name in ("proj.weight", "out_proj.weight"):
            grains[name] = Grain((shape[0], heads, shape[1] // heads), (1, heads, 1))
        elif name == "relative_position_bias_table":
            grains[name] = Grain(shape, (1, heads))
        else:
            grains[name] = whole(shape)
    return grains


def grains(
    tensors: Mapping[str, torch.Tensor], granularity: Granularity, attentions: Mapping[str, nn.Module]
) -> dict[str, Grain]:
    """The grain of every tensor; ``attentions`` holds self-attention modules by the names that begin their tensors'."""
    if granularity == "element":
        return {name: element(tensor.shape) for name, tensor in tensors.items()}
    by_head: dict[str, Grain] = {}
    if granularity == "head":
        for prefix, attention in attentions.items():
            by_head |= {f"{prefix}.{name}": grain for name, grain in head_grains(attention).items()}
    return {name: by_head.get(name, whole(tensor.shape)) for name, tensor in tensors.items()}
