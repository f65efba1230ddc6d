"""The pretext of FedATA: predict the teacher's latent tokens at masked places.

The loss has the form of data2vec (Baevski et al., 2022): normalised, block-averaged targets and a smooth L1.
The paper states masked self-distillation of latent tokens; this form of it is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from fedmedseg.fedata.masking import pick


def distillation_target(hidden: Sequence[torch.Tensor]) -> torch.Tensor:
    """Targets t = LN(mean over blocks of LN(h)), both norms without affine parameters.

    ``hidden`` holds the teacher's last blocks, each (B, tokens, C); so does the result, without gradient.
    """
    normalised = [_normalise(block) for block in hidden]
    return _normalise(torch.stack(normalised).mean(dim=0)).detach()


def masked_distillation_loss(
    prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """Smooth L1 with turning point ``beta``, averaged over channels and over masked tokens only.

    ``prediction`` (B, M, C) is of the places ``hidden`` (B, M) of ``target`` (B, tokens, C).
    """
    return functional.smooth_l1_loss(prediction.float(), pick(target, hidden), beta=beta)


def _normalise(tokens: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(tokens.float(), tokens.shape[-1:])
