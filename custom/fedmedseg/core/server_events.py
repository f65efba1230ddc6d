"""What TensorBoard and MLflow are told at the server: the figures of each round's accepted replies.

FLARE's receivers take them as if each site had sent an event of its own. Nothing more travels for it: FLARE's
federation events would be one more message for every figure, may be lost, and a job's end waits for late ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.analytix_utils import create_analytic_dxo

from fedmedseg.core.own_events import tag_of
from fedmedseg.core.tracking import ANALYTICS_EVENT


def tell_figures(record: Mapping[str, Any], fl_ctx: FLContext) -> None:
    """Fire an event for each figure of each site in one round's ``record``, ``<stage>/<figure>`` by round."""
    engine = fl_ctx.get_engine()
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
