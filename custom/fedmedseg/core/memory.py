"""Memory that rounds leave behind in FLARE's processes, and what makes giving it back cheap.

FLARE 2.9.0's sender of a stream and its future hold each other (``fuel/f3/streaming/byte_streamer.py``, ``TxTask``),
and with them a buffer of 1 MiB and the message: all of it waits for a full run of Python's collector after every
message. In the server's process, which holds some hundred thousand lasting objects of torch and MONAI, such a run
comes by itself only once in many rounds, and visiting them all takes longer than a small round. A model that is sent
to many sites in pieces leaves that many models of pieces behind before the first reply comes.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable

import psutil

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""glibc's numbers of two of its settings (``mallopt(3)``)."""
RETURNED_FROM, ARENAS = 512 * 1024, 4
GROWTH = 64 * 2**20
"""Bytes."""
SECONDS_BETWEEN_LOOKS = 0.1


def set_lasting_objects_aside() -> None:
    """Let Python's collector no longer visit what this process holds by now; the first call in a process counts.

    A full collection then costs milliseconds. What is set aside is still freed when nothing refers to it any more;
    only circles among objects that are here already would stay.
    """
    if gc.get_freeze_count():
        return
    gc.collect()
    gc.freeze()


def return_what_is_freed() -> bool:
    """Have glibc give the pieces of large tensors back to the system as they are freed; whether it could be told.

    By itself it keeps them for later, and once for each of its arenas, of which it makes eight for every core: a server
    that sends to many sites at once would hold about as many models. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(what, value) == 1 for what, value in ((M_MMAP_THRESHOLD, RETURNED_FROM), (M_ARENA_MAX, ARENAS))
    )


def free_messages() -> None:
    """Let go of what the messages so far left behind: at the server, of a large model as often as a reply has come."""
    gc.collect()


class Sweeper:
    """Runs the collector whenever this process has grown by ``GROWTH``; cheap once lasting objects are set aside.

    What grew for good is the level that the next growth counts from, so that a model which is read in costs one run.

    Args:
        resident: bytes that this process holds.
        collect: frees what nothing refers to.
    """

    def __init__(
        self,
        resident: Callable[[], int] = lambda: psutil.Process().memory_info().rss,
        collect: Callable[[], object] = gc.collect,
    ) -> None:
        self._resident, self._collect = resident, collect
        self._level = resident()

    def look(self) -> None:
        """Collect if there is reason to."""
        held = self._resident()
        if held - self._level >= GROWTH:
            self._collect()
            self._level = self._resident()
        else:
            self._level = min(self._level, held)


_sweeping = threading.Lock()


def sweep_from_now_on() -> None:
    """Look ten times a second until the process ends; the first call in a process counts."""
    if not _sweeping.acquire(blocking=False):
        return
    sweeper = Sweeper()

    def run() -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            sweeper.look()

    threading.Thread(target=run, name="memory-sweeper", daemon=True).start()


class TaskCollector:
    """Frees, at a site, what the messages of earlier tasks left behind.

    A process that does one task and ends, as the simulator's do with one thread, pays nothing: what lasts is set aside
    at the second task, and the collector runs at each one after it.
    """

    def __init__(self) -> None:
        self.begun = 0

    def begin(self) -> None:
        """A task begins; the replies before it are long sent."""
        self.begun += 1
        if self.begun == 2:
            set_lasting_objects_aside()
        elif self.begun > 2:
            gc.collect()
