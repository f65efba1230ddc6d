"""Finished calls of `fedmedseg simulate`, and what they leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedseg.core import checkpoint
from fedmedseg.core.homes import homes_beside
from fedmedseg.reporting.floor import floor, overall

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Study:
    """A finished call."""

    workspace: Path
    out: str
    code: int

    @property
    def record(self) -> dict[str, Any]:
        content = (self.workspace / "server" / "simulate_job" / "report" / "run.json").read_text()
        return dict(json.loads(content))

    def site(self, name: str) -> Path:
        """Where a site keeps what outlives the run."""
        return homes_beside(self.workspace) / name

    def personal(self, name: str) -> dict[str, Any]:
        """What a site remembers of its pretraining."""
        file = next(self.site(name).glob("state/**/personal.safetensors"))
        return dict(checkpoint.load(file)["tree"])

    def model_digests(self) -> dict[str, str]:
        """Digest of every model of every site."""
        return digests(self.workspace, self.record["sites"])


def require_floor(record: dict[str, Any], **compared: str) -> None:
    """Fail unless a study keeps its floor; ``compared`` are the names that ``reporting.floor.floor`` takes."""
    evaluation = next(entry for entry in record["rounds"] if entry["stage"] == "evaluation")
    rows = floor({name: site["metrics"] for name, site in evaluation["sites"].items()}, **compared)
    assert overall(rows).holds, rows


def digests(workspace: Path, sites: list[str]) -> dict[str, str]:
    """Digest of every model of these sites of a run in ``workspace``."""
    home = homes_beside(workspace)
    return {
        f"{name}/{file.stem}": checkpoint.content_sha256(checkpoint.load(file)["tensors"])
        for name in sites
        for file in sorted((home / name).glob("models/**/*.safetensors"))
    }


def simulate(system: str, workspace: Path, *options: str, changes: tuple[str, ...] = ()) -> Study:
    """Run the system's job with these settings, and wait for its end."""
    command = [sys.executable, "-m", "fedmedseg", "simulate", system, "-w", str(workspace), *options]
    for change in changes:
        command += ["--set", change]
    done = subprocess.run(command, text=True, capture_output=True, timeout=800, check=False, cwd=ROOT)
    return Study(workspace=workspace, out=done.stdout + done.stderr, code=done.returncode)
