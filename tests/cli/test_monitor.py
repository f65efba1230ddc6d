"""`fedmedseg monitor`: what it shows in a wide and in a narrow terminal and without one, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.job_def import RunStatus
from nvflare.fuel.flare_api.api_spec import AuthorizationError, JobNotFound, JobNotRunning, NoConnection, NoReply
from rich.console import Console
from typer.testing import CliRunner

from fedmedseg.cli import monitor as module
from fedmedseg.cli.main import app
from fedmedseg.cli.monitor import View, line, lines, render
from fedmedseg.core import admin
from fedmedseg.core.live import FEWEST

JOB = "3f1c8a52-0000-4000-8000-000000000001"
STUDY: dict[str, Any] = {
    "study": "heart", "stage": "pretraining", "round": 1, "rounds": 3, "stages": ["pretraining", "fine_tuning"],
    "seconds": 61.0, "sites": {"university-hospital-of-the-north": "at work", "b": "replied"}, "left": 3671.0,
    "metrics": {"loss": 0.25, **{f"dice/structure-{n}": 0.5 for n in range(9)}},
    "metrics_of": {"stage": "pretraining", "round": 0}, "time": 1000.0,
}  # fmt: skip
SEEN = {"university-hospital-of-the-north": 997.0, "b": 880.0, "c": 1003.0}
RUNNING = View(job=JOB, status="RUNNING", study=STUDY, seen=SEEN)
WAITING = View(job=JOB, status="SUBMITTED", seen={"b": 880.0})


def shown(view: View, width: int, height: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(view, width, height))
    return [text.rstrip() for text in captured.get().splitlines()]


@pytest.mark.parametrize("width", [20, 40, 71, 72, 80, 200])
@pytest.mark.parametrize("view", [RUNNING, WAITING], ids=["running", "waiting"])
def test_everything_is_said_in_any_width_and_nothing_is_wider(view: View, width: int) -> None:
    text = shown(view, width)
    assert max(map(len, text)) <= width
    whole = "".join("".join(text).split())
    for words in [view.status, *(name for name, *_ in view.sites)]:
        assert words in whole


MANY = View(
    job=JOB,
    status="RUNNING",
    study={**STUDY, "sites": {f"hospital-{n:02d}": "at work" if n in (7, 38) else "replied" for n in range(40)}},
)


@pytest.mark.parametrize("width", [30, 80, 120])
@pytest.mark.parametrize("height", [24, 30])
def test_of_more_sites_than_fit_those_that_are_waited_for_are_shown(width: int, height: int) -> None:
    text = shown(MANY, width, height)
    assert len(text) <= height
    whole = " ".join(" ".join(text).split())
    rows = [line.split()[0].rstrip(":") for line in text if line.strip().startswith("hospital-") and "wor" in line]
    assert rows == ["hospital-07", "hospital-38"][: len(rows)]
    assert rows
    listed = len([line for line in text if line.strip().startswith("hospital-") and ("wor" in line or "rep" in line)])
    assert f"and {40 - listed} more sites (" in whole
    assert "--once" in whole


def test_what_fits_is_shown_whole_in_the_order_of_names() -> None:
    text = shown(MANY, 80, 70)
    rows = [line.split()[0] for line in text if line.strip().startswith("hospital-")]
    assert rows == sorted(MANY.study["sites"])
    assert "more sites" not in " ".join(text)
    assert [line.split(":")[0].strip() for line in lines(MANY) if line.startswith("  hosp")] == rows, "--once tells all"


def test_once_fits_a_narrow_terminal_too() -> None:
    text = list(module._narrowed(lines(RUNNING), 40))
    assert max(map(len, text)) <= 40
    assert " ".join(" ".join(text).split()) == " ".join(" ".join(lines(RUNNING)).split())
    assert "  b: replied" in text


def test_of_many_that_have_not_replied_the_first_are_named() -> None:
    everybody = View(job=JOB, status="RUNNING", study={**STUDY, "sites": {f"h{n}": "at work" for n in range(10)}})
    assert "no reply yet from h0, h1, h2, h3, h4, h5, h6, h7 and 2 more" in lines(everybody)


def test_a_narrow_terminal_has_one_fact_a_line() -> None:
    text = shown(RUNNING, 40)
    for words in (
        "job 3f1c8a52: RUNNING", "heart", "pretraining round 2/3", "stage 1 of 2", "in this round for 1:01",
        "time left: about 1:01:11", "  b: replied", "    seen 2:00 ago",
    ):  # fmt: skip
        assert words in text


def test_a_wide_terminal_has_a_table_of_sites() -> None:
    (row,) = [text for text in shown(RUNNING, 80) if text.strip().startswith("b ")]
    assert row.split() == ["b", "replied", "2:00", "ago"]
    assert sum("replied" in text for text in shown(RUNNING, 80)) == 1


def test_a_clock_that_goes_wrong_gives_no_time_before_now() -> None:
    assert [ago for name, _, ago in RUNNING.sites if name == "c"] == ["0:00 ago"]
    assert [state for name, state, _ in RUNNING.sites if name == "c"] == ["connected"]


def test_few_figures_are_shown_how_many_are_not_is_said_and_the_time_left_may_be_unknown() -> None:
    assert len(RUNNING.metrics) == module.MOST_METRICS
    # by hand: a loss and nine Dice, less six
    assert "and 4 more, in TensorBoard" in lines(RUNNING)
    assert line(RUNNING).endswith("dice/structure-5 0.5000, and 4 more")
    few = View(job=JOB, status="RUNNING", study={**STUDY, "metrics": {"loss": 0.25}}, seen=SEEN)
    assert not [text for text in [*lines(few), line(few)] if "more" in text]
    unknown = View(job=JOB, status="RUNNING", study={**STUDY, "left": None, "metrics": {}, "metrics_of": None})
    assert "time left: not known before a round has ended" in lines(unknown)


def test_that_figures_of_one_or_two_sites_are_not_told_is_said_once(monitor: Monitor) -> None:
    few = {**STUDY, "metrics": {}, "metrics_of": None, "too_few": True}
    assert lines(View(job=JOB, status="RUNNING", study=few)).count(module.FEW) == 1
    assert f"figures are told from {['no', 'one', 'two', 'three'][FEWEST]} sites on" == module.FEW
    stats = {"server": {"fedmedseg": few}}
    server = Server("RUNNING", "RUNNING", "RUNNING", admin.COMPLETED, stats=stats)
    ended = f"job 3f1c8a52: {admin.COMPLETED}"
    plain = line(View(job=JOB, status="RUNNING", study=few, seen=SEEN))
    assert monitor(server)[1] == [module.FEW, plain, ended]
    assert monitor(Server("RUNNING", stats=stats), "--once")[1].count(module.FEW) == 1
    assert module.FEW not in monitor(Server("RUNNING"), "--once")[1]
    stats = {"server": {"fedmedseg": {**few, "too_few": False}}}
    assert module.FEW not in monitor(Server("RUNNING", admin.COMPLETED, stats=stats))[1]


def test_who_has_not_replied_is_named_and_no_more_is_claimed_than_the_server_knows() -> None:
    told = lines(RUNNING)
    assert "no reply yet from university-hospital-of-the-north" in told
    assert f"({module.STILL})" in told
    everybody = {**STUDY, "sites": dict.fromkeys(STUDY["sites"], "replied")}
    assert not [text for text in lines(View(job=JOB, status="RUNNING", study=everybody)) if "no reply" in text]


@pytest.mark.parametrize(
    ("needed", "tried", "said"),
    [
        (3, "connected sites (1) < 3", ["1 of at least 3 sites connected: the job starts once the others are"]),
        (
            1,
            "not enough sites have enough resources",
            [
                "1 of at least 1 site connected: the server has not scheduled it yet",
                "its last try: not enough sites have enough resources",
            ],
        ),
        (
            1,
            "",
            [
                "1 of at least 1 site connected: the server has not scheduled it yet",
                "another job may run, or it was only just sent",
            ],
        ),
    ],
)
def test_a_job_that_was_not_scheduled_says_who_is_there_and_why_it_waits(
    needed: int, tried: str, said: list[str]
) -> None:
    view = View(job=JOB, status="SUBMITTED", seen={"b": 880.0}, needed=needed, tried=tried)
    assert lines(view)[: 1 + len(said)] == ["job 3f1c8a52: SUBMITTED", *said]
    assert line(view) == "; ".join(["job 3f1c8a52: SUBMITTED", *said])


def test_what_a_waiting_job_needs_is_read_from_its_meta_data_and_told_no_more_once_it_runs(monitor: Monitor) -> None:
    tries = ["2026-01-02 03:04:05: first", "2026-01-02 03:04:15: connected sites (3) < min sites (4)"]
    meta = {"min_clients": 4, "schedule_history": tries}
    assert admin.why_not_started(meta) == "connected sites (3) < min sites (4)"
    assert (admin.why_not_started({}), admin.sites_to_start({})) == ("", 1)
    _, said = monitor(Server("SUBMITTED", meta=meta), "--once")
    assert said[1] == "3 of at least 4 sites connected: the job starts once the others are"
    _, said = monitor(Server("SUBMITTED", meta={**meta, "min_clients": 3}), "--once")
    assert said[2] == "its last try: connected sites (3) < min sites (4)"
    _, said = monitor(Server("RUNNING", meta=meta), "--once")
    assert not [text for text in said if "at least" in text]


def test_a_line_for_a_log_changes_only_when_something_happens() -> None:
    later = View(job=JOB, status="RUNNING", study={**STUDY, "seconds": 70.0, "time": 1009.0}, seen=SEEN)
    assert line(later) == line(RUNNING)
    assert line(RUNNING).startswith("pretraining round 2/3: 1 at work, 1 connected, 1 replied, dice/structure-0 0.5000")


GONE = "the server's process has ended"


class Server:
    """A session with a server whose one job goes through ``statuses``, and that answers as the test says."""

    def __init__(self, *statuses: str, stats: Any = None, meta: dict[str, Any] | None = None) -> None:
        self.statuses, self.waits, self.now, self.asked = list(statuses), 0, 0.0, 0
        self.tried = 0
        self.meta = meta or {}
        self.stats = {"server": {"fedmedseg": STUDY}} if stats is None else stats

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == GONE:
            self.tried += 1
            raise NoConnection("x")
        return {"job_id": job_id, "status": status, **self.meta}

    def show_stats(self, job_id: str, target_type: str) -> Any:
        assert (job_id, target_type) == (JOB, "server"), "the server is asked, never a site"
        self.asked += 1
        if isinstance(self.stats, Exception):
            raise self.stats
        return self.stats

    def wait(self, seconds: float) -> None:
        self.waits += seconds >= 5
        self.now += seconds
        assert self.waits < 9, "it goes on looking at a job that has ended"

    def get_connected_client_list(self) -> list[Any]:
        return [SimpleNamespace(name=name, last_connect_time=seen) for name, seen in SEEN.items()]


Monitor = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Monitor:
    def call(server: Server, *options: str) -> tuple[int, list[str]]:
        @contextmanager
        def session(kit: Path) -> Iterator[Server]:
            assert kit == tmp_path
            yield server

        monkeypatch.setattr(admin, "session", session)
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=server.wait, monotonic=lambda: server.now))
        done = CliRunner().invoke(app, ["monitor", JOB, "--startup-kit", str(tmp_path), *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output.splitlines()

    return call


def test_looked_at_once_it_says_everything_and_ends_well(monitor: Monitor) -> None:
    assert monitor(Server("RUNNING"), "--once") == (0, lines(RUNNING))


@pytest.mark.parametrize(
    ("status", "code"), [("FINISHED:COMPLETED", 0), ("FINISHED:ABORTED", 1), (RunStatus.FAILED_TO_RUN.value, 1)]
)
def test_it_follows_a_job_to_its_end_and_says_with_its_code_how_that_was(
    monitor: Monitor, status: str, code: int
) -> None:
    ended = f"job 3f1c8a52: {status}"
    assert monitor(Server("RUNNING", "RUNNING", "RUNNING", status)) == (code, [line(RUNNING), ended])


@pytest.mark.parametrize(
    "stats",
    [JobNotRunning("x"), JobNotFound("x"), NoReply("x"), {}, {"server": {}}, {"server": "no reply"}, {"server": None}],
)
def test_a_job_that_has_nothing_to_say_yet_is_shown_by_its_status(monitor: Monitor, stats: Any) -> None:
    code, said = monitor(Server("RUNNING", stats=stats), "--once")
    assert (code, said[0]) == (0, "job 3f1c8a52: RUNNING")
    assert "    seen lately" in said


def test_only_a_running_job_is_asked_and_one_that_does_not_answer_yet_more_seldom(monitor: Monitor) -> None:
    """The process of a job that is still loading logs an error for every question."""
    waiting = Server("SUBMITTED", "DISPATCHED", admin.COMPLETED)
    assert (monitor(waiting)[0], waiting.asked) == (0, 0)
    loading = Server(*["RUNNING"] * 7, admin.COMPLETED, stats={})
    assert (monitor(loading, "--every", "5")[0], loading.asked) == (0, 3), "at 0, 15 and 30 s"
    running = Server(*["RUNNING"] * 7, admin.COMPLETED)
    assert (monitor(running, "--every", "5")[0], running.asked) == (0, 7)


def test_one_who_may_not_look_on_is_told_so(monitor: Monitor) -> None:
    code, said = monitor(Server("RUNNING", stats=AuthorizationError("x")), "--once")
    assert code == 2
    assert "the id of a job you may manage" in " ".join(said)


def test_a_server_that_ended_with_its_study_is_no_failed_look_of_a_server_that_never_answered(
    monitor: Monitor,
) -> None:
    """The server of a trial ends with its study: who follows it is told where the result lies."""
    code, said = monitor(Server("RUNNING", "RUNNING", GONE))
    assert (code, said[0]) == (2, line(RUNNING))
    words = " ".join(said)
    assert "server: got no answer any more (NoConnection) for 15 s; the job ran when it was last asked" in words
    assert "`fedmedseg federation` ends with its study" in words
    for unseen in (Server(GONE), Server("SUBMITTED", GONE)):
        code, said = monitor(unseen)
        assert (code, "ran when it was last asked" in " ".join(said)) == (2, False)
        assert "got no answer any more (NoConnection)" in " ".join(said)


def test_a_question_that_is_not_answered_in_time_ends_nothing(monitor: Monitor) -> None:
    """A busy server misses one now and then; the job is followed to its end."""
    busy = Server("RUNNING", GONE, GONE, "RUNNING", GONE, admin.COMPLETED)
    assert monitor(busy) == (0, [line(RUNNING), f"job 3f1c8a52: {admin.COMPLETED}"])
    assert busy.tried == 3
    assert monitor(Server(GONE, "RUNNING"), "--once")[0] == 0
