"""What FLARE brings to the local objective, as protocols: the executor hands its classes in, none is imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

Proximal = Callable[[nn.Module, nn.Module], torch.Tensor]
"""The penalty of a network for its distance to another (FLARE's ``PTFedProxLoss``)."""


class ScaffoldHelper(Protocol):
    """FLARE's ``PTScaffoldHelper``: what one round at a site needs of it."""

    cnt: int
    """Corrections so far."""
    c_local: Any

    def init(self, model: nn.Module) -> None:
        """Begin with control variates of zero for ``model``."""

    def load_global_controls(self, weights: Mapping[str, Any]) -> None:
        """Take over the common control variates."""

    def get_params(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The common and the site's own control variates; begins a round."""

    def model_update(self, model: nn.Module, curr_lr: float, c_global_para: Any, c_local_para: Any) -> None:
        """Correct one step."""

    def terms_update(
        self, model: nn.Module, curr_lr: float, c_global_para: Any, c_local_para: Any, model_global: nn.Module
    ) -> None:
        """Make the site's new control variates at the round's end."""

    def get_delta_controls(self) -> Mapping[str, Any]:
        """How they changed."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """FLARE's own parts, or a test's."""

    proximal: Callable[[float], Proximal]
    """Of a weight."""
    scaffold: Callable[[], ScaffoldHelper]
