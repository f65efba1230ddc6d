"""One payload per site: through FLARE's own broadcast, each site gets its tensors and nobody else's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from fedmedseg.core import workflow as module
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.checkpoint import content_crc32, content_sha256
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.persistor import SharedModelPersistor
from fedmedseg.core.personal import Personal, payloads, personalise
from fedmedseg.core.records import RunRecord
from fedmedseg.core.wire import WHOLE, Header, Part
from fedmedseg.core.workflow import QuorumScatterAndGather

Tensors = dict[str, torch.Tensor]


class PersonalRule(SharedKeysAggregator):
    """FedAvg, and for every site heard an ``a`` of its own: what it started from plus ten times its difference."""

    def personalise(self, shared: Mapping[str, torch.Tensor], contributions: Mapping[str, Contribution]) -> Personal:
        assert self.round is not None
        starts = {site: self.round.start_of(site) for site in contributions}
        return {site: {"a": starts[site]["a"] + 10 * c.differences["a"]} for site, c in contributions.items()}


class Stage:
    """A workflow, FLARE's own server communicator, and sites that ask it for their task."""

    def __init__(
        self, file: Path, context: Callable[..., FLContext], reply_to: Callable[..., Shareable], *, personal: bool
    ) -> None:
        self.context, self.reply_to = context, reply_to
        self.flow = QuorumScatterAndGather(
            stage="training",
            experiment_file=str(file),
            aggregator_id="rule",
            persistor_id="shared",
            shareable_generator_id="generator",
            record_id="record",
        )
        self.flow.contract = dataclasses.replace(self.flow.contract, personal=personal)
        self.flow._personal_ahead = personal
        self.panics: list[str] = []
        self.flow.system_panic = lambda reason, fl_ctx: self.panics.append(reason)
        self.flow._engine = MagicMock()
        self.clients = {name: Client(name, "token of " + name) for name in ("site-1", "site-2", "site-3")}
        self.flow._engine.get_clients.return_value = list(self.clients.values())
        self.flow.aggregator = PersonalRule()
        self.flow.persistor = SharedModelPersistor(experiment_file=str(file))
        loaded = self.flow.persistor.load_model(context("server"))
        self.flow.record = RunRecord(reporter=MagicMock())
        self.flow.record.begin(
            self.flow.experiment,
            sites=list(self.clients),
            stages=3,
            history=[],
            run="r1",
            started="2026-01-02T03:04:05+00:00",
        )
        self.flow._global_weights = loaded
        self.flow._current_round = self.flow.persistor.rounds_done.get("training", 0)
        self.flow._phase = AppConstants.PHASE_TRAIN
        self.flow.set_communicator(WFCommServer())
        self.flow.communicator._engine = self.flow._engine
        self.received: list[tuple[str, Shareable]] = []
        self.silent: dict[str, int] = {}
        """Site to the number of tasks it does not answer."""

    def ask(self, site: str, *, calls_itself: str | None = None) -> Shareable:
        """``site`` asks for its task as FLARE's server runner lets it: assign, then tell whoever wants to know."""
        fl_ctx = self.context("server", peer=calls_itself or site)
        _, number, data = self.flow.communicator.process_task_request(self.clients[site], fl_ctx)
        for key, value in ((FLContextKey.TASK_DATA, data), (FLContextKey.TASK_ID, number)):
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        self.flow.handle_event(EventType.BEFORE_TASK_DATA_FILTER, fl_ctx)
        return data

    def answer(self, site: str, task: Shareable, by: float, **headers: Any) -> bool:
        """``site`` sends back that it moved all tensors by ``by``."""
        current = self.flow.aggregator.round
        differences = {name: torch.full_like(tensor, by) for name, tensor in current.shared.items()}
        said = {name: task.get_header(name) for name in (Header.BASE, Header.NONCE, Header.ROUND)}
        reply = self.reply_to(current, differences, headers={**said, **headers})
        return self.flow._accept_train_result(site, reply, self.context("server", peer=site))

    def broadcast(self, task: Task, fl_ctx: FLContext, targets: list[str], **more: Any) -> None:
        """In place of waiting: every site that was asked fetches its task and answers at once."""
        self.flow.communicator.broadcast(task, fl_ctx, targets, min_responses=len(targets))
        for site in targets:
            data = self.ask(site)
            self.received.append((site, data))
            if self.silent.get(site, 0) > 0:
                self.silent[site] -= 1
            else:
                self.answer(site, data, by={"site-1": 0.1, "site-2": 0.2, "site-3": 0.3}[site])
        task.completion_status = "over"

    def round(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Shareable]:
        """One whole round; returns what each site received last."""
        monkeypatch.setattr(module.ScatterAndGather, "broadcast_and_wait", lambda flow, **call: self.broadcast(**call))
        monkeypatch.setattr(module, "note_in", MagicMock())
        self.received = []
        fl_ctx = self.context("server")
        shared = self.flow._global_weights[ModelLearnableKey.WEIGHTS]
        task = Task(name="training", data=DXO(DataKind.WEIGHTS, data=dict(shared)).to_shareable())
        self.flow.broadcast_and_wait(task, fl_ctx, abort_signal=Signal())
        if not self.panics:
            differences = from_shareable(self.flow.aggregator.aggregate(fl_ctx)).data
            new = {name: tensor + differences[name] for name, tensor in shared.items()}
            self.flow._global_weights = make_model_learnable(new, {})
            self.flow.persistor.save_model(self.flow._global_weights, fl_ctx)
            fl_ctx.set_prop(AppConstants.PHASE, AppConstants.PHASE_TRAIN)
            self.flow.handle_event("_round_done", fl_ctx)
            self.flow.aggregator.reset(fl_ctx)
            self.flow._current_round += 1
        return dict(self.received)

    @property
    def record(self) -> dict[str, Any]:
        return dict(self.flow.persistor.history[-1])


