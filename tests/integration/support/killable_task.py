"""One pretraining task of one site in a process of its own, which a test kills in the middle.

    python killable_task.py HOME EXPERIMENT PROGRESS

Prints the digest of the trained tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fedmedseg.core.checkpoint import content_crc32, content_sha256
from fedmedseg.core.config import load_experiment
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.state import SiteState
from fedmedseg.data.site import open_site
from fedmedseg.fedata.learner import MaskedDistillationLearner
from fedmedseg.fedata.plan import initial_shared


def main(home: Path, experiment_file: Path, progress: Path) -> None:
    """Run the task and print what came out."""
    torch.set_num_threads(1)
    experiment = load_experiment(experiment_file)
    site = open_site(experiment, name="site-1", local=home / "local", workspace=home / "workspace", simulated=True)
    shared = initial_shared(experiment)
    state = SiteState(site.state_root, study="killed", experiment=experiment.digest, site="site-1", run="run")
    task = Task(
        site="site-1",
        stage="pretraining",
        round=0,
        rounds=1,
        seed=experiment.seed,
        base=content_crc32(shared),
        state=state,
        progress=Progress(site="site-1", stage="pretraining", round=0, rounds=1, file=progress),
        checkpoint_seconds=0.0,
    )
    reply = MaskedDistillationLearner(experiment=experiment, site=site).run(task, shared)
    sys.stdout.write(content_sha256(reply.tensors) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
