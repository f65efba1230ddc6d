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

M_ARENA_MAX = -8
"""glibc's number of that setting (``mallopt(3)``)."""
ARENAS = 4
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


def keep_to_few_arenas() -> bool:
    """Have glibc serve all threads from ``ARENAS`` arenas; whether it could be told.

    By itself it makes eight for every core, each of which keeps what was freed in it. Another C library is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_ARENA_MAX, ARENAS) == 1


def give_back() -> None:
    """Free what nothing refers to, and have glibc give all that is free to the system, between what stays, too.

    Now and then that is cheaper than giving every large piece back as it is freed (glibc's ``M_MMAP_THRESHOLD``), which
    has the system hand out and clear the same pages again for each piece that passes through: rounds of 264 MB took
    longer so, and the server held more for each site (docs/growth.md).
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def free_messages() -> None:
    """Let go of what the messages so far left behind: at the server, of a large model as often as a reply has come."""
    gc.collect()


class Sweeper:
    """Gives memory back whenever this process has grown by ``GROWTH``; cheap once lasting objects are set aside.

    What grew for good is the level that the next growth counts from, so that a model which is read in costs one run.

    Args:
        resident: bytes that this process holds.
        give_back: frees what nothing refers to.
    """

    def __init__(
        self,
        resident: Callable[[], int] = lambda: psutil.Process().memory_info().rss,
        give_back: Callable[[], object] = give_back,
    ) -> None:
        self._resident, self._give_back = resident, give_back
        self._level = resident()

    def look(self) -> None:
        """Give memory back if there is reason to."""
        held = self._resident()
        if held - self._level >= GROWTH:
            self._give_back()
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
