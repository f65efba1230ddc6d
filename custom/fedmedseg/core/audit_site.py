"""A site's audit: jobs it refuses, commands it does not allow, classes it does not load, and why it was not let in.

A component of the site's parent process (``local/resources.json``). FLARE 2.9.0 raises no event when a site refuses a
job or a command (`private/fed/client/training_cmds.py`, ``DeployProcessor.process``, and
`private/fed/client/admin.py`, ``_dispatch_request``, answer the server and write nothing), so the processors of
requests and the site's authorizer are wrapped and their answers read. A class outside the allow-list ends the job's
process with an exit code of its own. A site that the server turns away in the TLS handshake asks for ever: after some
seconds it makes a handshake of its own, whose failure Python can see (``core.handshake``).
"""

from __future__ import annotations

import threading
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.sec.authz import AuthorizationService, Authorizer, AuthzContext
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode
from nvflare.private.defs import RequestHeader
from nvflare.private.fed.client.admin import RequestProcessor

from fedmedseg.core.audit import Outcome, Trail
from fedmedseg.core.audit_flare import note_exit, note_start, trail_here
from fedmedseg.core.audit_refusals import AGAIN, Refusals
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.handshake import refusal
from fedmedseg.core.kit import open_kit

PATIENCE = 4.0
"""Seconds a registration may take before the site asks why."""


class SiteAudit(FLComponent):
    """Writes a site's trail. A site that cannot write it does not start.

    The watch over the registration begins with the component, before any event: with an expired certificate FLARE
    waits for ever, and without a word, for a cell that was never made (`private/fed/app/client/client_train.py`,
    ``main``), and its first event comes after that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trail = trail_here("")
        self._let_in = threading.Event()
        self._handles: dict[str, Any] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write what an event tells, and wrap what raises none."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            self.trail = trail_here(fl_ctx.get_identity_name())
            note_start(self.trail)
        elif event_type == EventType.AFTER_CLIENT_REGISTER:
            self._registered(fl_ctx)
        elif event_type == EventType.SYSTEM_START:
            self._listen(fl_ctx.get_engine())
        elif event_type == EventType.AFTER_JOB_LAUNCH:
            self._launched(fl_ctx)
        elif event_type == EventType.JOB_COMPLETED:
            job = str(fl_ctx.get_prop(FLContextKey.CURRENT_JOB_ID) or "")
            note_exit(self.trail, job=job, handle=self._handles.pop(job, None))

    def _watch(self) -> None:
        """Find out why the server does not answer; the site keeps asking meanwhile."""
        wait = PATIENCE
        while not self._let_in.wait(wait):
            try:
                kit = open_kit(self.trail.folder.parent)
            except ConfigurationError:
                # a site does not start without one
                return
            why = refusal(kit)
            self.trail.participant = self.trail.participant or kit.name
            if why:
                self.trail.note(action="connect", outcome=Outcome.REFUSED, reason=why)
            wait = AGAIN if why else PATIENCE

    def _registered(self, fl_ctx: FLContext) -> None:
        self._let_in.set()
        if fl_ctx.get_prop(FLContextKey.CLIENT_TOKEN):
            self.trail.note(action="register", outcome=Outcome.ALLOWED)
        else:
            self.trail.note(action="register", outcome=Outcome.REFUSED, reason="the server gave no token")

    def _listen(self, engine: Any) -> None:
        processors = engine.admin_agent.processors
        for topic, processor in processors.items():
            processors[topic] = AuditedProcessor(processor, self.trail)
        if AuthorizationService.the_authorizer is not None:
            AuthorizationService.the_authorizer = AuditedAuthorizer(AuthorizationService.the_authorizer, self.trail)

    def _launched(self, fl_ctx: FLContext) -> None:
        job = str((fl_ctx.get_prop(FLContextKey.JOB_META) or {}).get(JobMetaKey.JOB_ID.value, ""))
        running = fl_ctx.get_engine().client_executor.run_processes.get(job, {})
        if (handle := running.get(RunProcessKey.JOB_HANDLE)) is not None:
            self._handles[job] = handle


class AuditedProcessor(RequestProcessor):
    """One of FLARE's processors of the server's requests, which writes what it refuses."""

    def __init__(self, processor: RequestProcessor, trail: Trail) -> None:
        self._processor = processor
        self._refusals = Refusals(trail)

    def get_topics(self) -> list[str]:
        """The topics it answers."""
        return list(self._processor.get_topics())

    def process(self, req: Message, app_ctx: Any) -> Message:
        """FLARE's answer, written where it is an error."""
        reply = self._processor.process(req, app_ctx)
        if reply is not None and reply.get_header(MsgHeader.RETURN_CODE, ReturnCode.OK) != ReturnCode.OK:
            self._refusals.note(
                action=req.topic,
                who=req.get_header(RequestHeader.SUBMITTER_NAME, "") or req.get_header(RequestHeader.USER_NAME, ""),
                job=req.get_header(RequestHeader.JOB_ID, ""),
                reason=reply.body,
            )
        return reply


class AuditedAuthorizer:
    """The site's authorizer, which writes what it does not allow."""

    def __init__(self, authorizer: Authorizer, trail: Trail) -> None:
        self._authorizer = authorizer
        self._refusals = Refusals(trail)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._authorizer, name)

    def authorize(self, ctx: AuthzContext) -> tuple[bool, str]:
        """FLARE's decision."""
        allowed, error = self._authorizer.authorize(ctx)
        if not allowed:
            who = f"{ctx.user.name} ({ctx.user.role} of {ctx.user.org})"
            self._refusals.note(action=f"right {ctx.right}", who=who, reason=error)
        return allowed, error
