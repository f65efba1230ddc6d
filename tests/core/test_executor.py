"""The executor: an honest reply for an honest task, and a short reason for everything else, never an exception."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from fedmedseg.core import executor as module
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.approval import decide, matters
from fedmedseg.core.audit import Outcome
from fedmedseg.core.checkpoint import CheckpointError, content_crc32
from fedmedseg.core.config import Experiment, load_experiment
from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner, Reply, Task
from fedmedseg.core.place import Place, place_of
from fedmedseg.core.training import Aborted
from fedmedseg.core.transport import Codec
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import Header, Meta, Schema
from fedmedseg.core.wishes import Submitter
from fedmedseg.privacy.contents import fit_reason
from fedmedseg.privacy.filters import BoundedDifferences, DeclaredContents, EncryptedDifferences, SmallCounts

MARKER = "PATIENT-4711"
Tensors = dict[str, torch.Tensor]


class Scripted:
    """A learner that does what the test says."""

    def __init__(self, root: Path, act: Callable[[Task, Mapping[str, torch.Tensor]], Reply]) -> None:
        self.state_root, self.act = root, act
        self.needs_approval = False
        self.tasks: list[Task] = []

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        self.tasks.append(task)
        return self.act(task, shared)


class Cautious(Scripted):
    """One whose site's people decide on each job."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, add_one)
        self.needs_approval = True


class ToyExecutor(TrainingExecutor):
    """Binds the scripted learner."""

    def __init__(self, learner: Scripted | Exception) -> None:
        super().__init__()
        self.learner = learner
        self.made = 0
        self.fire_fed_event = MagicMock()

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        self.made += 1
        if isinstance(self.learner, Exception):
            raise self.learner
        return self.learner


