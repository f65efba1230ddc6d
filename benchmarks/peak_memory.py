"""How much memory a piece of work takes: the growth of a fresh process, resident, at its peak. Linux only."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20
RESET = "5"
"""What /proc/self/clear_refs takes to forget the peak so far."""
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
"""glibc then gives every tensor freed back to the system, so that what follows does not hide in its place."""


def grown(work: Callable[[], Any]) -> tuple[float, Any]:
    """MiB of this process's peak during ``work`` above what it held before, and what ``work`` returned."""
    # what nobody holds any more must not be set off against what the work takes
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _held("VmRSS")
    Path("/proc/self/clear_refs").write_text(RESET)
    result = work()
    return (_held("VmHWM") - before) / MIB, result


def in_fresh_process(script: str, *words: object, own: bool = False) -> dict[str, Any]:
    """The JSON that ``script`` prints last, called with ``words`` in a process of its own.

    ``own``: what its tensors take and no more; otherwise with what glibc keeps back, as a site's process has it.

    Raises:
        CalledProcessError: it ended otherwise than well.
    """
    call = [sys.executable, script, *map(str, words)]
    done = subprocess.run(
        call, check=True, capture_output=True, text=True, env={**os.environ, **(RETURNED_AT_ONCE if own else {})}
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _held(figure: str) -> int:
    """Bytes that /proc/self/status tells under this name."""
    found = re.search(rf"^{figure}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/self/status tells no {figure}"
    return int(found.group(1)) * 1024
