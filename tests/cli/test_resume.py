"""`fedmedseg resume`: which jobs it continues, and what it says of the others."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedmedseg.cli import resume as module
from fedmedseg.cli.main import app
from fedmedseg.core import admin


class Server:
    """Answers with one status after the other, hands out a job, and takes one."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)
        self.taken: list[Path] = []

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        return {"status": self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    def with_statuses(*statuses: str) -> tuple[int, str, list[Path]]:
        server = Server(*statuses)
        monkeypatch.setattr(admin, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(module, "ENDING_SECONDS", 0.1)
        monkeypatch.setattr(admin, "session", lambda kit: nullcontext(server))
        monkeypatch.setattr(admin, "download", lambda session, job, folder: folder / job / "workspace")
        monkeypatch.setattr(module, "resumable", lambda downloaded, out: out)
        monkeypatch.setattr(admin, "submit", lambda session, job: server.taken.append(job) or "job-2")
        result = CliRunner().invoke(app, ["resume", "job-1", "--startup-kit", "kit"])
        return result.exit_code, " ".join(result.output.split()), server.taken

    return with_statuses


@pytest.mark.parametrize("status", ["FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABANDONED", "FINISHED:ABORTED"])
def test_a_job_that_ended_early_continues_as_a_new_one(call: Any, status: str) -> None:
    code, said, taken = call(status)
    assert (code, said) == (0, f"job job-1 was {status}; it continues as job-2")
    assert len(taken) == 1


def test_a_job_that_was_aborted_a_moment_ago_is_given_the_time_to_end(call: Any) -> None:
    code, said, _ = call("RUNNING", "RUNNING", "FINISHED:ABORTED")
    assert (code, said) == (0, "job job-1 was FINISHED:ABORTED; it continues as job-2")


@pytest.mark.parametrize(
    ("status", "words"),
    [("RUNNING", "nvflare job abort job-1"), ("FINISHED:COMPLETED", "one that did not complete")],
)
def test_a_job_that_runs_or_completed_is_not_submitted_again(call: Any, status: str, words: str) -> None:
    code, said, taken = call(status)
    assert (code, taken) == (2, [])
    assert words in said
