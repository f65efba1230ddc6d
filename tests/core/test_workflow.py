"""One stage's workflow on its own: settings, judging of replies, quorum, reasons and a full disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows import scatter_and_gather
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from fedmedseg.core import workflow as module
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.audit import Outcome
from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.persistor import SharedModelPersistor
from fedmedseg.core.question import Round
from fedmedseg.core.records import RunRecord
from fedmedseg.core.rounds import clean
from fedmedseg.core.transport import Codec
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import Header
from fedmedseg.core.workflow import QuorumScatterAndGather

SITES = ["site-1", "site-2", "site-3"]


class Federation:
    """A workflow with everything it needs, sites that answer by script, and the panics it called."""

    def __init__(
        self, file: Path, stage: str, context: Callable[..., FLContext], reply_to: Callable[..., Shareable]
    ) -> None:
        self.context, self.reply_to = context, reply_to
        self.flow = QuorumScatterAndGather(
            stage=stage,
            experiment_file=str(file),
            aggregator_id="rule",
            persistor_id="shared",
            shareable_generator_id="generator",
            record_id="record",
        )
        self.panics: list[str] = []
        self.asked: list[list[str]] = []
        self.patience: list[tuple[int, int]] = []
        self.timeouts: list[int] = []
        self.flow.system_panic = lambda reason, fl_ctx: self.panics.append(reason)
        self.flow._engine = MagicMock()
        clients = [MagicMock() for _ in SITES]
        for client, name in zip(clients, SITES, strict=True):
            client.name = name
        self.flow._engine.get_clients.return_value = list(reversed(clients))
        self.flow.aggregator = SharedKeysAggregator()
        self.flow.persistor = SharedModelPersistor(experiment_file=str(file))
        self.flow.persistor.open(context("server"))
        self.reporter = MagicMock()
        self.flow.record = RunRecord(reporter=self.reporter)
        self.flow.record.begin(
            self.flow.experiment, sites=SITES, stages=3, history=[], run="r1", started="2026-01-02T03:04:05+00:00"
        )
        self.flow._current_round = 0
        self.flow._global_weights = make_model_learnable(dict(self.flow.persistor._shared), {})
        self.script: dict[str, list[Any]] = {}

    def honest(self, site: str) -> Shareable:
        current: Round = self.flow.aggregator.round
        training = current.contract.returns == "shared"
        return self.reply_to(current, {"a": torch.ones(2), "b": torch.ones(2, 2)} if training else {})

    def deliver(
        self, task: Any, fl_ctx: FLContext, targets: list[str], min_responses: int, wait_time_after_min_received: int,
        abort_signal: Signal | None,
    ) -> None:  # fmt: skip
        """In place of FLARE's broadcast: every site answers with the next entry of its script."""
        self.asked.append(list(targets))
        self.patience.append((min_responses, wait_time_after_min_received))
        self.sent, self.timeouts = task.data, [*self.timeouts, task.timeout]
        # what the sites are asked must be what their answers are judged by
        assert task.data.get_header(Header.NONCE) == self.flow.aggregator.round.nonce
        for site in targets:
            entry = self.script.get(site, ["honest"])
            kind = entry.pop(0) if len(entry) > 1 else entry[0]
            if kind == "silent":
                continue
            reply = self.honest(site) if kind == "honest" else kind(self.honest(site))
            self.flow._accept_train_result(site, reply, self.context("server", peer=site))

    def round(self, monkeypatch: pytest.MonkeyPatch, **script: list[Any]) -> None:
        self.script = {site.replace("_", "-"): list(entries) for site, entries in script.items()}
        monkeypatch.setattr(module.ScatterAndGather, "broadcast_and_wait", lambda flow, **call: self.deliver(**call))
        task = Task(name=self.flow.stage, data=Shareable({"DXO": {"data": 1}}))
        self.flow.broadcast_and_wait(task, self.context("server"), abort_signal=Signal())


