"""What systems that pretrain a U-Net's encoder on slices ask of a study, and the watch over their features."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from pydantic import Field

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.network_settings import BasicUNetSection
from fedmedseg.core.schema import Strict

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class CollapseSection(Strict):
    """When features are called collapsed."""

    alarm: float = Field(default=0.3, gt=0.0, lt=1.0)
    """Alarm where their spread (``feature_spread``: 1 is even, 0 is one point) is below it."""


def check_slices(experiment: Experiment) -> None:
    """Refuse a study of another network than a U-Net of slices.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and how to mend it.
    """
    if not isinstance(experiment.network, BasicUNetSection):
        raise ConfigurationError(
            "network.name",
            got=experiment.network.name,
            expected=f"basic_unet, whose encoder {experiment.system} pretrains",
            remedy="set network to {name: basic_unet}",
        )
    if experiment.data.spatial_dims != 2:
        raise ConfigurationError(
            "data.spatial_dims",
            got=experiment.data.spatial_dims,
            expected=f"2: {experiment.system} pretrains on slices of volumes",
            remedy="set data.spatial_dims to 2 and give data.crop two numbers",
        )


def feature_spread(features: torch.Tensor) -> float:
    """Standard deviation over features (N, width) at length 1, averaged over dimensions, times the root of ``width``.

    1 where they lie evenly on the sphere, 0 where they are all the same: they have collapsed. 0 too for fewer than two.
    """
    from torch.nn.functional import normalize

    if len(features) < 2:
        return 0.0
    spread = normalize(features.detach().double(), dim=1).std(dim=0, correction=0).mean()
    return float(spread) * math.sqrt(features.shape[1])


def watched(spread: float, section: CollapseSection) -> dict[str, float]:
    """``spread`` and whether it is one for alarm, as figures of a reply; an alarm is logged."""
    alarm = spread < section.alarm
    if alarm:
        logger.warning(
            "features have collapsed: their spread is %.3f, below %.2g (1 is even, 0 is one point)",
            spread,
            section.alarm,
        )
    return {"feature_std": spread, "collapse_alarm": float(alarm)}
