"""The server's audit: who asked for what and was refused, jobs that were refused, sites that were not let in.

A component of the server's parent process (``local/resources.json``). FLARE 2.9.0 raises an event for some refusals
only; for the others this component looks where they can be seen:

- Commands, their authorization and the check of an uploaded job raise no event when they are refused
  (`fuel/hci/server/reg.py`, ``_do_command`` leaves before any later filter, FLARE's own audit among them;
  `private/fed/server/job_cmds.py`, ``submit_job`` answers an invalid job itself). The register that all of them pass
  is wrapped when it is made, and the answer is read.
- A job that fails to be deployed raises ``JOB_ABORTED``, one that some sites refuse ``JOB_DEPLOYED``; which refused it,
  and why, stands in ``JOB_DEPLOY_DETAIL`` of the event's context (`private/fed/server/job_runner.py`).
- A class outside the allow-list ends the job's process with an exit code of its own (`fuel/common/exit_codes.py`).
- A site whose identity is not proved gets no token, and ``CLIENT_REGISTER_PROCESSED`` comes all the same, without a
  word of it (`private/fed/server/fed_server.py`, ``register_client``): the check itself is wrapped.
- A connection under another name than its certificate's stands in FLARE's log alone (``audit_log``).
- A client refused in the TLS handshake is never seen here: gRPC's core ends it. The site writes it (``audit_site``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.hci.proto import InternalCommands, MetaKey, MetaStatusValue, ProtoKey, ReplyKeyword
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.private.defs import CellMessageHeaderKeys
from nvflare.private.fed.server import admin as flare_admin

from fedmedseg.core.audit import Outcome, Trail
from fedmedseg.core.audit_flare import note_exit, note_start, trail_here
from fedmedseg.core.audit_log import listen
from fedmedseg.core.audit_refusals import Refusals
from fedmedseg.core.homes import SERVER

Authenticate = Callable[[Any, FLContext], Any]
LOOKS = frozenset(
    {
        InternalCommands.CHECK_SESSION,
        InternalCommands.GET_CMD_LIST,
        "admin_check_status",
        "check_status",
        "get_job_meta",
        "list_job_components",
        "list_jobs",
        "list_sessions",
        "report_env",
        "report_resources",
        "report_version",
        "show_errors",
        "show_scopes",
        "show_stats",
        "sys_info",
    }
)
"""Commands that only look, some of them every second: they are written where they are refused, all others always."""
REFUSALS = frozenset(
    {MetaStatusValue.NOT_AUTHORIZED, MetaStatusValue.NOT_AUTHENTICATED, MetaStatusValue.INVALID_JOB_DEFINITION}
)
UNKNOWN = frozenset({"not authenticated - no token", ReplyKeyword.SESSION_INACTIVE})
"""FLARE's words to somebody who is not logged in, under a status that means much else (`fuel/hci/server/login.py`)."""
UNHEARD = ('Unknown command "', 'Command "')
"""How FLARE answers a command that it does not know, or knows twice, before it asks who sent it (`reg.py`)."""
BROKE = "Exception Occurred: "
"""How FLARE answers a command that raised (`reg.py`, ``process_command``)."""
OK = "OK"
NOBODY = "nobody who is logged in"


class ServerAudit(FLComponent):
    """Writes the server's trail. A server that cannot write it, or whose commands would not be written, ends."""

    def __init__(self) -> None:
        super().__init__()
        self.trail = trail_here(SERVER)
        self._deployed: set[str] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write what an event tells."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            note_start(self.trail)
            listen(self.trail)
            audit_server(fl_ctx.get_engine(), self.trail)
        elif event_type == EventType.JOB_DEPLOYED:
            self._job_deployed(fl_ctx)
        elif event_type == EventType.JOB_ABORTED:
            self._job_aborted(fl_ctx)
        elif event_type == EventType.JOB_COMPLETED:
            self._job_ended(fl_ctx)

    def _job_deployed(self, fl_ctx: FLContext) -> None:
        # set by the deployment alone; the event itself carries nothing
        job = str(fl_ctx.get_prop(FLContextKey.JOB_RUN_NUMBER))
        self._deployed.add(job)
        self._refusals(job, fl_ctx)
        self.trail.note(action="deploy", outcome=Outcome.ALLOWED, job=job)

    def _job_aborted(self, fl_ctx: FLContext) -> None:
        job = _job(fl_ctx)
        if job in self._deployed:
            self.trail.note(action="job", outcome=Outcome.FAILED, job=job, reason="aborted")
        elif not self._refusals(job, fl_ctx):
            # FLARE tells the exception to its log alone, after this event
            why = "it could not be unpacked or checked"
            self.trail.note(action="deploy", outcome=Outcome.REFUSED, job=job, reason=why)

    def _refusals(self, job: str, fl_ctx: FLContext) -> bool:
        found = refused_in(fl_ctx.get_prop(FLContextKey.JOB_DEPLOY_DETAIL) or [])
        for who, reason in found.items():
            self.trail.note(action="deploy", outcome=Outcome.REFUSED, who=who, job=job, reason=reason)
        return bool(found)

    def _job_ended(self, fl_ctx: FLContext) -> None:
        job = _job(fl_ctx)
        self._deployed.discard(job)
        process = fl_ctx.get_engine().exception_run_processes.get(job) or {}
        note_exit(self.trail, job=job, handle=process.get(RunProcessKey.JOB_HANDLE))


