"""What the student has to predict: one class per pretext, with the heads it needs, its targets and its loss.

A pretext owns no encoder. The network (``network.MaskedEncoder``) holds the student's heads, whose names are those on
the wire; the objective holds the teacher's encoder; a pretext adds what else it must remember at the site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedmedseg.fedata.distillation import distillation_target, masked_distillation_loss
from fedmedseg.fedata.masking import Places, pick
from fedmedseg.fedata.monitor import token_spread
from fedmedseg.fedata.pixels import normalised_units, pixel_l1, pixel_mse
from fedmedseg.fedata.pretext import Layout, Outcome, Pretext, Targets, View
from fedmedseg.fedata.prototypes import PrototypeHead, mean_scores, next_centre, prototype_loss, teacher_temperature
from fedmedseg.fedata.teacher import make_teacher

if TYPE_CHECKING:
    from fedmedseg.fedata.config import Section
    from fedmedseg.fedata.network import MaskedEncoder


class Predictor(nn.Sequential):
    """LayerNorm, Linear, GELU, Linear on the last axis: (..., width) to (..., width)."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Distillation(Pretext):
    """The teacher's latent tokens at hidden places (Dai et al. 2024; its form is data2vec's, our reconstruction).

    Where masked tokens are replaced, a predictor reads them; where they are dropped, the decoder predicts them.
    """

    has_teacher = True

    @staticmethod
    def heads(layout: Layout) -> dict[str, nn.Module]:
        """Predictor or decoder, and a pixel head where pixels count."""
        hidden = layout.section.predictor_hidden or layout.width
        first: dict[str, nn.Module] = (
            {"decoder": layout.decoder(layout.width)}
            if layout.drops
            else {"predictor": Predictor(width=layout.width, hidden=hidden)}
        )
        return first | layout.pixel_head(wanted=layout.section.pixel_weight > 0)

    def targets(self, teacher: nn.Module | None, images: torch.Tensor, places: Places) -> Targets:
        """Normalised block averages of the teacher's tokens, (B, N, C)."""
        assert teacher is not None
        blocks = self.network.hidden(teacher, images)
        tensors = {"tokens": distillation_target(blocks)}
        if self.section.pixel_weight:
            tensors["pixels"] = self._pixel_targets(images, places)
        return Targets(tensors, {"teacher_std": token_spread(blocks[-1])})

    def loss(self, view: View, targets: Targets, places: Places, *, position: int, total: int) -> Outcome:
        """Smooth L1 over hidden places."""
        figures = dict(targets.figures)
        loss = masked_distillation_loss(
            view.predicted, targets.tensors["tokens"], places.hidden, beta=self.section.smooth_l1_beta
        )
        return Outcome(self._with_pixels(loss, view, targets, figures), figures, targets)


