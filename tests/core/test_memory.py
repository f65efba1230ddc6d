"""What FLARE's processes keep of every message, for how long, and what makes giving it back cheap."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from unittest.mock import MagicMock

import pytest
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.byte_streamer import TxTask

from fedmedseg.core import memory
from fedmedseg.core.memory import TaskCollector, set_lasting_objects_aside


class Lasting:
    """An object that is freed when nothing refers to it any more."""


class Circle(Lasting):
    """An object that only Python's collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """The collector runs only where a test says so, and looks at everything again afterwards."""
    gc.unfreeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def lives(make: Callable[[], object]) -> weakref.ref[object]:
    return weakref.ref(make())


def test_what_is_set_aside_is_no_longer_visited_and_what_comes_later_is() -> None:
    set_lasting_objects_aside()
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < gc.get_freeze_count() / 10
    later = lives(Circle)
    assert later() is not None
    gc.collect()
    assert later() is None


def test_what_was_set_aside_is_freed_when_nothing_refers_to_it() -> None:
    lasting = Lasting()
    there = weakref.ref(lasting)
    set_lasting_objects_aside()
    del lasting
    assert there() is None


def test_a_site_frees_what_earlier_tasks_left_and_a_process_of_one_task_pays_nothing() -> None:
    collector, left = TaskCollector(), lives(Circle)
    collector.begin()
    assert left() is not None
    assert gc.get_freeze_count() == 0
    collector.begin()
    assert left() is None
    assert gc.get_freeze_count() > 10_000
    later = lives(Circle)
    collector.begin()
    assert later() is None


def test_garbage_that_is_there_already_is_freed_and_not_set_aside() -> None:
    garbage = lives(Circle)
    set_lasting_objects_aside()
    assert garbage() is None


def test_only_the_first_call_sets_anything_aside() -> None:
    set_lasting_objects_aside()
    later = Circle()
    there = weakref.ref(later)
    set_lasting_objects_aside()
    del later
    gc.collect()
    assert there() is None


def test_flares_finished_sender_holds_a_mebibyte_until_the_collector_runs() -> None:
    """Should this fail with another FLARE, the collection at each round's end may no longer be needed."""
    sender = TxTask(
        MagicMock(), 1024 * 1024, "channel", "topic", "site", {}, MagicMock(), reliable=False, secure=False,
        optional=False,
    )  # fmt: skip
    sender.stop()
    assert sender.buffer.nbytes == 1024 * 1024
    there = weakref.ref(sender)
    del sender
    assert there() is not None
    gc.collect()
    assert there() is None


def test_flares_receiver_keeps_a_thread_for_a_reply_for_65_seconds_and_no_longer() -> None:
    """The number of these threads is bounded by the replies of that time; here it is a fifth of a second."""
    before = threading.active_count()
    receivers = [RxTask(number, "server", MagicMock(), reliable=True) for number in range(5)]
    for receiver in receivers:
        assert receiver.completed_task_ttl == 65
        receiver.completed_task_ttl = 0.2
        receiver.stop()
    assert threading.active_count() == before + 5
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_the_sweeper_gives_back_where_the_process_grew_and_not_for_what_stays() -> None:
    """By hand, in units of what it takes: 10 -> 10.5 nothing; 11 given back to 10.2; 11.1 nothing; 11.3 stays 11.3;
    12 nothing; 9 is the new level, so that 10 gives back again."""
    held = iter([10, 10.5, 11, 10.2, 11.1, 11.3, 11.3, 12, 9, 10, 9])
    given: list[int] = []
    sweeper = memory.Sweeper(resident=lambda: int(next(held) * memory.GROWTH), give_back=lambda: given.append(1))
    found = []
    for _ in range(7):
        sweeper.look()
        found.append(len(given))
    assert found == [0, 1, 1, 2, 2, 2, 3]


def test_a_process_has_one_sweeper_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    started = MagicMock()
    monkeypatch.setattr(memory.threading, "Thread", started)
    monkeypatch.setattr(memory, "_sweeping", threading.Lock())
    memory.sweep_from_now_on()
    memory.sweep_from_now_on()
    assert started.call_count == 1
    assert started.call_args.kwargs["daemon"], "it keeps no process alive"


HOLES = """
import sys
import psutil
from fedmedseg.core.memory import give_back

def kept():
    return [bytearray(256 * 2**10) for _ in range(512)]

pieces = kept()
full = psutil.Process().memory_info().rss
del pieces[::2]
if sys.argv[1] == "given back":
    give_back()
print((full - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
@pytest.mark.parametrize(("way", "least", "most"), [("given back", 55, 70), ("kept", 0, 10)])
def test_what_is_freed_between_what_stays_goes_back_to_the_system(way: str, least: int, most: int) -> None:
    """256 of 512 pieces of a quarter MiB are freed, every second one."""
    setting = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    call = [sys.executable, "-c", HOLES, way]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=os.environ | setting)
    assert least <= int(done.stdout) <= most


ARENAS = """
import sys, threading
from fedmedseg.core import memory

told = memory.keep_to_few_arenas() if sys.argv[1] == "told" else True
all_there, end = threading.Barrier(25), threading.Event()
def work():
    held = [bytes(1000 + number) for number in range(100)]
    all_there.wait()
    end.wait()
threads = [threading.Thread(target=work) for _ in range(24)]
for one in threads:
    one.start()
all_there.wait()
import ctypes, os
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
read, write = os.pipe()
stream = ctypes.c_void_p(libc.fdopen(write, b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
end.set()
print(told, os.read(read, 2**20).count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
@pytest.mark.parametrize(("way", "few"), [("told", True), ("untold", False)])
def test_many_threads_share_few_arenas(way: str, few: bool) -> None:
    done = subprocess.run([sys.executable, "-c", ARENAS, way], capture_output=True, text=True, check=True)
    told, arenas = done.stdout.split()
    assert told == "True"
    assert (int(arenas) <= memory.ARENAS) is few


def test_giving_back_frees_circles_and_needs_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    left = lives(Circle)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.give_back()
    assert left() is None
    assert not memory.keep_to_few_arenas()
