"""What a shell completes after ``fedmedseg``: names of jobs, their presets, studies. Paths are the shell's own."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import find_job, known_jobs, presets_of, shipped


def job_names(incomplete: str) -> list[str]:
    """Jobs by name."""
    return _beginning(known_jobs(), incomplete)


def preset_names(context: typer.Context, incomplete: str) -> list[str]:
    """Presets of the job, or of the system, that stands earlier on the line; of all jobs where none does."""
    given = context.params
    # a line that ends in an option without its value is not read further: its arguments are left as they came
    name = next(iter(context.args), given["job"]) if "job" in given else given.get("system")
    try:
        systems = [find_job(name).name] if name else list(known_jobs())
    except ConfigurationError:
        return []
    return _beginning((preset for system in systems for preset in presets_of(system)), incomplete)


def study_names(incomplete: str) -> list[str]:
    """Comparisons that come with the package."""
    return _beginning(shipped("studies"), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