@pytest.fixture(autouse=True)
def audit(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """What is written to the audit trail."""
    note = MagicMock()
    monkeypatch.setattr(module, "note_in", note)
    return note


@pytest.fixture
def federation(
    experiment_file: Path, settings: dict[str, Any], context: Callable[..., FLContext], reply_to: Callable[..., Any]
) -> Callable[..., Federation]:
    """federation("training", quorum=2): a stage of three sites."""

    def make(stage: str = "training", **section: Any) -> Federation:
        experiment_file.write_text(yaml.safe_dump({**settings, "federation": section}))
        return Federation(experiment_file, stage, context, reply_to)

    return make


def error(reason: str | None) -> Callable[[Shareable], Shareable]:
    def make(honest: Shareable) -> Shareable:
        reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
        if reason is not None:
            reply.set_header(Header.REASON, reason)
        return reply

    return make


def declined(honest: Shareable) -> Shareable:
    reply = make_reply(ReturnCode.OK)
    reply.set_header(Header.DECLINED, "NO_CASES: unlabeled")
    return reply


def denied(honest: Shareable) -> Shareable:
    reply = make_reply(ReturnCode.OK)
    reply.set_header(Header.DECLINED, "DENIED: by a person at this site: no ethics vote")
    return reply


def nan(honest: Shareable) -> Shareable:
    honest["DXO"]["data"]["a"] = torch.tensor([float("nan"), 0.0])
    return honest


def last_record(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "kit" / "job" / "report" / "run.json").read_text())["rounds"][-1])


def test_rounds_and_patience_come_from_the_experiment(
    experiment_file: Path, settings: dict[str, Any], federation: Callable[..., Federation]
) -> None:
    flow = federation(timeout=50, wait_after_quorum=7).flow
    assert (flow._num_rounds, flow._train_timeout, flow._wait_time_after_min_received) == (2, 50, 7)
    settings["stages"]["training"]["timeout"] = 9
    flow = federation(timeout=50).flow
    assert (flow._train_timeout, flow._wait_time_after_min_received) == (9, 9)


