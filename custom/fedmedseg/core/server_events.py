"""What TensorBoard and MLflow are told at the server: the figures of each round's accepted replies.

FLARE's receivers take them as if each site had sent an event of its own. Nothing more travels for it: FLARE's
federation events would be one more message for every figure, may be lost, and a job's end waits for late ones.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any

from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReservedKey
from nvflare.apis.utils.analytix_utils import create_analytic_dxo

from fedmedseg.core.own_events import tag_of
from fedmedseg.core.tracking import ANALYTICS_EVENT

PATIENCE_SECONDS = 10.0
"""How long the end of a job waits for receivers."""


class FigureTeller:
    """Tells figures beside the rounds: a receiver may wait minutes for a tracking server that does not answer."""

    def __init__(self) -> None:
        self._rounds: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._told_all = threading.Event()

    def start(self, engine: Any) -> None:
        """Tell this engine's components from now on."""
        self._thread = threading.Thread(target=self._tell, args=(engine,), name="figure_teller", daemon=True)
        self._thread.start()

    def add(self, record: Mapping[str, Any]) -> None:
        """Have one round's figures told; where nobody was started to hear them they are in the record alone."""
        if self._thread is not None:
            self._rounds.put(record)

    def finish(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Wait until all is told, ``patience`` seconds at most; says whether it is."""
        if self._thread is None:
            return True
        self._rounds.put(None)
        self._thread.join(patience)
        return self._told_all.is_set()

    def _tell(self, engine: Any) -> None:
        while (record := self._rounds.get()) is not None:
            tell_figures(record, engine)
        # a thread that broke does not come here
        self._told_all.set()


def tell_figures(record: Mapping[str, Any], engine: Any) -> None:
    """Fire an event for each figure of each site in one round's ``record``, ``<stage>/<figure>`` by round."""
    for site, facts in record["sites"].items():
        for name, value in facts["metrics"].items():
            figure = create_analytic_dxo(
                tag=tag_of(record["stage"], name),
                value=float(value),
                data_type=AnalyticsDataType.SCALAR,
                global_step=record["round"],
            ).to_shareable()
            figure.set_peer_props({ReservedKey.IDENTITY_NAME: site})
            # what goes out FLARE would send to all sites
            figure.set_header(FedEventHeader.DIRECTION, "in")
            with engine.new_context() as own:
                own.set_prop(FLContextKey.EVENT_DATA, figure, private=True, sticky=False)
                # a component's own `fire_event` calls every event the server's
                own.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
                engine.fire_event(ANALYTICS_EVENT, own)
