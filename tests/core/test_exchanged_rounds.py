"""Features on their way: judged at the server, kept in its checkpoints, sent to the others alone, counted in bytes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import make_model_learnable

from fedmedseg.cli.approval import _leaving
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.checkpoint import content_crc32, content_sha256
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.exchange import FEATURES, PARTS, Exchange, Features, canonical, of_others, split
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.intake import SPARE, most_bytes
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.persistor import SharedModelPersistor
from fedmedseg.core.question import Round
from fedmedseg.core.replies import encode
from fedmedseg.core.rounds import round_record
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import Header, Part, Schema, StageContract
from fedmedseg.core.wishes import make_wish

Tensors = dict[str, torch.Tensor]
EXCHANGE = Exchange(width=3, most_rows=4, parts=2, most_received=12)
ROW = 13


def drawn(rows: int = 3, seed: int = 1) -> Features:
    vectors = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return Features(
        vectors=torch.nn.functional.normalize(vectors, dim=1), parts=(torch.arange(rows) % 2).to(torch.uint8)
    )


@pytest.fixture
def contract(with_contract: Callable[..., StageContract]) -> StageContract:
    """The toy system's training, with an exchange."""
    return with_contract("training", exchange=EXCHANGE)


@pytest.fixture
def opened(contract: StageContract, shared: Tensors) -> Callable[..., SharedKeysAggregator]:
    """opened(given={...}): FedAvg with a round open, before which sites gave these features."""

    def make(given: Any = None) -> SharedKeysAggregator:
        rule = SharedKeysAggregator()
        rule.open_round(
            Round.begin(
                run="a1b2",
                stage="training",
                number=1,
                nonce="c3d4",
                contract=contract,
                schema=Schema(shared),
                shared=shared,
                personal={},
                exchanged=of_others(given or {}, ["site-1", "site-2", "site-3"]),
            )
        )
        return rule

    return make


@pytest.fixture
def answer(reply_to: Callable[..., Shareable], context: Callable[..., FLContext]) -> Callable[..., bool]:
    """answer(rule, "site-1", features): whether the site's reply, moved by 1, is accepted with these entries."""

    def make(rule: SharedKeysAggregator, site: str, features: Any, *, by: float = 1.0) -> bool:
        assert rule.round is not None
        differences = {name: torch.full_like(tensor, by) for name, tensor in rule.round.shared.items()}
        reply = reply_to(rule.round, {**differences, **features}, headers={Header.BASE: rule.round.base_of(site)})
        return bool(rule.accept(reply, context("server", peer=site)))

    return make


def test_an_honest_upload_is_accepted_counted_and_handed_on(opened: Any, answer: Any, context: Any) -> None:
    rule = opened()
    for number, site in enumerate(("site-1", "site-2"), 1):
        assert answer(rule, site, EXCHANGE.encode(drawn(number + 1)))
    assert rule.contributions["site-1"].nbytes == 24 + 2 * ROW
    differences = from_shareable(rule.aggregate(context("server"))).data
    assert sorted(differences) == ["a", "b"], "features are in no aggregate"
    assert {site: len(entries[PARTS]) for site, entries in rule.exchanged.items()} == {"site-1": 2, "site-2": 3}
    rule.reset(context("server"))
    assert rule.exchanged == {}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "UNKNOWN_TENSORS"),
        ({FEATURES: torch.ones(2, 3)}, "UNKNOWN_TENSORS"),
        ({FEATURES: torch.full((2, 3), float("nan")), PARTS: torch.zeros(2, dtype=torch.uint8)}, "NOT_FINITE"),
        ({FEATURES: torch.ones(2, 3), PARTS: torch.zeros(2, dtype=torch.uint8)}, "SCHEMA: features whose length"),
        ({FEATURES: torch.eye(3), PARTS: torch.full((3,), 2, dtype=torch.uint8)}, "SCHEMA: a part of 2"),
        ({FEATURES: torch.eye(3).repeat(2, 1), PARTS: torch.zeros(6, dtype=torch.uint8)}, "OVERSIZE"),
        ({FEATURES: "rows", PARTS: None}, "TENSOR_TYPE"),
        ({FEATURES: torch.eye(3), PARTS: torch.zeros(3, dtype=torch.uint8), "exchange.patients": 1}, "UNKNOWN"),
    ],
)
def test_a_bad_upload_costs_that_reply_alone_and_nothing_is_raised(
    opened: Any, answer: Any, wrong: Any, reason: str
) -> None:
    rule = opened()
    assert answer(rule, "site-1", EXCHANGE.encode(drawn()))
    assert answer(rule, "site-2", wrong) is False
    assert reason in rule.rejections["site-2"]
    assert sorted(rule.contributions) == ["site-1"]


