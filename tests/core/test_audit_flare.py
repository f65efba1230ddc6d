"""What the audit reads from FLARE's own objects; these tests notice when the installed FLARE drifts."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle
from nvflare.fuel.common.exit_codes import ProcessExitCode
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import InternalCommands, MetaStatusValue, ReplyKeyword, make_meta
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.reg import ServerCommandRegister
from nvflare.fuel.sec.audit import Auditor, AuditService
from nvflare.fuel.sec.authz import AuthorizationService, Authorizer, AuthzContext, Person
from nvflare.private.admin_defs import error_reply, ok_reply
from nvflare.private.defs import TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.client_executor import _PendingJobHandle
from nvflare.private.fed.server import admin as flare_admin
from nvflare.private.fed.server.admin import FedAdminServer
from nvflare.private.fed.server.server_engine import ServerEngine

from fedmedseg.core import audit_log, audit_site
from fedmedseg.core.audit import Outcome, Trail, read
from fedmedseg.core.audit_flare import note_exit, note_in, note_start
from fedmedseg.core.audit_refusals import MOST_TOLD
from fedmedseg.core.audit_server import AuditedCommands, ServerAudit, audited, job_of, refused_in
from fedmedseg.core.audit_site import AuditedAuthorizer, AuditedProcessor, SiteAudit

JOB = "3f1c8a52-0000-4000-8000-000000000001"


@pytest.fixture
def trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trail:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit_site, "PATIENCE", 3600.0)
    return Trail(tmp_path / "audit", participant="server")


@pytest.fixture
def fl_ctx() -> FLContext:
    engine = SimpleNamespace(exception_run_processes={})
    manager = FLContextManager(
        engine=engine, identity_name="site-1", job_id=JOB, public_stickers={}, private_stickers={}
    )
    context: FLContext = manager.new_context()
    return context


def told(trail: Trail) -> list[tuple[str, str, str]]:
    """Action, outcome and reason of every line."""
    if not trail.folder.exists():
        return []
    return [(entry["action"], entry["outcome"], entry["reason"]) for entry in read(trail.folder)]


class Register:
    """A register of commands that answers as it is told."""

    filters = ("kept",)

    def __init__(self, answer: Callable[[Connection], None]) -> None:
        self.answer = answer

    def process_command(self, conn: Connection, command: str) -> None:
        self.answer(conn)


def ask(trail: Trail, command: str, answer: Callable[[Connection], None], *, user: str = "lead@two") -> Connection:
    conn = Connection()
    conn.set_props({ConnProps.USER_NAME: user, ConnProps.USER_ROLE: "lead", ConnProps.USER_ORG: "two"})
    AuditedCommands(Register(answer), trail).process_command(conn, command)
    return conn


def not_authorized(conn: Connection) -> None:
    conn.append_error(f"This action is {ReplyKeyword.NOT_AUTHORIZED}", meta=make_meta(MetaStatusValue.NOT_AUTHORIZED))


@pytest.mark.parametrize("command", [f"abort_job {JOB}", f"job_mgmt.abort_job {JOB}", f"get_job_meta {JOB}"])
def test_a_refused_command_is_written_with_who_asked_and_the_job(trail: Trail, command: str) -> None:
    conn = ask(trail, command, not_authorized)
    (entry,) = read(trail.folder)
    assert entry["action"] == command.split()[0].rpartition(".")[2]
    assert (entry["outcome"], entry["job"]) == ("refused", JOB)
    assert entry["who"] == "lead@two (lead of two)"
    assert "not authorized" in entry["reason"]
    assert conn.buffer.meta["status"] == MetaStatusValue.NOT_AUTHORIZED, "the answer is FLARE's"


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("job_mgmt.submit_job DOE_JANE", True),
        (f"clone_job {JOB}", True),
        ("shutdown all", True),
        ("a_command_of_another_day", True),
        (f"get_job_meta {JOB}", False),
        ("list_jobs", False),
        (InternalCommands.CHECK_SESSION, False),
    ],
)
def test_what_is_allowed_is_written_unless_it_only_looks(trail: Trail, command: str, written: bool) -> None:
    ask(trail, command, lambda conn: conn.append_success("done"))
    assert bool(told(trail)) is written
    if written:
        assert told(trail)[0][1:] == ("allowed", "")
        assert "DOE_JANE" not in str(read(trail.folder)), "what a job's folder is called is not written"


def test_the_id_of_a_submitted_job_is_that_of_the_answer(trail: Trail) -> None:
    ask(
        trail,
        "submit_job x",
        lambda conn: conn.append_success("ok", meta=make_meta(MetaStatusValue.OK, extra={"job_id": JOB})),
    )
    assert read(trail.folder)[0]["job"] == JOB


def test_an_invalid_job_is_a_refusal(trail: Trail) -> None:
    meta = make_meta(MetaStatusValue.INVALID_JOB_DEFINITION)
    ask(trail, "submit_job x", lambda conn: conn.append_error("App 'a' in deploy_map doesn't exist", meta=meta))
    assert told(trail)[0][:2] == ("submit_job", "refused")


@pytest.mark.parametrize(("answer", "outcome"), [("OK", "allowed"), ("REJECT", "refused")])
def test_a_login_is_written_with_the_name_that_was_claimed(trail: Trail, answer: str, outcome: str) -> None:
    ask(trail, f"{InternalCommands.CERT_LOGIN} admin@network", lambda conn: conn.append_string(answer), user="")
    (entry,) = read(trail.folder)
    assert (entry["who"], entry["outcome"]) == ("admin@network", outcome)


@pytest.mark.parametrize("words", ["not authenticated - no token", ReplyKeyword.SESSION_INACTIVE])
def test_a_command_of_somebody_who_is_not_logged_in_is_written(trail: Trail, words: str) -> None:
    ask(trail, "list_jobs", lambda conn: conn.append_error(words), user="")
    (entry,) = read(trail.folder)
    assert (entry["who"], entry["outcome"]) == ("nobody who is logged in", "refused")


def test_the_words_looked_for_are_those_of_the_installed_flare() -> None:
    source = Path(sys.modules["nvflare.fuel.hci.server.reg"].__file__ or "").parent / "login.py"
    text = source.read_text()
    assert '"not authenticated - no token"' in text
    assert "append_error(ReplyKeyword.SESSION_INACTIVE)" in text
    assert 'conn.append_string("OK")' in text
    text = source.with_name("reg.py").read_text()
    assert 'append_error(f"Exception Occurred: ' in text
    assert text.count("append_error('Unknown command \"") + text.count("append_error('Command \"") == 3


def test_everything_else_of_the_register_is_flares() -> None:
    register = ServerCommandRegister(app_ctx=None)
    wrapped = AuditedCommands(register, Trail(Path(), participant="server"))
    assert wrapped.filters is register.filters
    wrapped.close()
    assert register.closed


@pytest.mark.parametrize(("client", "outcome"), [(SimpleNamespace(token="t"), "allowed"), (None, "refused")])
def test_who_registers_is_written(trail: Trail, fl_ctx: FLContext, client: Any, outcome: str) -> None:
    request = SimpleNamespace(get_header=lambda name, default=None: {"client_name": "site-9"}.get(name, default))
    assert audited(lambda request, fl_ctx: client, trail)(request, fl_ctx) is client
    (entry,) = read(trail.folder)
    assert (entry["who"], entry["outcome"]) == ("site-9", outcome)
    assert bool(entry["reason"]) is (client is None)


def test_flares_reason_for_turning_a_site_away_is_kept(trail: Trail, fl_ctx: FLContext) -> None:
    def disabled(request: Any, fl_ctx: FLContext) -> None:
        fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, "Client 'site-9' is disabled", sticky=False)

    audited(disabled, trail)(SimpleNamespace(get_header=lambda *_: "site-9"), fl_ctx)
    assert told(trail) == [("register", "refused", "Client 'site-9' is disabled")]


def deployment(fl_ctx: FLContext, *detail: str) -> FLContext:
    fl_ctx.set_prop(FLContextKey.JOB_RUN_NUMBER, JOB)
    fl_ctx.set_prop(FLContextKey.JOB_DEPLOY_DETAIL, list(detail))
    fl_ctx.set_prop(FLContextKey.EVENT_DATA, {"job_id": JOB})
    return fl_ctx


def test_a_job_that_sites_refuse_is_written_site_by_site(trail: Trail, fl_ctx: FLContext) -> None:
    component = ServerAudit()
    component.handle_event(EventType.JOB_DEPLOYED, deployment(fl_ctx, "server: OK", "site-1: OK", "site-2: unsigned"))
    assert told(trail) == [("deploy", "refused", "unsigned"), ("deploy", "allowed", "")]
    assert read(trail.folder)[0]["who"] == "site-2"
    component.handle_event(EventType.JOB_ABORTED, fl_ctx)
    assert told(trail)[2:] == [("job", "failed", "aborted")], "a running job that is aborted was not refused"


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        (["server: job signature verification failed"], "job signature verification failed"),
        (["server: OK", "site-1: BYOC not permitted"], "BYOC not permitted"),
        ([], "it could not be unpacked or checked"),
    ],
)
def test_a_job_that_is_not_deployed_is_a_refusal(
    trail: Trail, fl_ctx: FLContext, detail: list[str], reason: str
) -> None:
    ServerAudit().handle_event(EventType.JOB_ABORTED, deployment(fl_ctx, *detail))
    assert told(trail) == [("deploy", "refused", reason)]


def test_the_detail_of_a_deployment_names_who_refused() -> None:
    detail = ["server: OK", "site-1: app x does not pass", "site-2: OK", "num_ok_sites 1 < required_min_sites 2"]
    assert refused_in(detail) == {"site-1": "app x does not pass"}


def test_a_jobs_id_is_found_among_a_commands_words() -> None:
    assert job_of(["-v", JOB, "all"]) == JOB
    assert job_of(["a-job-of-four-words-x"]) == ""


def ended(code: int) -> ProcessHandle:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    process.wait(30)
    return ProcessHandle(process=process)


def test_a_class_off_the_list_is_known_by_the_code_the_jobs_process_ended_with(trail: Trail, fl_ctx: FLContext) -> None:
    unsafe = ended(ProcessExitCode.UNSAFE_COMPONENT)
    assert unsafe.poll() != ProcessExitCode.UNSAFE_COMPONENT, "FLARE's handle hides it; its adapter does not"
    fl_ctx.get_engine().exception_run_processes[JOB] = {RunProcessKey.JOB_HANDLE: unsafe}
    ServerAudit().handle_event(EventType.JOB_COMPLETED, deployment(fl_ctx))
    held = _PendingJobHandle()
    held.attach(unsafe)
    note_exit(trail, job=JOB, handle=held)
    assert [line[:2] for line in told(trail)] == [("load classes", "refused")] * 2


@pytest.mark.parametrize("handle", [None, SimpleNamespace()], ids=["no handle", "a container's"])
def test_another_end_is_no_refusal(trail: Trail, handle: Any) -> None:
    note_exit(trail, job=JOB, handle=handle)
    note_exit(trail, job=JOB, handle=ended(ProcessExitCode.EXCEPTION))
    assert told(trail) == []


def test_a_participant_that_cannot_write_its_trail_does_not_start(trail: Trail) -> None:
    trail.folder.write_text("a file where the folder should be")
    with pytest.raises(UnsafeComponentError, match="audit trail cannot be written"):
        note_start(trail)


def test_a_jobs_process_without_a_place_writes_nothing_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    note_in(FLContext(), action="task x", outcome=Outcome.DECLINED)
    assert "the audit trail was not found" in caplog.text


class Deploy(RequestProcessor):
    def __init__(self, reply: Any) -> None:
        self.reply = reply

    def get_topics(self) -> list[str]:
        return [TrainingTopic.DEPLOY]

    def process(self, req: Any, app_ctx: Any) -> Any:
        return self.reply


def test_a_job_that_the_site_refuses_is_written_at_the_site(trail: Trail) -> None:
    headers = {"_submitterName": "lead@two", "job_id": JOB}
    request = SimpleNamespace(
        topic=TrainingTopic.DEPLOY, get_header=lambda name, default=None: headers.get(name, default)
    )
    for reply in (ok_reply(), None, refusal := error_reply("unsigned job rejected - signed deploy is required")):
        wrapped = AuditedProcessor(Deploy(reply), trail)
        assert wrapped.process(request, None) is reply
        assert wrapped.get_topics() == [TrainingTopic.DEPLOY]
    (entry,) = read(trail.folder)
    assert (entry["outcome"], entry["who"], entry["reason"]) == ("refused", "lead@two", refusal.body)


def test_a_right_that_the_site_does_not_give_is_written(trail: Trail) -> None:
    authorizer = AuditedAuthorizer(Authorizer("one"), trail)
    person = Person("it@two", "two", "org_admin")
    allowed, why = authorizer.authorize(AuthzContext(user=person, submitter=person, right="shutdown"))
    assert not allowed
    (entry,) = read(trail.folder)
    assert (entry["action"], entry["who"], entry["reason"]) == ("right shutdown", "it@two (org_admin of two)", why)
    assert authorizer.get_policy() is None, "everything else is FLARE's"
    assert authorizer.authorize(None) == (True, "")
    assert len(read(trail.folder)) == 1


def test_a_site_listens_to_its_processors_and_its_authorizer(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuthorizationService, "the_authorizer", Authorizer("one"))
    processors: dict[str, RequestProcessor] = {TrainingTopic.DEPLOY: Deploy(ok_reply())}
    context = SimpleNamespace(
        get_engine=lambda: SimpleNamespace(admin_agent=SimpleNamespace(processors=processors)),
    )
    SiteAudit().handle_event(EventType.SYSTEM_START, context)  # type: ignore[arg-type]
    assert isinstance(processors[TrainingTopic.DEPLOY], AuditedProcessor)
    assert isinstance(AuthorizationService.the_authorizer, AuditedAuthorizer)


@pytest.mark.parametrize(("token", "line"), [("t", ("register", "allowed")), (None, ("register", "refused"))])
def test_a_site_writes_whether_it_was_let_in(
    trail: Trail, fl_ctx: FLContext, token: str | None, line: tuple[str, str]
) -> None:
    fl_ctx.set_prop(FLContextKey.CLIENT_TOKEN, token)
    SiteAudit().handle_event(EventType.AFTER_CLIENT_REGISTER, fl_ctx)
    assert told(trail)[0][:2] == line


def test_a_site_that_gets_no_answer_asks_why_and_writes_it_once(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_site, "PATIENCE", 0.01)
    monkeypatch.setattr(audit_site, "AGAIN", 3600.0)
    answers = iter(["", "TLS: the server refuses this site"])
    monkeypatch.setattr(audit_site, "open_kit", lambda folder: SimpleNamespace(name="site-7"))
    monkeypatch.setattr(audit_site, "refusal", lambda kit: next(answers))
    component = SiteAudit()
    for _ in range(500):
        if told(trail):
            break
        component._let_in.wait(0.01)
    component._let_in.set()
    assert told(trail) == [("connect", "refused", "TLS: the server refuses this site")]
    assert read(trail.folder)[0]["participant"] == "site-7", "known from the kit before FLARE tells any event"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A server's engine; what is changed in FLARE's modules is put back after the test."""
    monkeypatch.setattr(logging.getLogger(audit_log.LOGGER), "handlers", [])
    make = flare_admin.new_command_register_with_builtin_module
    monkeypatch.setattr(flare_admin, "new_command_register_with_builtin_module", make)
    taken: list[Any] = []
    server = SimpleNamespace(taken=taken, set_admin_server=taken.append)
    return SimpleNamespace(client_manager=SimpleNamespace(authenticate=lambda *_: None), server=server)