def audit_server(engine: Any, trail: Trail) -> None:
    """Let registrations and commands be written, from the first one on.

    FLARE makes its register of commands after the last event of its start, and takes commands as soon as it is made
    (`private/fed/app/server/server_train.py`, ``main``; `fuel/hci/server/hci.py`, ``AdminServer``): so what makes it is
    wrapped, and a server that was given another one ends.

    Raises:
        UnsafeComponentError: this FLARE has other names for it; the server does not start.
    """
    try:
        clients, server = engine.client_manager, engine.server
        authenticate, take = clients.authenticate, server.set_admin_server
        make = flare_admin.new_command_register_with_builtin_module
    except AttributeError as error:
        raise _unaudited(f"FLARE has no {error.name}") from None

    def take_audited(admin_server: Any) -> None:
        register = admin_server.cmd_reg
        # none where administrators cannot reach the server at all
        if register is not None and not isinstance(register, AuditedCommands):
            raise _unaudited("the register of commands was made in another way")
        take(admin_server)

    clients.authenticate = audited(authenticate, trail)
    server.set_admin_server = take_audited
    flare_admin.new_command_register_with_builtin_module = lambda app_ctx: AuditedCommands(make(app_ctx), trail)


def _unaudited(why: str) -> UnsafeComponentError:
    return UnsafeComponentError(f"{why}, and commands would be missing in the audit trail: use the tested nvflare")


class AuditedCommands:
    """FLARE's register of commands, which writes what became of each. Everything else is the register's own."""

    def __init__(self, register: Any, trail: Trail) -> None:
        self._register = register
        self._trail = trail
        # what strangers send hides nothing of what is refused to people who are known
        self._people, self._strangers = Refusals(trail), Refusals(trail)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._register, name)

    def process_command(self, conn: Any, command: str) -> None:
        """Let FLARE process a command, then write who asked for it and the answer, also where it raises."""
        try:
            self._register.process_command(conn, command)
        except BaseException as error:
            self._note(conn, str(command), raised=type(error).__name__)
            raise
        self._note(conn, str(command))

    def _note(self, conn: Any, command: str, *, raised: str = "") -> None:
        first, *words = command.split() or [""]
        # the name with or without that of its module
        name = first.rpartition(".")[2]
        login, answer = name == InternalCommands.CERT_LOGIN, raised or _answer(conn)
        outcome = Outcome.FAILED if raised else outcome_of(answer, conn.buffer.meta.get("status"), login=login)
        if name in LOOKS and outcome is Outcome.ALLOWED:
            return
        # what a job's folder is called is its submitter's business: the command's words are not written
        action, person = name.lstrip("_"), _person(conn)
        who, job = words[0] if login and words else person, job_of(words) or conn.buffer.meta.get(MetaKey.JOB_ID, "")
        if outcome is Outcome.ALLOWED:
            self._trail.note(action=action, outcome=outcome, who=who, job=job)
        else:
            refusals = self._strangers if login or person == NOBODY else self._people
            refusals.note(action=action, outcome=outcome, who=who, job=job, reason=answer)


def audited(authenticate: Authenticate, trail: Trail) -> Authenticate:
    """FLARE's check of who registers, a site or an administrator's program, which writes its result."""
    refusals = Refusals(trail)

    def check(request: Any, fl_ctx: FLContext) -> Any:
        client = authenticate(request, fl_ctx)
        who = request.get_header(CellMessageHeaderKeys.CLIENT_NAME, "")
        if client is not None:
            trail.note(action="register", outcome=Outcome.ALLOWED, who=who)
        else:
            # FLARE says why it refuses a known site only; to its log, if somebody cannot prove the name
            why = fl_ctx.get_prop(FLContextKey.UNAUTHENTICATED) or "the name is not proved"
            refusals.note(action="register", who=who, reason=why)
        return client

    return check


def outcome_of(answer: str, status: Any, *, login: bool) -> Outcome:
    """What became of a command, by FLARE's answer and the status of it."""
    if status in REFUSALS or answer in UNKNOWN or answer.startswith(UNHEARD) or (login and answer != OK):
        return Outcome.REFUSED
    return Outcome.FAILED if answer.startswith(BROKE) else Outcome.ALLOWED


def refused_in(detail: list[str]) -> dict[str, str]:
    """Who refused a job, and why, from FLARE's ``server: OK`` and ``site-1: reason``."""
    said = (line.partition(": ") for line in detail if ": " in line)
    return {who: reason for who, _, reason in said if reason != OK}


def job_of(words: list[str]) -> str:
    """The id of the job that a command is about: the first word that has the form of one."""
    return next((word for word in words if word.count("-") == 4 and len(word) == 36), "")


def _answer(conn: Any) -> str:
    """The first words of FLARE's answer."""
    texts = [one.get(ProtoKey.DATA) for one in conn.buffer.data if one.get(ProtoKey.TYPE) != ProtoKey.TOKEN]
    return next((text for text in texts if isinstance(text, str)), "")


def _person(conn: Any) -> str:
    name, role, organisation = (
        conn.get_prop(key, "") for key in (ConnProps.USER_NAME, ConnProps.USER_ROLE, ConnProps.USER_ORG)
    )
    return f"{name} ({role} of {organisation})" if name else NOBODY


def _job(fl_ctx: FLContext) -> str:
    return str(fl_ctx.get_prop(FLContextKey.EVENT_DATA)[JobMetaKey.JOB_ID.value])
