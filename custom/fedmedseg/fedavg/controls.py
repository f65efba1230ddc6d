"""SCAFFOLD at a site (Karimireddy et al. 2020, option II), over FLARE's helper.

y <- y - rate (g(y) - c_i + c) for every step, then c_i <- c_i - c + (x - y) / (sum of the rates), where x is the
network as it was received. The paper's K times the rate is that sum, so that a rate that moves is right, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedmedseg.fedavg.parts import ScaffoldHelper

Tensors = Mapping[str, torch.Tensor]


class ControlVariates:
    """The control variates of one round.

    ``own`` are the site's, empty before its first round (zeros then), ``common`` the server's, both by the names of the
    parameters of ``network``.
    """

    def __init__(self, *, helper: ScaffoldHelper, network: nn.Module, own: Tensors, common: Tensors) -> None:
        self.helper, self.network = helper, network
        helper.init(network)
        if own:
            helper.c_local.load_state_dict({name: tensor.clone() for name, tensor in own.items()})
        helper.load_global_controls(common)
        self._common, self._own = helper.get_params()
        self._rates = 0.0

    def correct(self, rate: float) -> None:
        """Take this site's drift off a step of ``rate`` that was just made."""
        self.helper.model_update(self.network, rate, self._common, self._own)
        self._rates += rate

    def renewed(self, received: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The site's new control variates, and how they changed; ``received`` is the network the round began with."""
        # the helper multiplies the rate by the number of steps
        self.helper.terms_update(self.network, self._rates / self.helper.cnt, self._common, self._own, received)
        change = {name: torch.as_tensor(delta).float() for name, delta in self.helper.get_delta_controls().items()}
        own = {name: tensor.detach().cpu().clone() for name, tensor in self.helper.c_local.state_dict().items()}
        return own, change

    def state(self) -> dict[str, Any]:
        """What ``restore`` continues from; the variates themselves stay as they are until the round's end."""
        return {"steps": self.helper.cnt, "rates": self._rates}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Continue a round."""
        self.helper.cnt, self._rates = int(tree["steps"]), float(tree["rates"])
