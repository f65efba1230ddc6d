"""An administrator's session: what it refuses, which statuses are ends, how it waits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from nvflare.apis.job_def import RunStatus
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InvalidJobDefinition,
    JobNotFound,
    JobNotRunning,
)

from fedmedseg.core import admin
from fedmedseg.core.errors import ConfigurationError


@pytest.mark.parametrize("status", list(RunStatus))
def test_a_job_has_ended_in_every_status_but_those_before_and_while_it_runs(status: RunStatus) -> None:
    going = {RunStatus.SUBMITTED, RunStatus.APPROVED, RunStatus.DISPATCHED, RunStatus.RUNNING}
    assert admin.has_ended(status.value) is (status not in going)


class Answers:
    """A session that answers with one status after the other."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        return {"job_id": job_id, "status": self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]}


def test_wait_shows_every_answer_and_returns_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "POLL_SECONDS", 0.0)
    seen: list[str] = []
    meta = admin.wait(
        Answers("SUBMITTED", "RUNNING", "FINISHED:COMPLETED"),  # type: ignore[arg-type]
        "job",
        on_poll=lambda one: seen.append(admin.status_of(one)),
    )
    assert seen == ["SUBMITTED", "RUNNING", "FINISHED:COMPLETED"]
    assert admin.status_of(meta) == admin.COMPLETED


class Jobs:
    """A session with these jobs."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def list_jobs(self, *, id_prefix: str) -> list[dict[str, Any]]:
        return [{"job_id": one} for one in self.ids if one.startswith(id_prefix)]


def test_the_beginning_of_an_id_is_enough_where_one_job_has_it() -> None:
    first, second = "30c8d265-0f0e-4e41-a9f5-2f7f2f4a8a10", "30ff0000-0f0e-4e41-a9f5-2f7f2f4a8a10"
    jobs: Any = Jobs(first, second)
    assert admin.whole_id(jobs, "30c8d265") == first
    assert [admin.whole_id(jobs, word) for word in ("30", "77", "")] == ["30", "77", ""], "the server refuses them"
    assert admin.whole_id(None, second) == second, "nobody is asked about a whole id"  # type: ignore[arg-type]


def test_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "POLL_SECONDS", 0.0)
    with pytest.raises(TimeoutError, match="job is RUNNING after 0 s"):
        admin.wait(Answers("RUNNING"), "job", timeout=0)  # type: ignore[arg-type]


class Dead:
    """A session whose server is gone, or has nothing more to say of the job."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        raise self.error

    def abort_job(self, job_id: str) -> None:
        raise self.error

    def submit_job(self, folder: str) -> str:
        raise self.error

    def download_job_result(self, job_id: str, folder: str) -> str:
        raise self.error

    def shutdown(self, target: str, wait: bool) -> None:
        assert (target, wait) == ("all", False)
        raise self.error


@pytest.mark.parametrize("error", [kind("x") for kind in admin.GONE], ids=lambda one: type(one).__name__)
def test_a_server_that_is_gone_is_told_and_keeps_nobody_from_ending(error: Exception) -> None:
    gone: Any = Dead(error)
    with pytest.raises(ConfigurationError, match=rf"server: got no answer any more \({type(error).__name__}\)"):
        admin.meta_of(gone, "job")
    admin.abort(gone, "job")
    admin.shut_down(gone)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "study").mkdir()
    return tmp_path / "study"


NAMED = [
    # FLARE's error, call, what a person reads
    (
        JobNotFound("x"),
        "download",
        r"job: got 'id' \(JobNotFound\)\. Expected the id of a job you may manage.*job list",
    ),
    (AuthorizationError("x"), "download", r"job: got 'id' \(AuthorizationError\).*job list"),
    (AuthenticationError("x"), "download", r"session: got one that the server has ended.*again"),
    (AuthorizationError("x"), "submit", r"startup kit: got a role that may not submit jobs"),
    (InvalidJobDefinition("no deploy_map"), "submit", r"job: got 'study', which is refused \(no deploy_map\).*Remedy"),
    (AuthenticationError("x"), "submit", r"session: got one that the server has ended"),
    (AuthorizationError("x"), "abort", r"job: got 'id', which this administrator may not abort.*Remedy: ask the one"),
    (AuthenticationError("x"), "meta_of", r"session: got one that the server has ended"),
    *((kind("x"), call, r"server: got no answer any more") for kind in admin.GONE for call in ("submit", "download")),
]


@pytest.mark.parametrize(
    ("error", "call", "words"), NAMED, ids=lambda one: one if isinstance(one, str) else type(one).__name__
)
def test_what_flare_refuses_is_told_with_field_and_remedy(
    error: Exception, call: str, words: str, job: Path, tmp_path: Path
) -> None:
    session: Any = Dead(error)
    with pytest.raises(ConfigurationError, match=words):
        {
            "submit": lambda: admin.submit(session, job),
            "download": lambda: admin.download(session, "id", tmp_path / "results"),
            "abort": lambda: admin.abort(session, "id"),
            "meta_of": lambda: admin.meta_of(session, "id"),
        }[call]()


