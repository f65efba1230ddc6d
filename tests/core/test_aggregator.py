"""The guarded aggregator: what it refuses, what that leaves behind, and how sites are weighted."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from fedmedseg.core.aggregator import GuardedAggregator, MetricsAggregator, SharedKeysAggregator
from fedmedseg.core.checkpoint import content_crc32, content_sha256
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.personal import payloads
from fedmedseg.core.question import Round
from fedmedseg.core.wire import WHOLE, Header, Meta

Tensors = dict[str, torch.Tensor]


def step(value: float, *, b: float | None = None) -> Tensors:
    """Differences of the toy system's tensors: ``value`` in a, half of it (or ``b``) in b."""
    return {"a": torch.full((2,), value), "b": torch.full((2, 2), value / 2 if b is None else b)}


HONEST = {"site-1": (step(0.1), 3), "site-3": (step(0.7), 5)}


@pytest.fixture
def send(aggregator: SharedKeysAggregator, context: Callable, reply_to: Callable) -> Callable[..., bool]:
    """send("site-1", data, examples=4, ...): whether the aggregator takes this reply."""

    def call(site: str, data: Any, *, to: GuardedAggregator | None = None, **more: Any) -> bool:
        to = to or aggregator
        assert to.round is not None
        return to.accept(reply_to(to.round, data, **more), context("server", peer=site))

    return call


def result(aggregator: GuardedAggregator, context: Callable) -> Tensors:
    return dict(from_shareable(aggregator.aggregate(context("server"))).data)


@pytest.fixture
def without_the_site(send: Callable, context: Callable, round_of: Callable) -> str:
    """SHA-256 of what the honest sites alone make."""
    alone = SharedKeysAggregator()
    alone.open_round(round_of())
    for site, (data, examples) in HONEST.items():
        assert send(site, data, to=alone, examples=examples)
    return content_sha256(result(alone, context))


class Rude:
    """An object whose every use raises."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


class RudeMapping(Mapping[str, Any]):
    """A mapping of the right length that raises when it is read."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return iter(["a", "b"])

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no")


def change(name: str, tensor: object) -> dict[str, Any]:
    return {**step(0.2), name: tensor}


