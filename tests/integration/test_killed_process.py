"""A process killed in the middle of a task, and the task given again, ends where an undisturbed one ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fedmedseg.core.jobs import find_job, read_settings, setting

SCRIPT = Path(__file__).parent / "support" / "killable_task.py"
STEPS = 40
pytestmark = pytest.mark.integration


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    changes = [
        f"fedata.local_steps={STEPS}",
        "data.phantom={family: cine_mr, unlabeled: 2, training: 1, validation: 1, test: 1}",
    ]
    content, _ = read_settings(find_job("fedata"), [setting(change) for change in changes])
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def start(home: Path, experiment: Path) -> subprocess.Popen[str]:
    home.mkdir(exist_ok=True)
    call = [sys.executable, str(SCRIPT), str(home), str(experiment), str(home / "progress.jsonl")]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digest(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip().splitlines()[-1]


def steps_done(home: Path) -> int:
    file = home / "progress.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def test_a_task_killed_halfway_continues_to_the_same_bytes(tmp_path: Path, experiment: Path) -> None:
    expected = digest(start(tmp_path / "undisturbed", experiment))
    home = tmp_path / "killed"
    process = start(home, experiment)
    deadline = time.monotonic() + 120
    while steps_done(home) < 3:
        assert time.monotonic() < deadline, "no progress to kill"
        assert process.poll() is None, "the task ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    killed_at = steps_done(home)
    assert 3 <= killed_at < STEPS
    again = start(home, experiment)
    assert digest(again) == expected
    steps = [json.loads(line)["step"] for line in (home / "progress.jsonl").read_text().splitlines()]
    first_after = steps[steps.index(killed_at) + 1]
    assert first_after > 1, "the second process began at the beginning"
