"""Bytes on the wire: the size of tasks and replies as FLARE encodes them, per site, counted at the server.

FLARE 2.9.0 encodes a message's content with FOBS (`fuel/f3/cellnet/utils.py`, ``encode_payload``). Large tensors are
fetched apart (``core.large_tensors``): they cross the wire in other pieces, and are counted as if inside. What is not
counted: the frames around a message and what they say of its sender, requests for work (some hundred bytes each),
and messages that were refused unread.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import torch
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.fuel.f3.cellnet.utils import buffer_len
from nvflare.fuel.utils import fobs
from safetensors.torch import save

from fedmedseg.core import large_tensors
from fedmedseg.core.large_tensors import LARGE
from fedmedseg.core.spilled import is_fetched, look_at
from fedmedseg.core.wire import Header

logger = logging.getLogger(__name__)

_STAND_IN = (1 << 15,)
"""Float32 in place of a large tensor: as many bytes as make FLARE write the length of both in as many digits."""

PEER = (ReservedHeaderKey.PEER_PROPS, ReservedHeaderKey.PEER_CTX)
"""Headers in which FLARE keeps, on arrival, who the sender is."""


def encoded_bytes(message: Shareable) -> int:
    """Bytes of a task or reply as FLARE encodes it, tensors, names and headers; the object stays as it is."""
    # first FLARE's own: FOBS would make up a way for a Shareable it does not know, and keep it for the whole process,
    # whose later messages other processes could not read
    flare_decomposers.register()
    large_tensors.register()
    plain = Shareable()
    plain.update(message)
    headers = message.get(ReservedHeaderKey.HEADERS)
    if isinstance(headers, Mapping):
        plain[ReservedHeaderKey.HEADERS] = {name: value for name, value in headers.items() if name not in PEER}
    left_out: list[int] = []
    size: int = buffer_len(fobs.dumps(_lightened(plain, left_out), buffer_list=True))
    return size + sum(left_out)


def _lightened(node: Any, left_out: list[int]) -> Any:
    """The same with stand-ins for large tensors, for to encode them is to hold a model twice more; the bytes that these
    leave out go to ``left_out``."""
    if is_fetched(node):
        # of the same shape and type as what lies in a file, which is not read for it
        shape, dtype = look_at(node)
        node = torch.empty(shape, dtype=dtype, device="meta")
    if isinstance(node, torch.Tensor) and node.numel() * node.element_size() >= LARGE:
        # one object for several tensors would be encoded once
        small = torch.zeros(_STAND_IN)
        left_out.append(_saved_bytes(node) - len(save({"t": small})))
        return small
    if isinstance(node, Shareable):
        light = Shareable()
        light.clear()
        light.update({key: _lightened(value, left_out) for key, value in node.items()})
        return light
    if type(node) is dict:
        return {key: _lightened(value, left_out) for key, value in node.items()}
    if type(node) in (list, tuple):
        return type(node)(_lightened(value, left_out) for value in node)
    return node


def _saved_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor in the form in which FLARE's decomposer saves it, under the name t in a safetensors file."""
    begun = save({"t": torch.zeros([1] * tensor.dim(), dtype=tensor.dtype)})
    length = 8
    header = json.loads(begun[length : length + int.from_bytes(begun[:length], "little")])
    bytes_of_it = tensor.numel() * tensor.element_size()
    header["t"] |= {"shape": list(tensor.shape), "data_offsets": [0, bytes_of_it]}
    text = len(json.dumps(header, separators=(",", ":")))
    return length + -(-text // length) * length + bytes_of_it


class Traffic:
    """Of one round: bytes to and from every site. An attempt that is made again counts again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[object, object], int] = {}
        self.down: dict[str, int] = {}
        self.up: dict[str, int] = {}

    def sent(self, site: str, task: Shareable) -> None:
        """Count a task. Those of equal tensors and question have equal sizes, and are encoded once."""
        key = (task.get_header(Header.NONCE), task.get_header(Header.BASE))
        with self._lock:
            size = self._known.get(key)
        if size is None:
            size = encoded_bytes(task)
        with self._lock:
            self._known[key] = size
            self.down[site] = self.down.get(site, 0) + size

    def received(self, site: str, reply: Shareable) -> None:
        """Count a reply, whether it is accepted or not; one that cannot be encoded again is told of and not counted."""
        try:
            size = encoded_bytes(reply)
        except Exception as error:
            # whatever a hostile reply holds must cost no more than its figure
            logger.warning("a reply of %s is not in the bytes of its round (%s)", site, type(error).__name__)
            return
        with self._lock:
            self.up[site] = self.up.get(site, 0) + size