@pytest.fixture
def stage(
    experiment_file: Path, context: Callable[..., FLContext], reply_to: Callable[..., Shareable]
) -> Callable[..., Stage]:
    """stage(personal=True): a new process's training stage of three sites."""
    return lambda personal=True: Stage(experiment_file, context, reply_to, personal=personal)


def tensors_of(data: Shareable) -> Tensors:
    return dict(from_shareable(data).data)


def test_a_payload_holds_what_is_sent_with_the_sites_own_tensors_in_place() -> None:
    sent = {"a": torch.zeros(2), "b": torch.ones(1)}
    own = {"a": torch.full((2,), 5.0), "kept": torch.ones(9)}
    made = payloads(sent, {"site-2": own}, Part(without=("kept",)))
    assert list(made) == ["site-2"]
    assert made["site-2"].tensors == {"a": own["a"], "b": sent["b"]}
    assert made["site-2"].base == content_crc32({"a": own["a"], "b": sent["b"]}) != content_crc32(sent)
    assert payloads(sent, {}, WHOLE) == {}


def test_only_the_entries_of_the_copy_change() -> None:
    shared = {"a": torch.zeros(2)}
    task = DXO(DataKind.WEIGHTS, data=shared).to_shareable()
    copy = Shareable(task)
    copy["__headers__"] = dict(task["__headers__"])
    personalise(copy, payloads(shared, {"x": {"a": torch.ones(2)}}, WHOLE)["x"])
    assert tensors_of(copy)["a"].tolist() == [1.0, 1.0]
    assert tensors_of(task)["a"].tolist() == [0.0, 0.0]
    assert task.get_header(Header.BASE) is None


def test_each_site_is_sent_its_own_tensors_and_judged_by_their_digest(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, shared: Tensors
) -> None:
    """Moves of 0.1, 0.2 and 0.3: the shared model moves by 0.2, the sites' own a by 1, 2 and 3."""
    run = stage()
    first = run.round(monkeypatch)
    assert {content_sha256(tensors_of(data)) for data in first.values()} == {content_sha256(shared)}
    assert sorted(run.flow.persistor.personal) == ["site-1", "site-2", "site-3"]
    second = run.round(monkeypatch)
    assert run.panics == []
    for number, site in enumerate(("site-1", "site-2", "site-3"), 1):
        got = tensors_of(second[site])
        torch.testing.assert_close(got["a"], shared["a"] + number)
        torch.testing.assert_close(got["b"], shared["b"] + 0.2)
        assert second[site].get_header(Header.BASE) == content_crc32(got)
    assert len({second[site].get_header(Header.BASE) for site in second}) == 3
    assert sorted(run.record["accepted"]) == ["site-1", "site-2", "site-3"]
    # the next models build on what each site started from: 1 + 10 * 0.1, 2 + 10 * 0.2, 3 + 10 * 0.3
    for number, site in enumerate(("site-1", "site-2", "site-3"), 1):
        torch.testing.assert_close(run.flow.persistor.personal[site]["a"], shared["a"] + 2 * number)


