"""A local person's word on each job: requests and decisions as files on the site's own disk, and the wait for one.

The site's process writes requests, and `fedmedseg approval` writes decisions: no file has two writers. Whoever may
write to ``state_dir`` may decide.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason, nearest
from fedmedseg.core.schema import Strict, parse
from fedmedseg.core.training import Aborted
from fedmedseg.core.wishes import Wish

logger = logging.getLogger(__name__)

FOLDER = "job.approvals"
"""In the site's state_dir. The dot keeps it apart from studies, whose names have none."""
POLL_SECONDS = 1.0
LONGEST_REASON = 100
_WORDS = re.compile(rf"[A-Za-z0-9_.,:;()%+ -]{{0,{LONGEST_REASON}}}")
"""What the site's filters let pass in a reason."""

Verdict = Literal["approved", "denied"]
ModelT = TypeVar("ModelT", bound=Strict)


class Request(Strict):
    """A file ``<id>.request.json``."""

    wish: Wish
    job: str
    """FLARE's number of the submission that asked first."""
    asked: str
    """UTC."""


class Decision(Strict):
    """A file ``<id>.decision.json``."""

    wish: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the whole wish: the name of the file is only its beginning."""
    verdict: Verdict
    reason: str = ""
    """Told to the server with a denial."""
    by: str
    """Account that decided; stays here."""
    at: str
    """UTC."""


@dataclass(frozen=True)
class Matter:
    """A request and the word on it, if there is one."""

    request: Request
    decision: Decision | None

    @property
    def status(self) -> Literal["waiting", "approved", "denied"]:
        """For people."""
        return "waiting" if self.decision is None else self.decision.verdict


def require_approval(
    state_root: Path,
    wish: Wish,
    *,
    job: str,
    aborted: Callable[[], bool],
    patience: float,
    poll: float = POLL_SECONDS,
) -> None:
    """Return once a local person agrees to ``wish``; the first call of a job asks.

    Every task looks again: a denial after an approval ends this site's part with the next task.

    Args:
        state_root: the site's state_dir.
        wish: what the job wants.
        job: FLARE's number of the submission.
        aborted: whether the federation asked to stop.
        patience: seconds the server waits for a round. An answer after that counts for nothing, so the wait ends
            too; the request stays, and its approval holds for the next round and for a resumed run.
        poll: seconds between two looks.

    Raises:
        Aborted: the federation asked to stop.
        FedMedSegError: reason DENIED; or APPROVAL, where nobody decided in time or a file is damaged.
    """
    folder, end = state_root / FOLDER, time.monotonic() + patience
    asked = False
    while True:
        decision = _decision(folder, wish)
        if decision is not None and decision.verdict == "approved":
            return
        if decision is not None:
            words = f": {decision.reason}" if decision.reason else ""
            raise FedMedSegError(f"by a person at this site{words}", reason=Reason.DENIED)
        if not asked:
            _ask(folder, wish, job)
            asked = True
            logger.warning("the job waits for a local decision: `fedmedseg approval`, request %s", wish.id)
        if aborted():
            raise Aborted
        if time.monotonic() >= end:
            raise FedMedSegError(
                "no local decision in time",
                expected=f"one within {patience:g} s, for which the server waits",
                remedy=f"`fedmedseg approval KIT --approve {wish.id}` holds for the rounds to come",
                reason=Reason.APPROVAL,
            )
        time.sleep(poll)


def matters(state_root: Path) -> list[Matter]:
    """All requests of this site, the newest last.

    Raises:
        FedMedSegError: reason APPROVAL, a damaged file.
    """
    found = [_read(file, Request) for file in sorted((state_root / FOLDER).glob("*.request.json"))]
    requests = sorted((one for one in found if one is not None), key=lambda one: (one.asked, one.wish.id))
    return [Matter(one, _decision(state_root / FOLDER, one.wish)) for one in requests]


def decide(state_root: Path, request: str, verdict: Verdict, *, reason: str = "") -> Matter:
    """Write a local person's word on ``request``, in the place of an earlier one.

    Raises:
        ConfigurationError: no such request, or words that the site's filters would not let leave.
        FedMedSegError: reason APPROVAL, a damaged file.
    """
    if not _WORDS.fullmatch(reason):
        raise ConfigurationError(
            "--reason",
            got=f"{len(reason)} characters",
            expected=f"at most {LONGEST_REASON}, of letters without accents, digits, spaces and . , : ; ( ) % + -",
            remedy="it is told to the server: keep it short, and name no patient",
        )
    known = {matter.request.wish.id: matter.request for matter in matters(state_root)}
    if request not in known:
        guess = nearest(request, known)
        raise ConfigurationError(
            "request",
            got=repr(request),
            expected=f"one of {', '.join(known)}" if known else "nothing yet: no job has asked for approval here",
            remedy=f"write {guess!r}" if guess else "",
        )
    wish = known[request].wish
    decision = Decision(wish=wish.digest, verdict=verdict, reason=reason, by=_account(), at=_now())
    _write(_decision_file(state_root / FOLDER, wish), decision)
    return Matter(known[request], decision)


def _ask(folder: Path, wish: Wish, job: str) -> None:
    file = folder / f"{wish.id}.request.json"
    if not file.exists():
        _write(file, Request(wish=wish, job=job, asked=_now()))


def _decision(folder: Path, wish: Wish) -> Decision | None:
    decision = _read(_decision_file(folder, wish), Decision)
    return decision if decision is not None and decision.wish == wish.digest else None


def _decision_file(folder: Path, wish: Wish) -> Path:
    return folder / f"{wish.id}.decision.json"


def _read(file: Path, model: type[ModelT]) -> ModelT | None:
    try:
        return parse(model, json.loads(file.read_text(encoding="utf-8")), source=file.name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ConfigurationError):
        raise FedMedSegError(
            "a file of local approvals cannot be read",
            expected=f"a whole {file.name} in {FOLDER} of state_dir",
            remedy="remove that file; the request is made anew, and somebody decides again",
            reason=Reason.APPROVAL,
        ) from None


def _write(file: Path, content: Strict) -> None:
    write_atomic(file, (json.dumps(content.model_dump(mode="json"), indent=1) + "\n").encode())


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # a container may know the user by number only
        return str(os.getuid())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