def test_features_in_a_stage_that_exchanges_none_are_undeclared_tensors(
    round_of: Any, reply_to: Any, context: Any
) -> None:
    rule = SharedKeysAggregator()
    rule.open_round(round_of())
    differences = {name: torch.ones_like(tensor) for name, tensor in rule.round.shared.items()}
    reply = reply_to(rule.round, {**differences, **EXCHANGE.encode(drawn())})
    assert rule.accept(reply, context("server", peer="site-1")) is False
    assert "UNKNOWN_TENSORS" in rule.rejections["site-1"]


def test_every_site_is_sent_the_others_features_under_a_digest_of_its_own(opened: Any, shared: Tensors) -> None:
    given = {f"site-{number}": canonical(EXCHANGE.encode(drawn(number, seed=number))) for number in (1, 2)}
    current = opened(given).round
    assert [len(current.given_to(f"site-{number}")[PARTS]) for number in (1, 2, 3)] == [2, 1, 3]
    assert torch.equal(current.given_to("site-1")[FEATURES], given["site-2"][FEATURES])
    assert len({current.base_of(f"site-{number}") for number in (1, 2, 3)} | {current.base}) == 4
    for site in ("site-1", "late"):
        start = current.start_of(site)
        assert content_sha256(dict(start)) == content_sha256(shared), "differences are to the shared tensors"
    assert FEATURES not in current.given_to("late")


def test_features_extra_tensors_and_a_sites_own_come_in_one_payload(
    with_contract: Callable[..., StageContract], shared: Tensors
) -> None:
    """A site that fell behind gets the others' features, too, and its differences are to what it was sent."""
    contract = with_contract(
        "training", exchange=EXCHANGE, personal=True, sent=Part(within=("a",)), extra=Part(within=("b",))
    )
    given = {f"site-{number}": canonical(EXCHANGE.encode(drawn(number, seed=number))) for number in (1, 2)}
    current = Round.begin(
        run="a1b2",
        stage="training",
        number=1,
        nonce="c3d4",
        contract=contract,
        schema=Schema(shared),
        shared=shared,
        personal={"site-1": {"a": shared["a"] + 5}},
        exchanged=of_others(given, ["site-1", "site-2", "site-3"]),
        behind=["site-1", "site-3"],
    )
    assert set(current.given_to("site-1")) == {"a", "b", *EXCHANGE.names} == set(current.given_to("site-3"))
    assert set(current.given_to("site-2")) == {"a", *EXCHANGE.names}
    assert [current.personal[f"site-{number}"].extra for number in (1, 2, 3)] == [True, False, True]
    assert torch.equal(current.start_of("site-1")["a"], shared["a"] + 5)
    for site, payload in current.personal.items():
        assert payload.base == content_crc32(dict(current.given_to(site)))
        assert EXCHANGE.problem(split(payload.tensors)[1], received=True) is None


def test_the_first_round_sends_nobody_any(opened: Any) -> None:
    current = opened().round
    assert current.personal == {}
    assert FEATURES not in current.given_to("site-1")


def test_the_record_counts_rows_and_bytes_each_way(opened: Any, answer: Any) -> None:
    given = {"site-2": canonical(EXCHANGE.encode(drawn(3)))}
    rule = opened(given)
    assert answer(rule, "site-1", EXCHANGE.encode(drawn(4)))
    facts = {"asked": ["site-1", "site-2"], "needed": 1, "attempts": 1, "refusals": [], "began": time.monotonic()}
    record = round_record(
        stage="training", number=1, rounds=2, facts=facts, replies={}, declined=[], aggregator=rule, bytes_down=24,
        shared_sha256=None,
    )  # fmt: skip
    one, other = record["sites"]["site-1"], record["sites"]["site-2"]
    assert (one["bytes_down"], one["bytes_up"]) == (24 + 3 * ROW, 24 + 4 * ROW)
    assert (one["features_down"], one["features_up"]) == (
        {"rows": 3, "bytes": 3 * ROW}, {"rows": 4, "bytes": 4 * ROW},
    )  # fmt: skip
    assert (other["bytes_down"], other["features_down"], other["features_up"]) == (
        24, {"rows": 0, "bytes": 0}, {"rows": 0, "bytes": 0},
    )  # fmt: skip


def test_messages_may_be_as_much_larger_as_an_upload_is(shared: Tensors) -> None:
    schema = Schema(shared)
    assert most_bytes(schema, encrypted=False, features=EXCHANGE.most_bytes) == 2 * (24 + 4 * ROW) + SPARE


def test_whoever_agrees_to_a_job_is_told_how_many_features_may_leave(
    study: Callable[..., Any], contract: StageContract, shared: Tensors
) -> None:
    wish = make_wish(
        study(), contracts={"training": contract}, schema=Schema(shared), run="a1", submitter=None, scope="",
        components=b"",
    )  # fmt: skip
    assert wish.stages["training"].features == 4
    assert "up to 4 feature vectors of single slices" in _leaving(wish.stages["training"])


