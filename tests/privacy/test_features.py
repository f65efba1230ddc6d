"""Features pass where stage and site file both allow them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable

from fedmedseg.core.exchange import FEATURES, PARTS, Exchange, Features
from fedmedseg.core.scopes import privacy_policy
from fedmedseg.core.wire import Header

Kit = Any
Make = Callable[..., Shareable]
NOISE = {"multiplier": 2.0, "epsilon": 1000.0, "delta": 1e-5}


@pytest.fixture(params=["fp32", "fp16", "int8"])
def exchange(request: pytest.FixtureRequest, exchanging: Callable[[Exchange], None]) -> Exchange:
    """The toy system's training exchanges features."""
    made = Exchange(width=3, most_rows=4, parts=2, transport=request.param)
    exchanging(made)
    return made


def given(exchange: Exchange, rows: int = 3) -> dict[str, torch.Tensor]:
    vectors = torch.nn.functional.normalize(torch.randn(rows, 3, generator=torch.Generator().manual_seed(2)), dim=1)
    differences = {"a": torch.ones(2), "b": torch.ones(2, 2)}
    return {**differences, **exchange.encode(Features(vectors=vectors, parts=torch.zeros(rows, dtype=torch.uint8)))}


def reason(sent: Shareable) -> str:
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert "DXO" not in sent
    return str(sent.get_header(Header.REASON))


def test_allowed_features_pass_all_filters_untouched(kit: Kit, reply: Make, exchange: Exchange) -> None:
    kit.site(privacy={"min_count": 0, "features": True, "clip_norm": 1.0})
    tensors = given(exchange)
    sent = kit.run(reply(dict(tensors)))
    assert sent.get_return_code() == ReturnCode.OK, sent.get_header(Header.REASON)
    received = from_shareable(sent).data
    assert set(received) == set(tensors)
    for name in exchange.names:
        assert torch.equal(received[name], tensors[name])
    assert not torch.equal(received["a"], tensors["a"]), "differences are clipped, as without an exchange"


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({}, "features of single slices, which this site keeps"),
        ({"features": False}, "features of single slices, which this site keeps"),
        ({"features": True, "clip_norm": 1.0, "noise": NOISE}, "which the noise of this site does not cover"),
    ],
)
def test_a_site_that_does_not_allow_them_blocks_the_reply(
    kit: Kit, reply: Make, exchange: Exchange, privacy: dict[str, Any], words: str
) -> None:
    kit.site(privacy={"min_count": 0, **privacy})
    assert words in reason(kit.run(reply(given(exchange))))


def test_scopes_that_ask_for_more_block_features(kit: Kit, reply: Make, exchange: Exchange) -> None:
    kit.site(privacy={"min_count": 0, "features": True})
    for scope in ("figures", "private"):
        kit.policy(privacy_policy(default=scope))
        assert reason(kit.run(reply(given(exchange)))).startswith("PRIVACY: ")


def test_a_site_that_requires_encryption_lets_none_leave(kit: Kit, reply: Make, exchange: Exchange) -> None:
    kit.site(privacy={"min_count": 0, "features": True, "encryption": "required"})
    assert "plain differences" in reason(kit.run(reply(given(exchange))))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {name: tensor for name, tensor in t.items() if name != PARTS},
        lambda t: {**t, "exchange.patients": torch.zeros(3, dtype=torch.uint8)},
        lambda t: {**t, PARTS: t[PARTS] + 2},
        lambda t: {**t, PARTS: t[PARTS].long()},
        lambda t: {**t, FEATURES: torch.cat([t[FEATURES]] * 2), PARTS: torch.cat([t[PARTS]] * 2)},
    ],
)
def test_features_that_are_not_those_declared_block_the_reply(
    kit: Kit, reply: Make, exchange: Exchange, change: Any
) -> None:
    kit.site(privacy={"min_count": 0, "features": True})
    assert "features from this site" in reason(kit.run(reply(change(given(exchange)))))


def test_a_stage_without_an_exchange_lets_none_pass(kit: Kit, reply: Make) -> None:
    kit.site(privacy={"min_count": 0, "features": True})
    tensors = given(Exchange(width=3, most_rows=4, parts=2))
    assert reason(kit.run(reply(tensors))) == "PRIVACY: features in a stage that exchanges none"
    assert reason(kit.run(reply({FEATURES: tensors[FEATURES]}, stage="testing"))).startswith("PRIVACY: ")
