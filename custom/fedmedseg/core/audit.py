"""The audit trail: one line for every refusal and every act with consequences, chained so that a removal shows.

It lies in ``audit`` of the participant's kit, beside ``local`` and ``startup`` and outside every run folder: FLARE
deletes the server's run folders at the end of a job, and a job may write into its own. FLARE's ``audit.log`` says what
was asked for and not what became of it, and misses what is refused before a command reaches its handler. What a
stranger can repeat at will is written by ``core.audit_refusals``, which counts.

Each line holds the SHA-256 of the one before. The size is bounded: when the oldest file is let go, a line says up to
which line, so that a beginning that somebody cut shows. Whoever may write in the folder can still cut the trail's end
or write all of it anew: note the last digest elsewhere from time to time, and ``verify`` finds it again or says that it
is gone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import ConfigurationError, why

logger = logging.getLogger(__name__)

FOLDER = "audit"
CURRENT = "trail.jsonl"
FIRST = "0" * 64
"""What the first line of a trail names as the line before."""
MAX_BYTES = 8 * 2**20
"""Size at which a file is set aside and a new one begun."""
KEPT_FILES = 32
MOST_WORDS = 300
"""Characters of a reason."""
MOST_NAME = 120
LET_GO = "let go"
"""Action of the line that tells of a file that was let go. It holds a blank: no command of FLARE has this name."""
_TAIL = 16 * 1024
"""Bytes that hold the last line for certain."""
_UP_TO = re.compile(r"lines up to ([0-9]+)")

_MARKS = " '\"(),;:="
"""What a path or the name of a file is told apart by from the words around it."""
# each begins where a word does, and nowhere within it: a long word costs its length, not the square of it
_PATH = re.compile(r"(?<![^ '\"(),;:=\\/])(?:[A-Za-z]:)?[^ '\"(),;:=\\/]*[\\/][^ '\"(),;]*")
_FILE = re.compile(
    r"(?<![^ '\"(),;:=])[^ '\"(),;:=]+"
    r"\.(?:nii|gz|dcm|nrrd|mha|mhd|json|ya?ml|npz|npy|h5|png|pt|pth|zip|safetensors)\b",
    re.I,
)
_CONTROL = re.compile(r"[^\x20-\x7e]+")


class Outcome(StrEnum):
    """What became of what was asked."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    DECLINED = "declined"
    """A site takes no part, and says so."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line. ``participant`` wrote it; ``who`` is the site or person it is about."""

    number: int
    time: str
    participant: str
    who: str
    action: str
    job: str
    outcome: str
    reason: str
    previous: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What ``verify`` found. A trail without ``problems`` is whole from its line ``first`` to its line ``last``."""

    lines: int = 0
    first: int = 0
    last: int = 0
    let_go: int = 0
    """Up to which line the trail itself says that it was let go."""
    digest: str = FIRST
    """Digest of the last line: what to note elsewhere."""
    problems: list[str] = field(default_factory=list)


class Trail:
    """Appends to a participant's trail; processes of the same kit share it under a lock.

    Args:
        folder: where the files lie; made when the first line is written.
        participant: who writes.
        max_bytes: size at which a file is set aside.
        kept_files: files set aside that are kept; with the default some half a million lines.
    """

    def __init__(
        self, folder: Path, *, participant: str, max_bytes: int = MAX_BYTES, kept_files: int = KEPT_FILES
    ) -> None:
        self.folder = folder
        self.participant = participant
        self.max_bytes = max_bytes
        self.kept_files = kept_files

    def append(self, *, action: str, outcome: Outcome, who: str = "", job: str = "", reason: str = "") -> Entry:
        """Write one line and wait until it is on the disk.

        Raises:
            OSError: it could not be written.
        """
        said = {
            "participant": safe(self.participant, MOST_NAME),
            "who": safe(who, MOST_NAME) or safe(self.participant, MOST_NAME),
            "action": safe(action, MOST_NAME),
            "job": safe(job, MOST_NAME),
            "outcome": str(outcome),
            "reason": safe(reason),
        }
        with self._locked():
            file = self.folder / CURRENT
            if file.exists() and file.stat().st_size >= self.max_bytes:
                self._set_aside(file)
            return self._write(file, said)

    def note(self, *, action: str, outcome: Outcome, who: str = "", job: str = "", reason: str = "") -> None:
        """``append``, where a full disk must not stop what goes on: what was refused stays refused all the same."""
        try:
            self.append(action=action, outcome=outcome, who=who, job=job, reason=reason)
        except OSError as error:
            logger.error("the audit trail could not be written (%s): %s %s", type(error).__name__, action, outcome)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, file: Path, said: Mapping[str, str]) -> Entry:
        last = _last_lines(self.folder)
        entry = Entry(
            number=_number(last) + 1,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            previous=digest_of(last[-1]) if last else FIRST,
            **said,
        )
        line = json.dumps(entry.__dict__, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # a process that was killed while it wrote leaves half a line, which keeps its place in the chain
            os.write(descriptor, b"\n" + line if _is_torn(file) else line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return entry

    def _set_aside(self, file: Path) -> None:
        os.replace(file, file.with_name(f"trail-{_number(_last_lines(self.folder)):012d}.jsonl"))
        spare = _set_aside_files(self.folder)[: -self.kept_files]
        if not spare:
            return
        # first the line, then the deed: a crash in between leaves more than was promised, never less
        me, up_to = safe(self.participant, MOST_NAME), int(spare[-1].stem.removeprefix("trail-"))
        said = {"participant": me, "who": me, "action": LET_GO, "job": "", "outcome": str(Outcome.ALLOWED)}
        self._write(file, {**said, "reason": f"lines up to {up_to}"})
        for old in spare:
            old.unlink()


def read(folder: Path, *, last: int | None = None) -> list[dict[str, Any]]:
    """The entries of a trail, oldest first, or its ``last`` ones; lines that are none are left out.

    Raises:
        ConfigurationError: no trail there, or one that this user may not read.
    """
    found: deque[dict[str, Any]] = deque(maxlen=last)
    for line in _lines(folder):
        if (entry := _parsed(line)) is not None:
            found.append(entry)
    return list(found)


def verify(folder: Path, *, known: str | None = None, kept_files: int = KEPT_FILES) -> Verification:
    """Follow the chain from the first line to the last.

    Args:
        folder: the trail's.
        known: the digest of a line, noted at an earlier time, that must still be there.
        kept_files: files set aside that are kept, as the trail's writer has it.

    Raises:
        ConfigurationError: no trail there, or one that this user may not read.
    """
    lines = first = number = let_go = 0
    before, problems, seen = "", [], known in (None, FIRST)
    for line in _lines(folder):
        lines += 1
        entry = _parsed(line)
        if entry is None:
            problems.append(f"after line {number}: a line that is none (cut short by a crash, or changed)")
            # whatever comes next says which bytes stood here
            number += 1
        else:
            if not before:
                first = entry["number"]
                if first == 1 and entry["previous"] != FIRST:
                    problems.append("line 1: it is not the first that was written")
            else:
                if entry["previous"] != before:
                    problems.append(f"line {entry['number']}: the line before it was changed or removed")
                if entry["number"] != number + 1:
                    problems.append(f"line {entry['number']}: it follows line {number}")
            number = entry["number"]
            let_go = max(let_go, _let_go(entry))
        before = digest_of(line)
        seen = seen or before == known
    if first > let_go + 1:
        problems.append(f"line {first}: the lines before it are gone, and no line says that they were let go")
    elif first > 1 and len(_set_aside_files(folder)) < kept_files:
        problems.append(f"line {first}: lines before it were let go, and fewer than {kept_files} full files are left")
    if not seen:
        problems.append("the line whose digest was noted is not in the trail: its end was cut, or it was written anew")
    return Verification(lines=lines, first=first, last=number, let_go=let_go, digest=before or FIRST, problems=problems)


def digest_of(line: bytes) -> str:
    """SHA-256 of a line's bytes without its end."""
    return hashlib.sha256(line).hexdigest()


