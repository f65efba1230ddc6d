"""The server's audit: who asked for what and was refused, jobs that were refused, sites that were not let in.

A component of the server's parent process (``local/resources.json``). FLARE 2.9.0 raises an event for some refusals
only; for the others this component looks where they can be seen:

- Commands, their authorization and the check of an uploaded job raise no event when they are refused
  (`fuel/hci/server/reg.py`, ``_do_command`` leaves before any later filter, FLARE's own audit among them;
  `private/fed/server/job_cmds.py`, ``submit_job`` answers an invalid job itself). The register that all of them pass
  is wrapped, and the answer is read.
- A job that fails to be deployed raises ``JOB_ABORTED``, one that some sites refuse ``JOB_DEPLOYED``; which refused it,
  and why, stands in ``JOB_DEPLOY_DETAIL`` of the event's context (`private/fed/server/job_runner.py`).
- A class outside the allow-list ends the job's process with an exit code of its own (`fuel/common/exit_codes.py`).
- A site whose identity is not proved gets no token, and ``CLIENT_REGISTER_PROCESSED`` comes all the same, without a
  word of it (`private/fed/server/fed_server.py`, ``register_client``): the check itself is wrapped.
- A connection under another name than its certificate's stands in FLARE's log alone (``audit_log``).
- A client refused in the TLS handshake is never seen here: gRPC's core ends it. The site writes it (``audit_site``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.hci.proto import InternalCommands, MetaKey, MetaStatusValue, ProtoKey, ReplyKeyword
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.private.defs import CellMessageHeaderKeys

from fedmedseg.core.audit import Outcome, Trail
from fedmedseg.core.audit_flare import note_exit, note_start, trail_here
from fedmedseg.core.audit_log import listen

Authenticate = Callable[[Any, FLContext], Any]
SERVER = "server"
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
OK = "OK"
ADMIN_SECONDS = 60.0


class ServerAudit(FLComponent):
    """Writes the server's trail. A server that cannot write it does not start."""

    def __init__(self) -> None:
        super().__init__()
        self.trail = trail_here(SERVER)
        self._deployed: set[str] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write what an event tells."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            note_start(self.trail)
            listen(self.trail)
            clients = fl_ctx.get_engine().client_manager
            clients.authenticate = audited(clients.authenticate, self.trail)
        elif event_type == EventType.SYSTEM_START:
            threading.Thread(target=self._listen, args=(fl_ctx.get_engine(),), daemon=True).start()
        elif event_type == EventType.JOB_DEPLOYED:
            self._job_deployed(fl_ctx)
        elif event_type == EventType.JOB_ABORTED:
            self._job_aborted(fl_ctx)
        elif event_type == EventType.JOB_COMPLETED:
            self._job_ended(fl_ctx)

    def _listen(self, engine: Any) -> None:
        """Wrap the register of commands.

        FLARE makes it after the last event of its start (`app/server/server_train.py`, ``main``).
        """
        end = time.monotonic() + ADMIN_SECONDS
        while time.monotonic() < end:
            admin = engine.server.admin_server
            if admin is not None:
                admin.cmd_reg = AuditedCommands(admin.cmd_reg, self.trail)
                return
            time.sleep(0.01)
        self.logger.error("the server's command register was not found: commands are missing in the audit trail")

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


class AuditedCommands:
    """FLARE's register of commands, which writes what became of each. Everything else is the register's own."""

    def __init__(self, register: Any, trail: Trail) -> None:
        self._register = register
        self._trail = trail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._register, name)

    def process_command(self, conn: Any, command: str) -> None:
        """Let FLARE process a command, then write who asked for it and the answer."""
        self._register.process_command(conn, command)
        first, *words = command.split() or [""]
        # the name with or without that of its module
        name = first.rpartition(".")[2]
        answer, login = _answer(conn), name == InternalCommands.CERT_LOGIN
        refused = conn.buffer.meta.get("status") in REFUSALS or answer in UNKNOWN or (login and answer != OK)
        if name in LOOKS and not refused:
            return
        # what a job's folder is called is its submitter's business: the command's words are not written
        self._trail.note(
            action=name.lstrip("_"),
            outcome=Outcome.REFUSED if refused else Outcome.ALLOWED,
            who=words[0] if login and words else _person(conn),
            job=job_of(words) or conn.buffer.meta.get(MetaKey.JOB_ID, ""),
            reason=answer if refused else "",
        )


def audited(authenticate: Authenticate, trail: Trail) -> Authenticate:
    """FLARE's check of who registers, a site or an administrator's program, which writes its result."""

    def check(request: Any, fl_ctx: FLContext) -> Any:
        client = authenticate(request, fl_ctx)
        trail.note(
            action="register",
            outcome=Outcome.REFUSED if client is None else Outcome.ALLOWED,
            who=request.get_header(CellMessageHeaderKeys.CLIENT_NAME, ""),
            # FLARE says why it refuses a known site only; to its log, if somebody cannot prove the name
            reason="" if client else fl_ctx.get_prop(FLContextKey.UNAUTHENTICATED) or "the name is not proved",
        )
        return client

    return check


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
    return f"{name} ({role} of {organisation})" if name else "nobody who is logged in"


def _job(fl_ctx: FLContext) -> str:
    return str(fl_ctx.get_prop(FLContextKey.EVENT_DATA)[JobMetaKey.JOB_ID.value])