@pytest.mark.parametrize("error", [JobNotRunning("x"), JobNotFound("x"), AuthenticationError("x")])
def test_an_abort_of_what_does_not_run_is_no_error(error: Exception) -> None:
    session: Any = Dead(error)
    admin.abort(session, "id")


def test_a_job_that_left_nothing_is_told(tmp_path: Path) -> None:
    class Empty:
        def download_job_result(self, job_id: str, folder: str) -> None:
            return None

    session: Any = Empty()
    with pytest.raises(ConfigurationError, match="'id', of which the server hands out nothing"):
        admin.download(session, "id", tmp_path / "results")


def test_what_went_wrong_elsewhere_is_not_hidden(tmp_path: Path) -> None:
    broken: Any = Dead(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        admin.abort(broken, "job")
    with pytest.raises(ZeroDivisionError):
        admin.shut_down(broken)
    with pytest.raises(ZeroDivisionError):
        admin.download(broken, "job", tmp_path)


def test_an_abort_waits_until_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "POLL_SECONDS", 0.0)

    class Aborted(Answers):
        def abort_job(self, job_id: str) -> None:
            self.aborted = job_id

    session: Any = Aborted("RUNNING", "RUNNING", "FINISHED:ABORTED")
    admin.abort(session, "job-7")
    assert (session.aborted, session.statuses) == ("job-7", ["FINISHED:ABORTED"])
    stubborn: Any = Aborted("RUNNING")
    admin.abort(stubborn, "job-7", patience=0)


def test_a_kit_of_a_site_opens_no_session(tmp_path: Path) -> None:
    (tmp_path / "startup").mkdir()
    (tmp_path / "local").mkdir()
    (tmp_path / "startup" / "fed_client.json").write_text(
        json.dumps({"servers": [{"identity": "localhost", "service": {"target": "localhost:8002"}}], "client": {}})
    )
    with pytest.raises(ConfigurationError, match=r"kit of a client.*administrator"), admin.session(tmp_path):
        pass


def test_a_session_is_tried_again_until_its_patience_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(admin, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(admin, "open_kit", lambda kit: SimpleNamespace(role="admin", root=kit, server="server"))
    tries: list[float] = []
    closed: list[bool] = []

    def connect(*, timeout: float, **_: Any) -> Any:
        tries.append(timeout)
        if len(tries) < 3:
            raise admin.NoConnection("cannot connect")
        return SimpleNamespace(close=lambda: closed.append(True))

    monkeypatch.setattr(admin, "new_secure_session", connect)
    with admin.session(tmp_path, patience=5):
        assert len(tries) == 3
    assert closed == [True]
    assert tries[0] > tries[1] > tries[2] > 4


@pytest.mark.parametrize(
    ("error", "words", "tries"),
    [
        (admin.NoConnection("x"), r"no answer from server in 0.1 s \(NoConnection\)", 2),
        (admin.AuthenticationError("x"), "whom the server refuses", 1),
    ],
)
def test_a_server_that_stays_away_is_told_and_one_that_refuses_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: str, tries: int
) -> None:
    monkeypatch.setattr(admin, "POLL_SECONDS", 0.06)
    monkeypatch.setattr(admin, "open_kit", lambda kit: SimpleNamespace(role="admin", root=kit, server="server"))
    connect = MagicMock(side_effect=error)
    monkeypatch.setattr(admin, "new_secure_session", connect)
    with pytest.raises(ConfigurationError, match=words), admin.session(tmp_path, patience=0.1):
        pytest.fail("there is no session")
    assert connect.call_count == tries


def test_what_flare_logs_of_a_server_that_stays_away_is_not_put_before_our_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python's last resort writes warnings on stderr of loggers that nobody gave a handler."""
    monkeypatch.setattr(admin, "open_kit", lambda kit: SimpleNamespace(role="admin", root=kit, server="server"))

    def connect(**_: Any) -> Any:
        logging.getLogger("nvflare.fuel.f3.cellnet").warning("no connection to server")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(admin, "new_secure_session", connect)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    last = MagicMock(level=logging.WARNING)
    monkeypatch.setattr(logging, "lastResort", last)
    for _ in range(2):
        with admin.session(tmp_path):
            pass
    last.handle.assert_not_called()
    assert [type(one) for one in logging.getLogger("nvflare.fuel.f3").handlers].count(logging.NullHandler) == 1
    logging.getLogger("elsewhere").warning("still told")
    last.handle.assert_called_once()