NAN, INF = float("nan"), float("inf")
BAD_TENSORS = [
    pytest.param(change("a", torch.tensor([NAN, 0.0])), "NOT_FINITE", id="row 1: NaN"),
    pytest.param(change("b", torch.tensor([[0.0, INF], [0, 0]])), "NOT_FINITE", id="row 2: Inf"),
    pytest.param(change("a", torch.tensor([INF, -INF])), "NOT_FINITE", id="row 2: infinities that cancel"),
    pytest.param(change("a", torch.tensor([3e38, 3e38])), "NOT_FINITE", id="row 2: squares overflow"),
    pytest.param(change("b", torch.zeros(2, 3)), "TENSOR_SHAPE", id="row 3: shape"),
    pytest.param(change("b", torch.zeros(4)), "TENSOR_SHAPE", id="row 3: as many elements"),
    pytest.param(change("a", torch.zeros(1)), "TENSOR_SHAPE", id="row 4: broadcasts up"),
    pytest.param(change("a", torch.tensor(0.0)), "TENSOR_SHAPE", id="row 4: a scalar"),
    pytest.param(change("a", torch.zeros(1, 2)), "TENSOR_SHAPE", id="row 4: one more axis"),
    pytest.param({"a": torch.zeros(2)}, "MISSING_TENSORS", id="row 5: missing key"),
    pytest.param(change("c", torch.zeros(1)), "UNKNOWN_TENSORS", id="row 6: extra key"),
    pytest.param({"a": torch.zeros(2), "c": torch.zeros(2, 2)}, "UNKNOWN_TENSORS", id="row 6: another key"),
    pytest.param({"a": torch.zeros(2), 5: torch.zeros(2, 2)}, "UNKNOWN_TENSORS", id="row 6: a key that is no name"),
    pytest.param(change("a", torch.zeros(2, dtype=torch.float64)), "TENSOR_TYPE", id="row 7: float64"),
    pytest.param(change("a", torch.zeros(2, dtype=torch.float16)), "TENSOR_TYPE", id="row 7: float16"),
    pytest.param(change("a", torch.zeros(2, dtype=torch.int64)), "TENSOR_TYPE", id="row 7: int64"),
    pytest.param(change("a", torch.zeros(2).to_sparse()), "TENSOR_TYPE", id="row 7: sparse"),
    pytest.param(change("a", torch.zeros(2, device="meta")), "TENSOR_TYPE", id="row 7: no storage"),
    pytest.param(change("a", "two"), "TENSOR_TYPE", id="row 7: string"),
    pytest.param(change("a", [0.0, 0.0]), "TENSOR_TYPE", id="row 7: list"),
    pytest.param(change("a", None), "TENSOR_TYPE", id="row 7: nothing"),
    pytest.param(change("a", Rude()), "TENSOR_TYPE", id="row 7: an object"),
    pytest.param({}, "EMPTY", id="row 8: empty"),
    pytest.param(change("a", np.zeros(2, np.float32)), "TENSOR_TYPE", id="row 35: numpy"),
    pytest.param({n: t.numpy() for n, t in step(0.2).items()}, "TENSOR_TYPE", id="row 35: numpy everywhere"),
]
BAD_REPLIES = [
    pytest.param({"examples": -1}, "SCHEMA", id="row 10: negative"),
    pytest.param({"examples": NAN}, "SCHEMA", id="row 10: NaN"),
    pytest.param({"examples": INF}, "SCHEMA", id="row 10: Inf"),
    pytest.param({"examples": 1e300}, "SCHEMA", id="row 10: beyond every count"),
    pytest.param({"examples": 10**400}, "SCHEMA", id="row 10: beyond every float"),
    pytest.param({"examples": True}, "SCHEMA", id="row 10: bool"),
    pytest.param({"examples": "many"}, "SCHEMA", id="row 10: string"),
    pytest.param({Meta.STEPS: -3}, "SCHEMA", id="row 10: negative steps"),
    pytest.param({Meta.TRAIN_SECONDS: NAN}, "SCHEMA", id="seconds NaN"),
    pytest.param({Meta.TRAIN_SECONDS: -INF}, "SCHEMA", id="seconds Inf"),
    pytest.param({Meta.TRAIN_SECONDS: "long"}, "SCHEMA", id="seconds string"),
    pytest.param({Meta.METRICS: {"patient": 1.0}}, "SCHEMA", id="undeclared metric"),
    pytest.param({Meta.METRICS: {"loss": NAN}}, "SCHEMA", id="metric NaN"),
    pytest.param({Meta.METRICS: {"loss": True}}, "SCHEMA", id="metric bool"),
    pytest.param({Meta.METRICS: {7: 1.0}}, "SCHEMA", id="metric without a name"),
    pytest.param({Meta.METRICS: [1.0]}, "SCHEMA", id="metrics no mapping"),
    pytest.param({"kind": DataKind.WEIGHTS}, "SCHEMA", id="weights instead of differences"),
    pytest.param({"headers": {Header.ROUND: 1}}, "STALE", id="row 15: another round"),
    pytest.param({"headers": {Header.NONCE: "0ld"}}, "STALE", id="row 15: another nonce"),
    pytest.param({"headers": {Header.NONCE: None}}, "STALE", id="row 15: no nonce"),
    pytest.param({"headers": {Header.NONCE: ""}}, "STALE", id="row 15: an empty nonce"),
    pytest.param({"headers": {Header.BASE: "f" * 64}}, "STALE", id="row 15: another base"),
    pytest.param({"headers": {Header.RUN: "another"}}, "STALE", id="row 15: another run"),
    pytest.param({"headers": {Header.STAGE: "tuning"}}, "STALE", id="row 15: another stage"),
    pytest.param({"headers": {Header.SCHEMA: "f" * 64}}, "SCHEMA", id="another schema"),
]


def the_rest_is_untouched(
    aggregator: SharedKeysAggregator, send: Callable, context: Callable, expected: str, order: tuple[str, str]
) -> None:
    for site in order:
        data, examples = HONEST[site]
        assert send(site, data, examples=examples)
    assert content_sha256(result(aggregator, context)) == expected
    assert sorted(aggregator.contributions) == ["site-1", "site-3"]


