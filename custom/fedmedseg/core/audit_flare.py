"""What FLARE's processes share in writing their participant's audit trail: where it lies, a start, a job's end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.fuel.common.exit_codes import PROCESS_EXIT_REASON, ProcessExitCode

from fedmedseg.core.audit import FOLDER, Outcome, Trail
from fedmedseg.core.place import place_of

logger = logging.getLogger(__name__)


def trail_here(participant: str) -> Trail:
    """The trail of the kit a parent process works in: FLARE changes into it before it builds components."""
    return Trail(Path.cwd() / FOLDER, participant=participant)


def note_in(fl_ctx: FLContext, *, action: str, outcome: Outcome, who: str = "", reason: str = "") -> None:
    """Write a line from a job's process into the trail of its kit; in the simulator beside its workspace.

    It never raises: what was refused stays refused, written or not, and the reply must still be sent.
    """
    try:
        place, job = place_of(fl_ctx), str(fl_ctx.get_job_id() or "")
        trail = Trail((place.home if place.simulated else place.workspace) / FOLDER, participant=place.name)
    except Exception as error:
        logger.error("the audit trail was not found (%s): %s %s", type(error).__name__, action, outcome)
        return
    trail.note(action=action, outcome=outcome, who=who, job=job, reason=reason)


def note_start(trail: Trail) -> None:
    """Write that a participant starts.

    Raises:
        UnsafeComponentError: the trail cannot be written; FLARE then does not start this participant.
    """
    try:
        trail.append(action="start", outcome=Outcome.ALLOWED)
    except OSError as error:
        raise UnsafeComponentError(
            f"the audit trail cannot be written ({type(error).__name__}): let this account write in the kit's folder"
        ) from None


def note_exit(trail: Trail, *, job: str, handle: Any) -> None:
    """Write that a job's process ended because of a class it may not name; any other end is no refusal.

    FLARE's handle of a process makes one code of many (`apis/job_launcher_spec.py`, ``JobReturnCode``); the one the
    process ended with is its adapter's. A site's handle holds that of the launcher (``_PendingJobHandle`` of
    `private/fed/client/client_executor.py`). A job in a container has no adapter: only its own log says why it ended.
    """
    adapter = getattr(getattr(handle, "_job_handle", handle), "adapter", None)
    if adapter is not None and adapter.poll() == ProcessExitCode.UNSAFE_COMPONENT:
        why = f"{PROCESS_EXIT_REASON[ProcessExitCode.UNSAFE_COMPONENT]}: a class outside class_allow_list"
        trail.note(action="load classes", outcome=Outcome.REFUSED, job=job, reason=f"{why}, named in the job's log")
