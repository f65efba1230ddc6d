"""The student of FedATA: the segmentation network's encoder, one mask token, and a predictor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.partition import partition
from fedmedseg.networks.factory import ENCODERS, READERS, build_segmentation, encoder_names


class Predictor(nn.Sequential):
    """LayerNorm, Linear, GELU, Linear on the last axis: (..., width) to (..., width)."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MaskedEncoder(nn.Module):
    """Encoder, ``mask_token`` and ``predictor``; the names of its trained parameters are those on the wire.

    Encoder tensors that the pretext does not reach keep ``requires_grad`` false.
    """

    def __init__(self, *, experiment: Experiment) -> None:
        super().__init__()
        self.prefix = ENCODERS[experiment.network.name]
        self.reader = READERS[experiment.network.name]
        self.top = experiment.wing.top(experiment)
        segmentation = build_segmentation(experiment)
        encoder = getattr(segmentation, self.prefix)
        self.add_module(self.prefix, encoder)
        width = self.reader.token_width(encoder)
        self.mask_token = nn.Parameter(torch.empty(self.reader.mask_width(encoder)))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.predictor = Predictor(width=width, hidden=experiment.wing.predictor_hidden or width)
        trained = set(encoder_names(segmentation, experiment))
        for name, parameter in encoder.named_parameters(prefix=self.prefix):
            parameter.requires_grad_(name in trained)

    @property
    def encoder(self) -> nn.Module:
        """The encoder, as the segmentation network holds it."""
        return getattr(self, self.prefix)

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by their name on the wire."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def attention(self) -> list[str]:
        """Names of the self-attention tensors: projections of queries, keys, values and output, position biases."""
        split = partition(self, within=(self.prefix,), personal_types=(self.reader.attention_type(),))
        trained = self.trained()
        return sorted(name for name in split.personal if name in trained)

    def shared(self) -> dict[str, torch.Tensor]:
        """Copies of the trained parameters, on the CPU: all that crosses the wire."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.trained().items()}

    @torch.no_grad()
    def load_shared(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite trained parameters that ``tensors`` names."""
        trained = self.trained()
        for name, tensor in tensors.items():
            trained[name].copy_(tensor)

    def hidden(self, encoder: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
        """The last blocks of ``encoder`` (a teacher, say) on whole crops (B, 1, *crop): each (B, tokens, C)."""
        return self.reader.block_tokens(encoder, images, top=self.top)

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Predicted targets (B, tokens, C) from crops (B, 1, *crop) seen through ``masks`` (B, *crop / stride)."""
        encoder = self.encoder
        last = self.reader.block_tokens(encoder, images, top=1, mask=masks, mask_token=self.mask_token)[-1]
        return self.predictor(self.reader.output(encoder, last))
