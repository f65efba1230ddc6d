"""The record of a run: a file per round, one for the whole, and the reason a run was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.config import Experiment
from fedmedseg.core.records import RunRecord, installed_versions
from fedmedseg.core.server_events import FigureTeller
from fedmedseg.core.tracking import ANALYTICS_EVENT


class Listener:
    """A reporter that remembers what it was asked to write."""

    def __init__(self) -> None:
        self.written: list[Mapping[str, Any]] = []

    def write(self, record: Mapping[str, Any], folder: Path) -> Path:
        self.written.append(json.loads(json.dumps(record)))
        return folder / "report.html"

    def summary(self, record: Mapping[str, Any]) -> str:
        return "two\nlines"


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(reporter=Listener())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kit" / "job" / "report"


def event(record: RunRecord, name: str, fl_ctx: FLContext, data: str | None = None) -> None:
    fl_ctx.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
    record.handle_event(name, fl_ctx)


RUN = {"run": "r1", "started": "2026-01-02T03:04:05+00:00"}


def round_record(stage: str, number: int, digest: str | None) -> dict[str, Any]:
    return {"stage": stage, "round": number, "shared_sha256": digest}


def test_a_run_finishes_when_all_its_stages_did(
    record: RunRecord, study: Callable[..., Experiment], context: Callable[..., FLContext], folder: Path
) -> None:
    for stage in ("training", "testing"):
        record.begin(study(), sites=["site-2", "site-1"], stages=2, history=[], **RUN)
        record.add_round(round_record(stage, 0, "abc" if stage == "training" else None), folder)
        so_far = json.loads((folder / "run.json").read_text())
        assert so_far["outcome"] == "stopped", "until the last stage has ended"
        assert not so_far["ended"]
        record.end_stage()
    event(record, EventType.END_RUN, context("server"))
    whole = json.loads((folder / "run.json").read_text())
    assert (whole["outcome"], whole["reason"], whole["sites"]) == ("finished", None, ["site-1", "site-2"])
    assert whole["ended"]
    assert whole["shared_sha256"] == "abc", "a stage without tensors leaves the digest of the last model"
    assert whole["experiment_sha256"] == study().digest
    assert whole["labels"] == {"1": "left", "2": "right"}
    assert [entry["stage"] for entry in whole["rounds"]] == ["training", "testing"]
    assert json.loads((folder / "rounds" / "training-0000.json").read_text()) == round_record("training", 0, "abc")
    assert (folder / "rounds" / "testing-0000.json").is_file()


def test_the_report_is_written_once_whatever_ends_the_run(
    record: RunRecord, study: Callable[..., Experiment], context: Callable[..., FLContext]
) -> None:
    record.begin(study(), sites=["site-1"], stages=1, history=[], **RUN)
    for _ in range(2):
        event(record, EventType.END_RUN, context("server"))
    assert len(record.reporter.written) == 1
    assert record.reporter.written[0]["outcome"] == "stopped"


def test_the_first_reason_is_the_cause(
    record: RunRecord, study: Callable[..., Experiment], context: Callable[..., FLContext], folder: Path
) -> None:
    record.begin(study(), sites=["site-1"], stages=1, history=[], **RUN)
    event(record, EventType.FATAL_SYSTEM_ERROR, context("server"), "below the quorum")
    event(record, EventType.FATAL_SYSTEM_ERROR, context("server"), "aborted")
    event(record, EventType.END_RUN, context("server"))
    assert json.loads((folder / "run.json").read_text())["reason"] == "below the quorum"


def test_a_reason_told_before_the_record_began_is_not_lost(
    record: RunRecord, study: Callable[..., Experiment], context: Callable[..., FLContext], folder: Path
) -> None:
    event(record, EventType.FATAL_SYSTEM_ERROR, context("server"), "no persistor")
    record.begin(study(), sites=["site-1"], stages=1, history=[], **RUN)
    event(record, EventType.END_RUN, context("server"))
    whole = json.loads((folder / "run.json").read_text())
    assert (whole["outcome"], whole["reason"]) == ("stopped", "no persistor")


def test_a_run_that_never_began_leaves_no_record(
    record: RunRecord, context: Callable[..., FLContext], folder: Path
) -> None:
    event(record, EventType.FATAL_SYSTEM_ERROR, context("server"), "no persistor")
    event(record, EventType.END_RUN, context("server"))
    assert not folder.exists()
    assert record.reporter.written == []


def test_a_resumed_run_starts_with_the_rounds_before_and_does_not_change_them(
    record: RunRecord, study: Callable[..., Experiment], folder: Path
) -> None:
    history = [round_record("training", 0, "abc") | {"wall_seconds": 40.0}]
    record.begin(study(), sites=["site-1"], stages=1, history=history, **RUN)
    record.add_round(round_record("training", 1, "def"), folder)
    whole = json.loads((folder / "run.json").read_text())
    assert [entry["round"] for entry in whole["rounds"]] == [0, 1]
    assert len(history) == 1
    assert (whole["run"], whole["started"]) == ("r1", RUN["started"]), "it is the run that it continues"
    assert whole["continued"] > whole["started"]
    assert 40.0 <= whole["seconds"] < 50.0, "the time before counts"


def test_versions_name_what_decides_results() -> None:
    versions = installed_versions()
    assert set(versions) == {"python", "fedmedseg", "nvflare", "torch", "monai", "numpy", "nibabel"}
    assert versions["nvflare"].startswith("2.")


def test_a_resumed_run_writes_the_files_of_the_rounds_before_it_too(
    record: RunRecord, study: Callable[..., Experiment], folder: Path
) -> None:
    history = [round_record("training", 0, "a")]
    record.begin(study(), sites=["site-1"], stages=1, history=history, shared_sha256="a", **RUN)
    record.add_round(round_record("training", 1, "b"), folder)
    files = sorted(file.name for file in (folder / "rounds").iterdir())
    assert files == ["training-0000.json", "training-0001.json"]


def test_the_record_names_every_model_that_the_server_kept_published_heads_too(
    record: RunRecord, study: Callable[..., Experiment], context: Callable[..., FLContext], folder: Path
) -> None:
    for name in ("shared", "published/site-1", "published/site-2"):
        file = folder.parent / "models" / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"four")
    record.begin(study(), sites=["site-1"], stages=1, history=[], **RUN)
    event(record, EventType.END_RUN, context("server"))
    assert json.loads((folder / "run.json").read_text())["models"] == [
        {"file": f"models/{name}.safetensors", "bytes": 4}
        for name in ("published/site-1", "published/site-2", "shared")
    ]


def test_what_rounds_hold_is_told_before_receivers_close(
    record: RunRecord,
    study: Callable[..., Experiment],
    context: Callable[..., FLContext],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FLARE fires ABOUT_TO_END_RUN to all before it fires END_RUN to any."""
    fl_ctx = context("server")
    engine = fl_ctx.get_engine()
    event(record, EventType.START_RUN, fl_ctx)
    record.begin(study(), sites=["site-1"], stages=1, history=[], **RUN)
    for number in range(2):
        facts = {"site-1": {"metrics": {"loss": 0.5, "cases": 2.0}}, "site-2": {"metrics": {}}}
        record.add_round({**round_record("training", number, None), "sites": facts}, folder)
    event(record, EventType.ABOUT_TO_END_RUN, fl_ctx)
    assert [call.args[0] for call in engine.fire_event.call_args_list] == [ANALYTICS_EVENT] * 4
    assert caplog.text == ""


def test_figures_that_nobody_took_in_time_are_said_to_be_missing(
    record: RunRecord, context: Callable[..., FLContext], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(FigureTeller, "finish", lambda teller: False)
    event(record, EventType.ABOUT_TO_END_RUN, context("server"))
    assert "not all figures reached TensorBoard" in caplog.text