class Prototypes(Pretext):
    """``ibot``: the teacher's distribution over prototypes, token by token (Zhou et al., 2022; SMIT).

    Teacher head and centre stay at the site. The teacher head averages the student's as the teacher's encoder does.
    """

    has_teacher = True

    def __init__(self, *, section: Section, network: MaskedEncoder) -> None:
        super().__init__(section=section, network=network)
        self.teacher_head = make_teacher(network.heads["head"])
        self.reset()

    @staticmethod
    def heads(layout: Layout) -> dict[str, nn.Module]:
        """The head, a decoder before it where masked tokens are dropped, and a pixel head where pixels count."""
        ibot = layout.section.ibot
        first: dict[str, nn.Module] = {"decoder": layout.decoder(layout.width)} if layout.drops else {}
        head = PrototypeHead(
            width=layout.width, hidden=ibot.hidden, bottleneck=ibot.bottleneck, prototypes=ibot.prototypes
        )
        return first | {"head": head} | layout.pixel_head(wanted=layout.section.pixel_weight > 0)

    def targets(self, teacher: nn.Module | None, images: torch.Tensor, places: Places) -> Targets:
        """The teacher's scores at hidden places, of pooled crops, and the means that the centres follow."""
        assert teacher is not None
        tokens = self.network.hidden(teacher, images)[-1]
        encoded = self.network.output(teacher, tokens)
        scores = self.teacher_head(encoded)
        tensors = {"tokens": pick(scores, places.hidden), "mean/tokens": mean_scores(scores)}
        if self.section.class_weight:
            pooled = self.teacher_head(encoded.mean(dim=1))
            tensors |= {"pooled": pooled, "mean/pooled": mean_scores(pooled)}
        if self.section.pixel_weight:
            tensors["pixels"] = self._pixel_targets(images, places)
        return Targets(tensors, {"teacher_std": token_spread(tokens)})

    def loss(self, view: View, targets: Targets, places: Places, *, position: int, total: int) -> Outcome:
        """L_MPD + lambda_cls L_cls + lambda_pix L_pix."""
        head, figures = self.network.heads["head"], dict(targets.figures)
        loss = self._cross_entropy(head(view.predicted), targets.tensors["tokens"], "tokens", position, total)
        if self.section.class_weight:
            scores = head(view.encoded.mean(dim=1))
            pooled = self._cross_entropy(scores, other_crop(targets.tensors["pooled"]), "pooled", position, total)
            figures["loss/class"] = float(pooled.detach())
            loss = loss + self.section.class_weight * pooled
        return Outcome(self._with_pixels(loss, view, targets, figures), figures, targets)

    def teacher_tensors(self) -> dict[str, torch.Tensor]:
        """The teacher's head."""
        return dict(self.teacher_head.named_parameters(prefix="head"))

    def follow(self, targets: Targets) -> None:
        """Move the centres: after the step, so that a step that diverged leaves them alone."""
        for name, centre in self.centres.items():
            mean = targets.tensors[f"mean/{name}"]
            self.centres[name] = next_centre(centre, mean, momentum=self.section.ibot.centre_momentum)

    def reset(self) -> None:
        """Centres at zero."""
        device = next(self.teacher_head.parameters()).device
        names = ("tokens", "pooled") if self.section.class_weight else ("tokens",)
        self.centres = {name: torch.zeros(self.section.ibot.prototypes, device=device) for name in names}

    def memory(self) -> dict[str, torch.Tensor]:
        """The centres."""
        return dict(self.centres)

    def load(self, memory: Mapping[str, torch.Tensor]) -> None:
        """Take the centres over."""
        self.centres = {name: memory[name].to(centre.device) for name, centre in self.centres.items()}

    def _cross_entropy(
        self, student: torch.Tensor, teacher: torch.Tensor, kind: str, position: int, total: int
    ) -> torch.Tensor:
        ibot = self.section.ibot
        temperature = teacher_temperature(
            position,
            total,
            start=ibot.teacher_temperature,
            end=ibot.teacher_temperature_end,
            warmup=ibot.temperature_warmup,
        )
        return prototype_loss(
            student,
            teacher,
            centre=self.centres[kind],
            student_temperature=ibot.student_temperature,
            teacher_temperature=temperature,
        )


class SimMIM(Pretext):
    """``simmim``: pixels of hidden units by one linear layer on the encoder's tokens (Xie et al., 2022); no teacher."""

    @staticmethod
    def heads(layout: Layout) -> dict[str, nn.Module]:
        """The linear layer."""
        return layout.pixel_head()

    def targets(self, teacher: nn.Module | None, images: torch.Tensor, places: Places) -> Targets:
        """Units as they are."""
        return Targets({"pixels": self._pixel_targets(images, places)})

    def loss(self, view: View, targets: Targets, places: Places, *, position: int, total: int) -> Outcome:
        """Mean absolute error over hidden voxels."""
        loss = pixel_l1(self.network.heads["pixels"](view.predicted), targets.tensors["pixels"])
        return Outcome(loss, {"student_std": token_spread(view.encoded)}, targets)


class MAE(Pretext):
    """``mae``: normalised pixels of hidden units by the decoder (He et al., 2022); no teacher.

    A ViT drops masked tokens, as published. Swin's windows need the whole grid, so that its encoder sees mask tokens
    and the same decoder reads all of its tokens: our adaptation.
    """

    @staticmethod
    def heads(layout: Layout) -> dict[str, nn.Module]:
        """A decoder whose last layer gives voxels."""
        return {"decoder": layout.decoder(layout.voxels)}

    def targets(self, teacher: nn.Module | None, images: torch.Tensor, places: Places) -> Targets:
        """Units, each normalised."""
        return Targets({"pixels": normalised_units(self._pixel_targets(images, places))})

    def loss(self, view: View, targets: Targets, places: Places, *, position: int, total: int) -> Outcome:
        """Mean squared error over hidden voxels."""
        loss = pixel_mse(view.predicted, targets.tensors["pixels"])
        return Outcome(loss, {"student_std": token_spread(view.encoded)}, targets)


def other_crop(scores: torch.Tensor) -> torch.Tensor:
    """Scores (2 * volumes, K), the two crops of a volume side by side, with the two of each volume exchanged."""
    return scores.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


PRETEXTS: dict[str, type[Pretext]] = {
    "distillation": Distillation,
    "ibot": Prototypes,
    "simmim": SimMIM,
    "mae": MAE,
}


def make_pretext(section: Section, network: MaskedEncoder) -> Pretext:
    """The pretext of the settings for a student that is on its device."""
    return PRETEXTS[section.pretext](section=section, network=network)
