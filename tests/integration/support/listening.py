"""An ear at the server for replies, figures and stray events, and an executor that tells more than it may."""

from __future__ import annotations

import json
import threading
from typing import Any

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.signal import Signal
from nvflare.widgets.widget import Widget
from stand_ins import StandInExecutor, _kind

from fedmedseg.core.place import place_of
from fedmedseg.core.spilled import is_fetched
from fedmedseg.core.tracking import ANALYTICS_EVENT
from fedmedseg.core.wire import Header, Meta

HEARD_FILE = "heard.jsonl"
"""In the server's run folder, so that it comes back with the job's results."""
MARKER = "PATIENT-4711"


class Ear(Widget):
    """Hears results where FLARE hands them to the server, before any component of ours, and what TensorBoard hears."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write a line for each result of a task, for each figure that TensorBoard is told, and one at the end."""
        if event_type == EventType.BEFORE_TASK_RESULT_FILTER:
            line = _reply(fl_ctx.get_prop(FLContextKey.TASK_RESULT))
            peer = fl_ctx.get_peer_context()
            line |= {"what": "reply", "site": peer.get_identity_name(), "task": fl_ctx.get_prop(FLContextKey.TASK_NAME)}
        elif event_type == ANALYTICS_EVENT:
            data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
            site = data.get_peer_prop(ReservedKey.IDENTITY_NAME, None)
            line = {"what": "figure", "site": site, "name": from_shareable(data).data["track_key"]}
        elif event_type == EventType.ABOUT_TO_END_RUN:
            # FLARE starts it with the first federation event that comes
            came = any(thread.name == "fed_event_poster" for thread in threading.enumerate())
            line = {"what": "federation events", "site": None, "came": came}
        else:
            return
        with (place_of(fl_ctx).run / HEARD_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class TalkativeExecutor(StandInExecutor):
    """`StandInExecutor` with one more fault: a figure beside those that the stage declares."""

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        kind = _kind(fl_ctx.get_identity_name(), shareable.get_header(Header.ROUND))
        if task_name == "pretraining" and kind == "undeclared metric":
            reply["DXO"]["meta"][Meta.METRICS][f"age/{MARKER}"] = 71.0
        return reply


def _reply(reply: Shareable) -> dict[str, Any]:
    headers = reply[ReservedHeaderKey.HEADERS]
    line: dict[str, Any] = {
        "keys": sorted(set(reply) - {ReservedHeaderKey.HEADERS}),
        "headers": sorted(headers),
        "code": reply.get_return_code(),
        "round": reply.get_header(Header.ROUND),
        "reason": reply.get_header(Header.REASON),
        "marked": MARKER in repr(reply),
    }
    if "DXO" in reply:
        dxo = from_shareable(reply)
        line |= {"tensors": {name: _figures(tensor) for name, tensor in dxo.data.items()}, "meta": dxo.meta}
    return line


def _figures(tensor: Any) -> dict[str, Any]:
    # a large one was fetched into a file, and is read from there
    wide = (tensor.materialize() if is_fetched(tensor) else tensor).double()
    return {
        "shape": list(wide.shape),
        "sum": float(wide.sum()),
        "squares": float(wide.square().sum()),
        "least": float(wide.min()),
        "most": float(wide.max()),
    }