def administration() -> FedAdminServer:
    """FLARE's own, made as its server makes it."""
    interface = MagicMock(spec=ServerEngine)
    interface.new_context.return_value.get_engine.return_value = interface
    made = FedAdminServer(
        cell=MagicMock(),
        fed_admin_interface=interface,
        cmd_modules=[],
        file_upload_dir="",
        file_download_dir="",
    )
    made.sess_mgr.shutdown()
    return made


def bootstrap(engine: SimpleNamespace) -> None:
    context = SimpleNamespace(get_engine=lambda: engine)
    ServerAudit().handle_event(EventType.SYSTEM_BOOTSTRAP, context)  # type: ignore[arg-type]


def test_no_command_is_taken_before_it_would_be_written(
    trail: Trail, engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditService, "the_auditor", Auditor(str(trail.folder.parent / "flare")))
    bootstrap(engine)
    made = administration()
    # FLARE's cell calls this for every request, from the moment the object is made
    (call,) = (one for one in made.cell.register_request_cb.call_args_list if one.kwargs["topic"] == "*")
    assert call.kwargs["cb"].__self__.cmd_reg is made.cmd_reg
    assert isinstance(made.cmd_reg, AuditedCommands)
    engine.server.set_admin_server(made)
    assert engine.server.taken == [made]
    made.cmd_reg.process_command(Connection(), "no_such_command")
    assert told(trail)[1:] == [("no_such_command", "refused", 'Unknown command "no_such_command"')]


