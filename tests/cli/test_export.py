"""`fedmedseg export` on a model file: a format on the disk, a card with the run's figures, refusals in plain words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedmedseg.cli import export as command
from fedmedseg.cli.main import app
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.segmentation.models import save_model
from fedmedseg.segmentation.starts import initial_network

TINY: dict[str, Any] = {
    "data": {
        "role": "shapes",
        "modality": "mr",
        "spatial_dims": 2,
        "labels": {1: "disc"},
        "crop": [16, 16],
        "spacing": [None, None, None],
        "phantom": None,
    },
    "network": {"name": "unet", "channels": [4, 8], "res_units": 1},
}


def call(*options: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, options)], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    study = read_settings(find_job("fedavg"), [TINY])[1]
    save_model(
        tmp_path / "personal.safetensors",
        initial_network(study).state_dict(),
        experiment=study,
        start="personal",
        run="r1",
    )
    metrics = {"dice/personal/disc": 0.75}
    record = {
        "experiment_sha256": study.digest,
        "run": "r1",
        "started": "2026-01-02T03:04:05+00:00",
        "outcome": "finished",
        "labels": {"1": "disc"},
        "sites": ["site-1"],
        "rounds": [
            {"stage": "training", "round": 0, "accepted": ["site-1"], "sites": {}},
            {
                "stage": "evaluation", "round": 0, "accepted": ["site-1"],
                "sites": {"site-1": {"accepted": True, "metrics": metrics}},
            },
        ],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "licences.txt").write_text("CC BY 4.0, all sites\n")
    return tmp_path / "personal.safetensors"


def test_a_format_comes_with_a_card_of_its_run(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "ts"
    options = ("--to", "torchscript", "--out", out, "--run", tmp_path, "--data-licences", tmp_path / "licences.txt")
    code, said = call(model, *options)
    assert code == 0, said
    assert "README.md, metadata.json, model.ts" in said
    assert "writing torchscript and comparing its answers" in said, "before the minute it may take"
    card = (out / "README.md").read_text()
    assert "| disc | 1 | 0.750 | - | - |" in card
    assert "CC BY 4.0, all sites" in card
    assert json.loads((out / "metadata.json").read_text())["eval_metrics"] == {"dice/disc": 0.75}
    assert call(model, *options)[0] == 2
    assert call(model, *options, "--force")[0] == 0


def test_licences_are_never_cut(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MOST_BYTES", 5)
    options = ("--to", "torchscript", "--out", tmp_path / "ts", "--data-licences", tmp_path / "licences.txt")
    code, said = call(model, *options)
    assert (code, "--data-licences: got 21 bytes. Expected 5 at most" in said) == (2, True), said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "torchscript", "--schema", "x.json"], "--schema: got with --to torchscript"),
        (["--to", "torchscript", "--task", "calc"], "--task: got calc"),
        (["--to", "torchscript", "--start", "scratch"], "--start: got scratch"),
        (["--to", "torchscript", "--run", "none"], "no record at"),
        (["--to", "torchscript", "--data-licences", "none"], "no text at none"),
        (["--to", "pickle"], "pickle"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    model: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    before = set(tmp_path.rglob("*"))
    code, said = call(model, *options, "--out", tmp_path / "out")
    assert code == 2
    assert words in said
    assert set(tmp_path.rglob("*")) == before
