"""What a site checks of itself before it accepts its first task: the checks of `preflight` that take no time."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from fedmedseg.core import kit_checks, machine_checks
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.findings import Check, Finding, Level, run_checks
from fedmedseg.core.kit import Kit, open_kit
from fedmedseg.core.package_files import package_files
from fedmedseg.core.place import Place
from fedmedseg.core.release import package

logger = logging.getLogger(__name__)


def kit_only(kit: Kit, *, now: datetime | None = None) -> list[tuple[str, Check]]:
    """Checks of a kit's files, and of the package against what the kit names; no network."""
    moment = now or kit_checks.today()
    checks: list[tuple[str, Check]] = [
        ("certificate dates", lambda: kit_checks.certificate_dates(kit, now=moment)),
        ("private key", lambda: kit_checks.certificate_key(kit)),
        ("certificate", lambda: kit_checks.certificate_chain(kit)),
        ("package", lambda: package(kit)),
        ("package files", package_files),
    ]
    if kit.role != "admin":
        checks.append(("class allow-list", lambda: kit_checks.class_allow_list(kit)))
    if kit.role == "client":
        checks.append(("privacy", lambda: kit_checks.privacy_scopes(kit)))
    return checks


def machine_only() -> list[tuple[str, Check]]:
    """Checks of the environment that need neither a kit nor a study."""
    return [
        ("python", machine_checks.python_version),
        ("packages", machine_checks.packages),
        ("shared memory", machine_checks.shared_memory),
        ("clock", machine_checks.clock),
    ]


def first_task_checks(root: Path, *, run: Path, now: datetime | None = None) -> list[Finding]:
    """What a site finds out about itself in well under a second.

    ``root`` is the kit's; ``run`` the job's run folder, whose disk must have room. A kit that cannot be opened is
    itself a FAIL: without it nobody can say what the site's security officer signed.
    """
    findings = run_checks(machine_only())
    findings += run_checks([("disk", lambda: machine_checks.disk({run: {"logs": machine_checks.LEAST_DISK}}))])
    try:
        kit = open_kit(root)
    except FedMedSegError as error:
        return [*findings, Finding(check="startup kit", level=Level.FAIL, found=error.public, mend=error.remedy)]
    return findings + run_checks(kit_only(kit, now=now))


def require_fit(place: Place) -> None:
    """Refuse the first task where a check fails; what is only a WARN goes to the site's own log.

    The simulator has no kit, and nothing is checked there.

    Raises:
        FedMedSegError: reason PREFLIGHT, naming the failed checks and nothing else.
    """
    if place.simulated:
        return
    findings = first_task_checks(place.workspace, run=place.run)
    for finding in findings:
        if finding.level is Level.WARN:
            logger.warning("preflight, %s: %s; mend: %s", finding.check, finding.found, finding.mend)
    bad = [finding for finding in findings if finding.level is Level.FAIL]
    if bad:
        raise FedMedSegError(
            ", ".join(finding.check for finding in bad),
            expected="every check of `fedmedseg preflight` to pass; here "
            + "; ".join(f"{finding.check}: {finding.found}" for finding in bad),
            remedy="; ".join(finding.mend for finding in bad if finding.mend),
            reason=Reason.PREFLIGHT,
        )
