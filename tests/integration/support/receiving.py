"""An ear at a site that keeps the tensors of every task as they came, before any component of ours has seen them."""

from __future__ import annotations

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.widgets.widget import Widget
from stand_ins import _problems_but_for_tests

from fedmedseg.core import checkpoint, kit_checks
from fedmedseg.core.place import place_of
from fedmedseg.core.wire import Header

RECEIVED = "received"
"""Folder in the site's run folder."""


class Receiving(Widget):
    """Listens where FLARE hands the site a task."""

    def __init__(self) -> None:
        super().__init__()
        # a kit whose list was widened takes part in nothing, but for these tests' own modules
        kit_checks.list_problems = _problems_but_for_tests

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write a file for each task that brings tensors."""
        if event_type != EventType.BEFORE_TASK_DATA_FILTER:
            return
        task = fl_ctx.get_prop(FLContextKey.TASK_DATA)
        if "DXO" not in task:
            return
        name = f"{task.get_header(Header.STAGE)}-{task.get_header(Header.ROUND)}.safetensors"
        checkpoint.save(place_of(fl_ctx).run / RECEIVED / name, {"tensors": dict(from_shareable(task).data)})