def test_a_killed_server_sends_the_same_features_again(
    experiment_file: Path, context: Any, contract: StageContract, shared: Tensors
) -> None:
    """Fault row 24."""
    first = SharedModelPersistor(experiment_file=str(experiment_file))
    first.load_model(context("server"))
    first.exchanged = {"site-1": canonical(EXCHANGE.encode(drawn()))}
    first.save_model(make_model_learnable(shared, {}), context("server"))
    first.finish_round("training", 0, {"round": 0})
    experiment_file.write_text(experiment_file.read_text() + "resume: true\n")
    again = SharedModelPersistor(experiment_file=str(experiment_file))
    again.load_model(context("server"))
    for name, tensor in first.exchanged["site-1"].items():
        assert torch.equal(again.exchanged["site-1"][name], tensor)
        assert again.exchanged["site-1"][name].dtype == tensor.dtype
    # what is handed out holds the shared model alone
    exported = next((experiment_file.parents[3]).rglob("models/shared.safetensors"))
    assert b"exchange." not in exported.read_bytes()


def test_a_reply_is_encoded_with_its_features_and_refused_without(
    opened: Any, contract: StageContract, shared: Tensors
) -> None:
    given = {"given": shared, "schema": Schema(shared), "contract": contract, "request": Shareable(), "seconds": 0.1}
    moved = {name: tensor + 1 for name, tensor in shared.items()}
    answer = encode(Reply(tensors=moved, features=drawn(), examples=1), **given)
    assert sorted(from_shareable(answer).data) == ["a", "b", FEATURES, PARTS]
    with pytest.raises(FedMedSegError, match="features") as caught:
        encode(Reply(tensors=moved, examples=1), **given)
    assert caught.value.reason == Reason.EMPTY


class Taking(TrainingExecutor):
    """An executor whose learner keeps the task it was given."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.state_root, self.needs_approval, self.tasks = root, False, list[Task]()

    def make_learner(self, experiment: Any, place: Any) -> Any:
        return self

    def run(self, task: Task, shared: Tensors) -> Reply:
        assert sorted(shared) == ["a", "b"]
        self.tasks.append(task)
        return Reply(tensors={name: tensor + 1 for name, tensor in shared.items()}, features=drawn(), examples=1)


@pytest.fixture
def ask(experiment_file: Path, contract: StageContract, shared: Tensors, context: Any, tmp_path: Path) -> Any:
    """ask(features): the site's reply to a task that brings these entries, and the tasks its learner was given."""
    from fedmedseg.core.config import load_experiment

    def make(features: Any) -> tuple[Shareable, list[Task]]:
        executor = Taking(tmp_path / "state")
        sent = {**shared, **features}
        request = DXO(data_kind=DataKind.WEIGHTS, data=sent).to_shareable()
        for header, value in {
            Header.RUN: "a1b2", Header.STAGE: "training", Header.ROUND: 1, Header.ROUNDS: 2, Header.NONCE: "c3d4",
            Header.BASE: content_crc32(sent), Header.SCHEMA: Schema(shared).digest,
            Header.EXPERIMENT: load_experiment(experiment_file).digest, Header.VERSIONS: own_versions(),
        }.items():  # fmt: skip
            request.set_header(header, value)
        reply = executor.execute("training", request, context("site-1", simulated=True), Signal())
        return reply, executor.tasks

    return make


@pytest.fixture
def simulated(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated site whose folder bears its name."""
    from fedmedseg.core import executor as module

    real = module.place_of
    monkeypatch.setattr(
        module, "place_of", lambda fl_ctx: dataclasses.replace(real(fl_ctx), folder="site-1", simulated=True)
    )


def test_a_learner_is_given_the_others_features_decoded(simulated: None, ask: Any) -> None:
    reply, tasks = ask(canonical(EXCHANGE.encode(drawn(4, seed=8))))
    assert reply.get_return_code() == "OK", reply.get_header(Header.REASON)
    received = tasks[0].received
    assert received is not None
    assert len(received) == 4
    expected = {tuple(row.tolist()) for row in drawn(4, seed=8).vectors}
    for row in received.vectors:
        assert min((row - torch.tensor(one)).norm() for one in expected) < 1e-6
    assert sorted(from_shareable(reply).data) == ["a", "b", FEATURES, PARTS]


def test_a_task_without_features_gives_the_learner_none(simulated: None, ask: Any) -> None:
    reply, tasks = ask({})
    assert reply.get_return_code() == "OK", reply.get_header(Header.REASON)
    assert tasks[0].received is None


def test_crafted_features_of_a_server_are_refused_before_any_training(simulated: None, ask: Any) -> None:
    entries = EXCHANGE.encode(drawn())
    for wrong in (
        {**entries, FEATURES: 5 * entries[FEATURES]},
        {PARTS: entries[PARTS]},
        {"exchange.code": torch.ones(1)},
        {name: torch.cat([tensor] * 5) for name, tensor in entries.items()},
    ):
        reply, tasks = ask(wrong)
        assert "features from the server" in reply.get_header(Header.REASON)
        assert tasks == []
