"""Every check of a kit or a site file, in the order in which somebody would mend what they find."""

from __future__ import annotations

from pathlib import Path

from fedmedseg.core import machine_checks
from fedmedseg.core.config import Experiment, load_experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Check, Finding, Level, failed, run_checks
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.core.kit import Kit, is_kit, open_kit
from fedmedseg.core.kit_checks import server_port
from fedmedseg.core.package_files import package_files
from fedmedseg.core.release import package, tested
from fedmedseg.data.site import SITE_FILE
from fedmedseg.data.views import site_view
from fedmedseg.preflight.memory import Need, gpu, machine_memory, memory, needs
from fedmedseg.preflight.site import (
    SiteSettings,
    Tick,
    check_site,
    encryption,
    features_of_slices,
    read_site,
    site_file_of,
    what_may_leave,
)


def find_experiment(name: str) -> Experiment:
    """The study in an experiment.yaml, or of a job given by name or folder.

    Raises:
        ConfigurationError: no such file or job, or an invalid study.
    """
    if Path(name).is_file():
        return load_experiment(name)
    return read_settings(find_job(name), [])[1]


def preflight(
    target: Path,
    *,
    experiment: Experiment | None = None,
    with_data: bool = True,
    tick: Tick = lambda role, done, of: None,
) -> list[Finding]:
    """Check the kit in the folder ``target``, or the site file ``target`` (with its kit, where it lies in one).

    Without ``experiment`` nothing can be said of memory, nor of the size of cache, state and models. A server's and an
    administrator's kit have no site file and no data.

    Raises:
        ConfigurationError: neither a kit nor a site file.
    """
    kit, file = _target(target)
    findings = run_checks(
        [
            ("python", machine_checks.python_version),
            ("packages", lambda: machine_checks.packages(tested=tested())),
            ("clock", machine_checks.clock),
        ]
    )
    findings += _kit_findings(kit)
    if kit is not None and kit.role != "client":
        if experiment is not None and kit.role == "server":
            findings += encryption(kit, experiment, None)
        return [*findings, *run_checks([("disk", lambda: machine_checks.disk({kit.root: {"jobs and results": 0}}))])]
    try:
        site = read_site(file or site_file_of(target, SITE_FILE))
    except ConfigurationError as error:
        told = f"{error.field}: {error.got}, expected {error.expected}"
        known = any(one.check == "site file" and one.level is Level.FAIL for one in findings)
        findings += [] if known else [failed("site file", told, error.remedy or "correct the site file")]
        return [*findings, *_machine(None, experiment, [])]
    experiment, more = _view(experiment, site)
    findings += more
    with_data = with_data and not more
    wanted = [] if experiment is None else needs(experiment)
    # a site file by itself may be a simulator's, where no filter runs
    filters = [] if kit is None else [what_may_leave(site)]
    if kit is not None and experiment is not None:
        filters += encryption(kit, experiment, site)
        filters += features_of_slices(experiment, site)
    return [
        *findings,
        *filters,
        *_machine(site, experiment, wanted),
        *check_site(site, experiment=experiment, wanted=wanted, with_data=with_data, tick=tick),
    ]


def _view(experiment: Experiment | None, site: SiteSettings) -> tuple[Experiment | None, list[Finding]]:
    """The study with this site's own data set, or a finding where the site file does not say which of several."""
    if experiment is None or not experiment.data.alternatives:
        # the check of the list says it where the one role is missing
        return experiment, []
    try:
        return site_view(experiment, site.lists, preferred=site.settings.prefers), []
    except ConfigurationError as error:
        told = f"{error.got}, expected {error.expected}"
        return experiment, [failed("data sets", told, error.remedy)]


def _target(target: Path) -> tuple[Kit | None, Path | None]:
    if target.is_dir():
        return open_kit(target), None
    if not target.is_file():
        raise ConfigurationError(
            "preflight",
            got=f"nothing at {target}",
            expected="a startup kit (a folder with startup and local) or a site file (YAML)",
        )
    around = target.resolve().parent.parent
    return (open_kit(around) if target.resolve().parent.name == "local" and is_kit(around) else None), target


def _kit_findings(kit: Kit | None) -> list[Finding]:
    """What `fedmedseg site-policy` finds, whether the package is the kit's, and whether the server answers."""
    if kit is None:
        return []
    # FLARE's policy reader is loaded only where there is a kit
    from fedmedseg.provisioning.check import check_kit

    checks: list[tuple[str, Check]] = [
        ("package", lambda: package(kit)),
        ("package files", package_files),
        ("server port", lambda: server_port(kit)),
    ]
    return [*check_kit(kit.root), *run_checks(checks)]


def _machine(site: SiteSettings | None, experiment: Experiment | None, wanted: list[Need]) -> list[Finding]:
    """GPU, memory and shared memory."""
    own = site.settings.device if site is not None else "auto"
    asked = experiment.compute.device if experiment is not None else "auto"
    precision = experiment.compute.precision if experiment is not None else "auto"
    found, device, room = gpu(own if own != "auto" else asked, precision)
    findings = [found]
    if wanted:
        free, total = room or machine_memory()
        findings.append(memory(wanted, device=device, free=free, total=total))
    return findings + run_checks([("shared memory", lambda: machine_checks.shared_memory(cuda=device == "cuda"))])