def test_a_server_whose_commands_would_not_be_written_ends(trail: Trail, engine: SimpleNamespace) -> None:
    bootstrap(engine)
    with pytest.raises(UnsafeComponentError, match="commands would be missing in the audit trail"):
        engine.server.set_admin_server(SimpleNamespace(cmd_reg=ServerCommandRegister(app_ctx=None)))
    assert engine.server.taken == []
    closed = SimpleNamespace(cmd_reg=None)
    engine.server.set_admin_server(closed)
    assert engine.server.taken == [closed], "no register, no commands"


@pytest.mark.parametrize("missing", ["client_manager", "server"])
def test_a_flare_with_other_names_does_not_start(trail: Trail, engine: SimpleNamespace, missing: str) -> None:
    delattr(engine, missing)
    with pytest.raises(UnsafeComponentError, match=f"FLARE has no {missing}, and commands would be missing"):
        bootstrap(engine)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
@pytest.mark.parametrize("command", [f"abort_job {JOB}", "list_jobs"])
def test_a_command_that_raises_is_written_and_raises(trail: Trail, error: type[BaseException], command: str) -> None:
    def answer(conn: Connection) -> None:
        raise error

    with pytest.raises(error):
        ask(trail, command, answer)
    assert told(trail) == [(command.split()[0], "failed", error.__name__)]