def test_the_record_says_who_was_sent_what(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage()
    run.round(monkeypatch)
    assert {entry["personal_crc32"] for entry in run.record["sites"].values()} == {None}
    second = run.round(monkeypatch)
    for site, entry in run.record["sites"].items():
        assert entry["personal_crc32"] == content_crc32(tensors_of(second[site]))
        assert entry["bytes_down"] == entry["bytes_up"] == 24


def test_personal_tensors_are_referred_to_and_the_broadcast_keeps_the_shared_ones(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage()
    run.round(monkeypatch)
    held = {site: tensors["a"].data_ptr() for site, tensors in run.flow.persistor.personal.items()}
    second = run.round(monkeypatch)
    assert {site: tensors_of(data)["a"].data_ptr() for site, data in second.items()} == held


def test_a_site_without_tensors_of_its_own_is_sent_the_shared_model(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage()
    run.round(monkeypatch)
    del run.flow.persistor.personal["site-2"]
    shared = content_crc32(run.flow._global_weights[ModelLearnableKey.WEIGHTS])
    second = run.round(monkeypatch)
    assert second["site-2"].get_header(Header.BASE) == content_crc32(tensors_of(second["site-2"])) == shared
    assert second["site-1"].get_header(Header.BASE) != shared
    assert run.record["sites"]["site-2"]["personal_crc32"] is None
    assert run.record["accepted"] == ["site-1", "site-2", "site-3"]


def test_a_stage_that_is_not_personal_sends_everybody_the_shared_model(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage(personal=False)
    run.flow._personal_ahead = True
    run.flow.persistor.personal = {"site-1": {"a": torch.full((2,), 9.0)}}
    for _ in range(2):
        received = run.round(monkeypatch)
        assert len({content_sha256(tensors_of(data)) for data in received.values()}) == 1
    assert list(run.flow.persistor.personal) == ["site-1"], "a later stage sends them"
    run.flow._personal_ahead = False
    run.round(monkeypatch)
    assert run.flow.persistor.personal == {}, "no stage sends them any more"


def test_a_site_is_who_its_token_says_not_who_its_request_says(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name in the request's context is the client's own word."""
    run = stage()
    run.round(monkeypatch)
    seen: list[Shareable] = []

    def broadcast(task: Task, fl_ctx: FLContext, targets: list[str], **more: Any) -> None:
        run.flow.communicator.broadcast(task, fl_ctx, targets, min_responses=1)
        seen.append(run.ask("site-2", calls_itself="site-1"))

    monkeypatch.setattr(run, "broadcast", broadcast)
    run.round(monkeypatch)
    assert torch.equal(tensors_of(seen[0])["a"], run.flow.persistor.personal["site-2"]["a"])


def test_a_task_that_is_sent_again_carries_the_sites_own_tensors_again(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage()
    run.round(monkeypatch)
    twice: list[Shareable] = []

    def broadcast(task: Task, fl_ctx: FLContext, targets: list[str], **more: Any) -> None:
        run.flow.communicator.broadcast(task, fl_ctx, targets, min_responses=1)
        twice.extend(run.ask("site-3") for _ in range(2))

    monkeypatch.setattr(run, "broadcast", broadcast)
    run.round(monkeypatch)
    own = run.flow.persistor.personal["site-3"]["a"]
    assert all(torch.equal(tensors_of(data)["a"], own) for data in twice)


def test_asking_again_below_the_quorum_sends_the_failed_site_its_own_tensors(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 9. Two sites are alive and the quorum is two thirds, so the third may stay silent at first."""
    run = stage()
    run.round(monkeypatch)
    own = run.flow.persistor.personal["site-2"]["a"]
    refuse = [run.answer]

    def once(site: str, task: Shareable, by: float, **headers: Any) -> bool:
        if site == "site-2" and refuse:
            refuse.clear()
            return Stage.answer(run, site, task, by, **{Header.BASE: "f" * 64})
        return Stage.answer(run, site, task, by, **headers)

    monkeypatch.setattr(run, "answer", once)
    run.round(monkeypatch)
    asked = [site for site, _ in run.received]
    assert asked == ["site-1", "site-2", "site-3", "site-2"]
    first, again = run.received[1][1], run.received[3][1]
    assert torch.equal(tensors_of(again)["a"], own)
    assert first.get_header(Header.BASE) == again.get_header(Header.BASE)
    assert first.get_header(Header.NONCE) != again.get_header(Header.NONCE)
    assert run.record["accepted"] == ["site-1", "site-2", "site-3"]
    assert run.panics == []


def test_a_reply_from_another_sites_base_is_refused(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage()
    run.round(monkeypatch)
    refused: list[bool] = []

    def broadcast(task: Task, fl_ctx: FLContext, targets: list[str], **more: Any) -> None:
        run.flow.communicator.broadcast(task, fl_ctx, targets, min_responses=1)
        data = {site: run.ask(site) for site in targets}
        for base in (data["site-2"].get_header(Header.BASE), run.flow.aggregator.round.base):
            refused.append(run.answer("site-1", data["site-1"], by=0.1, **{Header.BASE: base}))
        assert run.answer("site-1", data["site-1"], by=0.1)

    monkeypatch.setattr(run, "broadcast", broadcast)
    run.round(monkeypatch)
    assert refused == [False, False]


def test_a_task_of_an_earlier_question_is_left_as_it_is(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage()
    run.round(monkeypatch)
    late: list[Shareable] = []

    def broadcast(task: Task, fl_ctx: FLContext, targets: list[str], **more: Any) -> None:
        run.flow.communicator.broadcast(task, fl_ctx, targets, min_responses=1)
        if not late:
            run.flow.aggregator.renew("another")
            late.append(run.ask("site-1"))

    monkeypatch.setattr(run, "broadcast", broadcast)
    shared = content_sha256(run.flow._global_weights[ModelLearnableKey.WEIGHTS])
    run.round(monkeypatch)
    assert content_sha256(tensors_of(late[0])) == shared
    assert run.answer("site-1", late[0], by=0.1) is False


def test_a_silent_site_keeps_what_it_had(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage()
    run.flow.experiment = run.flow.experiment.model_copy(
        update={"federation": run.flow.experiment.federation.model_copy(update={"quorum": 2})}
    )
    run.round(monkeypatch)
    before = {site: content_sha256(tensors) for site, tensors in run.flow.persistor.personal.items()}
    run.silent = {"site-3": 2}
    run.round(monkeypatch)
    after = {site: content_sha256(tensors) for site, tensors in run.flow.persistor.personal.items()}
    assert run.panics == []
    assert after["site-3"] == before["site-3"]
    assert after["site-1"] != before["site-1"]


def test_a_resumed_stage_sends_each_site_what_the_killed_one_would_have_sent(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, experiment_file: Path
) -> None:
    """Fault row 24."""
    killed = stage()
    killed.round(monkeypatch)
    expected = {site: data.get_header(Header.BASE) for site, data in killed.round(monkeypatch).items()}
    experiment_file.write_text(experiment_file.read_text() + "resume: true\n")
    # back to the checkpoint of the first round
    folder = killed.flow.persistor._state.folder
    (folder / "shared.safetensors").write_bytes(b"")
    resumed = stage()
    assert resumed.flow._current_round == 1
    assert {site: data.get_header(Header.BASE) for site, data in resumed.round(monkeypatch).items()} == expected


def test_personal_tensors_that_do_not_fit_are_refused_before_anything_is_sent(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ({"a": torch.zeros(3)}, {"c": torch.zeros(2)}, {"a": torch.tensor([float("nan"), 0.0])}):
        run = stage()
        monkeypatch.setattr(run.flow.aggregator, "personalise", lambda *given, wrong=wrong: {"site-1": wrong})
        with pytest.raises(FedMedSegError, match="aggregation rule"):
            run.round(monkeypatch)


def test_a_rule_that_makes_no_personal_tensors_says_so(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage()
    run.flow.aggregator = SharedKeysAggregator()
    with pytest.raises(TypeError, match="SharedKeysAggregator makes no personal tensors"):
        run.round(monkeypatch)


def test_a_request_that_got_no_task_changes_nothing(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event comes with a task's data alone; an answer such as "try again" carries no header of ours."""
    run = stage()
    run.round(monkeypatch)
    run.flow.aggregator.open_round(
        dataclasses.replace(run.flow.aggregator.round, personal=payloads({}, run.flow.persistor.personal, WHOLE))
    )
    fl_ctx = run.context("server", peer="site-1")
    run.flow.handle_event(EventType.BEFORE_TASK_DATA_FILTER, fl_ctx)
    other = Shareable({"DXO": "as it was"})
    fl_ctx.set_prop(FLContextKey.TASK_DATA, other, private=True, sticky=False)
    run.flow.handle_event(EventType.BEFORE_TASK_DATA_FILTER, fl_ctx)
    assert other["DXO"] == "as it was"