@pytest.mark.parametrize(("data", "code"), BAD_TENSORS)
def test_bad_tensors_are_refused_and_leave_the_aggregate_bit_identical(
    aggregator: SharedKeysAggregator,
    send: Callable,
    context: Callable,
    without_the_site: str,
    caplog: pytest.LogCaptureFixture,
    data: Any,
    code: str,
) -> None:
    assert send("site-2", data) is False
    assert aggregator.rejections["site-2"].startswith(f"{code}: ")
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"round 0: reply of site-2 rejected: {code}" in line
    the_rest_is_untouched(aggregator, send, context, without_the_site, ("site-3", "site-1"))


@pytest.mark.parametrize(("changes", "code"), BAD_REPLIES)
def test_bad_headers_and_counts_are_refused_and_leave_the_aggregate_bit_identical(
    aggregator: SharedKeysAggregator,
    send: Callable,
    context: Callable,
    without_the_site: str,
    changes: dict[str, Any],
    code: str,
) -> None:
    assert send("site-2", step(0.2), **changes) is False
    assert aggregator.rejections["site-2"].startswith(f"{code}: ")
    the_rest_is_untouched(aggregator, send, context, without_the_site, ("site-1", "site-3"))


def test_a_million_tensors_are_refused_at_once(aggregator: SharedKeysAggregator, send: Callable) -> None:
    """Fault row 17."""
    tensor = torch.zeros(1)
    flood = {f"t{index}": tensor for index in range(1_000_000)}
    began = time.perf_counter()
    assert send("site-2", flood) is False
    assert time.perf_counter() - began < 0.5
    assert aggregator.rejections["site-2"].startswith("OVERSIZE: 1000000 tensors, 2 declared")


def test_a_tensor_of_ten_times_the_bytes_is_refused_by_its_shape(
    aggregator: SharedKeysAggregator, send: Callable
) -> None:
    """Fault row 17."""
    assert send("site-2", change("a", torch.zeros(20))) is False
    assert aggregator.rejections["site-2"].startswith("TENSOR_SHAPE")


def test_a_second_reply_of_a_site_is_ignored(aggregator: SharedKeysAggregator, send: Callable) -> None:
    """Fault row 14."""
    assert send("site-1", step(0.1))
    first = aggregator.contributions["site-1"]
    assert send("site-1", step(9.0)) is False
    assert aggregator.contributions["site-1"] is first
    assert "site-1" not in aggregator.rejections, "a site that was accepted does not count as rejected"


def test_the_reply_of_the_round_before_is_stale(
    aggregator: SharedKeysAggregator, send: Callable, round_of: Callable, reply_to: Callable, context: Callable
) -> None:
    """Fault rows 15 and 16."""
    replayed = reply_to(aggregator.round, step(0.1))
    assert aggregator.accept(replayed, context("server", peer="site-1"))
    aggregator.open_round(round_of(number=1))
    assert aggregator.contributions == {}
    assert aggregator.accept(replayed, context("server", peer="site-1")) is False
    assert aggregator.rejections == {"site-1": "STALE: round of another task"}


def test_asking_again_keeps_what_was_accepted_and_refuses_answers_to_the_first_question(
    aggregator: SharedKeysAggregator, send: Callable, reply_to: Callable, context: Callable
) -> None:
    """Fault row 9: the retry."""
    assert send("site-1", step(0.1))
    assert send("site-2", {}) is False
    late = reply_to(aggregator.round, step(0.2))
    aggregator.renew("e5f6")
    assert aggregator.accept(late, context("server", peer="site-2")) is False
    assert aggregator.rejections["site-2"].startswith("STALE: nonce")
    assert send("site-2", step(0.2))
    assert sorted(aggregator.contributions) == ["site-1", "site-2"]
    assert aggregator.rejections == {}


