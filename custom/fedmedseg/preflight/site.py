"""Checks of what the site file promises: its data lists, and room on its disks for what a study writes."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.encryption_keys import load_cipher
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.findings import Finding, failed, passed, run_checks, warned
from fedmedseg.core.kit import Kit, is_kit, open_kit
from fedmedseg.core.machine_checks import disk
from fedmedseg.core.schema import parse, read_yaml
from fedmedseg.data.leaving import require_features
from fedmedseg.data.site import SiteFile, site_folders
from fedmedseg.preflight.data import check_list, label_names
from fedmedseg.preflight.memory import Need

GENERATIONS = 2
"""Of each checkpoint: the newest and the one before it."""
PAGE = 24 * 2**20
"""Of the site's page of its last test and three pictures, beside it and in it as base64: of 900 pixels a side at most
and four bytes a pixel, if nothing of them could be compressed."""

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """The site file with its folders resolved."""

    file: Path
    settings: SiteFile
    state: Path
    cache: Path
    models: Path
    lists: dict[str, Path] = field(default_factory=dict)

    @property
    def salt(self) -> str:
        """The site's own, so that keys are those of its logs; where none was made yet, one for this call."""
        kept = self.state / "salt"
        if self.settings.salt:
            return self.settings.salt
        try:
            return kept.read_text(encoding="ascii").strip() or secrets.token_hex(32)
        except OSError:
            return secrets.token_hex(32)


def read_site(file: Path) -> SiteSettings:
    """The site file at ``file``.

    Raises:
        ConfigurationError: absent or invalid.
    """
    settings = parse(SiteFile, read_yaml(file), source=file.name)
    state, cache, models = site_folders(settings, file, file.parent.parent / "fedmedseg")
    lists = {role: file.parent / entry.list.expanduser() for role, entry in settings.datasets.items()}
    return SiteSettings(file=file, settings=settings, state=state, cache=cache, models=models, lists=lists)


def check_site(
    site: SiteSettings,
    *,
    experiment: Experiment | None,
    wanted: list[Need],
    with_data: bool,
    tick: Tick = lambda role, done, of: None,
) -> list[Finding]:
    """Data lists (only the study's, where a study is given) and disks."""
    findings: list[Finding] = []
    cached, voxels = 0, 0
    roles = sorted(site.lists) if experiment is None else [experiment.data.role]
    for role in roles if with_data else ():
        if role not in site.lists:
            offered = ", ".join(sorted(site.lists))
            text = f"the study asks for role {role!r}, the site file offers {offered}"
            findings.append(failed(f"data {role}: list", text, f"add datasets.{role}.list to the site file"))
            continue
        report = check_list(
            site.lists[role],
            role=role,
            data=None if experiment is None else experiment.data,
            salt=site.salt,
            min_cases=site.settings.min_cases,
            min_count=0 if site.settings.privacy is None else site.settings.privacy.min_count,
            budget_mb=site.settings.volume_budget_mb,
            tick=lambda done, of, role=role: tick(role, done, of),  # type: ignore[misc]
        )
        findings += report.findings
        if experiment is not None:
            findings += label_names(site.lists[role], role=role, data=experiment.data)
        cached += report.cache_bytes
        voxels += report.scan_voxels
    planned = needs_of_disk(site, experiment=experiment, wanted=wanted, cached=cached, voxels=voxels)
    return [*run_checks([("disk", lambda: disk(planned))]), *findings]


def what_may_leave(site: SiteSettings) -> Finding:
    """Whether the site file says what may leave: without it the filters of every privacy scope block every reply."""
    check, section = "what may leave", site.settings.privacy
    if section is None:
        mend = "copy the section privacy of app_configs/sites/example.yaml into the site file, and decide on it"
        return failed(check, "the site file has no section privacy: every reply would be blocked", mend)
    clipped = "not clipped" if section.clip_norm is None else f"clipped to norm {section.clip_norm:g}"
    if section.noise is None:
        noise = "no noise"
    else:
        noise = f"noise of {section.noise.multiplier:g} norms up to epsilon {section.noise.epsilon:g}"
    features = "features of slices may" if section.features else "features of slices stay"
    return passed(check, f"counts from {section.min_count}, differences {clipped}, {noise}, {features}")


