"""Pieces of work in processes of their own, so many at once; a piece that fails costs that piece alone."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from fedmedseg.core.errors import FedMedSegError

TICK = 1.0
"""Seconds between two signs of life."""


@dataclass(frozen=True)
class Event:
    """What became of a piece: ``begun``, ``done``, ``failed`` (with what was wrong), or nothing new (``tick``)."""

    kind: Literal["begun", "done", "failed", "tick"]
    piece: Any = None
    seconds: float = 0.0
    problem: str = ""


def work_on(function: Callable[[Any], None], pieces: Sequence[Any], *, workers: int, minutes: float) -> Iterator[Event]:
    """``function(piece)`` for each, ``workers`` at once, one process per piece; none is begun after ``minutes``.

    A process of its own gives its memory back, and its peak is the piece's. Where the consumer stops (Ctrl-C), those
    that run are ended; what they had written whole stays.
    """
    # spawn: a forked torch may hang in its thread pool
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + 60 * minutes
    waiting = list(pieces)
    running: dict[Connection, tuple[SpawnProcess, Any, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < deadline:
                piece = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(function, piece, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (process, piece, time.monotonic())
                yield Event("begun", piece)
            if not running:
                return
            ready = wait(list(running), timeout=TICK)
            if not ready:
                yield Event("tick")
            for one in list(running):
                if one in ready:
                    process, piece, began = running.pop(one)
                    yield _outcome(one, process, piece, time.monotonic() - began)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def _outcome(connection: Connection, process: SpawnProcess, piece: Any, seconds: float) -> Event:
    """What a process said last; one that said nothing was killed."""
    try:
        problem = connection.recv()
    except EOFError:
        process.join()
        problem = f"its process ended with status {process.exitcode} (-9: killed, for want of memory perhaps)"
    connection.close()
    process.join()
    return Event("failed" if problem else "done", piece, seconds, problem or "")


def _end(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _work(function: Callable[[Any], None], piece: Any, connection: Connection) -> None:
    # the parent ends its workers itself; one that is ended still removes what it would have removed at its end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    try:
        function(piece)
    except FedMedSegError as error:
        connection.send(str(error))
    except Exception:
        connection.send(traceback.format_exc())
    else:
        connection.send("")