def test_a_reply_after_the_aggregation_is_stale_and_in_no_record(
    aggregator: SharedKeysAggregator, send: Callable, context: Callable, round_of: Callable
) -> None:
    """Fault row 16: FLARE hands late results on until the next round opens."""
    assert send("site-1", step(0.1))
    result(aggregator, context)
    assert send("site-2", step(0.2)) is False
    assert sorted(aggregator.contributions) == ["site-1"]
    aggregator.reset(context("server"))
    assert send("site-2", step(0.2)) is False
    assert aggregator.rejections == {"site-2": "STALE: no round is open"}
    aggregator.open_round(round_of(number=1))
    assert send("site-2", step(0.2))


def test_the_order_of_arrival_does_not_change_a_bit(send: Callable, context: Callable, round_of: Callable) -> None:
    """Fault row 48: 0.1, 0.3, 1e8 and their like do not add up the same in every order."""
    replies = {"a": (step(1e8), 1), "b": (step(0.1), 3), "c": (step(-1e8), 2), "d": (step(0.3), 7)}
    digests = set()
    for order in itertools.permutations(replies):
        aggregator = SharedKeysAggregator()
        aggregator.open_round(round_of())
        for site in order:
            assert send(site, replies[site][0], to=aggregator, examples=replies[site][1])
        digests.add(content_sha256(result(aggregator, context)))
    assert len(digests) == 1


