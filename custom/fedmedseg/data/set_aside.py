"""Which cases of a site are set aside and why, by the names of its own files. For the site's own people alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmedseg.core.config import DataSection, Experiment
from fedmedseg.data.cache import Cache
from fedmedseg.data.checks import remembered
from fedmedseg.data.datalist import Case, listed_cases
from fedmedseg.data.preprocessing import entry_digest
from fedmedseg.data.site import Site
from fedmedseg.data.volumes import without_label


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """One case that this site does not use."""

    section: str
    case: str
    """The image's file, as the data list's folder sees it."""
    reason: str


def set_aside(site: Site, experiment: Experiment, *, now: Mapping[str, str] | None = None) -> list[SetAside]:
    """Every case of the data list that was set aside, in any section, as far as the site's cache remembers.

    No file is checked here: a section that the study never read would cost hours. ``now`` are those of the caller's
    own volumes (key -> reason), which count whatever the cache holds.

    Raises:
        ConfigurationError, DataError: the data list can no longer be read.
    """
    listed = site.data_list(experiment.data.role)
    cache, known = Cache(folder=site.cache), dict(now or {})
    found = []
    for section, cases in listed_cases(listed, salt=site.salt).items():
        for case in cases:
            # pretraining reads the image alone, and remembers that apart
            reasons = (
                _reason(one, experiment.data, site.volume_budget_mb, cache) for one in (case, without_label(case))
            )
            reason = known.get(case.key) or next((one for one in reasons if one is not None), None)
            if reason is not None:
                found.append(SetAside(section=section, case=file_name(case, listed.parent), reason=reason))
    return found


def file_name(case: Case, folder: Path) -> str:
    """A case by its image's file, from the data list's ``folder`` where it lies under it."""
    return str(case.image.relative_to(folder)) if case.image.is_relative_to(folder) else case.image.name


def _reason(case: Case, data: DataSection, budget_mb: int, cache: Cache) -> str | None:
    """Why the checks refused it, or preprocessing did later; None where both took it, or neither has seen it."""
    result = remembered(case, data=data, budget_mb=budget_mb, cache=cache)
    if result is None or result["reason"] is not None:
        return None if result is None else str(result["reason"])
    for contents in (result["sha256"][:1], result["sha256"]):
        meta = cache.meta(entry_digest(contents, data))
        if meta is not None and "rejected" in meta:
            return str(meta["rejected"])
    return None
