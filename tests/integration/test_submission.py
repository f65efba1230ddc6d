"""The real FedATA job in a real federation of three hospitals, by FLARE's commands and through its admin console."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from fedmedseg.core.jobs import read_settings
from fedmedseg.provisioning import rehearsal
from fedmedseg.provisioning.loopback import LoopbackFederation

ROOT = Path(__file__).parents[2]
SITES = ("site-1", "site-2", "site-3")
LEAD = "lead@hospital-two.example.org"
MEMBER = "member@hospital-three.example.org"
BIN = Path(sys.executable).parent
JOB_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TINY = (
    "fedata.local_steps=1",
    "fedata.starts=[shared]",
    "segmentation.steps=1",
    "segmentation.batch=1",
    "data.phantom={family: cine_mr, unlabeled: 1, training: 1, validation: 1, test: 1}",
)
PATIENCE = 200
"""Seconds for one job, on a machine that has other work."""
pytestmark = [pytest.mark.integration, pytest.mark.timeout(290)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """jobs/fedata at its smallest: one round, one step, one patient of each kind."""
    folder = tmp_path_factory.mktemp("job") / "fedata"
    command = [sys.executable, "-m", "fedmedseg", "job", str(ROOT / "jobs" / "fedata"), "--rounds", "1"]
    command += ["--min-clients", str(len(SITES)), "--out", str(folder)]
    for change in TINY:
        command += ["--set", change]
    done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def federation(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackFederation]:
    """Three hospitals and a server that run."""
    out = tmp_path_factory.mktemp("federation")
    kits = rehearsal.kits_in(out, sites=SITES)
    experiment = read_settings(job, [])[1]
    rehearsal.place_phantoms(kits, out, sites=SITES, experiment=experiment, on_site=lambda site: None)
    (out / "home").mkdir()
    with LoopbackFederation(kits, environment={"HOME": str(out / "home"), "OMP_NUM_THREADS": "1"}) as made:
        made.start_all(SITES, timeout=90)
        yield made


def copy_of(job: Path, folder: Path) -> Path:
    """A job of one's own: FLARE's console signs the folder it is given."""
    return Path(shutil.copytree(job, folder / "submitted" / job.name))


def nvflare(federation: LoopbackFederation, *words: str) -> str:
    """What one of FLARE's commands says, with the study lead's kit."""
    done = subprocess.run(
        [str(BIN / "nvflare"), *words, "--startup-kit", str(federation.kits / LEAD)],
        env=federation.environment,
        text=True,
        capture_output=True,
        timeout=PATIENCE + 20,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check(workspace: Path, job: Path) -> None:
    """The run folder that the server handed out holds a finished study of all sites, with report and model."""
    record = json.loads((workspace / "report" / "run.json").read_text())
    assert record["outcome"] == "finished", record["reason"]
    assert record["experiment_sha256"] == read_settings(job, [])[1].digest
    assert [(one["stage"], sorted(one["accepted"])) for one in record["rounds"]] == [
        (stage, list(SITES)) for stage in ("pretraining", "fine_tuning", "evaluation")
    ]
    report = (workspace / "report" / "report.html").read_text()
    for words in (*SITES, "left ventricle"):
        assert words in report
    assert (workspace / "models" / "shared.safetensors").stat().st_size > 1_000_000


def test_by_flares_commands(federation: LoopbackFederation, job: Path, tmp_path: Path) -> None:
    mine = copy_of(job, tmp_path)
    said = nvflare(federation, "job", "submit", "-j", str(mine))
    job_id = re.findall(JOB_ID, said)[0]
    assert sorted(file.name for file in mine.iterdir()) == sorted(file.name for file in job.iterdir()), "as it was"
    said = nvflare(federation, "job", "wait", job_id, "--timeout", str(PATIENCE))
    assert "FINISHED:COMPLETED" in said
    nvflare(federation, "job", "download", job_id, "-o", str(tmp_path / "results"))
    (workspace,) = (tmp_path / "results").rglob("workspace")
    check(workspace, job)


@pytest.mark.slow
def test_a_running_job_is_followed_to_its_end(federation: LoopbackFederation, job: Path, tmp_path: Path) -> None:
    """By the member of a third hospital, who may look on and nothing else, in a log and in a narrow terminal."""
    said = nvflare(federation, "job", "submit", "-j", str(copy_of(job, tmp_path)))
    command = [str(BIN / "fedmedseg"), "monitor", re.findall(JOB_ID, said)[0], "--startup-kit"]
    followed = subprocess.Popen(
        [*command, str(federation.kits / LEAD), "--every", "1"],
        env=federation.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    looks: list[str] = []
    try:
        while followed.poll() is None:
            looked = subprocess.run(
                [*command, str(federation.kits / MEMBER), "--once"],
                env={**federation.environment, "COLUMNS": "40"},
                text=True, capture_output=True, timeout=60, check=False,
            )  # fmt: skip
            looks.append(looked.stdout + looked.stderr)
            time.sleep(1)
        log, _ = followed.communicate(timeout=60)
    finally:
        followed.kill()
        followed.wait()
    assert followed.returncode == 0, log
    assert log.splitlines()[-1].endswith(": FINISHED:COMPLETED")
    assert re.search(r"^(pretraining|fine_tuning|evaluation) round 1/1: ", log, re.MULTILINE), log
    running = [one for one in looks if "round 1/1" in one]
    assert running, looks
    for words in ("RUNNING", "time left:", *(f"  {site}: " for site in SITES), "    seen 0:"):
        assert words in running[-1]


@pytest.mark.slow
def test_through_the_admin_console(federation: LoopbackFederation, job: Path, tmp_path: Path) -> None:
    kit, mine = federation.kits / LEAD, copy_of(job, tmp_path)
    console = pexpect.spawn(
        "bash", [str(kit / "startup" / "fl_admin.sh")], env={**os.environ, **federation.environment},
        cwd=str(tmp_path), encoding="utf-8", timeout=60, dimensions=(50, 400),
    )  # fmt: skip

    def command(line: str) -> str:
        console.sendline(line)
        console.expect(r"Done \[")
        said = str(console.before)
        console.expect("> ")
        return said

    try:
        console.expect("User Name:")
        console.sendline(LEAD)
        console.expect("> ")
        job_id = re.findall(JOB_ID, command(f"submit_job {mine}"))[0]
        end = time.monotonic() + PATIENCE
        while "FINISHED" not in (status := command(f"list_jobs {job_id}")):
            assert time.monotonic() < end, status
            time.sleep(2)
        assert "FINISHED:COMPLETED" in status
        command(f"download_job {job_id}")
        console.sendline("bye")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    check(kit / "transfer" / job_id / "workspace", job)
    assert (mine / ".__nvfl_sig.json").is_file(), "what docs/federation.md says of the console: give it a copy"
