"""What leaves a site where a contract differs from round to round, and the digest that such a contract may ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode

from fedmedseg.core.wire import Header, Part, Schema

HELD = "e" * 64


@pytest.fixture
def by_round(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy training returns ``a`` in round 0 and everything afterwards, and tells a digest."""
    changed = dataclasses.replace(
        toy[0]["training"],
        returned_at=lambda number: Part() if number else Part(within=("a",)),
        held=True,
    )
    monkeypatch.setitem(toy[0], "training", changed)


@pytest.fixture
def made(toy: Any, reply: Any) -> Callable[..., Any]:
    """made(("a",), 0): a reply of these tensors in that round, with a digest."""

    def make(names: tuple[str, ...], number: int, **headers: object) -> Any:
        chosen = {name: torch.ones_like(toy[1][name]) for name in names}
        digest = Schema({name: toy[1][name] for name in names}).digest
        return reply(chosen, headers={Header.SCHEMA: digest, Header.ROUND: number, Header.HELD: HELD, **headers})

    return make


@pytest.mark.usefixtures("by_round")
@pytest.mark.parametrize(("names", "number"), [(("a",), 0), (("a", "b"), 1)])
def test_the_tensors_of_the_round_leave_with_the_digest(
    names: tuple[str, ...], number: int, kit: Any, made: Any
) -> None:
    sent = kit.run(made(names, number))
    assert sent.get_return_code() == ReturnCode.OK, sent.get_header(Header.REASON)
    assert tuple(sorted(from_shareable(sent).data)) == names
    assert sent.get_header(Header.HELD) == HELD


@pytest.mark.usefixtures("by_round")
@pytest.mark.parametrize(("names", "number"), [(("a", "b"), 0), (("a",), 1)])
def test_those_of_another_round_stay(names: tuple[str, ...], number: int, kit: Any, made: Any) -> None:
    sent = kit.run(made(names, number))
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert "another schema" in sent.get_header(Header.REASON)


@pytest.mark.usefixtures("by_round")
@pytest.mark.parametrize("held", ["/some/path", "a b", "x" * 65, 5])
def test_a_digest_is_a_short_token(held: object, kit: Any, made: Any) -> None:
    sent = kit.run(made(("a",), 0, **{Header.HELD: held}))
    assert sent.get_header(Header.REASON) == "PRIVACY: header held"


def test_a_digest_that_no_contract_asks_for_stays(kit: Any, reply: Any) -> None:
    sent = kit.run(reply(headers={Header.HELD: HELD}))
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert "undeclared header" in sent.get_header(Header.REASON)


@pytest.mark.usefixtures("by_round")
def test_one_that_is_asked_for_and_missing_is_no_reply(kit: Any, made: Any) -> None:
    given = made(("a",), 0)
    del given["__headers__"][Header.HELD]
    assert kit.run(given).get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
