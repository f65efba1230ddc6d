"""The student of FedATA: the segmentation network's encoder, a mask token, and the heads of the pretext."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.partition import partition
from fedmedseg.fedata.masking import Places, pick, places
from fedmedseg.fedata.pretext import Layout, View
from fedmedseg.fedata.pretext_config import drops_masked
from fedmedseg.fedata.pretexts import PRETEXTS
from fedmedseg.networks.factory import ENCODERS, READERS, build_segmentation, encoder_names


class MaskedEncoder(nn.Module):
    """Encoder, ``mask_token`` and ``heads``; the names of its trained parameters are those on the wire.

    There is no mask token where the encoder drops masked tokens. Encoder tensors that the pretext does not reach
    keep ``requires_grad`` false.
    """

    def __init__(self, *, experiment: Experiment) -> None:
        super().__init__()
        self.prefix = ENCODERS[experiment.network.name]
        self.reader = READERS[experiment.network.name]
        self.top = experiment.wing.top(experiment)
        segmentation = build_segmentation(experiment)
        encoder = getattr(segmentation, self.prefix)
        self.add_module(self.prefix, encoder)
        section = experiment.wing
        self.drops = drops_masked(section, experiment)
        self.mask_token: nn.Parameter | None = None
        if not self.drops:
            self.mask_token = nn.Parameter(torch.empty(self.reader.mask_width(encoder)))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        grid = tuple(edge // section.mask_unit for edge in experiment.data.crop)
        width = self.reader.token_width(encoder)
        heads = PRETEXTS[section.pretext].heads(Layout(section=section, width=width, grid=grid, drops=self.drops))
        for name, head in heads.items():
            self.add_module(name, head)
        self._heads = tuple(heads)
        trained = set(encoder_names(segmentation, experiment))
        for name, parameter in encoder.named_parameters(prefix=self.prefix):
            parameter.requires_grad_(name in trained)

    @property
    def encoder(self) -> nn.Module:
        """The encoder, as the segmentation network holds it."""
        return getattr(self, self.prefix)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """What the pretext adds to the encoder, by name: ``predictor``, ``decoder``, ``head``, ``pixels``."""
        return {name: self.get_submodule(name) for name in self._heads}

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by their name on the wire."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def attention(self) -> list[str]:
        """Names of the self-attention tensors: projections of queries, keys, values and output, position biases."""
        split = partition(self, within=(self.prefix,), personal_types=(self.reader.attention_type(),))
        trained = self.trained()
        return sorted(name for name in split.personal if name in trained)

    def attention_modules(self) -> dict[str, nn.Module]:
        """The encoder's self-attention modules, by the names that begin those of their tensors."""
        kind = self.reader.attention_type()
        modules = self.encoder.named_modules(prefix=self.prefix)
        return {name: module for name, module in modules if isinstance(module, kind)}

    def last_stage(self) -> list[str]:
        """Names of the trained tensors of the encoder's last stage (Swin) or last block (ViT)."""
        prefix = f"{self.prefix}.{self.reader.last_stage(self.encoder)}."
        return sorted(name for name in self.trained() if name.startswith(prefix))

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

    def output(self, encoder: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """What ``encoder`` hands on from its last block's tokens."""
        return self.reader.output(encoder, tokens)

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> View:
        """Crops (B, 1, *crop) seen through ``masks`` (B, *crop / stride), and what is predicted of the hidden places.

        Raises:
            ValueError: masks that hide different numbers of units per crop.
        """
        where = places(masks)
        encoded = self.output(self.encoder, self._tokens(images, masks, where))
        heads = self.heads
        if "decoder" in heads:
            predicted = heads["decoder"](encoded, where)
        elif "predictor" in heads:
            predicted = pick(heads["predictor"](encoded), where.hidden)
        else:
            predicted = pick(encoded, where.hidden)
        return View(encoded=encoded, predicted=predicted)

    def _tokens(self, images: torch.Tensor, masks: torch.Tensor, where: Places) -> torch.Tensor:
        """The student's last block: all tokens, or the visible ones where the others are dropped."""
        if self.drops:
            return self.reader.block_tokens(self.encoder, images, top=1, visible=where.visible)[-1]
        return self.reader.block_tokens(self.encoder, images, top=1, mask=masks, mask_token=self.mask_token)[-1]