def test_each_round_ends_with_a_collection_that_passes_over_what_was_there_before_the_stage(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 47."""
    done: list[str] = []
    monkeypatch.setattr(module.ScatterAndGather, "start_controller", lambda flow, fl_ctx: done.append("built"))
    monkeypatch.setattr(module, "set_lasting_objects_aside", lambda: done.append("set aside"))
    monkeypatch.setattr(scatter_and_gather, "cleanup_memory", lambda: done.append("collected"))
    stage = federation()
    stage.flow.communicator = MagicMock()
    stage.flow._engine.get_component.return_value = stage.flow.record
    stage.flow.start_controller(stage.context("server"))
    assert done == ["built", "set aside"]
    for number in range(3):
        stage.flow._current_round = number
        stage.flow._maybe_cleanup_memory()
    assert done == ["built", "set aside", *["collected"] * 3]


def test_a_stage_that_the_system_does_not_have_is_told_in_the_constructor(
    experiment_file: Path, context: Callable[..., FLContext], reply_to: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigurationError, match=r"got 'trainin'.*training, tuning, testing.*write 'training'"):
        Federation(experiment_file, "trainin", context, reply_to)


def test_a_clean_round_asks_every_site_once_with_all_headers(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = federation()
    stage.round(monkeypatch)
    assert stage.asked == [SITES]
    assert stage.panics == []
    assert sorted(stage.flow.aggregator.contributions) == SITES
    elsewhere = ("REASON", "DECLINED", "KEY", "EXTRA", "HELD")
    names = [value for key, value in vars(Header).items() if key.isupper() and key not in elsewhere]
    assert all(stage.sent.get_header(name) is not None for name in names)
    assert stage.sent.get_header(Header.EXPERIMENT) == stage.flow.experiment.digest
    assert stage.sent.get_header(Header.VERSIONS) == own_versions()
    assert stage.sent.get_header(Header.KEY) is None, "under encryption alone"


@pytest.mark.parametrize(("stage", "sends"), [("testing", False), ("tuning", True)])
def test_a_stage_sends_tensors_where_its_contract_says_so_and_only_there(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, stage: str, sends: bool
) -> None:
    flow = federation(stage)
    flow.round(monkeypatch)
    assert ("DXO" in flow.sent) is sends


def test_tensors_that_travel_down_encoded_are_counted_so_and_the_task_names_what_is_decoded(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    tmp_path: Path,
) -> None:
    stage = federation(transport_down="int8")
    stage.round(monkeypatch)
    sent = from_shareable(stage.sent).data
    decoded = Codec(transport="int8", schema=stage.flow.persistor.schema).opened(sent, sender="the server")
    assert stage.sent.get_header(Header.BASE) == content_crc32(decoded)
    assert sorted(stage.flow.aggregator.contributions) == SITES, "their replies name what they decoded"
    finish(stage, context("server"), moved=False)
    # two floats as they are, four numbers of a byte, a scale
    assert last_record(tmp_path)["sites"]["site-1"]["bytes_down"] == 2 * 4 + 4 + 4


def test_with_the_quorum_reached_a_failure_is_noted_and_nobody_is_asked_again(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, audit: MagicMock
) -> None:
    """Fault rows 1 and 18."""
    stage = federation(quorum=2, wait_after_quorum=4)
    stage.round(monkeypatch, site_2=[nan])
    assert stage.asked == [SITES]
    assert stage.patience == [(2, 4)]
    assert stage.panics == []
    assert sorted(stage.flow.aggregator.contributions) == ["site-1", "site-3"]
    (call,) = audit.call_args_list
    assert (call.kwargs["who"], call.kwargs["outcome"]) == ("site-2", Outcome.REFUSED)
    assert call.kwargs["reason"].startswith("NOT_FINITE")


def test_below_the_quorum_the_failed_site_is_asked_again_for_20_seconds(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fault row 9: what was accepted is not asked for twice, and the second answer counts."""
    stage = federation()
    stage.round(monkeypatch, site_2=[error("INTERNAL: RuntimeError"), "honest"])
    assert stage.asked == [SITES, ["site-2"]]
    assert stage.patience[1] == (1, 20)
    assert stage.timeouts[1] == 20
    assert stage.panics == []
    assert sorted(stage.flow.aggregator.contributions) == SITES
    assert stage.flow.aggregator.rejections == {}


def test_a_second_failure_ends_the_job_with_the_sites_and_their_reasons(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fault row 9."""
    stage = federation()
    stage.round(monkeypatch, site_2=[error("DISK: disk full")], site_3=[nan])
    assert stage.asked == [SITES, ["site-2", "site-3"]]
    assert stage.panics == [
        "training round 0: 1 of 3 needed replies were accepted "
        "(site-2: DISK: disk full; site-3: NOT_FINITE: a holds NaN or infinity). "
        "The shared model stays as it was before this round."
    ]
    record = last_record(tmp_path)
    assert (record["attempts"], record["accepted"], record["needed"]) == (2, ["site-1"], 3)
    assert record["shared_sha256"] is None
    assert record["sites"]["site-2"]["reason"] == "DISK: disk full"
    refused = [(refusal["site"], refusal["reason"].split(":")[0]) for refusal in record["refusals"]]
    assert sorted(refused) == [("site-2", "DISK")] * 2 + [("site-3", "NOT_FINITE")] * 2


def test_silent_sites_are_not_asked_again_when_too_few_are_alive(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault rows 9 and 23: the retry is for sites known alive."""
    stage = federation(quorum=2)
    stage.round(monkeypatch, site_1=["silent"], site_2=["silent"])
    assert stage.asked == [SITES]
    assert stage.panics[0].startswith("training round 0: 1 of 2 needed replies")
    assert "site-1: no reply in time; site-2: no reply in time" in stage.panics[0]


def test_a_site_that_declines_leaves_the_quorum_and_the_next_round(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fault row 33."""
    stage = federation()
    stage.round(monkeypatch, site_2=[declined])
    assert stage.panics == []
    assert stage.asked == [SITES]
    stage.flow._current_round = 1
    stage.round(monkeypatch)
    assert stage.asked[1] == ["site-1", "site-3"]
    assert stage.panics == []


def test_a_site_whose_people_refuse_the_job_leaves_the_quorum_with_their_words(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unlike another version it is a declaration: `all` means all that take part."""
    stage = federation()
    stage.round(monkeypatch, site_2=[denied])
    assert stage.panics == []
    stage.flow._write_record("0" * 64)
    site = last_record(tmp_path)["sites"]["site-2"]
    assert (site["declined"], site["reason"]) == (True, "DENIED: by a person at this site: no ethics vote")


OTHER = "VERSION: fedmedseg 0.1.0 (server 0.2.0)"


def test_a_site_of_another_version_stops_a_study_that_wants_all_sites(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It does not decline: going on without it in silence is not what `all` means. Asking again mends nothing."""
    stage = federation()
    stage.round(monkeypatch, site_2=[error(OTHER)])
    assert stage.asked == [SITES]
    assert stage.panics == [
        f"training round 0: 2 of 3 needed replies were accepted (site-2: {OTHER}). "
        "The shared model stays as it was before this round."
    ]
    site = last_record(tmp_path)["sites"]["site-2"]
    assert (site["accepted"], site["declined"], site["reason"]) == (False, False, OTHER)


def test_a_quorum_goes_on_without_a_site_of_another_version_and_names_it_in_every_round(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    tmp_path: Path,
    audit: MagicMock,
) -> None:
    stage = federation(quorum=2)
    for number in (0, 1):
        stage.flow._current_round = number
        stage.round(monkeypatch, site_2=[error(OTHER)])
        finish(stage, context("server"))
        record = last_record(tmp_path)
        assert (record["accepted"], record["needed"]) == (["site-1", "site-3"], 2)
        assert record["sites"]["site-2"]["reason"] == OTHER
    assert stage.asked == [SITES, ["site-1", "site-3"]]
    assert stage.panics == []
    (call,) = audit.call_args_list
    assert (call.kwargs["reason"], call.kwargs["outcome"]) == (OTHER, Outcome.FAILED)


def test_a_failure_beside_a_site_of_another_version_is_asked_again_while_that_can_help(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = federation(quorum=2)
    stage.round(monkeypatch, site_2=[error(OTHER)], site_3=[nan, "honest"])
    assert stage.asked == [SITES, ["site-3"]]
    assert stage.panics == []
    stage = federation()
    stage.round(monkeypatch, site_2=[error(OTHER)], site_3=[nan, "honest"])
    assert stage.asked == [SITES]
    assert f"site-2: {OTHER}; site-3: NOT_FINITE" in stage.panics[0]


def test_when_every_site_declines_the_job_says_why(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = federation()
    stage.round(monkeypatch, site_1=[declined], site_2=[declined], site_3=[declined])
    assert stage.asked == [SITES]
    assert "0 of 1 needed replies" in stage.panics[0]
    assert stage.panics[0].count("NO_CASES: unlabeled") == 3


def collecting(stage: Federation) -> Federation:
    stage.flow.contract = dataclasses.replace(stage.flow.contract, collects=True)
    return stage


@pytest.mark.parametrize("quorum", ["all", 2, 0.5])
def test_a_stage_of_gifts_may_be_declined_by_every_site(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    quorum: object,
) -> None:
    stage = collecting(federation(quorum=quorum, no_progress_rounds=1))
    stage.round(monkeypatch, site_1=[denied], site_2=[denied], site_3=[denied])
    assert stage.asked == [SITES], "nobody is asked again"
    finish(stage, context("server"), moved=False)
    assert stage.panics == []


def test_a_stage_of_gifts_stops_where_a_site_that_wants_to_give_cannot(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = collecting(federation())
    stage.round(monkeypatch, site_1=[denied], site_2=[denied], site_3=[nan])
    assert stage.asked == [SITES, ["site-3"]]
    assert "0 of 1 needed replies" in stage.panics[0]


def test_a_stage_of_gifts_without_any_site_stops(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = collecting(federation())
    stage.flow._engine.get_clients.return_value = []
    stage.round(monkeypatch)
    assert "0 of 1 needed replies" in stage.panics[0]


def test_an_error_without_words_is_told_by_its_code(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = federation(quorum=2)
    stage.round(monkeypatch, site_1=[error(None)])
    assert stage.flow.aggregator.rejections == {"site-1": "SITE_ERROR: EXECUTION_EXCEPTION"}


def test_a_sites_own_words_are_cut_to_a_safe_line() -> None:
    """Fault row 44: a hostile site cannot write paths, markup or new lines into the server's log."""
    assert clean("DISK: disk full") == "DISK: disk full"
    assert clean("a\nINFO forged /etc/passwd <b>") == "a?INFO forged ?etc?passwd ?b?"
    assert len(clean("x" * 9999)) == 200
    assert clean(None) == "None"


def test_a_failed_reply_after_an_accepted_one_does_not_take_its_place(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, context: Callable[..., FLContext]
) -> None:
    """Fault rows 14 and 16: a late or repeated result changes nothing."""
    stage = federation()
    stage.round(monkeypatch)
    before = dict(stage.flow.aggregator.contributions)
    sender = context("server", peer="site-1")
    assert stage.flow._accept_train_result("site-1", stage.honest("site-1"), sender) is False
    assert stage.flow._accept_train_result("site-1", error("DISK: x")(Shareable()), sender) is False
    assert stage.flow.aggregator.contributions == before
    assert stage.flow.aggregator.rejections == {}
    assert stage.flow._sites.replies["site-1"]["reason"] is None


def finish(stage: Federation, fl_ctx: FLContext, *, moved: bool = True) -> None:
    """What FLARE does after the replies: aggregate, add to the shared model, end the round."""
    differences = from_shareable(stage.flow.aggregator.aggregate(fl_ctx)).data
    shared = stage.flow.persistor._shared
    new = {name: tensor + (differences[name] if moved else 0) for name, tensor in shared.items()}
    stage.flow._global_weights = make_model_learnable(new, {})
    stage.flow.persistor.save_model(stage.flow._global_weights, fl_ctx)
    stage.flow._phase = AppConstants.PHASE_TRAIN
    fl_ctx.set_prop(AppConstants.PHASE, AppConstants.PHASE_TRAIN)
    stage.flow.handle_event("_round_done", fl_ctx)


def test_a_round_ends_with_a_record_of_every_site(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    tmp_path: Path,
) -> None:
    stage = federation(quorum=2)
    stage.round(monkeypatch, site_3=[nan])
    finish(stage, context("server"))
    record = last_record(tmp_path)
    assert record["accepted"] == ["site-1", "site-2"]
    assert record["sites"]["site-1"]["bytes_up"] == record["sites"]["site-1"]["bytes_down"] == 24
    assert record["sites"]["site-1"]["weight"] == 0.5
    assert record["sites"]["site-3"] == {
        **record["sites"]["site-3"],
        "accepted": False,
        "reason": "NOT_FINITE: a holds NaN or infinity",
        "bytes_up": 0,
        "weight": None,
        "examples": None,
    }
    assert stage.flow.persistor.rounds_done == {"training": 1}
    assert record["shared_sha256"] != stage.flow._round_facts["shared"]


def test_a_model_that_does_not_change_for_three_rounds_ends_the_job(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, context: Callable[..., FLContext]
) -> None:
    """Fault row 36."""
    stage = federation(no_progress_rounds=3)
    for number, moved in enumerate([False, False, True, False, False]):
        stage.flow._current_round = number
        stage.round(monkeypatch)
        finish(stage, context("server"), moved=moved)
    assert stage.panics == []
    stage.flow._current_round = 5
    stage.round(monkeypatch)
    finish(stage, context("server"), moved=False)
    assert stage.panics == ["training: no progress, the shared model has not changed for 3 rounds"]


def test_a_stage_of_metrics_makes_no_progress_by_nature(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, context: Callable[..., FLContext]
) -> None:
    stage = federation("tuning", no_progress_rounds=1)
    stage.round(monkeypatch)
    finish(stage, context("server"), moved=False)
    assert stage.panics == []


@pytest.mark.parametrize("gifts", [True, False])
def test_a_stage_of_gifts_makes_no_progress_by_nature(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    gifts: bool,
) -> None:
    stage = federation(no_progress_rounds=1)
    stage = collecting(stage) if gifts else stage
    stage.round(monkeypatch)
    finish(stage, context("server"), moved=False)
    assert len(stage.panics) == (0 if gifts else 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("where", ["persistor", "record"])
def test_a_full_disk_on_the_server_ends_the_job_with_the_reason(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    number: int,
    where: str,
) -> None:
    """Fault row 27: FLARE logs and forgets what an event handler raises, so the workflow must not leave it to FLARE."""
    stage = federation()
    stage.round(monkeypatch)
    broken = MagicMock(side_effect=OSError(number, "no", "/secret/path"))
    target = (stage.flow.persistor, "finish_round") if where == "persistor" else (stage.flow.record, "add_round")
    monkeypatch.setattr(*target, broken)
    finish(stage, context("server"))
    (reason,) = stage.panics
    assert "could not be saved (disk full)" in reason or number != errno.ENOSPC
    assert "The checkpoint before it stays whole" in reason
    assert "/secret/path" not in reason


def test_a_full_disk_does_not_hide_why_a_round_fell_short(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 27."""
    stage = federation()
    monkeypatch.setattr(stage.flow.record, "add_round", MagicMock(side_effect=OSError(errno.ENOSPC, "no")))
    stage.round(monkeypatch, site_1=[nan])
    assert "site-1: NOT_FINITE" in stage.panics[0]


def test_an_aborted_round_is_no_shortfall(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, context: Callable[..., FLContext]
) -> None:
    stage = federation()
    monkeypatch.setattr(module.ScatterAndGather, "broadcast_and_wait", lambda flow, **call: None)
    signal = Signal()
    signal.trigger(True)
    task = Task(name="training", data=Shareable())
    stage.flow.broadcast_and_wait(task, context("server"), abort_signal=signal)
    assert stage.panics == []


def test_a_refusal_that_asking_again_made_good_stays_on_record(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = federation()
    stage.round(monkeypatch, site_2=[error("DISK: disk full"), "honest"])
    assert stage.panics == []
    stage.flow._write_record("0" * 64)
    record = last_record(tmp_path)
    assert record["accepted"] == SITES
    assert record["refusals"] == [{"site": "site-2", "reason": "DISK: disk full"}]


def test_fewer_sites_than_a_count_quorum_stop_the_stage_before_anything_is_sent(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fault row 23: FLARE itself would raise, and name no site."""
    stage = federation(quorum=3)
    stage.flow._sites.declined["site-3"] = "NO_CASES: training"
    stage.round(monkeypatch)
    assert stage.asked == []
    assert stage.panics == [
        "training round 0: 0 of 3 needed replies were accepted (site-1: no reply in time; site-2: no reply in time; "
        "site-3: NO_CASES: training). The shared model stays as it was before this round."
    ]
    assert last_record(tmp_path)["needed"] == 3


def test_fewer_sites_than_the_studys_rule_needs_are_below_the_quorum(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fault row 13: a fraction of the sites may be enough for the study, and too few for its rule."""
    stage = federation(quorum=0.3, robust={"rule": "median", "faulty": 1})
    stage.round(monkeypatch, site_1=["silent"])
    assert last_record(tmp_path)["needed"] == 3
    assert "2 of 3 needed replies were accepted" in stage.panics[0]
    fine = federation(quorum=0.3)
    fine.round(monkeypatch, site_1=["silent"])
    assert fine.panics == []


def test_a_stage_that_every_site_declined_stops_with_their_reasons(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = federation()
    for site in SITES:
        stage.flow._sites.declined[site] = "NO_CASES: unlabeled"
    stage.round(monkeypatch)
    assert "site-1: NO_CASES: unlabeled; site-2: NO_CASES: unlabeled" in stage.panics[0]


@pytest.mark.parametrize("problem", [FedMedSegError("state", reason=Reason.STALE), TypeError("secret")])
def test_a_round_that_cannot_be_saved_for_any_reason_stops_the_job(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    """FLARE logs and forgets what an event handler raises: the job would go on without a checkpoint."""
    stage = federation()
    stage.round(monkeypatch)

    def fail(*args: object) -> None:
        raise problem

    monkeypatch.setattr(stage.flow.persistor, "finish_round", fail)
    stage.flow._finish_round(stage.context("server"))
    assert len(stage.panics) == 1
    assert "could not be saved" in stage.panics[0]
    assert "secret" not in stage.panics[0]


def test_a_site_cannot_answer_in_another_sites_name(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, context: Callable[..., FLContext]
) -> None:
    """The name in a request's context is the client's own word, the client itself is known by its token."""
    stage = federation()
    stage.round(monkeypatch, site_1=["silent"], site_2=["silent"])
    for peer in ("site-1", None):
        assert stage.flow._accept_train_result("site-2", stage.honest("site-1"), context("server", peer=peer)) is False
    assert sorted(stage.flow.aggregator.contributions) == ["site-3"]
    assert stage.flow._sites.replies["site-2"]["reason"] == "SCHEMA: a reply in another site's name"
    assert "site-1" not in stage.flow._sites.replies
    assert stage.flow._accept_train_result("site-1", stage.honest("site-1"), context("server", peer="site-1"))


def test_a_stage_that_sends_its_tensors_once_sends_an_empty_part_after_that(
    sent_once: None,
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    tmp_path: Path,
) -> None:
    stage = federation()
    for number, names, nbytes in ((0, ["a", "b"], 24), (1, [], 0)):
        stage.flow._current_round = number
        stage.round(monkeypatch)
        sent = from_shareable(stage.sent).data
        assert sorted(sent) == names
        assert stage.sent.get_header(Header.BASE) == content_crc32(sent)
        assert sorted(stage.flow.aggregator.contributions) == SITES
        finish(stage, context("server"), moved=False)
        assert last_record(tmp_path)["sites"]["site-1"]["bytes_down"] == nbytes
    assert stage.panics == []


def lose(stage: Federation, site: str) -> None:
    """FLARE finds a site's process gone."""
    fl_ctx = stage.context("server")
    fl_ctx.set_prop(FLContextKey.DISCONNECTED_CLIENT_NAME, site)
    stage.flow.handle_event(EventType.CLIENT_DISCONNECTED, fl_ctx)


def test_a_lost_site_is_needed_and_not_asked_until_it_asks_for_work(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault rows 21 and 22."""
    stage = federation(quorum=2)
    lose(stage, "site-2")
    stage.round(monkeypatch)
    assert stage.asked == [["site-1", "site-3"]]
    assert stage.panics == []
    stage.flow.handle_event(EventType.BEFORE_PROCESS_TASK_REQUEST, stage.context("server", peer="site-2"))
    stage.round(monkeypatch)
    assert stage.asked[-1] == SITES


@pytest.mark.parametrize(
    ("phase", "simulated", "seconds"),
    [
        (AppConstants.PHASE_TRAIN, False, 1.0),
        (AppConstants.PHASE_FINISHED, False, 0.25),
        (AppConstants.PHASE_TRAIN, True, 0.02),
    ],
)
def test_the_stage_at_work_says_how_soon_a_site_asks_again(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, phase: str, simulated: bool, seconds: float
) -> None:
    """50 seconds into a round it is a second, and in the simulator at once; a stage that has ended leaves what is."""
    stage = federation()
    stage.round(monkeypatch)
    stage.flow._phase = phase
    stage.flow._round_facts["began"] = time.monotonic() - 50.0
    fl_ctx = stage.context("server", peer="site-2")
    runner = SimpleNamespace(config=SimpleNamespace(task_request_interval=0.25), _try_to_get_task=MagicMock())
    asked = runner._try_to_get_task
    fl_ctx.set_prop(FLContextKey.RUNNER, runner, private=True, sticky=False)
    monkeypatch.setattr(module, "place_of", lambda _: MagicMock(simulated=simulated))
    stage.flow.handle_event(EventType.BEFORE_PROCESS_TASK_REQUEST, fl_ctx)
    assert runner.config.task_request_interval == pytest.approx(seconds, rel=0.05)
    assert (runner._try_to_get_task is not asked) == simulated, "the simulator's server keeps questions"


def test_a_lost_site_stops_a_study_that_wants_all_sites_and_is_named(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fault row 23."""
    stage = federation()
    lose(stage, "site-2")
    stage.round(monkeypatch)
    assert stage.asked == []
    (reason,) = stage.panics
    assert "of 3 needed replies" in reason
    assert "site-2: LOST: its process is gone" in reason
    assert last_record(tmp_path)["sites"]["site-2"]["reason"] == "LOST: its process is gone"


def test_a_site_lost_in_the_round_is_not_asked_again_in_it(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 9: the site that failed is; waiting for a dead one would cost the whole patience."""
    stage = federation(quorum=2)

    def failed_while_another_died(honest: Shareable) -> Shareable:
        lose(stage, "site-3")
        return nan(honest)

    stage.round(monkeypatch, site_2=[failed_while_another_died, "honest"], site_3=["silent"])
    assert stage.asked == [SITES, ["site-2"]]
    assert stage.panics == []


def test_a_message_refused_unread_is_noted_once_a_round_and_counts_against_nobody(
    federation: Callable[..., Federation],
    monkeypatch: pytest.MonkeyPatch,
    context: Callable[..., FLContext],
    tmp_path: Path,
    audit: MagicMock,
) -> None:
    """Fault row 17. The sender's name is not proved: what comes from the site itself stands in its place."""
    stage = federation(quorum=2)
    stage.flow._engine.new_context.return_value.__enter__.return_value = context("server")

    reason = "OVERSIZE: a message of 1000000000 bytes, at most 1000"

    def after_large_ones(honest: Shareable) -> Shareable:
        for sender in ("site-1", "site-1", "site-3", "nobody"):
            stage.flow._refuse_unread(sender, reason)
        return honest

    stage.round(monkeypatch, site_1=["silent"], site_2=[after_large_ones])
    stage.flow._write_record("0" * 64)
    record = last_record(tmp_path)
    assert record["accepted"] == ["site-2", "site-3"]
    assert record["sites"]["site-1"]["reason"] == reason
    assert record["refusals"] == [{"site": one, "reason": reason} for one in ("site-1", "site-3", "somebody")]
    assert [call.kwargs["who"] for call in audit.call_args_list] == ["site-1", "site-3", "somebody"]


def looked_at(stage: Federation, fl_ctx: FLContext) -> dict[str, Any] | None:
    """What somebody hears who asks FLARE for the job's statistics now."""
    collector = GroupInfoCollector()
    fl_ctx.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector, private=True, sticky=False)
    stage.flow.handle_event(InfoCollector.EVENT_TYPE_GET_STATS, fl_ctx)
    return collector.info.get("fedmedseg")


def test_a_running_stage_tells_those_who_look_on_how_its_sites_stand_and_another_tells_nothing(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch, context: Callable[..., FLContext]
) -> None:
    stage = federation(quorum=1)
    assert looked_at(stage, context("server")) is None, "nothing was sent yet"
    heard: list[Any] = []

    def while_others_work(honest: Shareable) -> Shareable:
        stage.flow._phase = AppConstants.PHASE_TRAIN
        heard.append(looked_at(stage, context("server")))
        return honest

    stage.round(monkeypatch, site_1=[nan], site_2=[while_others_work])
    (told,) = heard
    assert told["sites"] == {"site-1": "NOT_FINITE", "site-2": "at work", "site-3": "at work"}
    assert (told["stage"], told["round"], told["left"], told["metrics"]) == ("training", 0, None, {})
    finish(stage, context("server"))
    after = looked_at(stage, context("server"))
    assert after is not None
    assert set(after["sites"].values()) == {"NOT_FINITE", "replied"}
    assert after["left"] is not None
    stage.flow._phase = AppConstants.PHASE_FINISHED
    assert looked_at(stage, context("server")) is None
