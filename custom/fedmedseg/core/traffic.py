"""Bytes on the wire: the size of tasks and replies as FLARE encodes them, per site, counted at the server.

FLARE 2.9.0 encodes a message's content with FOBS (`fuel/f3/cellnet/utils.py`, ``encode_payload``). Our jobs set
``tensor_download_chunk_size`` to 0, so that tensors travel inside; where a federation's own setting has them fetched
apart, the same tensors cross the wire in other pieces, and are counted alike. What is not counted: the frames around a
message and what they say of its sender, requests for work (some hundred bytes each), figures for TensorBoard, and
messages that were refused unread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.f3.cellnet.utils import buffer_len
from nvflare.fuel.utils import fobs

from fedmedseg.core.wire import Header

logger = logging.getLogger(__name__)

PEER = (ReservedHeaderKey.PEER_PROPS, ReservedHeaderKey.PEER_CTX)
"""Headers in which FLARE keeps, on arrival, who the sender is."""


def encoded_bytes(message: Shareable) -> int:
    """Bytes of a task or reply as FLARE encodes it, tensors, names and headers; the object stays as it is."""
    # first FLARE's own: FOBS would make up a way for a Shareable it does not know, and keep it for the whole process,
    # whose later messages other processes could not read
    flare_decomposers.register()
    fobs.register(TensorDecomposer)
    plain = Shareable()
    plain.update(message)
    headers = message.get(ReservedHeaderKey.HEADERS)
    if isinstance(headers, Mapping):
        plain[ReservedHeaderKey.HEADERS] = {name: value for name, value in headers.items() if name not in PEER}
    size: int = buffer_len(fobs.dumps(plain, buffer_list=True))
    return size


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
