"""Every `next:` line that a command prints can be typed as it stands, and does what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typed import bound, call, next_lines, words_of
from typer.testing import CliRunner

from fedmedseg.cli.main import app

Write = Callable[[Path], str]


def knees(folder: Path) -> Path:
    """A set of six labelled volumes for whose role no preset is made."""
    root = folder / "raw" / "knees"
    for index in range(6):
        for part in ("images", "labels"):
            path = root / part / f"knee_{index}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            voxels = np.random.default_rng(index).integers(0, 3, (8, 8, 8))
            nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)).to_filename(path)
    return root


def of_an_import_without_a_preset(folder: Path) -> str:
    return call("data", "import", "decathlon", knees(folder), "--out", folder / "out", "--sites", "2")[1]


def of_an_import_with_presets(folder: Path) -> str:
    options = ("--sites", "2", "--role", "hippocampus")
    return call("data", "import", "decathlon", knees(folder), "--out", folder / "out", *options)[1]


def of_phantoms(folder: Path) -> str:
    counts = ("--training", "1", "--validation", "1", "--test", "1", "--unlabeled", "1")
    return call("data", "phantoms", "cine_mr", "--out", folder / "out", "--size", "48,48,4", *counts)[1]


def of_phantoms_of_another_role(folder: Path) -> str:
    counts = ("--training", "1", "--validation", "1", "--test", "1", "--unlabeled", "0", "--role", "mine")
    return call("data", "phantoms", "cine_mr", "--out", folder / "out", "--size", "48,48,4", *counts)[1]


def of_phantoms_without_labels(folder: Path) -> str:
    counts = ("--training", "0", "--validation", "0", "--test", "1", "--unlabeled", "1")
    return call("data", "phantoms", "cine_mr", "--out", folder / "out", "--size", "48,48,4", *counts)[1]


def of_phantoms_of_an_unseen_site_alone(folder: Path) -> str:
    counts = ("--training", "1", "--validation", "1", "--test", "1", "--unlabeled", "0", "--sites", 1, "--unseen", 1)
    return call("data", "phantoms", "cine_mr", "--out", folder / "out", "--size", "48,48,4", *counts)[1]


def of_a_job(folder: Path) -> str:
    return call("job", "fedata", "--min-clients", "2", "--out", folder / "out")[1]


@pytest.mark.parametrize(
    ("write", "commands", "name"),
    [
        (of_an_import_without_a_preset, ["data check"], "here"),
        (of_an_import_with_presets, ["simulate fcl", "simulate fclopt", "simulate fedata", "simulate fedavg"], "here"),
        (of_phantoms, ["simulate fcl"], "two words"),
        (of_phantoms_of_another_role, ["data check"], "two words"),
        (of_phantoms_without_labels, ["data check"], "here"),
        (of_phantoms_of_an_unseen_site_alone, ["data check"], "here"),
        (of_a_job, ["simulate"], "here"),
        (of_a_job, ["simulate"], "two words"),
    ],
)
def test_a_next_line_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, commands: list[str], name: str
) -> None:
    """A simulation is followed up to where FLARE would start; everything else is run."""
    from fedmedseg.cli import simulate as module
    from fedmedseg.core.simulation import prepare_workspace

    started: list[Path] = []

    def run(study: object, workspace: Path, names: tuple[str, ...], threads: int, sites: Path | None) -> None:
        prepare_workspace(workspace, {})
        module._place_site_files(module._site_files_of(sites, names), workspace)
        folder = sites or workspace / "local" / "sites"
        module._check_site_files(folder, names, study.experiment, left=sites is None)  # type: ignore[attr-defined]
        started.append(workspace)

    monkeypatch.setattr(module, "_run", run)
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = next_lines(write(folder))
    assert len(lines) >= len(commands)
    for line, begins in zip(lines, commands, strict=False):
        words = words_of(line)
        assert line.startswith(f"fedmedseg {begins} "), line
        context = bound(words)
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output)
        if context.command.name == "simulate":
            assert context.params["workspace"] != Path("simulator_workspace"), "-w is part of the line"
            assert started.pop() == context.params["workspace"].resolve()
