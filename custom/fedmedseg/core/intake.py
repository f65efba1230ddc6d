"""What a server's job takes of its sites: no message above the study's bound, and none that ends the job for all.

FLARE 2.9.0 receives and decodes a site's message whole before any component of a job sees it
(`fuel/f3/cellnet/cell.py`, ``Adapter.call``), up to 4 GiB (`fuel/f3/comm_config.py`,
``DEFAULT_STREAMING_MAX_BLOB_SIZE``). Its receiver does hold a message's size against a limit before it reads, and ends
one that is longer than it said (`fuel/f3/streaming/blob_streamer.py`, ``BlobTask`` and ``_append_dynamic_chunk``); the
limit is one for all jobs of a participant. Here every receiver of the job's own process gets the study's.

Large tensors do not lie in a message: it names them, and whoever decodes it fetches them piece by piece from the
sender, for as long as that has more to give (`fuel/f3/streaming/download_service.py`, ``_download_object``). What is
fetched for one name is held to the same bound, for everybody whose message is decoded here: a sender may name its
tensors whatever the study says of chunks.

A reply that cannot be decoded, or an answer that its site calls too large, makes FLARE end the job's process
(``Adapter.call``, ``_handle_reply_stream_done``: ``os._exit``): one site could end everybody's job at will. Here it is
an error of that message alone.

FLARE tells the sender, which tries again until its task is taken back, and the server's log; nothing else. So the
receivers are wrapped, and the workflow is told who sent what. The name is the sender's own: no token has been read yet.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from nvflare.fuel.f3.cellnet.cell import Adapter
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler
from nvflare.fuel.f3.streaming.cacheable import ItemConsumer
from nvflare.fuel.f3.streaming.stream_types import StreamError

from fedmedseg.core.ckks import packed_shape
from fedmedseg.core.errors import Reason
from fedmedseg.core.sealing import numbers_in
from fedmedseg.core.wire import Schema

logger = logging.getLogger(__name__)

Tell = Callable[[str, str], None]
"""Told the sender's name and why its message was refused."""
SPARE = 2 * 2**20
"""Bytes for all that is no tensor: 4096 metrics of 200 characters, headers, FLARE's own words."""


def most_bytes(schema: Schema, *, encrypted: bool, features: int = 0) -> int:
    """Bytes of the largest message of a study whose shared tensors are those of ``schema``.

    A reply holds each of them once, in its own type or encrypted, and at most ``features`` bytes that it exchanges;
    twice that leaves room for how FLARE packs them.
    """
    tensors = math.prod(packed_shape(numbers_in(schema))) if encrypted else schema.nbytes
    return 2 * (tensors + features) + SPARE


_FETCHING = threading.local()
"""``refused``: why what this thread last fetched was given up. FLARE decodes and fetches in one thread, and keeps the
reason from whoever asked for it."""


class Intake:
    """One of FLARE's receivers of messages, which refuses those above a bound and tells of what it refuses."""

    def __init__(self, handler: BlobHandler) -> None:
        self.handler = handler
        self.tell: Tell = lambda sender, reason: None
        self._pass_on = handler.blob_cb
        adapter = getattr(handler.blob_cb, "__self__", None)
        if isinstance(adapter, Adapter):
            # FLARE asks by this name whether it may end the process
            adapter.my_info = SimpleNamespace(fqcn=FQCN.ROOT_SERVER)
        handler.blob_cb = self._read

    def limit(self, most: int, tell: Tell) -> None:
        """Refuse what has more than ``most`` bytes from now on."""
        self.handler.max_blob_size, self.tell = most, tell

    def __call__(self, future: Any, stream: Any, resume: bool, *args: Any, **kwargs: Any) -> int:
        """Called by FLARE with the first piece of a message, before anything is read."""
        most = self.handler.max_blob_size
        if (size := stream.get_size()) > most:
            self._note(stream.headers, f"{Reason.OVERSIZE}: a message of {size} bytes, at most {most}")
        return self.handler.handle_blob_cb(future, stream, resume, *args, **kwargs)

    def _read(self, future: Any, *args: Any, **kwargs: Any) -> None:
        """Called by FLARE at the same time, to wait for the whole message and decode it."""
        # of a message before, which somebody else may have sent
        vars(_FETCHING).pop("refused", None)
        try:
            self._pass_on(future, *args, **kwargs)
        except StreamError:
            # it never arrived: too large, which is noted, or the line broke
            raise
        except Exception as error:
            unread = f"{Reason.UNREADABLE}: a message that cannot be read ({type(error).__name__})"
            self._note(future.headers, vars(_FETCHING).pop("refused", unread))
            raise

    def _note(self, headers: Any, reason: str) -> None:
        sender = str((headers or {}).get(MessageHeaderKey.ORIGIN, ""))
        try:
            self.tell(FQCN.split(sender)[0], reason)
        except Exception as error:
            # refused it is all the same
            logger.error("%s; not recorded (%s)", reason, type(error).__name__)


def bound_messages(cell: Any, most: int, tell: Tell) -> int:
    """Bound every message that ``cell`` of a job's process takes, and what is fetched for it; a later call sets another
    bound.

    Returns:
        How many of FLARE's receivers are bound.
    """
    bound = 0
    _bound_fetched(most)
    for callback in cell.byte_receiver.registry.reg.values():
        handler = getattr(callback.cb, "__self__", None)
        if isinstance(handler, BlobHandler):
            callback.cb = Intake(handler)
        if isinstance(callback.cb, Intake):
            callback.cb.limit(most, tell)
            bound += 1
    return bound


def _bound_fetched(most: int) -> None:
    taken = getattr(ItemConsumer.consume, "unbound", ItemConsumer.consume)

    def consume(self: ItemConsumer, ref_id: str, state: dict[str, Any], data: Any) -> dict[str, Any]:
        self.fetched = getattr(self, "fetched", 0) + sum(map(len, data))
        if self.fetched > most:
            _FETCHING.refused = f"{Reason.OVERSIZE}: tensors of more than {most} bytes to be fetched"
        elif not data:
            # FLARE's own sender puts at least one tensor into a piece; of empty ones there would be no end
            _FETCHING.refused = f"{Reason.UNREADABLE}: an empty piece of what was to be fetched"
        else:
            return taken(self, ref_id, state, data)
        raise StreamError(_FETCHING.refused)

    consume.unbound = taken  # type: ignore[attr-defined]
    ItemConsumer.consume = consume
