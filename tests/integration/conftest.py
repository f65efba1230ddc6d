"""A study in FLARE's simulator whose executors stand in for a system's own and fail as a test tells them to."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hospitals import Hospitals
from stand_in_job import stand_in_job

import fedmedseg
from fedmedseg.core import checkpoint, simulation
from fedmedseg.core.allowed_classes import simulator_resources

SUPPORT = Path(__file__).parent / "support"
PACKAGE = Path(fedmedseg.__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """What one call of the simulator left behind."""

    record: dict[str, Any] | None
    workspace: Path
    seconds: float
    log: str

    @property
    def outcome(self) -> str:
        """``finished`` or ``stopped``."""
        assert self.record is not None, self.log[-3000:]
        return str(self.record["outcome"])

    @property
    def reason(self) -> str:
        """Why the run was stopped."""
        assert self.record is not None, self.log[-3000:]
        return str(self.record["reason"])

    def rounds(self, stage: str = "pretraining") -> list[dict[str, Any]]:
        """The records of a stage's rounds."""
        assert self.record is not None, self.log[-3000:]
        return [record for record in self.record["rounds"] if record["stage"] == stage]

    @property
    def folder(self) -> Path:
        """The server's run folder."""
        return self.workspace / "server" / simulation.JOB_ID

    @property
    def shared(self) -> str | None:
        """SHA-256 of the shared model on the server's disk."""
        saved = checkpoint.load(self.folder / "models" / "shared.safetensors")
        return None if saved is None else checkpoint.content_sha256(saved["tensors"])


Start = Callable[..., Run]


@pytest.fixture
def federate(tmp_path: Path) -> Iterator[Callable[..., Hospitals]]:
    """federate(**arguments of Hospitals): kits of a federation; its processes end with the test."""
    made: list[Hospitals] = []

    def make(**arguments: Any) -> Hospitals:
        made.append(Hospitals(tmp_path / f"federation-{len(made)}", **arguments))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="session")
def start() -> Start:
    """start(folder, sites=2, faults=[...], **sections of experiment.yaml): runs a study to its end.

    ``configuration`` is added to what the job says to FLARE, on both sides.
    """

    def run(
        folder: Path,
        *,
        sites: int = 2,
        faults: list[dict[str, Any]] | None = None,
        configuration: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Run:
        shutil.rmtree(folder / "job", ignore_errors=True)
        job = stand_in_job(folder / "job", changes)
        for file in (job / "app" / "config").glob("config_fed_*.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), **(configuration or {})}))
        resources = simulator_resources()
        resources["class_allow_list"].append("stand_ins.")
        workspace = folder / "workspace"
        simulation.prepare_workspace(workspace, resources)
        call = simulation.Simulation(
            job=job,
            workspace=workspace,
            sites=tuple(f"site-{index + 1}" for index in range(sites)),
            threads=sites,
            log=folder / "simulator.log",
            environment={
                "PYTHONPATH": f"{SUPPORT}:{PACKAGE}",
                "FEDMEDSEG_FAULT": json.dumps(faults or []),
                "OMP_NUM_THREADS": "1",
            },
        )
        began = time.monotonic()
        record = simulation.run(call, lambda event: None)
        log = call.log.read_text(errors="replace")
        return Run(record, workspace, time.monotonic() - began, log)

    return run


@pytest.fixture(scope="session")
def clean(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two sites, four rounds, no fault: what other runs are compared with."""
    return start(tmp_path_factory.mktemp("clean"), stages={"pretraining": {"rounds": 4}})