def safe(words: object, most: int = MOST_WORDS) -> str:
    """Words fit for the trail: one line of plain characters without paths or file names, ``most`` characters long.

    Strangers choose some of these words, before they have proved who they are: no more is looked at than can be kept.
    """
    text = str(words)
    kept = _CONTROL.sub("?", text[: 4 * most])
    if len(text) > 4 * most:
        # half a file's name would not be known as one
        kept = kept[: max(0, *(kept.rfind(mark) for mark in _MARKS))] or kept
    return _FILE.sub("<file>", _PATH.sub("<path>", kept))[:most]


def _lines(folder: Path) -> Iterator[bytes]:
    files = [*_set_aside_files(folder), folder / CURRENT]
    if not any(file.exists() for file in files):
        raise ConfigurationError(
            "audit trail",
            got=f"none in {folder}",
            expected=f"{CURRENT}, which a participant writes once it has started",
            remedy="name the folder of a startup kit that has been started",
        )
    try:
        for file in files:
            if file.exists():
                with open(file, "rb") as stream:
                    for line in stream:
                        yield line.rstrip(b"\n")
    except OSError as error:
        raise ConfigurationError(
            "audit trail",
            got=why(error),
            expected="files this user may read",
            remedy="use the account that starts the participant",
        ) from None


def _set_aside_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("trail-*.jsonl"))


def _last_lines(folder: Path) -> list[bytes]:
    """The last few lines of the newest file that holds any, without their ends."""
    for file in (folder / CURRENT, *reversed(_set_aside_files(folder))):
        if file.exists() and (size := file.stat().st_size):
            with open(file, "rb") as stream:
                stream.seek(max(0, size - _TAIL))
                return stream.read().rstrip(b"\n").split(b"\n")
    return []


def _number(lines: list[bytes]) -> int:
    """The number of the last of these lines; one that cannot be read counts as the one that stood there."""
    for behind, line in enumerate(reversed(lines)):
        if (entry := _parsed(line)) is not None:
            return int(entry["number"]) + behind
    return len(lines)


def _let_go(entry: Mapping[str, Any]) -> int:
    found = _UP_TO.fullmatch(str(entry["reason"])) if entry["action"] == LET_GO else None
    return int(found[1]) if found else 0


def _is_torn(file: Path) -> bool:
    with open(file, "rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        return entry if set(entry) == set(Entry.__dataclass_fields__) and isinstance(entry["number"], int) else None
    except (ValueError, TypeError):
        return None
