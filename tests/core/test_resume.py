"""A downloaded job made ready to continue."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedmedseg.core.config import load_experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import EXPERIMENT, find_job
from fedmedseg.core.resume import resumable


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A job as FLARE hands it out: signed, in a folder ``job``."""
    folder = tmp_path / "downloaded"
    job = Path(shutil.copytree(find_job("fedata"), folder / "job" / "study"))
    for where in (job, job / "app", job / "app" / "config"):
        (where / ".__nvfl_sig.json").write_text("{}")
        (where / ".__nvfl_submitter.crt").write_text("certificate")
    return folder


def test_it_continues_is_of_the_same_experiment_and_no_longer_signed(downloaded: Path, tmp_path: Path) -> None:
    job = resumable(downloaded, tmp_path / "again")
    before, after = load_experiment(find_job("fedata") / EXPERIMENT), load_experiment(job / EXPERIMENT)
    assert job.name == "study"
    assert (before.resume, after.resume) == (False, True)
    assert after.digest == before.digest
    assert not list(job.rglob(".__nvfl_*"))
    assert json.loads((job / "meta.json").read_text()) == json.loads((find_job("fedata") / "meta.json").read_text())
    unchanged = {file.relative_to(job) for file in job.rglob("*") if file.is_file()} - {EXPERIMENT}
    for name in unchanged:
        assert (job / name).read_bytes() == (find_job("fedata") / name).read_bytes()


def test_another_programs_job_is_refused(downloaded: Path, tmp_path: Path) -> None:
    (downloaded / "job" / "study" / EXPERIMENT).unlink()
    with pytest.raises(ConfigurationError, match="a job of fedmedseg"):
        resumable(downloaded, tmp_path / "again")
    with pytest.raises(ConfigurationError, match="submit the job folder again"):
        resumable(tmp_path / "nothing", tmp_path / "again")
