"""An administrator's session with a running federation: submit, follow, fetch, through FLARE's own admin API."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nvflare.apis.job_def import JobMetaKey, RunStatus
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidJobDefinition,
    JobNotDone,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    NoReply,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fedmedseg.core import live
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.kit import open_kit

POLL_SECONDS = 1.0
TRY_SECONDS = 15.0
"""How long one try to reach a server may take; more patience means more tries."""
COMPLETED = RunStatus.FINISHED_COMPLETED.value
RUNNING = RunStatus.RUNNING.value
SUBMITTED = RunStatus.SUBMITTED.value
ENDED = "FINISHED"
"""How FLARE begins the name of every status after which a job does not run any more, but for the two below."""
NEVER_RAN = (RunStatus.FAILED_TO_RUN.value, RunStatus.ABANDONED.value)
WHOLE_ID = 36
"""Characters of a job's id, a UUID."""
GONE = (NoConnection, NoReply, SessionClosed, InternalError)
"""What FLARE raises where the server of an open session answers no more."""
_SILENT = logging.NullHandler()
"""Python writes warnings of a logger without any handler on stderr; a logger has this one at most once."""
_TIME = re.compile(r"^[0-9-]{10} [0-9:]{8}: ")


@contextmanager
def session(kit: Path, *, patience: float = 15.0) -> Iterator[Session]:
    """A session with the server an administrator's kit names, closed at the end: an open one keeps its process alive.

    Args:
        kit: the administrator's startup kit.
        patience: seconds to reach the server.

    Raises:
        ConfigurationError: no administrator's kit, the server cannot be reached, or it refuses the certificate.
    """
    opened = open_kit(kit)
    if opened.role != "admin":
        raise ConfigurationError(
            "startup kit",
            got=f"the kit of a {opened.role}",
            expected="an administrator's",
            remedy="name the folder of the kit you log in with",
        )
    # what its messaging layer logs about a server that does not answer would otherwise stand before our own words
    logging.getLogger("nvflare.fuel.f3").addHandler(_SILENT)
    end = time.monotonic() + patience
    while True:
        try:
            # one try of FLARE's: its own repeats are silent, and none of them covers a connection that breaks
            # between the handshake and the login
            made = new_secure_session(
                username=opened.root.name,
                startup_kit_location=str(opened.root),
                timeout=min(TRY_SECONDS, max(POLL_SECONDS, end - time.monotonic())),
                auto_login_max_tries=1,
            )
            break
        except AuthenticationError:
            raise ConfigurationError(
                "startup kit",
                got=f"{opened.root.name}, whom the server refuses",
                expected="a certificate of this federation that has not ended",
                remedy="`fedmedseg preflight` says what is wrong with a kit",
            ) from None
        except Exception as error:
            if time.monotonic() + POLL_SECONDS > end:
                raise ConfigurationError(
                    "server",
                    got=f"no answer from {opened.server} in {patience:g} s ({type(error).__name__})",
                    expected="a server that runs and can be reached",
                    remedy="start it, or look at proxy and firewall with `fedmedseg preflight`",
                ) from error
            time.sleep(POLL_SECONDS)
    try:
        yield made
    finally:
        made.close()


def submit(open_session: Session, job: Path) -> str:
    """Submit a job folder; FLARE signs it with the administrator's key. Returns the job's id.

    A copy is submitted: FLARE writes signature and certificate into every folder of what it is given.

    Raises:
        ConfigurationError: this administrator may not, the server refuses the job, or it answers no more.
    """
    with _told_with_a_remedy(job.name), tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(job, Path(folder) / job.resolve().name)
        try:
            return str(open_session.submit_job(str(copied)))
        except AuthorizationError:
            raise ConfigurationError(
                "startup kit", got="a role that may not submit jobs", expected="a lead or the network's administrator"
            ) from None
        except InvalidJobDefinition as error:
            raise ConfigurationError(
                "job",
                got=f"{job.name!r}, which is refused ({error})",
                expected="a job that server and sites may run",
                remedy="write it anew with `fedmedseg job`",
            ) from None


def whole_id(open_session: Session, job: str) -> str:
    """The id of the one job whose id begins with ``job``; ``job`` itself where none or several do, which the server
    then refuses."""
    if not job or len(job) >= WHOLE_ID:
        return job
    with _told_with_a_remedy(job):
        found = [str(one[JobMetaKey.JOB_ID.value]) for one in open_session.list_jobs(id_prefix=job)]
    return found[0] if len(found) == 1 else job


def meta_of(open_session: Session, job_id: str) -> Mapping[str, Any]:
    """What the server knows of a job.

    Raises:
        ConfigurationError: no such job, or another organisation's.
    """
    with _told_with_a_remedy(job_id):
        found: Mapping[str, Any] = open_session.get_job_meta(job_id)
    return found