def rubbish(rng: random.Random, depth: int = 0) -> Any:
    """Something a hostile or broken site might send."""
    leaves = [None, True, -1, 10**400, NAN, INF, "", "x" * 99, b"\x80\x04", Rude(), object(), torch.zeros(2)]
    leaves += [torch.zeros(2, 2), torch.tensor(NAN), np.zeros(2), np.array([{}], object), RudeMapping(), Exception]
    if depth == 3 or rng.random() < 0.4:
        return rng.choice(leaves)
    keys = ["a", "b", "DXO", "kind", "data", "meta", "metrics", "examples", 3, None]
    if rng.random() < 0.8:
        return {rng.choice(keys): rubbish(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [rubbish(rng, depth + 1) for _ in range(rng.randrange(3))]


@pytest.mark.parametrize("seed", range(8))
def test_accept_never_raises_and_never_takes_rubbish(
    aggregator: SharedKeysAggregator,
    send: Callable,
    context: Callable,
    reply_to: Callable,
    without_the_site: str,
    seed: int,
) -> None:
    rng = random.Random(seed)
    headers = [
        Header.RUN,
        Header.STAGE,
        Header.ROUND,
        Header.BASE,
        Header.NONCE,
        Header.SCHEMA,
        ReservedHeaderKey.CONTENT_TYPE,
    ]
    sender = context("server", peer="site-2")
    for _ in range(60):
        reply = reply_to(aggregator.round, step(0.2))
        where = rng.randrange(6)
        if where == 0:
            reply = rubbish(rng)
        elif where == 1:
            reply["DXO"] = rubbish(rng)
        elif where == 2:
            # None stands for an honest site that suppresses its count, an empty mapping for no metrics
            key = rng.choice([Meta.METRICS, Meta.EXAMPLES, Meta.TRAIN_SECONDS])
            reply["DXO"]["meta"][key] = rng.choice([Rude(), RudeMapping(), NAN, "x", [1], -1, {"x": 1.0}, {"loss": []}])
        elif where == 3:
            reply["DXO"]["data"] = rng.choice([RudeMapping(), Rude(), [], {"a": Rude(), "b": 1}, rubbish(rng)])
        elif where == 4:
            reply.set_header(rng.choice(headers), rng.choice([None, Rude(), 99, "", [], torch.zeros(3)]))
        else:
            reply = Shareable({rng.choice(["DXO", "x"]): rubbish(rng)})
        assert aggregator.accept(reply, sender) is False
    the_rest_is_untouched(aggregator, send, context, without_the_site, ("site-1", "site-3"))


def test_nothing_is_accepted_before_a_round_is_open(reply_to: Callable, round_of: Callable, context: Callable) -> None:
    assert SharedKeysAggregator().accept(reply_to(round_of(), step(0.1)), context("server", peer="site-1")) is False


def test_the_mean_is_weighted_by_cases(aggregator: SharedKeysAggregator, send: Callable, context: Callable) -> None:
    assert send("site-1", step(1.0), examples=1)
    assert send("site-2", step(5.0), examples=3)
    made = result(aggregator, context)
    assert aggregator.weights == {"site-1": 0.25, "site-2": 0.75}
    assert made["a"].tolist() == [4.0, 4.0]
    assert made["b"].tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_a_site_that_counts_no_case_is_left_out_and_harms_nobody(
    aggregator: SharedKeysAggregator, send: Callable, context: Callable, without_the_site: str
) -> None:
    """Fault row 33."""
    for site, (data, examples) in HONEST.items():
        assert send(site, data, examples=examples)
    assert send("site-2", step(0.2), examples=0)
    seen: list[list[str]] = []
    rule = aggregator.combine

    def combine(shared: Any, contributions: Any, weights: Any) -> Any:
        seen.append(sorted(contributions))
        return rule(shared, contributions, weights)

    aggregator.combine = combine  # type: ignore[method-assign]
    assert content_sha256(result(aggregator, context)) == without_the_site
    assert seen == [["site-1", "site-3"]]
    assert aggregator.weights["site-2"] == 0.0


def test_a_contract_of_equal_weights_makes_the_plain_mean(
    aggregator: SharedKeysAggregator, round_of: Callable, send: Callable, context: Callable
) -> None:
    contract = dataclasses.replace(round_of().contract, weighting="equal")
    aggregator.open_round(dataclasses.replace(round_of(), contract=contract))
    assert send("site-1", step(1.0), examples=3)
    assert send("site-2", step(3.0), examples=1)
    mean = result(aggregator, context)
    assert all(torch.allclose(mean[name], tensor) for name, tensor in step(2.0).items())
    assert aggregator.notes["weighting"] == []


def test_what_was_said_about_weights_names_the_sites(
    aggregator: SharedKeysAggregator, send: Callable, context: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    assert send("site-1", step(1.0), examples=4)
    assert send("site-2", step(1.0), examples=None)
    result(aggregator, context)
    assert aggregator.notes["weighting"] == ["equal weights: site-2 suppressed the count"]
    assert "round 0: equal weights: site-2 suppressed the count" in caplog.text


def test_a_rule_sees_the_sites_in_sorted_order_whatever_the_order_of_arrival(
    aggregator: SharedKeysAggregator, send: Callable, context: Callable
) -> None:
    """Fault row 48: every rule may rely on it."""
    for site in ("site-3", "site-1", "site-2"):
        assert send(site, step(1.0))
    seen: list[list[str]] = []
    rule = aggregator.combine

    def combine(shared: Any, contributions: Any, weights: Any) -> Any:
        seen.extend([list(contributions), list(weights)])
        return rule(shared, contributions, weights)

    aggregator.combine = combine  # type: ignore[method-assign]
    result(aggregator, context)
    assert seen == [["site-1", "site-2", "site-3"]] * 2


@pytest.mark.parametrize(
    "made", [{"a": torch.zeros(2)}, step(NAN), {**step(1.0), "c": torch.zeros(1)}, change("a", np.zeros(2))]
)
def test_what_a_rule_makes_is_checked_like_any_reply(
    round_of: Callable, send: Callable, context: Callable, made: Any
) -> None:
    class Careless(GuardedAggregator):
        def combine(
            self, shared: Mapping[str, Any], contributions: Mapping[str, Contribution], weights: Mapping[str, float]
        ) -> Any:
            return made

    careless = Careless()
    careless.open_round(round_of())
    assert send("site-1", step(1.0), to=careless)
    with pytest.raises(FedMedSegError, match="tensors from the aggregation rule"):
        careless.aggregate(context("server"))


def test_a_stage_of_metrics_takes_metrics_and_no_tensors(round_of: Callable, send: Callable, context: Callable) -> None:
    metrics = MetricsAggregator()
    metrics.open_round(round_of("tuning"))
    assert send("site-1", {}, to=metrics, **{Meta.METRICS: {"loss/personal": 0.5}})
    assert send("site-2", step(1.0), to=metrics) is False
    assert metrics.rejections["site-2"].startswith("UNKNOWN_TENSORS")
    assert metrics.contributions["site-1"].metrics == {"loss/personal": 0.5}
    assert result(metrics, context) == {}


def test_an_aggregator_without_a_rule_says_so(round_of: Callable, send: Callable, context: Callable) -> None:
    metrics = MetricsAggregator()
    metrics.open_round(round_of("training"))
    assert send("site-1", step(1.0), to=metrics)
    with pytest.raises(TypeError, match="needs a rule"):
        metrics.aggregate(context("server"))


def test_a_round_without_replies_makes_no_differences(aggregator: SharedKeysAggregator, context: Callable) -> None:
    """Fault row 9: no tensor of the shared model is touched."""
    assert result(aggregator, context) == {}


def test_reset_lets_go_of_the_tensors(aggregator: SharedKeysAggregator, send: Callable, context: Callable) -> None:
    assert send("site-1", step(1.0))
    assert aggregator.contributions["site-1"].nbytes == 2 * 4 + 4 * 4
    aggregator.reset(context("server"))
    assert aggregator.contributions == {}


OWN = {"a": torch.tensor([5.0, 6.0])}


@pytest.fixture
def personal_round(round_of: Callable, shared: Tensors) -> Round:
    """A round in which site-2 was sent an ``a`` of its own."""
    contract = dataclasses.replace(round_of().contract, personal=True)
    return dataclasses.replace(round_of(), contract=contract, personal=payloads(shared, {"site-2": OWN}, WHOLE))


def test_a_round_knows_what_each_site_was_sent(personal_round: Round, shared: Tensors) -> None:
    assert personal_round.base_of("site-1") == personal_round.base == content_crc32(shared)
    assert personal_round.base_of("site-2") == content_crc32({**shared, **OWN})
    assert personal_round.start_of("site-1") is personal_round.shared
    assert personal_round.start_of("site-2") == {"a": OWN["a"], "b": shared["b"]}


def test_a_site_is_judged_by_what_it_was_sent_and_by_nothing_else(
    aggregator: SharedKeysAggregator, send: Callable, personal_round: Round
) -> None:
    aggregator.open_round(personal_round)
    own = personal_round.personal["site-2"].base
    assert send("site-1", step(0.1), headers={Header.BASE: own}) is False
    assert send("site-2", step(0.1)) is False
    assert set(aggregator.rejections.values()) == {"STALE: base of another task"}
    assert send("site-1", step(0.1))
    assert send("site-2", step(0.1), headers={Header.BASE: own})
    aggregator.renew("e5f6")
    assert aggregator.round is not None
    assert aggregator.round.base_of("site-2") == own, "asking again changes no payload"


class OwnRule(SharedKeysAggregator):
    """Hands every site heard its own ``a``, and counts how often it is asked."""

    asked = 0

    def personalise(self, shared: Any, contributions: Any) -> Any:
        self.asked += 1
        return {site: {"a": contribution.differences["a"]} for site, contribution in contributions.items()}


def test_a_rule_is_asked_for_personal_tensors_only_where_the_contract_is_personal(
    send: Callable, context: Callable, round_of: Callable, personal_round: Round
) -> None:
    rule = OwnRule()
    for current, asked in ((round_of(), 0), (personal_round, 1)):
        rule.open_round(current)
        assert send("site-1", step(0.1), to=rule)
        assert send("site-3", step(0.3), to=rule, examples=0)
        result(rule, context)
        assert rule.asked == asked
    assert list(rule.personal) == ["site-1"], "a site that counts no case has no part in it"
    rule.reset(context("server"))
    assert rule.personal == {}


def test_the_rule_runs_on_one_thread_whatever_the_server_has(
    round_of: Callable[..., Round], reply_to: Callable[..., Shareable], context: Callable[..., FLContext]
) -> None:
    seen: list[int] = []

    class Counting(SharedKeysAggregator):
        def combine(self, shared: Any, contributions: Any, weights: Any) -> Any:
            seen.append(torch.get_num_threads())
            return super().combine(shared, contributions, weights)

    aggregator, current = Counting(), round_of()
    torch.set_num_threads(2)
    aggregator.open_round(current)
    assert aggregator.accept(reply_to(current, {"a": torch.ones(2), "b": torch.ones(2, 2)}), context(peer="site-1"))
    aggregator.aggregate(context())
    assert (seen, torch.get_num_threads()) == ([1], 2)
