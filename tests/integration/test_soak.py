"""Fifty rounds: neither memory nor open files nor threads may grow with them."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hospitals import Hospitals
from scipy.stats import theilslopes
from stand_in_job import stand_in_job

from fedmedseg.core import admin

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 50
SETTLED = 10
"""The round after which caches and pools should have their size."""
MOST = {"megabytes": 0.5, "files": 0.1, "threads": 0.25}
"""What each process may gain a round. FLARE's pools start a thread whenever none of theirs is idle, up to their bounds:
a few come late."""
RETRIES = 5
"""Seconds for which FLARE keeps a thread for every reply that came: streaming_retry_timeout + streaming_retry_wait."""
# stand-ins take ever smaller steps, which soon are none
CHANGES = {"stages": {"pretraining": {"rounds": ROUNDS}}, "federation": {"no_progress_rounds": ROUNDS}}


class Watch(threading.Thread):
    """Looks at this process's descendants five times a second; ``rounds`` says how many rounds have been recorded."""

    def __init__(self, rounds: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.rounds = rounds
        self.seen: dict[int, list[tuple[int, float, int, int]]] = defaultdict(list)
        self.names: dict[int, str] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.2):
            number = self.rounds()
            for one in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError), one.oneshot():
                    # a process that has ended and was not waited for yet has no command any more
                    self.names[one.pid] = " ".join(one.cmdline()) or self.names[one.pid]
                    megabytes = one.memory_info().rss / 1e6
                    self.seen[one.pid].append((number, megabytes, one.num_fds(), lasting_threads(one.pid)))

    def lasting(self) -> dict[int, np.ndarray]:
        """Of the processes that were there all the time, the medians of each settled round: ``(rounds, 4)``."""
        found = {}
        for pid, samples in self.seen.items():
            settled = np.array([one for one in samples if SETTLED < one[0] < ROUNDS])
            if len(settled) and np.ptp(settled[:, 0]) > 0.8 * (ROUNDS - SETTLED):
                numbers = np.unique(settled[:, 0])
                found[pid] = np.array([np.median(settled[settled[:, 0] == number], axis=0) for number in numbers])
        return found

    def require_no_growth(self, expected: dict[str, int]) -> None:
        """Judge each lasting process; ``expected`` says how many there must be whose command has these words."""
        lasting = self.lasting()
        there = {words: sum(words in self.names[pid] for pid in lasting) for words in expected}
        assert there == expected, [self.names[pid] for pid in lasting]
        # one that a busy machine holds up for a while does not tip the median of all slopes
        grown = {
            f"{self.names[pid][-160:]}: {what}": (slope, column[0], column[-1])
            for pid, medians in lasting.items()
            for what, column in zip(MOST, medians[:, 1:].T, strict=True)
            if (slope := theilslopes(column, medians[:, 0]).slope) >= MOST[what]
        }
        assert not grown, grown


def lasting_threads(pid: int) -> int:
    """Threads of a process that are older than those which FLARE keeps for a reply."""
    now, ticks = time.clock_gettime(time.CLOCK_BOOTTIME), os.sysconf("SC_CLK_TCK")
    number = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            # proc(5): the 22nd field, in ticks since the machine started; the second one, in brackets, may hold blanks
            started = int((task / "stat").read_text().rpartition(")")[2].split()[19]) / ticks
            number += now - started > RETRIES + 2
    return number


@contextmanager
def watched(rounds: Callable[[], int]) -> Iterator[Watch]:
    watch = Watch(rounds)
    watch.start()
    try:
        yield watch
    finally:
        watch.done.set()
        watch.join()


@pytest.fixture(autouse=True)
def _short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the threads for replies last 65 s, longer than fifty rounds of stand-ins take.

    Until then their number grows, to 260 at a site that asks four times a second, and no further: see
    `core/test_memory.py`. With 5 s those that stay for good can be told from them.
    """
    monkeypatch.setenv("NVFLARE_STREAMING_RETRY_TIMEOUT", str(RETRIES - 1))
    monkeypatch.setenv("NVFLARE_STREAMING_RETRY_WAIT", "1")


def test_fifty_rounds_grow_nothing_in_the_simulator(start: Any, tmp_path: Path) -> None:
    """Fault row 47."""
    rounds = tmp_path / "workspace" / "server" / "simulate_job" / "report" / "rounds"
    with watched(lambda: len(list(rounds.glob("pretraining-*.json")))) as watch:
        run = start(tmp_path, **CHANGES)
    assert run.outcome == "finished", run.reason
    # the command, the process that FLARE's manager shares its dictionary by, and the one that is the server
    watch.require_no_growth({"flare_simulator": 3, "simulator_worker": 2})


def test_fifty_rounds_grow_nothing_in_a_federation(federate: Callable[..., Hospitals], tmp_path: Path) -> None:
    """Fault row 47, with every participant's own processes."""
    hospitals = federate()
    hospitals.up()
    with watched(lambda: len(list(hospitals.server.glob("*/report/rounds/pretraining-*.json")))) as watch:
        ended = hospitals.run(stand_in_job(tmp_path / "job" / "study", CHANGES), timeout=600)
    assert ended.status == admin.COMPLETED
    assert len(ended.rounds()) == ROUNDS
    parents = {"server.server_train": 1, "client.client_train": 3}
    watch.require_no_growth({**parents, "server.runner_process": 1, "client.worker_process": 3})
