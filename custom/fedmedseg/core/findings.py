"""What a check found: PASS, WARN or FAIL, in words that hold no patient, no file name and no path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from fedmedseg.core.errors import FedMedSegError

logger = logging.getLogger(__name__)


class Level(IntEnum):
    """How bad it is; the number is the exit status of a command that found nothing worse."""

    PASS = 0
    WARN = 1
    FAIL = 2


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check. ``check`` alone may leave the site; ``found`` and ``mend`` are for the site's people.

    ``cases`` are salted keys; ``names`` says, key by key, what they stand for, and is shown on request at the site's
    own terminal only.
    """

    check: str
    level: Level
    found: str
    mend: str = ""
    cases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON, without ``names``."""
        return {
            "check": self.check,
            "level": self.level.name,
            "found": self.found,
            "mend": self.mend,
            "cases": list(self.cases),
        }


Check = Callable[[], Finding]


def passed(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.PASS, found=found)


def warned(check: str, found: str, mend: str, **more: tuple[str, ...]) -> Finding:
    """Work can go on, but somebody should look at it."""
    return Finding(check=check, level=Level.WARN, found=found, mend=mend, **more)


def failed(check: str, found: str, mend: str, **more: tuple[str, ...]) -> Finding:
    """The site cannot take part, or results would be wrong."""
    return Finding(check=check, level=Level.FAIL, found=found, mend=mend, **more)


def worst(findings: Iterable[Finding]) -> Level:
    """The highest level among them; PASS where there is none."""
    return max((finding.level for finding in findings), default=Level.PASS)


def run_checks(checks: Iterable[tuple[str, Check]]) -> list[Finding]:
    """Run named checks in their order. One that breaks is a FAIL under its name, and the others still run."""
    found = []
    for name, check in checks:
        try:
            found.append(check())
        except FedMedSegError as error:
            found.append(failed(name, error.public, error.remedy))
        except Exception as error:
            # the message may quote a path or a value
            logger.debug("check %s broke", name, exc_info=True)
            found.append(
                failed(
                    name, f"the check itself broke ({type(error).__name__})", "report it with the log of this command"
                )
            )
    return found
