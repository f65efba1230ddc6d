"""Which component classes a job may name: ours and the few of FLARE's that our jobs use."""

from __future__ import annotations

from typing import Any

CLASS_ALLOW_LIST = (
    "fedmedseg.",
    "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
)


def simulator_resources() -> dict[str, Any]:
    """Content of ``local/resources.json`` in a simulator workspace: FLARE enforces the list there too."""
    return {"format_version": 2, "class_allow_list": list(CLASS_ALLOW_LIST)}
