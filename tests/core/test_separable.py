"""Tensors that a site does not return where they did not move: left out on every way to the server, and judged so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.question import Round
from fedmedseg.core.replies import ECHOED, encode, thin
from fedmedseg.core.transport import Codec
from fedmedseg.core.wire import Header, Schema, StageContract

Tensors = dict[str, torch.Tensor]
GIVEN: Tensors = {
    "trunk": torch.ones(4, 3),
    "heads.one.weight": torch.ones(3, 3),
    "heads.one.bias": torch.ones(3),
    "heads.two.weight": torch.ones(2, 2),
}
CONTRACT = StageContract(sends="shared", returns="shared", metrics=("loss",), separable=("heads.one.", "heads.two."))
TRAINED = {**GIVEN, "trunk": torch.full((4, 3), 3.0), "heads.one.bias": torch.full((3,), 1.5)}
"""The first head's bias alone moved, so that head goes whole, the second one stays."""


class Separating(SharedKeysAggregator):
    """A rule of which only the judging is looked at."""

    separates = True


@pytest.fixture
def current(round_of: Callable[..., Round]) -> Round:
    """The question, whose contract lets heads be left out."""
    return dataclasses.replace(round_of(tensors=GIVEN), contract=CONTRACT, shared=GIVEN)


def answer_to(current: Round, trained: Tensors) -> Shareable:
    """What a site says to it."""
    request = Shareable()
    for header, value in zip(
        ECHOED, (current.run, current.stage, current.number, current.base, current.nonce), strict=True
    ):
        request.set_header(header, value)
    reply = Reply(tensors=trained, metrics={}, examples=3, steps=1)
    return encode(reply, given=GIVEN, schema=current.schema, contract=CONTRACT, request=request, seconds=0.0)


@pytest.mark.parametrize("transport", ["fp32", "fp16", "int8", "topk"])
def test_what_did_not_move_is_not_sent_and_the_reply_counts(
    transport: str, current: Round, context: Callable[..., FLContext], task: Callable[..., Task]
) -> None:
    codec = None if transport == "fp32" else Codec(transport=transport, schema=current.schema)
    aggregator = Separating()
    aggregator.open_round(dataclasses.replace(current, codec=codec))
    answer = answer_to(current, TRAINED)
    assert sorted(from_shareable(answer).data) == ["heads.one.bias", "heads.one.weight", "trunk"]
    if codec is not None:
        thin(answer, codec=codec, state=task().state)
    assert aggregator.accept(answer, context("server", peer="site-1")), aggregator.rejections
    came = aggregator.contributions["site-1"].differences
    assert sorted(came) == ["heads.one.bias", "heads.one.weight", "trunk"]
    torch.testing.assert_close(came["heads.one.bias"], torch.full((3,), 0.5))


def test_nothing_at_all_may_move(current: Round, context: Callable[..., FLContext]) -> None:
    aggregator = Separating()
    aggregator.open_round(current)
    assert aggregator.accept(answer_to(current, GIVEN), context("server", peer="site-1")), aggregator.rejections
    assert list(aggregator.contributions["site-1"].differences) == ["trunk"]


def test_half_a_head_or_a_missing_trunk_is_refused(current: Round, context: Callable[..., FLContext]) -> None:
    aggregator = Separating()
    aggregator.open_round(current)
    for site, missing in (("site-1", "heads.one.bias"), ("site-2", "trunk")):
        answer = answer_to(current, TRAINED)
        data: Any = from_shareable(answer).data
        answer.set_header(Header.SCHEMA, Schema({n: t for n, t in data.items() if n != missing}).digest)
        del answer["DXO"]["data"][missing]
        assert not aggregator.accept(answer, context("server", peer=site))
        assert aggregator.rejections[site] == "SCHEMA: another schema"


def test_a_contract_without_separable_tensors_has_one_schema_of_replies() -> None:
    schema = Schema(GIVEN)
    plain = dataclasses.replace(CONTRACT, separable=())
    assert list(plain.replies_of(schema)) == [schema.digest]
    assert len(CONTRACT.replies_of(schema)) == 4
    assert plain.moved({"heads.one.bias": torch.zeros(3)}).holds("heads.one.bias")


def test_what_topk_kept_of_a_head_comes_when_it_moves_again(current: Round, task: Callable[..., Task]) -> None:
    codec, state = Codec(transport="topk", schema=current.schema), task().state
    moving = {**GIVEN, "heads.one.weight": GIVEN["heads.one.weight"] + torch.arange(9.0).reshape(3, 3)}
    sums = torch.zeros(3, 3)
    for number, trained in enumerate((moving, GIVEN, moving)):
        asked = dataclasses.replace(current, number=number)
        answer = answer_to(asked, trained)
        thin(answer, codec=codec, state=state)
        if trained is moving:
            found = codec.narrowed([n for n in GIVEN if "two" not in n]).decode(from_shareable(answer).data)
            sums += found["heads.one.weight"]
    # one of nine numbers a round: the largest, and then the largest of what was left and came anew
    torch.testing.assert_close(sums.flatten().sort().values[-2:], torch.tensor([8.0, 14.0]), atol=2e-2, rtol=0)


def test_a_rule_that_takes_whole_replies_is_not_given_parts(current: Round) -> None:
    with pytest.raises(TypeError, match="SharedKeysAggregator takes whole replies only; training may get parts"):
        SharedKeysAggregator().open_round(current)


def test_a_narrowed_codec_goes_by_whole_names() -> None:
    """``w`` is left out, and ``weight``, which begins like it, is not."""
    one = Codec(transport="fp16", schema=Schema({"w": torch.ones(2, 2), "weight": torch.ones(2, 2)}))
    assert list(one.narrowed(["weight"]).schema.specs) == ["weight"]
    assert one.narrowed(["w", "weight"]) is one
