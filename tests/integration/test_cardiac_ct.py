"""Cardiac CT in the simulator: who declines what, pseudo-labels in fresh processes, the shipped study's floor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from small_cardiac_ct import ANY_ANSWER, APART, AS_TYPED

from fedmedseg.core import checkpoint
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job

ROOT = Path(__file__).parents[2]
SMALL = (*AS_TYPED, APART, ANY_ANSWER, "stages.teacher_calc.rounds=1", "stages.teacher_ms.rounds=1")
TINY = (
    *SMALL,
    "cardiac_ct.tasks=[calc]",
    "stages.teacher_hps.rounds=0",
    "stages.teacher_ms.rounds=0",
    "stages.teacher_calc.rounds=2",
    "stages.head_tuning.rounds=0",
    "stages.transfer.rounds=0",
    "cardiac_ct.head_steps=0",
    "cardiac_ct.transfer=null",
)
"""The task of one site alone is taught to both."""
SITES = ("site-1", "site-2")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def simulate(workspace: Path, *options: str, changes: tuple[str, ...] = (), patience: int = 800) -> dict[str, Any]:
    """The record of a finished call of `fedmedseg simulate`, and the bytes of its largest process."""
    command = [sys.executable, "-c", LARGEST, sys.executable, "-m", "fedmedseg"]
    command += ["simulate", "cardiac_ct", "-w", str(workspace), *options]
    for change in changes:
        command += ["--set", change]
    done = subprocess.run(command, text=True, capture_output=True, timeout=patience, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((workspace / "server" / "simulate_job" / "report" / "run.json").read_text())
    return {**record, "largest_process": int(done.stdout.splitlines()[-1]) * 1024}


LARGEST = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)
"""Runs a command and prints the resident memory of the largest process under it, in KiB."""


def rounds(record: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    return [entry for entry in record["rounds"] if entry["stage"] == stage]


def test_what_one_site_annotates_is_learned_by_both_with_every_task_in_a_fresh_process(tmp_path: Path) -> None:
    """The smallest run: the other site declines the CNN's stage, and learns from pseudo-labels on its disk."""
    record = simulate(tmp_path / "w", "-n", "2", "-t", "1", changes=TINY)
    assert record["outcome"] == "finished"
    teaching = rounds(record, "teacher_calc")
    assert [entry["accepted"] for entry in teaching] == [["site-1"]] * 2
    assert teaching[0]["sites"]["site-2"]["declined"]
    assert teaching[0]["sites"]["site-2"]["reason"] == "NO_CASES: section training"
    (labelling,) = rounds(record, "pseudo_labelling")
    assert labelling["accepted"] == list(SITES)
    kept = {site: one["metrics"]["kept/calc"] for site, one in labelling["sites"].items()}
    # site-1 has a real label of one of its two scans
    assert kept == {"site-1": 1.0, "site-2": 2.0}
    distilling = rounds(record, "distillation")
    assert [entry["accepted"] for entry in distilling] == [list(SITES)] * 2
    assert [entry["sites"]["site-2"]["metrics"]["cases/pseudo"] for entry in distilling] == [2.0, 2.0]
    assert len({entry["shared_sha256"] for entry in [*teaching, *distilling]}) == 4
    (evaluation,) = rounds(record, "evaluation")
    for site in SITES:
        figures = evaluation["sites"][site]["metrics"]
        assert {"failures/cnn/calcification", "failures/student/calcification"} <= set(figures)


@pytest.mark.slow
def test_the_whole_study_ends_with_the_bytes_of_one_process(tmp_path: Path) -> None:
    """All eight stages, each task in a fresh process."""
    record = simulate(tmp_path / "w", "-n", "2", "-t", "1", changes=SMALL)
    settings, _ = read_settings(find_job("cardiac_ct"), [setting(change) for change in SMALL])
    federation = InProcessFederation(
        job=write_job(find_job("cardiac_ct"), settings, tmp_path / "job"),
        workspace=tmp_path / "one",
        sites=SITES,
        run="oneprocess",
    )
    for stage in federation.contracts:
        federation.run_stage(stage)
    assert checkpoint.content_sha256(federation.shared) == record["shared_sha256"]


@pytest.mark.slow
def test_a_stage_runs_alone_from_an_earlier_runs_model(tmp_path: Path) -> None:
    """Transfer from the student and the CNN of a run that had none, and nothing of these moves."""
    simulate(tmp_path / "first", "-n", "2", "-t", "2", changes=TINY)
    model = tmp_path / "first" / "server" / "simulate_job" / "models" / "shared.safetensors"
    alone = (
        *SMALL,
        *(f"stages.teacher_{task}.rounds=0" for task in ("hps", "ms", "calc")),
        *(f"stages.{stage}.rounds=0" for stage in ("pseudo_labelling", "distillation", "head_tuning")),
        "cardiac_ct.tasks=[calc]",
        "cardiac_ct.gate=null",
        "cardiac_ct.head_steps=0",
        "cardiac_ct.transfer={steps: 2, cnn: calc}",
    )
    record = simulate(tmp_path / "second", "-n", "2", "-t", "2", "--start", str(model), changes=alone)
    (transfer,) = rounds(record, "transfer")
    assert transfer["accepted"] == ["site-2"]
    before = checkpoint.load(model)["tensors"]
    after = checkpoint.load(tmp_path / "second" / "server" / "simulate_job" / "models" / "shared.safetensors")[
        "tensors"
    ]
    frozen = [name for name in after if not name.startswith("transfer.")]
    assert {name.split(".")[0] for name in frozen} == {"student", "teacher"}
    assert not [name for name in frozen if not before[name].equal(after[name])]


@pytest.mark.slow
def test_the_shipped_study_keeps_its_floor(tmp_path: Path) -> None:
    """CNN and transformer mark calcification at least 0.25 Dice better, over the sites, than the untrained network; no
    process is larger than 4 GB."""
    record = simulate(tmp_path / "w", "-n", "3", "-t", "3", patience=880)
    (evaluation,) = rounds(record, "evaluation")
    dice = {
        model: fmean(one["metrics"][f"dice/{model}/calcification"] for one in evaluation["sites"].values())
        for model in ("cnn", "student", "untrained")
    }
    assert min(dice["cnn"], dice["student"]) >= dice["untrained"] + 0.25, dice
    assert 3e8 < record["largest_process"] < 4e9