def test_what_raises_within_flares_register_is_a_failure(trail: Trail) -> None:
    register = ServerCommandRegister(app_ctx=None)
    # what is no text is no way around the trail either
    AuditedCommands(register, trail).process_command(Connection(), 7)  # type: ignore[arg-type]
    ((action, outcome, reason),) = told(trail)
    assert (action, outcome) == ("7", "failed")
    assert reason.startswith("Exception Occurred: ")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines without the wait for the disk, for tests that write many."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("quick")
def test_a_flood_of_strangers_is_a_few_lines_and_hides_no_refusal_of_a_person(trail: Trail) -> None:
    def refuse(conn: Connection) -> None:
        conn.append_error("not authenticated - no token")

    commands = AuditedCommands(Register(refuse), trail)
    for number in range(500):
        commands.process_command(Connection(), f"{InternalCommands.CERT_LOGIN} name-{number}")
        commands.process_command(Connection(), f"command_{number}")
        commands.process_command(Connection(), "list_jobs")
    assert len(read(trail.folder)) == MOST_TOLD + 1
    known = Connection()
    known.set_props({ConnProps.USER_NAME: "lead@two", ConnProps.USER_ROLE: "lead", ConnProps.USER_ORG: "two"})
    commands.process_command(known, f"abort_job {JOB}")
    assert read(trail.folder)[-1]["who"] == "lead@two (lead of two)"


@pytest.mark.usefixtures("quick")
def test_a_flood_of_registrations_is_a_few_lines(trail: Trail, fl_ctx: FLContext) -> None:
    check = audited(lambda request, fl_ctx: None, trail)
    names = iter([*(f"site-{number}" for number in range(500)), *["site-9"] * 500])
    for _ in range(1000):
        check(SimpleNamespace(get_header=lambda *_: next(names)), fl_ctx)
    assert len(read(trail.folder)) == MOST_TOLD + 1
