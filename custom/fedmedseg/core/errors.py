"""Errors a user can act on: what was wrong, what came, what was expected, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum


class Reason(StrEnum):
    """Short codes that may cross the wire and reach logs: none of them carries a path, a name or a patient."""

    ABORTED = "ABORTED"
    ALREADY_RECEIVED = "ALREADY_RECEIVED"
    APPROVAL = "APPROVAL"
    CONFIGURATION = "CONFIGURATION"
    DATA = "DATA"
    DENIED = "DENIED"
    DISK = "DISK"
    EMPTY = "EMPTY"
    ENCRYPTION = "ENCRYPTION"
    INTERNAL = "INTERNAL"
    LOCAL_DIVERGED = "LOCAL_DIVERGED"
    MEMORY = "MEMORY"
    MISSING_TENSORS = "MISSING_TENSORS"
    NO_CASES = "NO_CASES"
    NOT_FINITE = "NOT_FINITE"
    OVERSIZE = "OVERSIZE"
    PREFLIGHT = "PREFLIGHT"
    PRIVACY = "PRIVACY"
    ROBUST = "ROBUST"
    SCHEMA = "SCHEMA"
    SITE_ERROR = "SITE_ERROR"
    STALE = "STALE"
    TENSOR_SHAPE = "TENSOR_SHAPE"
    TENSOR_TYPE = "TENSOR_TYPE"
    UNKNOWN_TENSORS = "UNKNOWN_TENSORS"
    UNREADABLE = "UNREADABLE"
    VERSION = "VERSION"


class FedMedSegError(Exception):
    """An error with the four things a person needs to mend it.

    ``public`` is the part that may leave the site: the reason code and the field, never ``got``
    (which may hold a path or a case name).
    """

    def __init__(
        self,
        field: str,
        *,
        got: object = None,
        expected: str = "",
        remedy: str = "",
        reason: Reason = Reason.CONFIGURATION,
    ) -> None:
        self.field = field
        self.got = got
        self.expected = expected
        self.remedy = remedy
        self.reason = reason
        parts = [f"{field}:"]
        if got is not None:
            parts.append(f"got {got}.")
        if expected:
            parts.append(f"Expected {expected}.")
        if remedy:
            parts.append(f"Remedy: {remedy}.")
        super().__init__(" ".join(parts))

    @property
    def public(self) -> str:
        """What may be told outside the site: code and field only."""
        return f"{self.reason}: {self.field}"

    @property
    def local(self) -> str:
        """What the site's own log may hold: of data the code, the field, what was expected and the remedy."""
        parts = [self.public]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.remedy:
            parts.append(f"remedy: {self.remedy}")
        return "; ".join(parts)


class ConfigurationError(FedMedSegError):
    """A setting is wrong: experiment.yaml, a site file, or a command-line option."""

    @property
    def local(self) -> str:
        """A setting may be quoted in full."""
        return str(self)


class DataError(FedMedSegError):
    """A data list or a case cannot be used."""

    def __init__(
        self,
        field: str,
        *,
        got: object = None,
        expected: str = "",
        remedy: str = "",
        reason: Reason = Reason.DATA,
    ) -> None:
        super().__init__(field, got=got, expected=expected, remedy=remedy, reason=reason)


_READING = {
    "UnicodeDecodeError": "no text in UTF-8",
    "JSONDecodeError": "no JSON",
    "RecursionError": "nested too deeply",
    "SafetensorError": "no safetensors file, or one that ends too early",
    "BadZipFile": "no ZIP archive",
    "BadGzipFile": "no gzip archive",
    "ImageFileError": "no image file that can be read",
    "HeaderDataError": "a header that cannot be read",
    "error": "compressed data that is damaged",
    "KeyError": "a part is missing",
    "EOFError": "it ends too early",
    "IndexError": "it ends too early",
    "UnpicklingError": "no file of torch.save",
}
"""Kinds of error, by name as some belong to other packages -> what they say of a file."""
_CALLED = {
    "NoneType": "nothing", "str": "text", "bytes": "bytes", "bool": "true or false", "int": "a number",
    "float": "a number", "date": "a date", "datetime": "a date", "list": "a list", "tuple": "a list", "set": "a set",
    "dict": "a mapping",
}  # fmt: skip


def why(error: Exception) -> str:
    """Why a file cannot be read or written, without its path: in the system's words (read-only, no space left), or
    what its content is not."""
    told = error.strerror if isinstance(error, OSError) else None
    return told or _READING.get(type(error).__name__, "not of the form it should have")


def called(value: object) -> str:
    """What a value of a settings file is, to people: nothing, text, a list, a number."""
    return _CALLED.get(type(value).__name__, "something else")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None when nothing comes close."""
    choices = list(known)
    alike = {choice.lower(): choice for choice in reversed(choices)}
    found = difflib.get_close_matches(name.lower(), list(alike), n=1, cutoff=0.6)
    return alike[found[0]] if found else None


def choose(name: object, known: Iterable[str]) -> str:
    """How to mend a word that is none of ``known``, which the error lists as what was expected."""
    choices = list(known)
    if not choices:
        return ""
    guess = choices[0] if len(choices) == 1 else nearest(str(name), choices)
    return f"write {guess!r}" if guess else "write one of these"