def features_of_slices(experiment: Experiment, site: SiteSettings) -> list[Finding]:
    """Whether the site gives what a study's exchange asks for; it takes no part in such a stage otherwise."""
    check, plan = "features of slices", cast(Any, system_module(experiment.system, "plan"))
    asking = [
        stage
        for stage, contract in plan.stages(experiment).items()
        if contract.exchange is not None and experiment.stages[stage].rounds
    ]
    if not asking:
        return []
    try:
        require_features(site.settings.privacy, reason=Reason.DENIED)
    except FedMedSegError as error:
        text = f"{', '.join(asking)} exchanges them, and the site file has {error.got}: this site would decline it"
        return [warned(check, text, error.remedy)]
    return [passed(check, f"{', '.join(asking)} exchanges them, and the site file lets them leave")]


def encryption(kit: Kit, experiment: Experiment, site: SiteSettings | None) -> list[Finding]:
    """Whether this kit can take part in an encrypted study, and whether the site sends anything to one that is not."""
    check, wanted = "encryption of the study", experiment.federation.encryption != "none"
    required = site is not None and site.settings.privacy is not None and site.settings.privacy.encryption == "required"
    if not wanted:
        if not required:
            return []
        found = "the study sends differences in plain, and this site's file says privacy.encryption: required"
        return [failed(check, found, "set federation.encryption: ckks in the study, or change the site file")]
    try:
        load_cipher(kit.startup, secret=kit.role == "client")
    except ConfigurationError as error:
        return [failed(check, f"the study asks for it: {error}", error.remedy)]
    return [passed(check, "the study asks for it, and this kit has what it needs")]


def needs_of_disk(
    site: SiteSettings, *, experiment: Experiment | None, wanted: list[Need], cached: int, voxels: int = 0
) -> dict[Path, dict[str, int]]:
    """Bytes a study writes at this site at most, by folder: preprocessed volumes, state between rounds, models, page.

    How many copies of its networks a site remembers is its system's to say (``copies`` of its plan), and what it
    remembers of each of the ``voxels`` of its scans (``scan_bytes``, where it has that).
    """
    sizes = {
        "network": max((4 * need.parameters for need in wanted), default=0),
        "encoder": max((4 * need.parameters for need in wanted if need.frozen), default=0),
    }
    starts, copies, scans = 0, {}, 0
    if experiment is not None:
        plan: Any = system_module(experiment.system, "plan")
        starts, copies = len(experiment.wing.starts), dict(plan.copies(experiment))
        if experiment.federation.transport == "topk" and copies:
            # what was not sent of the last two rounds
            copies["network"] = copies.get("network", 0) + 2
        scans = math.ceil(voxels * plan.scan_bytes(experiment)) if hasattr(plan, "scan_bytes") else 0
    planned: dict[Path, dict[str, int]] = {}
    for folder, name, size in (
        (site.cache, "cache", cached),
        # a scan's file is written once
        (site.state, "state", scans + GENERATIONS * sum(number * sizes[part] for part, number in copies.items())),
        (site.models, "models", GENERATIONS * starts * sizes["network"]),
        (site.models, "page", PAGE if experiment is not None and site.settings.report else 0),
    ):
        planned.setdefault(folder, {})[name] = size
    return planned


def site_file_of(kit: Path, name: str) -> Path:
    """The site file of a hospital's kit.

    Raises:
        ConfigurationError: there is none, or the kit is another's.
    """
    file = kit / "local" / name
    if not file.is_file():
        role = open_kit(kit).role if is_kit(kit) else "client"
        if role != "client":
            raise ConfigurationError(
                "startup kit",
                got=f"the kit of {'an administrator' if role == 'admin' else 'the server'}, which has no site file",
                expected="a hospital's",
                remedy="name the hospital's kit, or its site file",
            )
        raise ConfigurationError(
            "site file",
            got=f"no local/{name}",
            expected="the hospital's own file",
            remedy="copy app_configs/sites/example.yaml there and enter this site's data lists",
        )
    return file
