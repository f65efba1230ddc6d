"""How large a message a server's job takes: what the study's schema allows, refused before a byte of it is kept.

FLARE 2.9.0 receives and decodes a site's message whole before any component of a job sees it
(`fuel/f3/cellnet/cell.py`, ``Adapter.call``), up to 4 GiB (`fuel/f3/comm_config.py`,
``DEFAULT_STREAMING_MAX_BLOB_SIZE``). Its receiver does hold a message's size against a limit before it reads, and ends
one that is longer than it said (`fuel/f3/streaming/blob_streamer.py`, ``BlobTask`` and ``_append_dynamic_chunk``); the
limit is one for all jobs of a participant. Here every receiver of the job's own process gets the study's.

FLARE tells the sender, which tries again until its task is taken back, and the server's log; nothing else. So the
receivers are wrapped, and the workflow is told who sent what. The name is the sender's own: no token has been read yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler

from fedmedseg.core.wire import Schema

logger = logging.getLogger(__name__)

Tell = Callable[[str, int], None]
"""Told the sender's name and the size of a message that was refused, in bytes."""
SPARE = 2 * 2**20
"""Bytes for all that is no tensor: 4096 metrics of 200 characters, headers, FLARE's own words."""


def most_bytes(schema: Schema) -> int:
    """Bytes of the largest message of a study whose shared tensors are those of ``schema``.

    A reply holds each of them once and in its own type; twice that leaves room for how FLARE packs them.
    """
    return 2 * schema.nbytes + SPARE


class Intake:
    """One of FLARE's receivers of messages, which refuses those above ``most`` bytes and tells of it."""

    def __init__(self, handler: BlobHandler) -> None:
        self.handler = handler
        self.tell: Tell = lambda sender, size: None

    def limit(self, most: int, tell: Tell) -> None:
        """Refuse what has more than ``most`` bytes from now on."""
        self.handler.max_blob_size, self.tell = most, tell

    def __call__(self, future: Any, stream: Any, resume: bool, *args: Any, **kwargs: Any) -> int:
        """Called by FLARE with the first piece of a message, before anything is read."""
        if (size := stream.get_size()) > self.handler.max_blob_size:
            sender = str((stream.headers or {}).get(MessageHeaderKey.ORIGIN, ""))
            try:
                self.tell(FQCN.split(sender)[0], size)
            except Exception as error:
                # refused it is all the same
                logger.error("a message of %d bytes was refused, and not recorded (%s)", size, type(error).__name__)
        return self.handler.handle_blob_cb(future, stream, resume, *args, **kwargs)


def bound_messages(cell: Any, most: int, tell: Tell) -> int:
    """Bound every message that ``cell`` of a job's process takes; a later call sets another bound.

    Returns:
        How many of FLARE's receivers are bound.
    """
    bound = 0
    for callback in cell.byte_receiver.registry.reg.values():
        handler = getattr(callback.cb, "__self__", None)
        if isinstance(handler, BlobHandler):
            callback.cb = Intake(handler)
        if isinstance(callback.cb, Intake):
            callback.cb.limit(most, tell)
            bound += 1
    return bound
