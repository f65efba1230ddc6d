"""The benchmark of rounds: its ratios and goals from given figures, and the smallest measurement for real."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import round_overhead
import stand_in_runs
from round_overhead import DEPLOYED, FLOWER, SHIPPED, lines, summary

WALLS = {SHIPPED: [0.6, 0.4, 0.5], DEPLOYED: [0.3, 0.2], FLOWER: [0.25, 0.25]}
JOBS = {SHIPPED: [15.0], DEPLOYED: [9.0, 11.0], FLOWER: [12.5]}


def test_ratios_to_flower_stand_beside_the_goals_of_their_size() -> None:
    found = summary(1, 1.386, WALLS, JOBS)
    assert found[SHIPPED] == {"median_s": 0.5, "mad_s": 0.1, "rounds": 3, "job_s": 15.0}
    assert found["of_flower"] == {
        SHIPPED: {"ratio": 2.0, "goal": 3.0},
        DEPLOYED: {"ratio": 1.0, "goal": 1.2},
    }
    assert found["job_of_flower"] == {
        SHIPPED: {"ratio": 1.2, "goal": 1.25},
        DEPLOYED: {"ratio": 0.8, "goal": 1.25},
    }
    assert summary(250, 264.0, WALLS, JOBS)["of_flower"][SHIPPED]["goal"] == 1.5
    assert summary(20, 21.6, WALLS, JOBS)["of_flower"][DEPLOYED]["goal"] is None


def test_without_flower_no_ratio_is_told() -> None:
    found = summary(1, 1.0, {SHIPPED: [0.5]}, {SHIPPED: [15.0]})
    assert found["of_flower"] == found["job_of_flower"] == {}


def test_what_is_printed_names_void_figures_and_goals() -> None:
    work = {"10 s": {SHIPPED: {"efficiency": 0.9}, DEPLOYED: {"efficiency": 0.91}, "goal": 0.88}}
    content = {
        "rounds": {"1": summary(1, 1.386, WALLS, JOBS) | {"void": True}},
        "efficiency": {"work": work, "void": False},
    }
    said = "\n".join(lines(content))
    assert "1 MB (1.386 MB each way), void" in said
    assert "round of deployed over Flower's: 1.0 (goal at most 1.2)" in said
    assert "deployed: 0.91 of the time is work (goal at least 0.88)" in said
    assert lines({}) == []


def test_the_first_round_of_a_run_is_dropped(tmp_path: Path) -> None:
    rounds = [
        {"stage": "pretraining", "wall_seconds": wall, "sites": {"site-1": {"bytes_down": 2_000_000}}}
        for wall in (9.0, 0.5, 0.4)
    ]
    record = {"rounds": [*rounds, {"stage": "evaluation", "wall_seconds": 7.0}]}
    (tmp_path / "log.txt").write_text("said")
    run = stand_in_runs._run(record, began=1e9, seconds=12.0, memory=300.0, folder=tmp_path)
    assert run == stand_in_runs.Run([0.5, 0.4], 12.0, 2.0, 300.0, 1e9, "said")


def test_a_benchmark_that_is_told_to_end_leaves_no_federation(monkeypatch: pytest.MonkeyPatch) -> None:
    import hospitals

    assert threading.current_thread() is threading.main_thread(), "elsewhere the signal would end the tests"
    seen: list[str] = []
    before = signal.getsignal(signal.SIGTERM)

    class Federation:
        def __init__(self, folder: Path, **how: object) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            seen.append("stopped")

        def up(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on")

    monkeypatch.setattr(hospitals, "Hospitals", Federation)
    with pytest.raises(SystemExit) as ended:
        list(stand_in_runs.deployed(sites=1, rounds=1, width=12))
    assert (ended.value.code, seen) == (128 + signal.SIGTERM, ["stopped"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_part_that_did_not_run_keeps_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size and part is written when it is done."""
    file = tmp_path / "out.json"
    file.write_text(json.dumps({"efficiency": {"work": {}, "void": False}, "shipped": "of an older version"}))
    monkeypatch.setattr(
        round_overhead, "of_size", lambda size, given: summary(size, 1.0, WALLS, JOBS) | {"void": False}
    )
    round_overhead.main(["--parts", "rounds", "--sizes", "1", "20", "--out", str(file)])
    content = json.loads(file.read_text())
    assert sorted(content["rounds"]) == ["1", "20"]
    assert content["efficiency"] == {"work": {}, "void": False}
    assert content.keys() == {"rounds", "efficiency"}


def test_a_drift_of_more_than_a_tenth_voids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in_runs, "copying", lambda: 10.0)
    assert not stand_in_runs.circumstances(10.5)["void"]
    assert stand_in_runs.circumstances(12.0)["void"]


def test_plain_processes_work_as_long_as_they_are_told() -> None:
    """Sixty steps take longer than six, in two processes at once."""
    assert stand_in_runs.plain(sites=2, rounds=1, work=60) > stand_in_runs.plain(sites=2, rounds=1, work=6) > 0.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_smallest_measurement(tmp_path: Path) -> None:
    """Simulator and deployed federation, with and without local work."""
    file = tmp_path / "out.json"
    words = ["--rounds", "2", "--repeats", "1", "--seconds", "1", "--out", str(file)]
    round_overhead.main(words)
    content = json.loads(file.read_text())
    one = content["rounds"]["1"]
    assert 1.3 < one["megabytes_each_way"] < 1.5
    assert all(one[way]["median_s"] > 0 for way in (SHIPPED, DEPLOYED))
    assert 0.0 < content["efficiency"]["work"]["1 s"][DEPLOYED]["efficiency"] < 1.0


def test_flower_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = SimpleNamespace(returncode=1, stderr="no module named flwr", stdout="")
    monkeypatch.setattr(stand_in_runs.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(SystemExit, match="no module named flwr"):
        stand_in_runs.with_flower(tmp_path, sites=2, rounds=2, shapes={})
