"""The server's guard: one site's death ends nobody else's job, a site that comes back joins again, dead jobs are told.

A component of the server's parent process (``local/resources.json``), because FLARE 2.9.0 decides there, before any
workflow is asked (`private/fed/server/fed_server.py`, ``process_job_failure``): any exit code but a clean one of any
site's job process fails the whole run, whatever quorum the study has.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import ConfigVarName, FLContextKey, RunProcessKey, SystemComponents, SystemConfigs
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, JobMetaKey, RunStatus
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.fuel.utils.config_service import ConfigService
from nvflare.private.fed.server.server_commands import ServerCommands
from nvflare.utils.job_launcher_utils import get_resource_manager_spec

from fedmedseg.core.audit import Outcome
from fedmedseg.core.audit_flare import trail_here
from fedmedseg.core.homes import SERVER

SITES_CHANGED = "fedmedseg.sites_changed"
"""Message of the server's parent process to a job's: look again who takes part."""
MISSING = "missing job on client"
"""FLARE's word for a site that reports, every 10 s, and does not run a job it should (`fed_server.py`,
``_sync_client_jobs``)."""
REPORT_SECONDS = 30.0
"""Within this time a second such report proves the first: one alone may be older than the job's start, or come as it
ends."""
MOST_RESTARTS = 3
"""Of one site in one job: what dies every time is started no more."""
REJOIN_SECONDS = 60.0
RETRY_SECONDS = 2.0
ANSWER_SECONDS = 5.0


class FederationGuard(FLComponent):
    """Lets the workflow's quorum decide what a site's failure means, and cleans up after a server that died.

    - A job has started: its sites' failures no longer fail the run. The workflow learns of a dead site through
      FLARE's own watch (``CLIENT_DISCONNECTED``) and from the reply that does not come.
    - A site registers anew while a job it belongs to runs: the old process is reported dead, and the site is asked to
      start the job again; it finds its own state on its own disk.
    - A site's process of a job died and the site itself lives: it is asked to start the job again, up to three times.
    - The server starts: jobs that it left running when it died are marked ``ABANDONED``. FLARE would show them as
      running for ever, and refuse to clone, delete or abort them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._missing: dict[tuple[str, str], float] = {}
        self._restarts: Counter[tuple[str, str]] = Counter()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Act on FLARE's events; what fails here is logged and never stops the server."""
        if event_type == EventType.SYSTEM_START:
            # a site whose job died before its first heartbeat must be missed, too
            settings = {ConfigVarName.SYNC_CLIENT_JOBS_REQUIRE_PREVIOUS_REPORT: False}
            ConfigService.add_section(SystemConfigs.APPLICATION_CONF, settings)
            self._abandon_dead_jobs(fl_ctx)
            self._watch(fl_ctx.get_engine())
        elif event_type == EventType.JOB_STARTED:
            self._let_the_workflow_decide(fl_ctx)
        elif event_type == EventType.CLIENT_REGISTER_PROCESSED:
            self._welcome_back(fl_ctx)

    def _abandon_dead_jobs(self, fl_ctx: FLContext) -> None:
        manager = fl_ctx.get_engine().get_component(SystemComponents.JOB_MANAGER)
        for job in manager.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx):
            manager.set_status(job.job_id, RunStatus.ABANDONED, fl_ctx)
            why = "the server ended while it ran"
            trail_here(SERVER).note(action="job", outcome=Outcome.FAILED, job=job.job_id, reason=why)
            self.log_warning(
                fl_ctx,
                f"job {job.job_id} was running when this server ended: it is marked {RunStatus.ABANDONED.value}. "
                f"`fedmedseg resume {job.job_id}` continues it",
            )

    def _let_the_workflow_decide(self, fl_ctx: FLContext) -> None:
        job_id = fl_ctx.get_prop(FLContextKey.EVENT_DATA)[JobMetaKey.JOB_ID.value]
        engine = fl_ctx.get_engine()
        for client in engine.get_clients():
            engine.job_runner.resolve_client_outcome(job_id, client.name)

    def _welcome_back(self, fl_ctx: FLContext) -> None:
        engine = fl_ctx.get_engine()
        for job_id, process in list(engine.run_processes.items()):
            with engine.lock:
                participants = dict(process[RunProcessKey.PARTICIPANTS])
            for old, new in returned(participants, engine.get_clients()):
                engine.notify_dead_job(job_id, new.name, "registered anew")
                with engine.lock:
                    participants = process[RunProcessKey.PARTICIPANTS]
                    participants.pop(old, None)
                    participants[new.token] = new
                # the job's process knows sites by the token they had; without this it turns the returned one away
                engine.send_app_command(job_id, SITES_CHANGED, {}, timeout=ANSWER_SECONDS)
                # the site waits for the answer to its registration before it listens to anybody
                threading.Thread(target=self._start_again, args=(engine, job_id, new), daemon=True).start()

    def _watch(self, engine: Any) -> None:
        """Hear of dead processes where FLARE tells the job of them: it raises no event in this process."""
        tell = engine.notify_dead_job

        def told(job_id: str, client_name: str, reason: str) -> None:
            tell(job_id, client_name, reason)
            if reason == MISSING:
                self._restart(engine, job_id, client_name)

        engine.notify_dead_job = told

    def _restart(self, engine: Any, job_id: str, name: str) -> None:
        """Start a site's job again, once its process is known to be gone and while it has not died too often."""
        site, now = (job_id, name), time.monotonic()
        before, self._missing[site] = self._missing.get(site), now
        if before is None or now - before > REPORT_SECONDS or self._restarts[site] >= MOST_RESTARTS:
            return
        client = next((one for one in engine.get_clients() if one.name == name), None)
        job = engine.job_runner.running_jobs.get(job_id)
        if client is None or job is None or job.run_aborted:
            return
        del self._missing[site]
        self._restarts[site] += 1
        self.logger.warning(f"{name} lost its process of job {job_id}: start {self._restarts[site]} of {MOST_RESTARTS}")
        threading.Thread(target=self._start_again, args=(engine, job_id, client), daemon=True).start()

    def _start_again(self, engine: Any, job_id: str, client: Client) -> None:
        """Ask a site to start a job again, until it does or the job has ended."""
        end = time.monotonic() + REJOIN_SECONDS
        while time.monotonic() < end and job_id in engine.run_processes:
            time.sleep(RETRY_SECONDS)
            job = engine.job_runner.running_jobs.get(job_id)
            with engine.new_context() as fl_ctx:
                if job is not None and not job.run_aborted and self._started(engine, job, client, fl_ctx):
                    trail_here(SERVER).note(action="rejoin", outcome=Outcome.ALLOWED, who=client.name, job=job_id)
                    self.log_info(fl_ctx, f"{client.name} is back in job {job_id}")
                    return
        if job_id in engine.run_processes:
            with engine.new_context() as fl_ctx:
                self.log_warning(fl_ctx, f"{client.name} did not start job {job_id} again")

    @staticmethod
    def _started(engine: Any, job: Job, client: Client, fl_ctx: FLContext) -> bool:
        asked = {**job.meta, JobMetaKey.RESOURCE_SPEC.value: job.resource_spec}
        needs = get_resource_manager_spec(asked, client.name)
        enough, token = engine.check_client_resources(job, {client.name: needs}, fl_ctx).get(client.name, (False, ""))
        if not enough:
            return False
        app = next(iter(job.get_deployment()))
        replies = engine.start_client_job(job, {client.name: DispatchInfo(app, needs, token)}, fl_ctx)
        return any(reply.client_name == client.name and reply.reply for reply in replies)


def follow_returns(engine: Any) -> None:
    """In a job's process: heed ``SITES_CHANGED``. It may be called once by every workflow of the job."""
    if SITES_CHANGED in ServerCommands.app_cmd_registry:
        return

    def sites_changed(topic: str, content: object, fl_ctx: FLContext) -> dict[str, Any]:
        # in a thread: the parent answers the question only after it has had the answer to its own
        threading.Thread(target=engine.sync_clients_from_main_process, daemon=True).start()
        return {}

    engine.register_app_command(SITES_CHANGED, sites_changed)


def returned(participants: dict[str, Client], connected: list[Client]) -> list[tuple[str, Client]]:
    """Sites of a job that have registered again since it started: the token they had then, and what they are now."""
    now = {client.name: client for client in connected}
    return [
        (token, now[client.name])
        for token, client in participants.items()
        if client.name in now and now[client.name].token != token
    ]
