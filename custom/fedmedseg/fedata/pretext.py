"""What every pretext is made of: heads that fit the network, a view, targets, an outcome, and the base class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from fedmedseg.fedata.decoder import Decoder, decoder_width
from fedmedseg.fedata.masking import Places, pick
from fedmedseg.fedata.pixels import pixel_l1
from fedmedseg.networks.units import cut_units

if TYPE_CHECKING:
    from fedmedseg.fedata.config import Section
    from fedmedseg.fedata.network import MaskedEncoder


@dataclass(frozen=True)
class Layout:
    """What heads have to fit: channels of a token, the tokens' grid, and whether the encoder drops masked tokens."""

    section: Section
    width: int
    grid: tuple[int, ...]
    drops: bool

    @property
    def voxels(self) -> int:
        """Voxels of a unit."""
        return int(self.section.mask_unit ** len(self.grid))

    def decoder(self, width_out: int) -> Decoder:
        """The decoder of the settings."""
        section = self.section.decoder
        return Decoder(
            width_in=self.width,
            width_out=width_out,
            width=section.width or decoder_width(self.width, heads=section.heads, spatial_dims=len(self.grid)),
            depth=section.depth,
            heads=section.heads,
            grid=self.grid,
            fills=self.drops,
        )

    def pixel_head(self, *, wanted: bool = True) -> dict[str, nn.Module]:
        """One linear layer from a token to the voxels of its unit."""
        return {"pixels": nn.Linear(self.width, self.voxels)} if wanted else {}


@dataclass(frozen=True)
class View:
    """What the student makes of masked crops."""

    encoded: torch.Tensor
    """The encoder's tokens (B, N, C); the visible ones only where the others are dropped."""
    predicted: torch.Tensor
    """What is predicted at the hidden places (B, M, C), in their order; voxels in place of C for ``mae``."""


@dataclass(frozen=True)
class Targets:
    """What the student is compared with, without gradient, and figures of it to report."""

    tensors: dict[str, torch.Tensor]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Loss of a batch, its figures, and the targets that ``Pretext.follow`` learns from after the step."""

    loss: torch.Tensor
    figures: dict[str, float]
    targets: Targets


class Pretext(ABC):
    """Base of all pretexts: no teacher, no memory. Subclasses give ``heads``, ``targets`` and ``loss``."""

    has_teacher: ClassVar[bool] = False

    def __init__(self, *, section: Section, network: MaskedEncoder) -> None:
        self.section = section
        self.network = network

    @staticmethod
    @abstractmethod
    def heads(layout: Layout) -> dict[str, nn.Module]:
        """The student's heads by their name in the network, in the order in which their weights are drawn."""

    @abstractmethod
    def targets(self, teacher: nn.Module | None, images: torch.Tensor, places: Places) -> Targets:
        """Targets of whole crops (B, 1, *crop); called without gradient."""

    @abstractmethod
    def loss(self, view: View, targets: Targets, places: Places, *, position: int, total: int) -> Outcome:
        """The loss at global step ``position`` of ``total``; changes nothing."""

    def teacher_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors beside the encoder's that follow the student, by their name in the student."""
        return {}

    def follow(self, targets: Targets) -> None:
        """Take over from a batch, after its step, what the next one needs; without memory there is nothing to do."""
        return

    def reset(self) -> None:
        """Forget what ``memory`` holds; without memory there is nothing to do."""
        return

    def memory(self) -> dict[str, torch.Tensor]:
        """What the site keeps of this pretext beside the teacher."""
        return {}

    def load(self, memory: Mapping[str, torch.Tensor]) -> None:
        """Go on from ``memory``; without memory there is nothing to do."""
        return

    def _pixel_targets(self, images: torch.Tensor, places: Places) -> torch.Tensor:
        """Units at the hidden places, (B, M, voxels)."""
        return pick(cut_units(images.float(), unit=self.section.mask_unit), places.hidden)

    def _with_pixels(self, loss: torch.Tensor, view: View, targets: Targets, figures: dict[str, float]) -> torch.Tensor:
        """L + lambda_pix L_pix: masked L1 of a linear head on the predicted token; L as it is where lambda is 0."""
        if not self.section.pixel_weight:
            return loss
        pixels = pixel_l1(self.network.heads["pixels"](view.predicted), targets.tensors["pixels"])
        figures["loss/pixels"] = float(pixels.detach())
        return loss + self.section.pixel_weight * pixels
