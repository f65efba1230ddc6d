"""What `fedmedseg job` writes is accepted by FLARE and runs under its own command, from the encoder it carries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.encoder_file import ENCODER_FILE, load_encoder
from fedmedseg.core.jobs import CONFIG, find_job, read_settings
from fedmedseg.networks.factory import build_segmentation

ROOT = Path(__file__).parents[2]
RATE = 1e-6
STEPS = 2
CHANGES = (
    f"fedata.local_steps={STEPS}",
    f"fedata.optimizer.learning_rate={RATE}",
    "fedata.starts=[shared]",
    "segmentation.steps=2",
    "segmentation.batch=2",
    "data.phantom={family: cine_mr, unlabeled: 1, training: 1, validation: 1, test: 1}",
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study of one site and one round, from an encoder in MONAI's self-supervised layout."""
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(4)
    model = build_segmentation(read_settings(find_job("fedata"), [])[1])
    names = {f"module.{name.replace('mlp.linear', 'mlp.fc')}": value for name, value in
             model.swinViT.state_dict().items()}  # fmt: skip
    torch.save({"state_dict": names}, folder / "ssl.pt")
    command = [sys.executable, "-m", "fedmedseg", "job", str(ROOT / "jobs" / "fedata"), "--rounds", "1"]
    command += ["--min-clients", "1", "--encoder", str(folder / "ssl.pt"), "--out", str(folder / "ours")]
    for change in CHANGES:
        command += ["--set", change]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "ours"


def test_flare_accepts_the_folder_for_submission(job: Path) -> None:
    """What the server does with a submitted job before it is queued."""
    from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
    from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

    valid, error, meta = JobMetaValidator().validate(job.name, zip_directory_to_bytes(str(job.parent), job.name))
    assert valid, error
    assert (meta["name"], meta["min_clients"]) == ("fedata-phantom", 1)


def test_flares_own_simulator_runs_it_from_the_encoder_it_carries(job: Path, tmp_path: Path) -> None:
    """At such a learning rate no number moves further than the rate a step, and random weights are far away."""
    shutil.copytree(ROOT / "simulator_workspace" / "local", tmp_path / "simulator_workspace" / "local")
    done = subprocess.run(
        [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-n", "1", "-t", "1"],
        cwd=tmp_path, text=True, capture_output=True, timeout=250, check=False,
    )  # fmt: skip
    server = tmp_path / "simulator_workspace" / "server" / "simulate_job"
    record = json.loads((server / "report" / "run.json").read_text())
    assert record["outcome"] == "finished", done.stdout[-3000:] + done.stderr[-3000:]
    assert [entry["stage"] for entry in record["rounds"]] == ["pretraining", "fine_tuning", "evaluation"]
    shared = checkpoint.load_file(server / "models" / "shared.safetensors")["tensors"]
    carried = load_encoder(job / CONFIG / ENCODER_FILE)
    moved = {name: float((shared[name] - tensor).abs().max()) for name, tensor in carried.items()}
    assert 0 < max(moved.values()) <= 2 * STEPS * RATE
