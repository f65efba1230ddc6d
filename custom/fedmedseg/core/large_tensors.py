"""How tensors cross the wire: small ones inside their message, large ones fetched by whoever decodes it, in pieces.

FLARE 2.9.0 has one setting for both (``tensor_download_chunk_size``), and fetches all. Fetched apart, small tensors
cost questions and answers; inside its message, a large one is packed, copied and held whole several times on its way,
by sender and receiver (``benchmarks/round_overhead.py --sizes 250`` shows rounds, with the setting below at 0 the other
way).

What FLARE fetches at once is at least one tensor, however large: a server that talks with many sites would hold the
largest tensor of its model for each of them. Those are cut into pieces here, and put together by their receiver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.decomposers.via_downloader import EncKey, EncType

from fedmedseg.core.spilled import FetchedPieces, is_fetched

LARGE = 1 << 20
"""Bytes from which a tensor is fetched apart."""
PIECE = 4 << 20
"""Bytes of a tensor that are fetched at once."""
Kind = TypeVar("Kind")
_PIECES = "pieces"
_SHAPE = "shape"


class LargeTensorDecomposer(TensorDecomposer):
    """FLARE's decomposer of tensors, for large ones. ``large_tensor_download_chunk_size`` in a job's configuration says
    how many bytes of small pieces are fetched at once; 0 puts all tensors inside their message."""

    def __init__(self) -> None:
        super().__init__()
        self.config_var_prefix = "large_tensor_"

    def decompose(self, target: Any, manager: Any = None) -> Any:
        """The tensor as bytes, or what it, or each piece of it, is fetched by."""
        size = target.numel() * target.element_size() if isinstance(target, torch.Tensor) else None
        if size is not None and size < LARGE:
            return {EncKey.TYPE: EncType.NATIVE, EncKey.DATA: self.native_decompose(target, manager)}
        if size is None or size <= PIECE:
            return super().decompose(target, manager)
        # one object in several places is sent once, as FLARE does it for whole tensors
        cut = manager.fobs_ctx.setdefault(f"{self.prefix}_cut", {})
        if id(target) not in cut:
            names = []
            for piece in target.detach().reshape(-1).split(PIECE // target.element_size()):
                made = super().decompose(piece, manager)
                if made[EncKey.TYPE] != EncType.REF:
                    # nobody can ask this process, or the setting is 0
                    return super().decompose(target, manager)
                names.append(made[EncKey.DATA])
            # held as long as its number stands for it
            cut[id(target)] = target, names
        return {EncKey.TYPE: _PIECES, EncKey.DATA: cut[id(target)][1], _SHAPE: list(target.shape)}

    def recompose(self, data: Any, manager: Any = None) -> Any:
        """The tensor, or what stands for one that was fetched to the disk.

        Raises:
            RuntimeError: pieces that make no tensor of their shape.
        """
        if not isinstance(data, dict) or data.get(EncKey.TYPE) != _PIECES:
            return super().recompose(data, manager)
        names, shape = data.get(EncKey.DATA), data.get(_SHAPE)
        if not (names and _are(names, str) and _are(shape, int) and min(shape, default=0) >= 0):
            raise RuntimeError("a tensor in pieces without their names or its shape")
        joined = manager.fobs_ctx.setdefault(f"{self.prefix}_joined", {})
        if names[0] not in joined:
            joined[names[0]] = self._joined(names, shape, manager)
        return joined[names[0]]

    def _joined(self, names: Sequence[str], shape: Sequence[int], manager: Any) -> Any:
        items = manager.fobs_ctx.get(self.items_key)
        pieces = []
        for name in names:
            pieces.append(super().recompose({EncKey.TYPE: EncType.REF, EncKey.DATA: name}, manager))
            if isinstance(items, dict):
                # what was fetched into memory is held once, not beside the whole that it becomes
                del items[name]
        if all(map(is_fetched, pieces)):
            return FetchedPieces(pieces, shape)
        # torch refuses a shape of another number
        return torch.cat(pieces).reshape(list(shape))


def _are(values: object, kind: type[Kind]) -> TypeGuard[list[Kind]]:
    return isinstance(values, list) and all(type(one) is kind for one in values)


def register() -> None:
    """Let this process pack and unpack tensors; FLARE keeps whatever it was told first."""
    fobs.register(LargeTensorDecomposer)
