"""Puts a way of computing (``core.compute``) into effect on a network: kernel, layout, precision of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from fedmedseg.core.compute import ComputeChoice
from fedmedseg.networks.attention import SwitchableAttention
from fedmedseg.networks.factory import READERS


def prepare(network: nn.Module, choice: ComputeChoice) -> None:
    """Give ``network`` the attention kernel and the memory layout of ``choice``, in place; no value changes.

    MONAI's Swin uses the fused kernel where no gradient is recorded, and writes attention out elsewhere whatever is
    asked for; its ViT uses it everywhere.
    """
    for module in attention_modules(network):
        module.use_flash_attention = choice.attention == "fused"
    set_layout(network, choice)


def attention_modules(network: nn.Module) -> list[Any]:
    """Every attention in ``network``, MONAI's and our own."""
    kinds = (SwitchableAttention, *(reader.attention_type() for reader in READERS.values()))
    return [module for module in network.modules() if isinstance(module, kinds)]


@torch.no_grad()
def set_layout(network: nn.Module, choice: ComputeChoice) -> None:
    """Lay out every parameter and buffer of 4 or 5 axes, and gradients with them; optimisers keep their hold."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim in (4, 5):
            tensor.data = tensor.data.contiguous(memory_format=choice.memory_format(tensor.ndim))
            if tensor.grad is not None:
                tensor.grad.data = tensor.grad.data.contiguous(memory_format=choice.memory_format(tensor.ndim))


@contextmanager
def applied(network: nn.Module, choice: ComputeChoice | None) -> Iterator[None]:
    """``prepare`` for a while; afterwards kernel and layout are what they were. None leaves them alone."""
    if choice is None:
        yield
        return
    kernels = [(module, module.use_flash_attention) for module in attention_modules(network)]
    layout = layout_of(network)
    prepare(network, choice)
    try:
        yield
    finally:
        for module, fused in kernels:
            module.use_flash_attention = fused
        set_layout(network, ComputeChoice(layout=layout))


def layout_of(network: nn.Module) -> Literal["contiguous", "channels_last"]:
    """How the convolutions of ``network`` lie in memory. A tensor of one channel tells nothing: it is both."""
    mixed = any(tensor.ndim in (4, 5) and not tensor.is_contiguous() for tensor in network.parameters())
    return "channels_last" if mixed else "contiguous"


def logits_of(
    network: nn.Module, images: torch.Tensor, choice: ComputeChoice, device: str | torch.device
) -> torch.Tensor:
    """Logits (B, C, *crop) of images (B, 1, *crop), float32 whatever the precision of the network."""
    with choice.autocast(device):
        logits: torch.Tensor = network(choice.on_device(images, device))
    return logits.float()
