"""A job that ended before its study did, made ready to be submitted again so that it continues."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import EXPERIMENT
from fedmedseg.core.schema import read_yaml

SIGNATURES = ".__nvfl_*"
"""What FLARE writes into every folder of a job when it is signed; the next submission signs anew."""


def resumable(downloaded: Path, out: Path) -> Path:
    """Copy a job's definition to ``out`` with ``resume`` set and without the signatures of the submission before.

    Args:
        downloaded: folder of a job as FLARE hands it out, with the job's own folder in ``job``.
        out: folder to write into.

    Returns:
        The job folder, under the name it had.

    Raises:
        ConfigurationError: not a job of this package.
    """
    found = sorted(downloaded.glob("job/*/meta.json"))
    if not found or not (found[0].parent / EXPERIMENT).is_file():
        raise ConfigurationError(
            "job",
            got="no meta.json and experiment.yaml in what the server keeps of it",
            expected="a job of fedmedseg",
            remedy="submit the job folder again, with resume: true in its experiment.yaml",
        )
    source = found[0].parent
    job = Path(shutil.copytree(source, out / source.name, ignore=shutil.ignore_patterns(SIGNATURES)))
    experiment = job / EXPERIMENT
    experiment.write_text(yaml.safe_dump({**read_yaml(experiment), "resume": True}, sort_keys=False), encoding="utf-8")
    return job
