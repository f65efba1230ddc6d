"""`fedmedseg resume`: what it submits again, and what it refuses with words instead of a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from nvflare.fuel.flare_api.api_spec import AuthorizationError, JobNotFound, NoConnection
from typer.testing import CliRunner

from fedmedseg.cli import resume as module
from fedmedseg.cli.main import app
from fedmedseg.core import admin
from fedmedseg.core.jobs import EXPERIMENT, find_job

OLD, NEW = "3f1c8a52-0000-4000-8000-000000000001", "3f1c8a52-0000-4000-8000-000000000002"


class Server:
    """A session with a server that keeps one job, and answers as the test says."""

    def __init__(self, status: str, *later: str, **raises: Exception) -> None:
        self.statuses = [status, *later]
        self.raises = raises
        self.submitted: list[dict[str, Any]] = []

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        self._answer("meta")
        return {"job_id": job_id, "status": self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]}

    def download_job_result(self, job_id: str, folder: str) -> str:
        self._answer("download")
        found = Path(folder) / job_id
        shutil.copytree(find_job("fedata"), found / "job" / "study")
        (found / "workspace").mkdir()
        return str(found)

    def submit_job(self, folder: str) -> str:
        self._answer("submit")
        self.submitted.append(yaml.safe_load((Path(folder) / EXPERIMENT).read_text()))
        return NEW

    def _answer(self, call: str) -> None:
        if call in self.raises:
            raise self.raises[call]


@pytest.fixture
def resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Server], tuple[int, str]]:
    """resume(server): exit status, and what a person reads."""

    def call(server: Server) -> tuple[int, str]:
        @contextmanager
        def session(kit: Path) -> Iterator[Server]:
            assert kit == tmp_path
            yield server

        monkeypatch.setattr(admin, "session", session)
        monkeypatch.setattr(admin, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(module, "ENDING_SECONDS", 0.1)
        done = CliRunner().invoke(app, ["resume", OLD, "--startup-kit", str(tmp_path)])
        next_line = f" next: fedmedseg monitor {NEW} --startup-kit {tmp_path}"
        # an error that nobody translated keeps its traceback
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        said = " ".join(done.output.split())
        assert said.endswith(next_line) == (done.exit_code == 0)
        return done.exit_code, said.removesuffix(next_line)

    return call


@pytest.mark.parametrize("status", ["FINISHED:ABORTED", "FINISHED:ABANDONED", "FINISHED:EXECUTION_EXCEPTION"])
def test_a_job_that_was_cut_short_continues_as_another(
    resume: Callable[[Server], tuple[int, str]], status: str
) -> None:
    server = Server(status)
    assert resume(server) == (0, f"job {OLD} was {status}; it continues as {NEW}")
    (experiment,) = server.submitted
    assert experiment["resume"] is True


@pytest.mark.parametrize("status", ["SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING"])
def test_a_job_that_still_runs_is_refused_with_the_way_to_end_it(
    resume: Callable[[Server], tuple[int, str]], status: str
) -> None:
    server = Server(status)
    code, said = resume(server)
    assert code == 2
    assert f"{OLD}, which is {status}. Expected one that does not run any more" in said
    assert f"nvflare job abort {OLD}" in said
    assert server.submitted == []


def test_a_job_that_was_aborted_a_moment_ago_is_given_the_time_to_end(
    resume: Callable[[Server], tuple[int, str]],
) -> None:
    server = Server("RUNNING", "RUNNING", "FINISHED:ABORTED")
    assert resume(server) == (0, f"job {OLD} was FINISHED:ABORTED; it continues as {NEW}")


def test_a_job_that_completed_is_refused(resume: Callable[[Server], tuple[int, str]]) -> None:
    server = Server("FINISHED:COMPLETED")
    code, said = resume(server)
    assert (code, server.submitted) == (2, [])
    assert "Expected one that did not complete" in said


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("meta", JobNotFound("x"), "job: got"),
        ("meta", AuthorizationError("x"), "Expected the id of a job you may manage"),
        ("download", AuthorizationError("x"), "Expected the id of a job you may manage"),
        ("download", NoConnection("x"), "server: got no answer any more (NoConnection)"),
        ("submit", AuthorizationError("x"), "a role that may not submit jobs"),
        ("submit", NoConnection("x"), "server: got no answer any more (NoConnection)"),
    ],
)
def test_what_is_not_allowed_is_told_and_nothing_is_submitted(
    resume: Callable[[Server], tuple[int, str]], call: str, error: Exception, words: str
) -> None:
    server = Server("FINISHED:ABORTED", **{call: error})
    code, said = resume(server)
    assert (code, server.submitted) == (2, [])
    assert words in said


def test_what_no_person_can_mend_keeps_its_traceback(resume: Callable[[Server], tuple[int, str]]) -> None:
    with pytest.raises(AssertionError, match="division"):
        resume(Server("FINISHED:ABORTED", submit=ZeroDivisionError("division")))
