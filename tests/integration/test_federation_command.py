"""`fedmedseg federation`: a whole study among real processes, and Ctrl-C in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import working_below

from fedmedseg.data.site import SITE_FILE

ROOT = Path(__file__).parents[2]
TINY = (
    "stages.pretraining.rounds=2",
    "fedata.local_steps=1",
    "fedata.starts=[shared]",
    "segmentation.steps=1",
    "segmentation.batch=1",
    "data.phantom={family: cine_mr, unlabeled: 1, training: 1, validation: 1, test: 1}",
)
LONG = ("stages.pretraining.rounds=500",)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]
Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all calls: kits and volumes are used again."""
    return tmp_path_factory.mktemp("federation") / "out"


@pytest.fixture
def run(out: Path) -> Iterator[Run]:
    """run(*changes): the command with two sites, its output in a pipe."""
    started: list[subprocess.Popen[str]] = []

    def start(*changes: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fedmedseg", "federation", "fedata", "--sites", "2", "--out", str(out)]
        for change in (*TINY, *changes):
            command += ["--set", change]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # as from a terminal, also where these tests were started in the background, which ignores Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for one in working_below(out / "kits"):
        one.kill()


def said_until(process: subprocess.Popen[str], words: str) -> str:
    """What the command says up to the line with ``words``."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it ended before it said {words!r}:\n{said}")


@pytest.mark.slow
def test_a_study_runs_from_kits_to_report(run: Run, out: Path) -> None:
    process = run()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    for words in ("server: started", "site-2: started", "submitted", "round 1/2", "left ventricle", "report:"):
        assert words in said
    (report,) = (out / "results").glob("*/workspace/report")
    record = json.loads((report / "run.json").read_text())
    assert record["outcome"] == "finished"
    assert record["sites"] == ["site-1", "site-2"]
    assert [sorted(one["accepted"]) for one in record["rounds"]] == [["site-1", "site-2"]] * 4
    assert (report / "report.html").stat().st_size > 10_000
    assert f"report: {report / 'report.html'}" in said.splitlines()
    assert len(list((out / "kits").rglob(SITE_FILE))) == 2
    assert working_below(out / "kits") == []


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_no_process_and_says_so(run: Run, out: Path, times: int) -> None:
    process = run(*LONG)
    said = said_until(process, "pretraining round")
    assert len(working_below(out / "kits")) >= 6, "three participants, and a job at each"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said += said_until(process, "interrupt again")
    if times == 2:
        process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said + rest
    assert "no process is left" in rest
    assert working_below(out / "kits") == []
    assert time.monotonic() - began < (80 if times == 1 else 25)