@contextmanager
def _told_with_a_remedy(job: str) -> Iterator[None]:
    """What FLARE raises while it is asked about a job, as an error that a person can act on."""
    try:
        yield
    except (JobNotFound, AuthorizationError) as error:
        raise ConfigurationError(
            "job",
            got=f"{job!r} ({type(error).__name__})",
            expected="the id of a job you may manage",
            remedy="`nvflare job list --startup-kit KIT` shows them; their first characters are enough",
        ) from None
    except AuthenticationError:
        raise ConfigurationError(
            "session",
            got="one that the server has ended",
            expected="one that is logged in",
            remedy="call the command again",
        ) from None
    except GONE as error:
        raise ConfigurationError(
            "server",
            got=f"no answer any more ({type(error).__name__})",
            expected="a server that runs",
            remedy="see its log; `fedmedseg resume` continues a job that its end cut short",
        ) from None


def status_of(meta: Mapping[str, Any]) -> str:
    """A job's status, as FLARE writes it."""
    return str(meta.get(JobMetaKey.STATUS.value, ""))


def sites_to_start(meta: Mapping[str, Any]) -> int:
    """How many connected sites the server wants before it starts a job."""
    least = meta.get(JobMetaKey.MIN_CLIENTS.value)
    return least if isinstance(least, int) and not isinstance(least, bool) and least > 0 else 1


def why_not_started(meta: Mapping[str, Any]) -> str:
    """What the server's last try to schedule a job came to, in FLARE's words; empty before its first try.

    FLARE notes a line for each try, with the time before it (`job_schedulers/job_scheduler.py`,
    ``_update_schedule_history``).
    """
    history = meta.get(JobMetaKey.SCHEDULE_HISTORY.value)
    last = str(history[-1]) if isinstance(history, list) and history else ""
    return _TIME.sub("", last)


def has_ended(status: str) -> bool:
    """Whether a job of this status does not run and never will."""
    return status.startswith(ENDED) or status in NEVER_RAN


def wait(
    open_session: Session,
    job_id: str,
    *,
    on_poll: Callable[[Mapping[str, Any]], None] = lambda meta: None,
    timeout: float | None = None,
) -> Mapping[str, Any]:
    """Wait until a job has ended; ``on_poll`` sees its meta data about once a second.

    Raises:
        TimeoutError: it still runs after ``timeout`` seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        meta = meta_of(open_session, job_id)
        on_poll(meta)
        if has_ended(status_of(meta)):
            return meta
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"job {job_id} is {status_of(meta)} after {timeout:g} s")
        time.sleep(POLL_SECONDS)


def live_status(open_session: Session, job_id: str) -> Mapping[str, Any] | None:
    """What a running study tells of itself (``core.live``), or None before its first round and after its last.

    FLARE calls a job unknown while its process is there and does not answer yet (`info_coll_cmd.py`,
    `authorize_info_collection`): whether there is such a job is what ``meta_of`` says.

    Raises:
        ConfigurationError: this administrator may not look on, or the server answers no more.
    """
    with _told_with_a_remedy(job_id):
        try:
            found = open_session.show_stats(job_id, "server")
        except (JobNotRunning, JobNotFound, NoReply):
            return None
    server = found.get("server") if isinstance(found, Mapping) else None
    said = server.get(live.GROUP) if isinstance(server, Mapping) else None
    return said if isinstance(said, Mapping) else None


def last_seen(open_session: Session) -> dict[str, float]:
    """Site -> when the server last heard of it, in seconds since 1970 by the server's clock.

    Raises:
        ConfigurationError: the server answers no more.
    """
    with _told_with_a_remedy("sites"):
        return {one.name: float(one.last_connect_time) for one in open_session.get_connected_client_list()}


def abort(open_session: Session, job_id: str, *, patience: float = 30.0) -> None:
    """Abort a job, and wait at most ``patience`` seconds until it has ended. One that does not run is left as it is.

    Raises:
        ConfigurationError: this administrator may not.
    """
    try:
        open_session.abort_job(job_id)
    except AuthorizationError:
        raise ConfigurationError(
            "job",
            got=f"{job_id!r}, which this administrator may not abort",
            expected="the id of a job you may manage",
            remedy="ask the one who submitted it, or the network's administrator",
        ) from None
    except (JobNotRunning, JobNotFound, AuthenticationError, *GONE):
        # nothing is left to abort, or nobody to tell
        return
    with suppress(TimeoutError, ConfigurationError):
        wait(open_session, job_id, timeout=patience)


def shut_down(open_session: Session) -> None:
    """Tell the sites and then the server to end; returns at once, and the session is over."""
    # a job that still runs, or a server that has gone already: who started the processes ends them
    with suppress(JobNotDone, *GONE):
        open_session.shutdown("all", wait=False)


def download(open_session: Session, job_id: str, folder: Path) -> Path:
    """Fetch what a job left at the server into ``folder``; returns the run folder, with report and models.

    Raises:
        ConfigurationError: no such job, another organisation's, one that left nothing, or no answer any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _told_with_a_remedy(job_id):
        found = open_session.download_job_result(job_id, str(folder))
    if not found:
        raise ConfigurationError(
            "job",
            got=f"{job_id!r}, of which the server hands out nothing",
            expected="a job whose files the server keeps",
            remedy="see the server's log; submit the job folder again",
        )
    return Path(found) / "workspace"
