"""An ear at the server that writes down the whole of every result, and of every figure that TensorBoard is told."""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.widgets.widget import Widget

from fedmedseg.core.place import place_of
from fedmedseg.core.tracking import ANALYTICS_EVENT

MESSAGES = "messages.txt"
"""In the server's run folder."""


class Overhearing(Widget):
    """Hears results where FLARE hands them to the server, before any component of ours has seen them."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write a line for each message, with all that the site says of itself."""
        if event_type == EventType.BEFORE_TASK_RESULT_FILTER:
            message = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        elif event_type == ANALYTICS_EVENT:
            message = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        else:
            return
        peer = fl_ctx.get_peer_context()
        said = peer.get_all_public_props() if peer is not None else {}
        with (place_of(fl_ctx).run / MESSAGES).open("a", encoding="utf-8") as file:
            file.write(f"{event_type} {message!r} {said!r}\n")