def add_one(task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
    metrics = {"training": {"loss": 0.5}, "tuning": {"loss/personal": 0.25}, "testing": {"dice/left": 0.75}}
    tensors = {name: tensor + 1 for name, tensor in shared.items()} if task.stage == "training" else {}
    return Reply(tensors=tensors, metrics=metrics[task.stage], examples=3, steps=7)


@pytest.fixture
def request_for(experiment_file: Path, shared: Tensors) -> Callable[..., Shareable]:
    """request_for("training", tensors=..., headers=...): a task as the server sends it."""

    def make(
        stage: str = "training", tensors: Any = None, headers: Mapping[str, object] | None = None, number: int = 0
    ) -> Shareable:
        sent = shared if tensors is None else tensors
        request = DXO(data_kind=DataKind.WEIGHTS, data={"x": 1}).to_shareable() if stage != "testing" else Shareable()
        if stage != "testing":
            request["DXO"]["data"] = sent
        for header, value in {
            Header.RUN: "a1b2",
            Header.STAGE: stage,
            Header.ROUND: number,
            Header.ROUNDS: 2,
            Header.BASE: content_crc32(shared),
            Header.NONCE: "c3d4",
            Header.SCHEMA: Schema(shared).digest,
            Header.EXPERIMENT: load_experiment(experiment_file).digest,
            Header.VERSIONS: own_versions(),
            **(headers or {}),
        }.items():
            request.set_header(header, value)
        return request

    return make


@pytest.fixture
def do(tmp_path: Path, request_for: Callable[..., Shareable], context: Callable[..., FLContext]) -> Callable[..., Any]:
    """do(act, stage="training", ...): the reply and the executor that made it."""

    def call(
        act: Any = add_one, stage: str = "training", *, signal: Signal | None = None, name: str = "", **request: Any
    ) -> tuple[Shareable, ToyExecutor]:
        learner = act if isinstance(act, Exception) else Scripted(tmp_path / "state", act)
        executor = ToyExecutor(learner)
        message = request_for(stage, **request)
        return executor.execute(name or stage, message, context(), signal or Signal()), executor

    return call


def raising(error: BaseException) -> Callable[..., Reply]:
    def act(task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        raise error

    return act


def failed(reply: Shareable, reason: str) -> None:
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply.get_header(Header.REASON) == reason
    assert "DXO" not in reply


def test_a_training_reply_carries_differences_counts_and_the_tasks_own_headers(
    do: Callable[..., Any], shared: Tensors
) -> None:
    reply, _ = do()
    dxo = from_shareable(reply)
    assert reply.get_return_code() == ReturnCode.OK
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert {name: tensor.tolist() for name, tensor in dxo.data.items()} == {"a": [1, 1], "b": [[1, 1], [1, 1]]}
    assert dxo.meta[Meta.EXAMPLES] == 3
    assert dxo.meta[Meta.STEPS] == 7
    assert dxo.meta[Meta.METRICS] == {"loss": 0.5}
    assert 0 <= dxo.meta[Meta.TRAIN_SECONDS] < 5
    assert [reply.get_header(h) for h in (Header.RUN, Header.STAGE, Header.ROUND, Header.NONCE)] == [
        "a1b2",
        "training",
        0,
        "c3d4",
    ]
    assert reply.get_header(Header.BASE) == content_crc32(shared)
    assert reply.get_header(Header.SCHEMA) == Schema(shared).digest


def test_an_honest_reply_is_accepted_by_the_servers_judge(
    do: Callable[..., Any], aggregator: Any, context: Callable[..., FLContext]
) -> None:
    reply, _ = do()
    assert aggregator.accept(reply, context("server", peer="site-1"))


def test_the_learner_is_told_where_it_stands(do: Callable[..., Any], shared: Tensors, tmp_path: Path) -> None:
    signal = Signal()
    _, executor = do(number=1, signal=signal)
    (task,) = executor.learner.tasks
    assert (task.site, task.stage, task.round, task.rounds, task.seed) == ("site-1", "training", 1, 2, 7)
    assert task.base == content_crc32(shared)
    # under the folder of whoever submitted the job
    assert task.state.folder.relative_to(tmp_path / "state").parts[1] == "toy-study"
    assert task.aborted() is False
    signal.trigger(True)
    assert task.aborted() is True


def after_filters(executor: ToyExecutor, reply: Shareable, context: Callable[..., FLContext]) -> None:
    """What FLARE's client runner does once the filters are through."""
    fl_ctx = context()
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    executor.handle_event(EventType.AFTER_TASK_RESULT_FILTER, fl_ctx)


@pytest.fixture
def thinly(experiment_file: Path, settings: dict[str, Any]) -> None:
    """The toy study with differences that travel as int8."""
    experiment_file.write_text(yaml.safe_dump({**settings, "federation": {"transport": "int8"}}))


def test_differences_are_encoded_once_the_filters_have_seen_them(
    thinly: None, do: Callable[..., Any], context: Callable[..., FLContext], round_of: Callable[..., Any]
) -> None:
    """What a filter changed is what is encoded; the server's judge takes it."""
    reply, executor = do()
    assert from_shareable(reply).data.keys() == {"a", "b"}
    reply["DXO"]["data"]["b"] = torch.full((2, 2), 3.0)
    after_filters(executor, reply, context)
    entries = from_shareable(reply).data
    assert {name: tensor.dtype for name, tensor in entries.items()} == {
        "wire.plain": torch.float32,
        "wire.values": torch.int8,
        "wire.scales": torch.float32,
    }
    codec = Codec(transport="int8", schema=round_of().schema)
    aggregator = SharedKeysAggregator()
    aggregator.open_round(dataclasses.replace(round_of(), codec=codec))
    assert aggregator.accept(reply, context("server", peer="site-1")), aggregator.rejections
    kept = aggregator.contributions["site-1"].differences
    assert kept["a"].tolist() == [1.0, 1.0]
    assert kept["b"].tolist() == [[pytest.approx(3.0)] * 2] * 2
    # FLARE fires the event for every reply; an encoded one is not encoded again
    after_filters(executor, reply, context)
    assert from_shareable(reply).data.keys() == entries.keys()


@pytest.fixture
def thin_down(experiment_file: Path, settings: dict[str, Any]) -> None:
    """The toy study whose tensors travel to the sites as int8."""
    experiment_file.write_text(yaml.safe_dump({**settings, "federation": {"transport_down": "int8"}}))


def test_a_learner_gets_what_is_decoded_and_its_differences_are_to_that(
    thin_down: None, do: Callable[..., Any], shared: dict[str, torch.Tensor]
) -> None:
    shared = {"a": shared["a"], "b": torch.tensor([[0.3, -0.1], [7.0, 0.2]])}
    codec = Codec(transport="int8", schema=Schema(shared))
    entries, _ = codec.encode(shared)
    decoded = codec.decode(entries)
    seen: list[dict[str, torch.Tensor]] = []

    def noting(task: Task, given: Mapping[str, torch.Tensor]) -> Reply:
        seen.append(dict(given))
        return add_one(task, given)

    reply, _ = do(noting, tensors=dict(entries), headers={Header.BASE: content_crc32(decoded)})
    assert reply.get_return_code() == ReturnCode.OK
    (given,) = seen
    assert all(torch.equal(given[name], decoded[name]) for name in shared)
    assert not torch.equal(given["b"], shared["b"])
    back = from_shareable(reply).data
    assert all(torch.equal(back[name], (decoded[name] + 1) - decoded[name]) for name in shared)
    assert reply.get_header(Header.BASE) == content_crc32(decoded)


@pytest.mark.parametrize("what", ["dense", "cut", "changed", "infinite"])
def test_a_crafted_encoded_model_is_refused_before_any_training(
    thin_down: None, do: Callable[..., Any], shared: dict[str, torch.Tensor], what: str
) -> None:
    codec = Codec(transport="int8", schema=Schema(shared))
    shared = {**shared, "b": torch.ones(2, 2)}
    entries, _ = codec.encode(shared)
    base = content_crc32(codec.decode(entries))
    spoilt, reason = {
        "dense": (shared, "UNKNOWN_TENSORS"),
        "cut": ({**entries, "wire.values": entries["wire.values"][1:]}, "TENSOR_SHAPE"),
        "changed": ({**entries, "wire.values": entries["wire.values"] - 1}, "SCHEMA"),
        "infinite": ({**entries, "wire.scales": entries["wire.scales"] * torch.inf}, "NOT_FINITE"),
    }[what]
    reply, executor = do(tensors=dict(spoilt), headers={Header.BASE: base})
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply.get_header(Header.REASON).startswith(reason)
    assert executor.learner.tasks == []


def test_a_reply_that_cannot_be_encoded_leaves_as_a_failure_and_never_dense(
    thinly: None, do: Callable[..., Any], context: Callable[..., FLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, executor = do()

    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "thin", full)
    after_filters(executor, reply, context)
    failed(reply, "DISK: disk full")


def test_a_blocked_reply_is_not_encoded(
    thinly: None, do: Callable[..., Any], context: Callable[..., FLContext]
) -> None:
    _, executor = do()
    blocked = make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
    before = dict(blocked)
    after_filters(executor, blocked, context)
    assert dict(blocked) == before


def test_no_figure_is_sent_beside_the_reply(do: Callable[..., Any], context: Callable[..., FLContext]) -> None:
    """The server tells TensorBoard what came with the reply (``core.server_events``)."""
    reply, executor = do()
    after_filters(executor, reply, context)
    executor.fire_fed_event.assert_not_called()


def test_a_sites_own_events_hold_its_figures_whatever_its_filters_leave(
    do: Callable[..., Any], context: Callable[..., FLContext], events_in: Callable[[Path], dict[str, Any]]
) -> None:
    reply, executor = do(number=1)
    reply["DXO"]["meta"][Meta.METRICS] = {}
    after_filters(executor, reply, context)
    place = place_of(context())
    assert events_in(place.run / "tb_events") == {place.name: {"training/loss": [(1, 0.5)]}}
    executor.handle_event(EventType.END_RUN, context())


def test_a_task_that_fails_writes_no_event(do: Callable[..., Any], context: Callable[..., FLContext]) -> None:
    do(raising(ValueError("x")))
    assert not (place_of(context()).run / "tb_events").exists()


def test_a_reply_of_another_executor_is_left_to_that_one(
    thinly: None, do: Callable[..., Any], context: Callable[..., FLContext]
) -> None:
    _, executor = do()
    reply, its_own = do(headers={Header.NONCE: "e5f6"})

    def types() -> set[torch.dtype]:
        return {tensor.dtype for tensor in from_shareable(reply).data.values()}

    after_filters(executor, reply, context)
    assert types() == {torch.float32}
    after_filters(its_own, reply, context)
    assert torch.int8 in types()


def test_a_site_without_privacy_filters_takes_no_part(
    request_for: Callable[..., Shareable], context: Callable[..., FLContext], tmp_path: Path
) -> None:
    executor = ToyExecutor(Scripted(tmp_path / "state", add_one))
    fl_ctx = context()
    fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, None, private=True, sticky=False)
    failed(executor.execute("training", request_for(), fl_ctx, Signal()), "CONFIGURATION: local/privacy.json")
    assert executor.learner.tasks == []


class Other(Filter):
    """Somebody else's."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        return shareable


OURS = [DeclaredContents(), SmallCounts(), BoundedDifferences(), EncryptedDifferences()]


@pytest.mark.parametrize(
    "filters",
    [[], OURS[:1], OURS[:3], OURS[::-1], [*OURS, Other()], [Other()] * 4],
    ids=["none", "one", "one less", "another order", "one more", "foreign ones"],
)
def test_a_site_takes_part_with_exactly_our_filters_in_force(
    request_for: Callable[..., Shareable], context: Callable[..., FLContext], tmp_path: Path, filters: list[Filter]
) -> None:
    """One filter less, and noise that the site file asks for would be left out without a word."""
    executor = ToyExecutor(Scripted(tmp_path / "state", add_one))
    reply = executor.execute("training", request_for(), context(filters=filters), Signal())
    failed(reply, "CONFIGURATION: local/privacy.json")
    assert executor.learner.tasks == []


def test_stages_of_metrics_send_no_tensor(do: Callable[..., Any], shared: Tensors) -> None:
    def generous(task: Task, received: Mapping[str, torch.Tensor]) -> Reply:
        return Reply(tensors=dict(shared), metrics={"dice/left": 0.75, "cases": 2})

    reply, _ = do(generous, "testing")
    assert from_shareable(reply).data == {}
    reply, _ = do(stage="tuning")
    assert from_shareable(reply).data == {}
    assert from_shareable(reply).meta[Meta.METRICS] == {"loss/personal": 0.25}


def test_the_learner_is_built_once_for_all_tasks(
    do: Callable[..., Any], request_for: Callable[..., Shareable], context: Callable[..., FLContext]
) -> None:
    _, executor = do()
    for number in (0, 1):
        assert executor.execute("training", request_for(number=number), context(), Signal()).get_return_code() == "OK"
    assert executor.made == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(RuntimeError(MARKER), "INTERNAL: RuntimeError", id="row 18: an exception"),
        pytest.param(KeyError(MARKER), "INTERNAL: KeyError", id="row 18: a key that quotes data"),
        pytest.param(AssertionError(MARKER), "INTERNAL: AssertionError", id="row 18: an assertion"),
        pytest.param(MemoryError(MARKER), "MEMORY: out of memory", id="row 29: memory"),
        pytest.param(torch.OutOfMemoryError(MARKER), "MEMORY: out of memory", id="row 29: accelerator memory"),
        pytest.param(OSError(errno.ENOSPC, MARKER, MARKER), "DISK: disk full", id="row 28: disk full"),
        pytest.param(PermissionError(errno.EACCES, MARKER, MARKER), "DISK: PermissionError EACCES", id="no right"),
        pytest.param(FileNotFoundError(MARKER), "DISK: FileNotFoundError ", id="no such file"),
        pytest.param(DataError("image", got=MARKER), "DATA: image", id="row 31: a case that cannot be used"),
        pytest.param(
            FedMedSegError("loss", got=MARKER, reason=Reason.LOCAL_DIVERGED), "LOCAL_DIVERGED: loss", id="row 34"
        ),
        pytest.param(
            CheckpointError("teacher.safetensors", got=MARKER, reason=Reason.DISK),
            "DISK: teacher.safetensors",
            id="row 26: a damaged state",
        ),
    ],
)
def test_a_failure_becomes_a_reason_that_quotes_nothing(
    do: Callable[..., Any], caplog: pytest.LogCaptureFixture, error: Exception, reason: str
) -> None:
    """Fault row 44: the marker stands for a patient or a path, and is in neither reply nor log."""
    caplog.set_level(logging.DEBUG)
    reply, _ = do(raising(error))
    failed(reply, reason)
    assert "training failed" in caplog.text
    assert MARKER not in caplog.text
    assert MARKER not in str(dict(reply))


def test_the_log_says_where_an_unexpected_error_came_from(
    do: Callable[..., Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    do(raising(RuntimeError(MARKER)))
    assert "test_executor.py:" in caplog.text
    assert str(Path(__file__).parent) not in caplog.text
    assert str(tmp_path) not in caplog.text


def test_a_wrong_setting_is_told_in_full_to_the_sites_own_log_alone(
    do: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    reply, executor = do(ConfigurationError("site file: device", got="'tpu'", expected="cpu or cuda"))
    failed(reply, "CONFIGURATION: site file: device")
    assert "got 'tpu'. Expected cpu or cuda." in caplog.text
    assert executor.made == 1


def test_a_site_that_could_not_start_is_asked_anew_each_time(
    do: Callable[..., Any], request_for: Callable[..., Shareable], context: Callable[..., FLContext], tmp_path: Path
) -> None:
    _, executor = do(OSError(errno.ENOSPC, "full"))
    executor.learner = Scripted(tmp_path / "state", add_one)
    assert executor.execute("training", request_for(), context(), Signal()).get_return_code() == ReturnCode.OK


def test_a_broken_context_is_a_reason_and_not_a_crash(request_for: Callable[..., Shareable]) -> None:
    executor = ToyExecutor(RuntimeError())
    failed(executor.execute("training", request_for(), FLContext(), Signal()), "INTERNAL: AttributeError")


@pytest.mark.parametrize("content", ["a: [", "[]", "system: nowhere"])
def test_an_invalid_experiment_is_told_by_its_field(
    request_for: Callable[..., Shareable],
    context: Callable[..., FLContext],
    experiment_file: Path,
    content: str,
) -> None:
    request = request_for()
    experiment_file.write_text(content)
    reply = ToyExecutor(RuntimeError()).execute("training", request, context(), Signal())
    assert reply.get_header(Header.REASON).startswith("CONFIGURATION: experiment.yaml")


def test_a_site_without_cases_declines_and_is_no_error(do: Callable[..., Any]) -> None:
    """Fault row 33."""
    reply, _ = do(raising(DataError("unlabeled", got=MARKER, reason=Reason.NO_CASES)))
    assert reply.get_return_code() == ReturnCode.OK
    assert reply.get_header(Header.DECLINED) == "NO_CASES: unlabeled"
    assert "DXO" not in reply


def test_a_stopped_task_says_so(do: Callable[..., Any]) -> None:
    reply, _ = do(raising(Aborted()))
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED


def test_an_unknown_task_is_unknown(do: Callable[..., Any]) -> None:
    reply, _ = do(name="labelling")
    assert reply.get_return_code() == ReturnCode.TASK_UNKNOWN


@pytest.mark.parametrize(
    ("header", "value", "reason"),
    [
        (Header.EXPERIMENT, "f" * 64, "VERSION: experiment other than at the server"),
        (Header.EXPERIMENT, None, "VERSION: experiment other than at the server"),
        (Header.SCHEMA, "f" * 64, "VERSION: schema other than at the server"),
        (Header.BASE, "f" * 64, "SCHEMA: shared tensors"),
        (Header.RUN, "../../up", "SCHEMA: fedmedseg.run"),
        (Header.RUN, "a" * 65, "SCHEMA: fedmedseg.run"),
        (Header.RUN, None, "SCHEMA: fedmedseg.run"),
        (Header.ROUND, -1, "SCHEMA: fedmedseg.round"),
        (Header.ROUND, True, "SCHEMA: fedmedseg.round"),
        (Header.ROUND, "0", "SCHEMA: fedmedseg.round"),
        (Header.ROUNDS, 1.5, "SCHEMA: fedmedseg.rounds"),
    ],
)
def test_a_task_of_another_study_is_refused_before_any_training(
    do: Callable[..., Any], header: str, value: object, reason: str
) -> None:
    reply, executor = do(headers={header: value})
    failed(reply, reason)
    assert executor.learner.tasks == []


def test_a_settings_file_changed_at_the_site_is_refused(
    request_for: Callable[..., Shareable],
    context: Callable[..., FLContext],
    experiment_file: Path,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    request = request_for()
    experiment_file.write_text(yaml.safe_dump({**settings, "seed": 8}))
    reply = ToyExecutor(Scripted(tmp_path, add_one)).execute("training", request, context(), Signal())
    failed(reply, "VERSION: experiment other than at the server")


@pytest.mark.parametrize("package", ["fedmedseg", "nvflare"])
def test_a_site_with_another_version_takes_no_part_and_says_which(
    do: Callable[..., Any], caplog: pytest.LogCaptureFixture, package: str
) -> None:
    reply, executor = do(headers={Header.VERSIONS: {**own_versions(), package: "99.1"}})
    failed(reply, f"VERSION: {package} {own_versions()[package]} (server 99.1)")
    assert executor.made == 0
    assert f"no part in training: VERSION: {package}" in caplog.text
    assert "install the wheel that the study's kits name" in caplog.text


def test_a_server_that_tells_no_versions_is_not_trusted_to_have_the_same(do: Callable[..., Any]) -> None:
    reply, executor = do(headers={Header.VERSIONS: None})
    assert reply.get_header(Header.REASON).startswith("VERSION: fedmedseg")
    assert executor.made == 0


def test_the_reason_of_a_difference_passes_the_sites_filters(do: Callable[..., Any]) -> None:
    for versions in (None, {**own_versions(), "torch": "1.0"}, dict.fromkeys(own_versions(), "9" * 32)):
        reply, _ = do(headers={Header.VERSIONS: versions})
        assert fit_reason(reply.get_header(Header.REASON)) == reply.get_header(Header.REASON)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"backdoor": torch.zeros(1)}, "UNKNOWN_TENSORS"),
        ({"a": torch.zeros(3)}, "TENSOR_SHAPE"),
        ({"a": torch.zeros(2).double()}, "TENSOR_TYPE"),
        ({"a": np.zeros(2, np.float32)}, "TENSOR_TYPE"),
        ({"a": torch.tensor([float("nan"), 0])}, "NOT_FINITE"),
        ({"a": None}, "TENSOR_TYPE"),
    ],
)
def test_a_crafted_shared_model_is_refused_before_any_training(
    do: Callable[..., Any], shared: Tensors, change: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 43."""
    note = MagicMock()
    monkeypatch.setattr(module, "note_in", note)
    reply, executor = do(tensors={**shared, **change})
    failed(reply, f"{code}: tensors from the server")
    assert executor.learner.tasks == []
    (told,) = note.call_args_list
    assert told.kwargs["outcome"] is Outcome.REFUSED
    assert told.kwargs["reason"].startswith(f"{code}: tensors from the server")


@pytest.mark.parametrize("content", [{}, {"a": torch.tensor([1.0, 2.0])}, "x", [1]])
def test_a_shared_model_that_lacks_tensors_is_refused(do: Callable[..., Any], content: Any) -> None:
    """Fault row 43."""
    reply, executor = do(tensors=content)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert executor.learner.tasks == []


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({MARKER: 1.0}, "SCHEMA: metric"),
        ({"loss/personal": 1.0}, "SCHEMA: metric"),
        ({"loss": float("nan")}, "SCHEMA: metric loss"),
        ({"loss": None}, "SCHEMA: metric loss"),
    ],
)
def test_an_undeclared_metric_does_not_leave_the_site(
    do: Callable[..., Any], caplog: pytest.LogCaptureFixture, metrics: Any, reason: str
) -> None:
    """Fault rows 42 and 44."""

    def act(task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        return Reply(tensors=shared, metrics=metrics)

    reply, _ = do(act)
    failed(reply, reason)
    assert MARKER not in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"a": torch.tensor([float("nan"), 0])}, "NOT_FINITE: tensors from this site"),
        ({"a": torch.zeros(3)}, None),
        ({"a": torch.zeros(2).double()}, "TENSOR_TYPE: tensors from this site"),
        ({"a": None}, None),
    ],
)
def test_what_the_learner_made_is_checked_before_it_is_sent(
    do: Callable[..., Any], change: dict[str, Any], reason: str | None
) -> None:
    """Fault rows 1, 3 and 34, at the site."""

    def act(task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        return Reply(tensors={**shared, **change})

    reply, _ = do(act)
    if reason is None:
        assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    else:
        failed(reply, reason)


def test_tensors_that_are_not_shared_stay_at_the_site(do: Callable[..., Any]) -> None:
    def act(task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        return Reply(tensors={**shared, "personal.head": torch.ones(3)})

    reply, _ = do(act)
    assert sorted(from_shareable(reply).data) == ["a", "b"]


def test_a_round_that_sends_no_tensor_any_more_is_trained_and_tensors_in_it_are_refused(
    sent_once: None, do: Callable[..., Any]
) -> None:
    received: list[Mapping[str, torch.Tensor]] = []

    def act(task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        received.append(shared)
        return Reply(metrics={"loss": 0.5}, examples=3, steps=7)

    reply, _ = do(act, number=1, tensors={}, headers={Header.BASE: content_crc32({})})
    assert reply.get_return_code() == ReturnCode.OK
    assert from_shareable(reply).data == {}
    assert from_shareable(reply).meta[Meta.METRICS] == {"loss": 0.5}
    assert received == [{}]
    failed(do(act, number=1)[0], "OVERSIZE: tensors from the server")
    failed(do(act, tensors={})[0], "EMPTY: tensors from the server")
    assert received == [{}]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_site_computes_with_the_threads_of_its_study(
    request_for: Callable[..., Shareable],
    context: Callable[..., FLContext],
    experiment_file: Path,
    settings: dict[str, Any],
    tmp_path: Path,
    threads: int,
) -> None:
    experiment_file.write_text(yaml.safe_dump({**settings, "compute": {"threads": threads}}))
    seen: list[int] = []

    def act(task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        seen.append(torch.get_num_threads())
        return add_one(task, shared)

    before = torch.get_num_threads()
    try:
        executor = ToyExecutor(Scripted(tmp_path / "state", act))
        assert executor.execute("training", request_for(), context(), Signal()).get_return_code() == ReturnCode.OK
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


@pytest.fixture
def ask(
    request_for: Callable[..., Shareable], context: Callable[..., FLContext], experiment_file: Path, tmp_path: Path
) -> Callable[..., Shareable]:
    """ask(run=..., signal=..., simulated=...): the answer of a new process of a site whose people decide."""
    settings = yaml.safe_load(experiment_file.read_text())
    # the server waits no longer for a round, so the site does not either
    experiment_file.write_text(yaml.safe_dump({**settings, "federation": {"timeout": 1}}))
    (experiment_file.parent / "config_fed_client.json").write_text("{}")
    meta = {"submitter_name": "lead", "submitter_org": "two", "submitter_role": "lead"}
    (experiment_file.parents[2] / "meta.json").write_text(json.dumps(meta))

    def call(*, run: str = "a1b2", signal: Signal | None = None, simulated: bool = False) -> Shareable:
        executor = ToyExecutor(Cautious(tmp_path / "state"))
        request = request_for(headers={Header.RUN: run})
        return executor.execute("training", request, context("kit", simulated=simulated), signal or Signal())

    return call


@pytest.mark.parametrize("simulated", [False, True])
def test_a_site_whose_people_decide_trains_once_they_agree(
    ask: Callable[..., Shareable], tmp_path: Path, simulated: bool
) -> None:
    failed(ask(simulated=simulated), "APPROVAL: no local decision in time")
    (matter,) = matters(tmp_path / "state")
    assert matter.request.job == "job"
    assert matter.request.wish.submitter == Submitter(name="lead", org="two", role="lead", signed=False)
    decide(tmp_path / "state", matter.request.wish.id, "approved")
    assert ask(simulated=simulated).get_return_code() == ReturnCode.OK
    assert not ask(simulated=simulated).get_header(Header.DECLINED)
    failed(ask(run="e5f6", simulated=simulated), "APPROVAL: no local decision in time")


def test_a_denied_job_is_declined_with_the_reason(
    ask: Callable[..., Shareable], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask()
    decide(tmp_path / "state", matters(tmp_path / "state")[0].request.wish.id, "denied", reason="no ethics vote")
    reply = ask()
    assert reply.get_return_code() == ReturnCode.OK
    assert reply.get_header(Header.DECLINED) == "DENIED: by a person at this site: no ethics vote"
    assert "no part in training: DENIED" in caplog.text


def test_an_abort_ends_the_wait_for_a_decision(ask: Callable[..., Shareable]) -> None:
    signal = Signal()
    signal.trigger(True)
    assert ask(signal=signal).get_return_code() == ReturnCode.TASK_ABORTED


def test_the_request_is_on_the_disk_while_the_site_waits(ask: Callable[..., Shareable], tmp_path: Path) -> None:
    signal, answers = Signal(), []
    site = threading.Thread(target=lambda: answers.append(ask(signal=signal)))
    site.start()
    end = time.monotonic() + 30
    while not matters(tmp_path / "state"):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert answers == []
    signal.trigger(True)
    site.join(timeout=30)
    assert answers[0].get_return_code() == ReturnCode.TASK_ABORTED
