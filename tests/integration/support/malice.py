"""A site that replays and floods, and a server that sends what no study declared, as the fault file tells them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.utils import fobs
from nvflare.widgets.widget import Widget
from stand_ins import StandInExecutor, _kind

from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.large_tensors import LARGE
from fedmedseg.core.personal import Payload, personalise
from fedmedseg.core.wire import Header

PLANTED = "encoder.planted"
TIMES = {"ten models": 10, "a hundred models": 100, "a hundred to fetch": 100}


def _strikes(site: str, message: Shareable) -> str | None:
    """What is to go wrong with a message between the server and this site in pretraining."""
    if message.get_header(Header.STAGE) != "pretraining":
        return None
    return _kind(site, message.get_header(Header.ROUND))


class ReplayingExecutor(StandInExecutor):
    """`StandInExecutor` with one more fault: the whole reply of the round before."""

    def __init__(self) -> None:
        super().__init__()
        self._before: Shareable | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        before, self._before = self._before, copy.deepcopy(reply)
        if _strikes(fl_ctx.get_identity_name(), shareable) == "replay":
            assert before is not None
            return before
        return reply


class Unknown:
    """An object of a kind that the server has never heard of."""


class UnknownDecomposer(fobs.Decomposer):
    """How this site packs it; a server that was not told does not unpack it."""

    def supported_type(self) -> type:
        return Unknown

    def decompose(self, target: Any, manager: Any = None) -> Any:
        return 1

    def recompose(self, data: Any, manager: Any = None) -> Any:
        return Unknown()


class MaliciousSite(Widget):
    """Makes a reply larger than any study's, or unreadable, behind its site's filters, which would not let it pass."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Change what FLARE is about to send."""
        if event_type != EventType.AFTER_TASK_RESULT_FILTER:
            return
        reply = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        kind = _strikes(fl_ctx.get_identity_name(), reply)
        if kind not in {*TIMES, "300 000 keys", "undecodable"}:
            return
        tensors = reply["DXO"]["data"]
        if kind in TIMES:
            grown = {name: torch.cat([one.reshape(-1)] * TIMES[kind]) for name, one in tensors.items()}
            # the message itself stays small where only those grow that lie here to be fetched
            apart = kind == "a hundred to fetch"
            tensors.update({name: one for name, one in grown.items() if not apart or one.nbytes >= LARGE})
        elif kind == "undecodable":
            fobs.register(UnknownDecomposer)
            tensors[PLANTED] = Unknown()
        else:
            tensors.update({f"{number:07d}": 0.0 for number in range(300_000)})


class MaliciousServer(Widget):
    """Plants a tensor in what a site is sent, with the checksum that belongs to it."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Change the copy of the task that FLARE is about to send to one site; `core.personal` says how."""
        if event_type != EventType.BEFORE_TASK_DATA_FILTER:
            return
        data, site = fl_ctx.get_prop(FLContextKey.TASK_DATA), fl_ctx.get_peer_context().get_identity_name()
        kind = _strikes(site, data)
        if kind not in {"planted", "swapped"}:
            return
        tensors = dict(from_shareable(data).data)
        if kind == "planted":
            tensors[PLANTED] = torch.zeros(3)
        else:
            # the same numbers in another shape
            name = sorted(tensors)[0]
            tensors[name] = tensors[name].reshape(-1, 1)
        personalise(data, Payload(base=content_crc32(tensors), tensors=tensors))
