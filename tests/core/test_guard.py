"""The server's guard: what it does on FLARE's events, with a server made of plain objects."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey, SystemConfigs
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import RunStatus
from nvflare.fuel.utils.config_service import ConfigService
from nvflare.private.fed.server.server_commands import ServerCommands

from fedmedseg.core import audit, guard
from fedmedseg.core.guard import FederationGuard, follow_returns, returned


@pytest.fixture(autouse=True)
def _kit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # FLARE's parent processes work in their kit
    monkeypatch.chdir(tmp_path)


def context(engine: Any, **properties: Any) -> FLContext:
    fl_ctx = FLContext()
    fl_ctx.get_engine = lambda: engine  # type: ignore[method-assign]
    for key, value in properties.items():
        fl_ctx.set_prop(getattr(FLContextKey, key), value)
    return fl_ctx


def test_only_a_site_with_another_token_has_returned() -> None:
    same, gone = Client("same", "1"), Client("gone", "2")
    old, new, stranger = Client("back", "3"), Client("back", "4"), Client("stranger", "5")
    participants = {client.token: client for client in (same, gone, old)}
    assert returned(participants, [same, new, stranger]) == [("3", new)]


def test_jobs_that_a_dead_server_left_running_are_abandoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    statuses: dict[str, Any] = {}
    manager = SimpleNamespace(
        get_jobs_by_status=lambda wanted, fl_ctx: asked.extend(wanted) or [SimpleNamespace(job_id="dead")],
        set_status=lambda job_id, status, fl_ctx: statuses.update({job_id: status}),
    )
    added: dict[str, Any] = {}
    monkeypatch.setattr(ConfigService, "add_section", lambda name, content: added.update({name: content}))
    FederationGuard().handle_event(
        EventType.SYSTEM_START,
        context(SimpleNamespace(get_component=lambda name: manager, fire_event=lambda *_: None, notify_dead_job=print)),
    )
    assert asked == [RunStatus.RUNNING, RunStatus.DISPATCHED]
    assert statuses == {"dead": RunStatus.ABANDONED}
    (told,) = audit.read(tmp_path / audit.FOLDER)
    assert (told["job"], told["outcome"], told["reason"]) == ("dead", "failed", "the server ended while it ran")
    assert added == {SystemConfigs.APPLICATION_CONF: {"sync_client_jobs_require_previous_report": False}}


def test_no_sites_failure_is_waited_for_once_a_job_has_started() -> None:
    resolved: list[tuple[str, str]] = []
    engine = SimpleNamespace(
        get_clients=lambda: [Client("a", "1"), Client("b", "2")],
        job_runner=SimpleNamespace(resolve_client_outcome=lambda job, name: resolved.append((job, name))),
    )
    FederationGuard().handle_event(EventType.JOB_STARTED, context(engine, EVENT_DATA={"job_id": "j"}))
    assert resolved == [("j", "a"), ("j", "b")]


class Engine:
    """A server with one running job of one site, which has just registered again."""

    def __init__(self, *, enough: list[bool]) -> None:
        self.enough = enough
        self.new = Client("site", "new")
        self.run_processes = {"j": {RunProcessKey.PARTICIPANTS: {"old": Client("site", "old")}}}
        self.job = SimpleNamespace(
            meta={},
            resource_spec={"@default": {"num_of_gpus": 1}},
            get_deployment=lambda: {"app": ["@ALL"]},
            run_aborted=False,
        )
        self.job_runner = SimpleNamespace(running_jobs={"j": self.job})
        self.lock = threading.Lock()
        self.told: list[tuple[Any, ...]] = []
        self.started: list[Any] = []

    def get_clients(self) -> list[Client]:
        return [self.new]

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE tells every warning as an event."""

    def notify_dead_job(self, job_id: str, name: str, reason: str) -> None:
        self.told.append(("dead", job_id, name))

    def send_app_command(self, job_id: str, topic: str, data: object, timeout: float) -> None:
        self.told.append((topic, job_id))

    def new_context(self) -> Any:
        return contextlib.nullcontext(context(self))

    def check_client_resources(self, job: Any, needs: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        assert needs == {"site": {"num_of_gpus": 1}}
        return {"site": (self.enough.pop(0), "reserved")}

    def start_client_job(self, job: Any, sites: dict[str, Any], fl_ctx: FLContext) -> list[Any]:
        self.started.append(sites)
        return [SimpleNamespace(client_name="site", reply="started")]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "RETRY_SECONDS", 0.0)


