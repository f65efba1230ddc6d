"""Every site counts alike unless the study says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.question import Round
from fedmedseg.core.wire import WHOLE, Schema
from fedmedseg.fedcrld.config import STAGE
from fedmedseg.fedcrld.plan import stages

SHARED = {"globalnet.blocks.0.0.bias": torch.full((2,), 2.0)}
MOVED = {"site-1": (1.0, 30), "site-2": (4.0, 10)}


@pytest.fixture
def combined(study: Callable[..., Any]) -> Callable[..., tuple[float, dict[str, float]]]:
    """combined(weights="cases"): by how much the shared tensor moves, and the weights in the record."""

    def call(**section: Any) -> tuple[float, dict[str, float]]:
        rule = SharedKeysAggregator()
        rule.open_round(
            Round(
                run="run", stage=STAGE, number=0, base="base", nonce="nonce", contract=stages(study(**section))[STAGE],
                schema=Schema(SHARED).part(WHOLE), shared=SHARED,
            )
        )  # fmt: skip
        for site, (by, cases) in MOVED.items():
            rule.contributions[site] = Contribution(
                site=site, differences={name: torch.full_like(tensor, by) for name, tensor in SHARED.items()},
                examples=cases, steps=1, train_seconds=0.0, metrics={},
            )  # fmt: skip
        result = from_shareable(rule.aggregate(FLContext())).data
        return float(result["globalnet.blocks.0.0.bias"][0]), rule.weights

    return call


def test_sites_count_alike_whatever_their_cases(combined: Callable[..., Any]) -> None:
    moved, weights = combined()
    assert moved == pytest.approx((1.0 + 4.0) / 2)
    assert weights == {"site-1": 0.5, "site-2": 0.5}, "the record says what was done"


def test_the_switch_weighs_them_by_cases(combined: Callable[..., Any]) -> None:
    moved, weights = combined(weights="cases")
    assert moved == pytest.approx(0.75 * 1.0 + 0.25 * 4.0)
    assert weights == {"site-1": 0.75, "site-2": 0.25}
