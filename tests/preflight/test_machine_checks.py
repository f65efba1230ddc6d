"""Python, packages, disk, shared memory and clock: each PASS, WARN and FAIL from what the test says is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedmedseg.core import machine_checks
from fedmedseg.core.errors import DataError
from fedmedseg.core.findings import Finding, Level, failed, passed, run_checks, warned, worst
from fedmedseg.core.machine_checks import GIB, MIB

PASS, WARN, FAIL = Level.PASS, Level.WARN, Level.FAIL


def test_this_very_environment_is_one_the_package_is_for() -> None:
    assert machine_checks.python_version().level is PASS
    assert machine_checks.packages().level is PASS


@pytest.mark.parametrize(
    ("found", "level"), [("3.11.7", PASS), ("3.13.0rc1", PASS), ("3.10.14", FAIL), ("3.14.0", FAIL)]
)
def test_python_must_be_in_the_range_the_package_names(found: str, level: Level) -> None:
    assert machine_checks.python_version(found, ">=3.11,<3.14").level is level


def test_a_package_that_is_not_installed_says_nothing_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "PACKAGE", "no-such-package-of-ours")
    assert machine_checks.python_version().level is WARN
    assert machine_checks.packages().level is WARN


def installed(**versions: str) -> Callable[[str], str]:
    def look(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    return look


@pytest.mark.parametrize(
    ("has", "level", "told"),
    [
        ({"nvflare": "2.9.0", "torch": "2.13.0+cu128"}, PASS, "2 in allowed versions, as tested"),
        ({"nvflare": "2.9.0", "torch": "2.13.1"}, WARN, "torch 2.13.1 (tested 2.13.0)"),
        ({"nvflare": "2.8.1", "torch": "2.13.0"}, FAIL, "nvflare 2.8.1, not ==2.9.0"),
        ({"nvflare": "2.9.0"}, FAIL, "torch is missing"),
    ],
)
def test_packages_are_held_against_what_is_needed_and_what_was_tested(
    has: dict[str, str], level: Level, told: str
) -> None:
    needed = ("nvflare==2.9.0", "torch>=2.13,<2.14", 'pytest>=8; extra == "test"')
    found = machine_checks.packages(needed, {"torch": "2.13.0", "nvflare": "2.9.0"}, installed(**has))
    assert (found.level, told in found.found) == (level, True), found


def test_pins_are_read_from_a_constraints_file(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text("# tested\nFlask_SQLAlchemy==3.1.1\ntorch==2.13.0  # cpu\nnumpy>=2\n-r other.txt\n")
    assert machine_checks.tested_versions(file) == {"flask-sqlalchemy": "3.1.1", "torch": "2.13.0"}
    assert machine_checks.tested_versions(tmp_path / "absent") == {}


def room(free: float) -> Callable[[object], Any]:
    return lambda path: SimpleNamespace(f_bavail=int(free / 4096), f_frsize=4096)


@pytest.mark.parametrize(("free", "level"), [(10 * GIB, PASS), (2.5 * GIB, WARN), (1.9 * GIB, FAIL), (0, FAIL)])
def test_a_disk_must_hold_all_that_is_planned_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, level: Level
) -> None:
    monkeypatch.setattr(os, "statvfs", room(free))
    needs = {tmp_path / "cache": {"cache": GIB}, tmp_path / "not" / "yet": {"state": GIB}}
    found = machine_checks.disk(needs)
    assert (found.level, "2.0 GiB" in found.found) == (level, True), found
    assert str(tmp_path) not in found.found


def test_a_full_disk_fails_even_where_nothing_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", room(MIB))
    assert machine_checks.disk({tmp_path: {"logs": 0}}).level is FAIL


def test_a_folder_nobody_may_write_fails_whatever_room_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert machine_checks.disk({tmp_path: {"state": 0}}).level is FAIL


@pytest.mark.parametrize(
    ("free", "cuda", "level"),
    [(2 * GIB, True, PASS), (64 * MIB, False, PASS), (64 * MIB, True, WARN), (MIB, False, WARN)],
)
def test_a_container_with_little_shared_memory_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, cuda: bool, level: Level
) -> None:
    monkeypatch.setattr(os, "statvfs", room(free))
    assert machine_checks.shared_memory(tmp_path, cuda=cuda).level is level


def test_no_shared_memory_fails(tmp_path: Path) -> None:
    assert machine_checks.shared_memory(tmp_path / "shm").level is FAIL


class Clocks:
    """A wall and a monotonic clock that go on by what the test says."""

    def __init__(self, *, wall: float, monotonic: float) -> None:
        self.steps = {"wall": wall, "monotonic": monotonic}
        self.slept = 0

    def check(self, kept: bool | None) -> Finding:
        return machine_checks.clock(
            wall=lambda: 1000.0 + self.slept * self.steps["wall"],
            monotonic=lambda: 5.0 + self.slept * self.steps["monotonic"],
            sleep=self._sleep,
            disciplined=lambda: kept,
        )

    def _sleep(self, seconds: float) -> None:
        self.slept += 1


@pytest.mark.parametrize(
    ("wall", "monotonic", "kept", "level"),
    [
        (0.05, 0.05, True, PASS),
        (0.05, 0.05, None, PASS),
        (0.05, 0.05, False, WARN),
        (3600.0, 0.05, True, FAIL),
        (-10.0, 0.05, True, FAIL),
        (0.05, 0.0, True, FAIL),
        (0.05, -1.0, True, FAIL),
    ],
)
def test_clocks_must_run_and_agree(wall: float, monotonic: float, kept: bool | None, level: Level) -> None:
    found = Clocks(wall=wall, monotonic=monotonic).check(kept)
    assert found.level is level
    assert level is FAIL or "skew against the server not measured" in found.found


@pytest.mark.parametrize(
    ("waits", "level", "compared"),
    [
        ([0.0], PASS, 1),
        ([0.019], PASS, 1),
        ([0.021, 0.0], PASS, 2),
        ([0.5, -0.5, 0.0], PASS, 3),
        ([0.5, 0.3, 0.4], FAIL, 3),
        ([0.5, -0.021, 0.4, 0.0], FAIL, 3),
    ],
)
def test_a_process_that_had_to_wait_between_two_readings_is_no_clock_that_jumps(
    waits: list[float], level: Level, compared: int
) -> None:
    """``waits`` are the seconds that pass between reading one clock and the other, comparison by comparison."""
    now, slept, reads = 1000.0, 0, 0

    def wall() -> float:
        nonlocal now
        if reads % 2 == 0:
            # at the end of a comparison alone: waits of the same length at start and end would cancel
            now += waits[slept - 1]
        return now

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now, slept = now + seconds, slept + 1

    def monotonic() -> float:
        nonlocal reads
        reads += 1
        return now

    found = machine_checks.clock(wall=wall, monotonic=monotonic, sleep=sleep, disciplined=lambda: True)
    assert (found.level, slept) == (level, compared)
    if level is FAIL:
        jump = min(waits[:3], key=abs)
        assert f"the date jumped by {jump:+.3f} s within 0.05 s, in each of 3 readings" in found.found


def test_the_machines_own_clocks_run() -> None:
    assert machine_checks.clock().level < FAIL
    assert machine_checks.kernel_clock() in (True, False, None)


def test_the_worst_finding_is_the_exit_status() -> None:
    assert worst([]) == 0
    assert worst([passed("a", ""), warned("b", "", "")]) == 1
    assert worst([failed("c", "", ""), passed("a", "")]) == 2


def test_a_check_that_breaks_is_a_failure_that_quotes_nothing_and_stops_no_other() -> None:
    def broken() -> Finding:
        raise ValueError("PATIENT-4711")

    def refused() -> Finding:
        raise DataError("data list", got="PATIENT-4711", remedy="mend it")

    found = run_checks([("one", broken), ("two", refused), ("three", lambda: passed("three", "fine"))])
    assert [one.level for one in found] == [FAIL, FAIL, PASS]
    assert "PATIENT" not in str(found)
    assert found[1].mend == "mend it"


def test_the_pins_of_this_tree_are_those_installed() -> None:
    file = Path(__file__).parents[2] / "constraints.txt"
    assert machine_checks.tested_versions(file)["nvflare"] == version("nvflare")
