"""Contracts whose tensors differ from round to round, extra tensors for single sites, exact tensors from a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fedmedseg.core import executor
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.config import Experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner, Reply, Task
from fedmedseg.core.personal import Payload, extended, personalise
from fedmedseg.core.place import Place
from fedmedseg.core.question import Round
from fedmedseg.core.replies import encode
from fedmedseg.core.sealing import check_encryption
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import Either, Header, Part, Schema, StageContract

A, B, BOTH = Part(within=("a",)), Part(within=("b",)), Part()
CONTRACT = StageContract(
    sends="shared",
    returns="shared",
    sent_at=lambda number: BOTH if number == 1 else A,
    returned_at=lambda number: BOTH if number == 1 else A,
    extra=B,
    held=True,
)


def begin(shared: Mapping[str, torch.Tensor], number: int, behind: Collection[str] = ()) -> Round:
    return Round.begin(
        run="a1b2",
        stage="training",
        number=number,
        nonce="c3d4",
        contract=CONTRACT,
        schema=Schema(shared),
        shared=shared,
        personal={},
        behind=behind,
    )


class Exact(SharedKeysAggregator):
    """FedAvg that sets ``b`` to what no sum of differences would give."""

    def combine(
        self,
        shared: Mapping[str, torch.Tensor],
        contributions: Mapping[str, Contribution],
        weights: Mapping[str, float],
    ) -> Mapping[str, torch.Tensor]:
        self.replaced = {"b": torch.full((2, 2), 0.1)}
        return super().combine(shared, contributions, weights)

    def behind(
        self, history: Sequence[Mapping[str, Any]], *, stage: str, number: int, sites: Collection[str]
    ) -> Collection[str]:
        return [site for site in sites if site == "site-2"]


def test_what_is_sent_and_returned_depends_on_the_round(shared: dict[str, torch.Tensor]) -> None:
    assert [set(begin(shared, number).sent) for number in range(3)] == [{"a"}, {"a", "b"}, {"a"}]
    assert [set(begin(shared, number).schema.specs) for number in range(3)] == [{"a"}, {"a", "b"}, {"a"}]
    assert begin(shared, 0).whole.keys() == shared.keys()


def test_a_contract_without_functions_is_as_before() -> None:
    plain = StageContract(sends="shared", returns="shared", sent=A, sent_later=B, returned=B)
    assert (plain.sent_in(0), plain.sent_in(1), plain.returned_in(0), plain.returned_in(5)) == (A, B, B, B)


def test_a_site_that_is_behind_is_sent_the_extra_tensors_and_no_other(shared: dict[str, torch.Tensor]) -> None:
    current = begin(shared, 0, behind=["site-2", "site-3"])
    assert set(current.given_to("site-1")) == {"a"}
    assert set(current.given_to("site-2")) == {"a", "b"}
    assert current.base_of("site-2") == content_crc32(shared) == current.base_of("site-3") != current.base
    assert current.personal["site-2"] is current.personal["site-3"], "one payload for all of them"
    assert set(current.start_of("site-2")) == {"a"}


def test_extra_tensors_come_beside_a_sites_own() -> None:
    own = {"site-1": Payload(base="x", tensors={"a": torch.ones(1)})}
    found = extended(own, {"a": torch.zeros(1)}, {"b": torch.zeros(2)}, ["site-1", "site-2"])
    assert found["site-1"].tensors["a"] == 1.0
    assert found["site-2"].tensors["a"] == 0.0
    assert all(found[site].extra and set(found[site].tensors) == {"a", "b"} for site in found)


def test_a_task_with_extra_tensors_says_so(shared: dict[str, torch.Tensor]) -> None:
    task = Shareable()
    personalise(task, begin(shared, 0, behind=["site-2"]).personal["site-2"])
    assert task.get_header(Header.EXTRA) is True
    personalise(task := Shareable(), Payload(base="x", tensors={}))
    assert task.get_header(Header.EXTRA) is None


def test_a_reply_holds_what_its_round_returns_and_differs_from_what_the_site_knows(
    shared: dict[str, torch.Tensor],
) -> None:
    trained = {name: tensor + 1.0 for name, tensor in shared.items()}
    known = {"b": shared["b"] - 2.0}
    for number, names in ((0, {"a"}), (1, {"a", "b"})):
        request = Shareable()
        request.set_header(Header.ROUND, number)
        answer = encode(
            Reply(tensors=trained, known=known, held="abc"),
            given={"a": shared["a"]},
            schema=Schema(shared),
            contract=CONTRACT,
            request=request,
            seconds=0.0,
        )
        data = from_shareable(answer).data
        assert set(data) == names
        assert answer.get_header(Header.HELD) == "abc"
        if number == 1:
            assert torch.equal(data["b"], torch.full((2, 2), 3.0))


def test_a_digest_leaves_only_where_the_contract_says_so(shared: dict[str, torch.Tensor]) -> None:
    contract = dataclasses.replace(CONTRACT, held=False)
    request = Shareable()
    request.set_header(Header.ROUND, 0)
    reply = Reply(tensors=shared, held="abc")
    answer = encode(reply, given=shared, schema=Schema(shared), contract=contract, request=request, seconds=0.0)
    assert answer.get_header(Header.HELD) is None


def replies(
    aggregator: SharedKeysAggregator, current: Round, reply_to: Any, context: Any, **headers: object
) -> list[bool]:
    aggregator.open_round(current)
    found = []
    for site in ("site-1", "site-2"):
        data = {name: torch.ones_like(tensor) for name, tensor in current.shared.items()}
        given = {Header.HELD: "e" * 64, Header.BASE: current.base_of(site), **headers}
        found.append(aggregator.accept(reply_to(current, data, headers=given), context("server", peer=site)))
    return found


def test_exact_tensors_replace_and_the_others_are_added(
    shared: dict[str, torch.Tensor], reply_to: Any, context: Callable[..., FLContext]
) -> None:
    aggregator = Exact()
    assert replies(aggregator, begin(shared, 0), reply_to, context) == [True, True]
    result = from_shareable(aggregator.aggregate(context("server")))
    assert result.data_kind == DataKind.WEIGHTS
    assert torch.equal(result.data["a"], shared["a"] + 1.0)
    assert torch.equal(result.data["b"], torch.full((2, 2), 0.1))
    assert not aggregator.still
    aggregator.reset(context("server"))
    assert aggregator.replaced == {}


def test_replies_of_nothing_new_are_told_though_exact_tensors_move(
    shared: dict[str, torch.Tensor], reply_to: Any, context: Callable[..., FLContext]
) -> None:
    aggregator, current = Exact(), begin(shared, 0)
    aggregator.open_round(current)
    nothing = reply_to(current, {"a": torch.zeros(2)}, headers={Header.HELD: "e" * 64})
    assert aggregator.accept(nothing, context("server", peer="site-1"))
    aggregator.aggregate(context("server"))
    assert aggregator.still, "the workflow counts rounds without progress by it"
    aggregator.open_round(current)
    assert not aggregator.still


def test_an_exact_tensor_that_is_not_declared_is_refused(
    shared: dict[str, torch.Tensor], reply_to: Any, context: Callable[..., FLContext], monkeypatch: Any
) -> None:
    aggregator = Exact()
    replies(aggregator, begin(shared, 0), reply_to, context)

    def undeclared(self: Exact, shared: Mapping[str, torch.Tensor], *_: Any) -> Mapping[str, torch.Tensor]:
        self.replaced = {"c": torch.ones(1)}
        return shared

    monkeypatch.setattr(Exact, "combine", undeclared)
    with pytest.raises(FedMedSegError, match="the aggregation rule"):
        aggregator.aggregate(context("server"))


@pytest.mark.parametrize("held", [None, "", "a b", "x" * 65, 7])
def test_a_reply_must_tell_the_digest_that_its_contract_asks_for(
    held: object, shared: dict[str, torch.Tensor], reply_to: Any, context: Callable[..., FLContext]
) -> None:
    aggregator = Exact()
    assert replies(aggregator, begin(shared, 0), reply_to, context, **{Header.HELD: held}) == [False, False]
    assert "no digest" in aggregator.rejections["site-1"]


def test_a_digest_reaches_the_rule(
    shared: dict[str, torch.Tensor], reply_to: Any, context: Callable[..., FLContext]
) -> None:
    aggregator = Exact()
    replies(aggregator, begin(shared, 1), reply_to, context)
    assert {one.held for one in aggregator.contributions.values()} == {"e" * 64}


def test_an_ordinary_rule_leaves_nobody_behind() -> None:
    assert not SharedKeysAggregator().behind([], stage="training", number=3, sites=["site-1"])


def test_either_part_holds() -> None:
    either = Either(A, Either(B, Part(within=("x",))))
    tensors = {name: torch.zeros(1) for name in ("a", "b", "c", "x1")}
    assert set(either.of(tensors)) == {"a", "b", "x1"}
    assert set(Schema(tensors).part(either).specs) == {"a", "b", "x1"}


@pytest.mark.parametrize("changes", [{"returned_at": lambda number: A}, {"extra": B}])
def test_encryption_is_refused_where_the_server_must_read(changes: dict[str, Any], study: Any) -> None:
    contract = StageContract(sends="shared", returns="shared", **changes)
    experiment = study(federation={"encryption": "ckks"})
    with pytest.raises(ConfigurationError, match="the server must read"):
        check_encryption(experiment, {"training": contract})


class Asked:
    """A learner that notes what it was given."""

    needs_approval = False

    def __init__(self, root: Path) -> None:
        self.state_root, self.given = root, {}

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        self.given = dict(shared)
        return Reply(tensors=shared, known=shared, held="e" * 64, examples=1)


@pytest.mark.parametrize(
    ("names", "extra", "accepted"),
    [
        (("a",), None, True),
        (("a", "b"), True, True),
        (("a", "b"), None, False),
        (("a",), True, False),
        (("a", "b"), "yes", False),
    ],
)
def test_a_site_takes_extra_tensors_only_in_a_task_that_declares_them(
    names: tuple[str, ...],
    extra: object,
    accepted: bool,
    shared: dict[str, torch.Tensor],
    study: Any,
    experiment_file: Path,
    context: Callable[..., FLContext],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    learner = Asked(tmp_path / "state")

    class Toy(TrainingExecutor):
        def make_learner(self, experiment: Experiment, place: Place) -> Learner:
            return learner

    plan = executor.system_module("toy", "plan")
    others = plan.stages(None)
    monkeypatch.setattr(plan, "stages", lambda experiment: {**others, "training": CONTRACT})
    experiment = study()
    given = {name: shared[name] for name in names}
    request = DXO(DataKind.WEIGHTS, data=given).to_shareable()
    for header, value in (
        (Header.RUN, "a1b2"),
        (Header.STAGE, "training"),
        (Header.ROUND, 0),
        (Header.ROUNDS, 2),
        (Header.BASE, content_crc32(given)),
        (Header.NONCE, "c3d4"),
        (Header.SCHEMA, Schema(shared).digest),
        (Header.EXPERIMENT, experiment.digest),
        (Header.VERSIONS, own_versions()),
        (Header.EXTRA, extra),
    ):
        if value is not None:
            request.set_header(header, value)
    answer = Toy().execute("training", request, context("site-1"), Signal())
    assert (answer.get_return_code() == ReturnCode.OK) is accepted, answer.get_header(Header.REASON)
    assert set(learner.given) == (set(names) if accepted else set())
