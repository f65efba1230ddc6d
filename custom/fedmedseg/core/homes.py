"""Where a simulated participant keeps what outlives a run, and the server's name there."""

from __future__ import annotations

from pathlib import Path

_SUFFIX = ".fedmedseg"
SERVER = "server"
"""The name under which the server keeps its own state."""


def homes_beside(workspace: Path) -> Path:
    """The folder of all homes: the simulator's workspace ``W`` is emptied at every start, and what must survive lies
    beside it in ``W.fedmedseg``.
    """
    return workspace.with_name(workspace.name + _SUFFIX)
