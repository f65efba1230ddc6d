"""The processes of a federation whose commands a test typed, as a person would: nobody but the kits knows them."""

from __future__ import annotations

from pathlib import Path

import psutil

from fedmedseg.provisioning.loopback import processes_where


def working_below(folder: Path) -> list[psutil.Process]:
    """Processes that were called with a path below ``folder`` or work there: watchdogs first, which start others."""
    found = processes_where(lambda words, cwd: any(str(folder) in word for word in words) or cwd.is_relative_to(folder))
    return sorted(found, key=_starts_no_others)


def _starts_no_others(process: psutil.Process) -> bool:
    try:
        return "startup/sub_start.sh" not in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True
