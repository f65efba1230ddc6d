"""How tensors cross the wire: small ones inside their message, large ones fetched in pieces by whoever decodes it.

FLARE 2.9.0 has one setting for both (``tensor_download_chunk_size``), and fetches all. Fetched apart, small tensors
cost questions and answers; inside its message, a large one is packed, copied and held whole several times on its way,
by sender and receiver (``benchmarks/round_overhead.py --sizes 250`` shows rounds, with the setting below at 0 the other
way).
"""

from __future__ import annotations

from typing import Any

import torch
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.decomposers.via_downloader import EncKey, EncType

LARGE = 1 << 20
"""Bytes from which a tensor is fetched apart."""


class LargeTensorDecomposer(TensorDecomposer):
    """FLARE's decomposer of tensors, for large ones. ``large_tensor_download_chunk_size`` in a job's configuration says
    in pieces of how many bytes they are fetched; 0 puts them inside."""

    def __init__(self) -> None:
        super().__init__()
        self.config_var_prefix = "large_tensor_"

    def decompose(self, target: Any, manager: Any = None) -> Any:
        """The tensor as bytes, or what it is fetched by."""
        if isinstance(target, torch.Tensor) and target.numel() * target.element_size() < LARGE:
            return {EncKey.TYPE: EncType.NATIVE, EncKey.DATA: self.native_decompose(target, manager)}
        return super().decompose(target, manager)


def register() -> None:
    """Let this process pack and unpack tensors; FLARE keeps whatever it was told first."""
    fobs.register(LargeTensorDecomposer)