def test_a_returned_site_takes_its_old_ones_place_and_is_asked_until_it_starts(at_once: None, tmp_path: Path) -> None:
    engine = Engine(enough=[False, True])
    before = set(threading.enumerate())
    FederationGuard().handle_event(EventType.CLIENT_REGISTER_PROCESSED, context(engine))
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert engine.told == [("dead", "j", "site"), (guard.SITES_CHANGED, "j")]
    assert engine.run_processes["j"][RunProcessKey.PARTICIPANTS] == {"new": engine.new}
    (sites,) = engine.started
    assert (sites["site"].app_name, sites["site"].token) == ("app", "reserved")
    assert sites["site"].resource_requirements == {"num_of_gpus": 1}
    (told,) = audit.read(tmp_path / audit.FOLDER)
    assert (told["action"], told["who"], told["job"]) == ("rejoin", "site", "j")


def test_nobody_is_started_in_a_job_that_has_ended_meanwhile(at_once: None) -> None:
    engine = Engine(enough=[])
    engine.run_processes.clear()
    FederationGuard()._start_again(engine, "j", engine.new)
    assert engine.started == []


def reported(engine: Engine, times: int, reason: str = guard.MISSING) -> None:
    """FLARE finds ``times`` times that the site does not run the job; what follows from it is waited for."""
    for _ in range(times):
        before = set(threading.enumerate())
        engine.notify_dead_job("j", "site", reason)
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=10)


def watched(enough: int) -> Engine:
    engine = Engine(enough=[True] * enough)
    FederationGuard()._watch(engine)
    return engine


def test_a_site_that_lost_its_process_starts_it_again_at_the_second_report(at_once: None, tmp_path: Path) -> None:
    engine = watched(1)
    reported(engine, 1)
    assert engine.started == []
    reported(engine, 1)
    assert len(engine.started) == 1
    assert engine.told == [("dead", "j", "site")] * 2, "the job hears of it as ever"
    (told,) = audit.read(tmp_path / audit.FOLDER)
    assert (told["action"], told["who"], told["job"]) == ("rejoin", "site", "j")


def test_what_dies_every_time_is_started_three_times(at_once: None) -> None:
    engine = watched(9)
    reported(engine, 20)
    assert len(engine.started) == guard.MOST_RESTARTS == 3


def test_reports_far_from_each_other_prove_nothing(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REPORT_SECONDS", -1.0)
    engine = watched(9)
    reported(engine, 9)
    assert engine.started == []


@pytest.mark.parametrize("why", ["registered anew", "aborted", "ended", "gone"])
def test_nobody_is_started_who_returned_left_or_has_no_job_any_more(at_once: None, why: str) -> None:
    engine = watched(9)
    engine.job.run_aborted = why == "aborted"
    if why == "ended":
        engine.job_runner.running_jobs.clear()
    if why == "gone":
        engine.new = Client("another", "x")
    reported(engine, 4, reason=why if why == "registered anew" else guard.MISSING)
    assert engine.started == []


def test_a_jobs_process_looks_again_who_takes_part_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerCommands, "app_cmd_registry", {})
    looked = threading.Event()
    engine = SimpleNamespace(
        register_app_command=ServerCommands.register_app_command, sync_clients_from_main_process=looked.set
    )
    follow_returns(engine)
    follow_returns(engine)
    command, _, _ = ServerCommands.app_cmd_registry[guard.SITES_CHANGED]
    assert command(guard.SITES_CHANGED, {}, FLContext()) == {}
    assert looked.wait(10)
