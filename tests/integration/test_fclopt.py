"""FCLOpt in the simulator and among real processes: what travels, equal bits everywhere, the floor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import simulated

from fedmedseg.core import checkpoint
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job

ROOT = Path(__file__).parents[2]
TINY = (
    "stages.pretraining.rounds=2",
    "network.features=[4, 4, 8, 8, 8]",
    "fclopt.local_steps=1",
    "fclopt.hidden=8",
    "fclopt.projection=4",
    "fclopt.volumes_per_step=2",
    "fclopt.parts=2",
    "fclopt.distance={warm_up: 1}",
    "fclopt.starts=[shared]",
    "segmentation.steps=1",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
    "data.phantom={family: cine_mr, unlabeled: 1, training: 1, validation: 1, test: 1}",
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


simulate = partial(simulated.simulate, "fclopt")


def in_one_process(folder: Path, changes: tuple[str, ...], *, stages: int = 3) -> InProcessFederation:
    """The same study without FLARE's processes, after the first of its stages."""
    job = find_job("fclopt")
    settings, _ = read_settings(job, [setting(change) for change in changes])
    written = write_job(job, settings, folder / "job")
    sites = ["site-1", "site-2"]
    federation = InProcessFederation(job=written, workspace=folder / "w", sites=sites, run="oneprocess")
    for stage in list(federation.contracts)[:stages]:
        federation.run_stage(stage)
    return federation


def test_two_sites_predict_the_servers_target_and_end_with_the_bytes_of_one_process(tmp_path: Path) -> None:
    """The smallest run: two rounds, one an anchor and one not; two threads, so that it takes less than a minute."""
    study = simulate(tmp_path / "w", "-n", "2", "-t", "2", changes=TINY)
    assert study.code == 0, study.out
    rounds = [entry for entry in study.record["rounds"] if entry["stage"] == "pretraining"]
    assert [entry["accepted"] for entry in rounds] == [["site-1", "site-2"]] * 2
    assert [entry["notes"]["target"]["held"] for entry in rounds] == [["site-1", "site-2"]] * 2
    for first, later in zip(rounds[0]["sites"].values(), rounds[1]["sites"].values(), strict=True):
        # the target goes up in the anchor round, and the table of anchors down after it
        assert first["bytes_up"] > 1.5 * later["bytes_up"]
        assert 0 < later["bytes_down"] - first["bytes_down"] < 1000
        for one in (first, later):
            assert one["payload_up"] > one["bytes_up"]
            assert one["payload_down"] > one["bytes_down"]
            assert "memory_missing" not in one["metrics"]
            assert 0.0 <= one["metrics"]["feature_std"] <= 1.5
    assert "memory" not in study.out.lower() or "memory_missing" not in study.out
    federation = in_one_process(tmp_path / "one", TINY, stages=1)
    assert checkpoint.content_sha256(federation.shared) == study.record["shared_sha256"]
    for entry, ours in zip(rounds, federation.traffic, strict=True):
        for site, one in entry["sites"].items():
            # FLARE's own headers of a task and a reply, which one process has no need of
            for way in ("down", "up"):
                assert 0 <= one[f"payload_{way}"] - ours[site][way] < 1000, (site, way)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("fclopt.mode=both", "fclopt.distance=null"),
        ("fclopt.mode=ptnu", "fclopt.distance=null", "fclopt.distance={grain: global}"),
        ("fclopt.mode=closed_form", "fclopt.distance=null"),
        ("fclopt.mode=naive", "fclopt.distance=null"),
        ("fclopt.mode=keep_local", "fclopt.distance=null", "fclopt.client_mix=fedema"),
        ("fclopt.mode=online", "fclopt.distance=null"),
        ("fclopt.distance={warm_up: 1, every: 2, ratio: linear}",),
        ("fclopt.starts=[personal, shared, scratch]",),
        ("network.norm=group", "network.features=[8, 8, 8, 8, 8]", "fclopt.head_norm=false"),
        ("segmentation.fine_tuning=federated", "stages.fine_tuning.rounds=1"),
    ],
    ids=lambda changes: changes[0],
)
def test_every_mode_runs_to_its_end(tmp_path: Path, changes: tuple[str, ...]) -> None:
    federation = in_one_process(tmp_path, (*TINY, "stages.pretraining.rounds=4", *changes))
    starts = federation.experiment.wing.starts
    for site in federation.sites:
        assert sorted(federation.learner(site, "evaluation").bench.model_file(start).exists() for start in starts) == [
            True
        ] * len(starts)


@pytest.mark.slow
def test_a_new_process_for_every_task_ends_with_the_same_bytes(tmp_path: Path) -> None:
    changes = (*TINY, "stages.pretraining.rounds=4", "fclopt.distance={warm_up: 1, every: 3}")
    study = simulate(tmp_path / "w", "-n", "2", "-t", "1", changes=changes)
    assert study.code == 0, study.out
    federation = in_one_process(tmp_path / "one", changes, stages=1)
    assert checkpoint.content_sha256(federation.shared) == study.record["shared_sha256"]


@pytest.mark.slow
def test_the_shipped_study_keeps_its_floor(tmp_path: Path) -> None:
    """At least 0.25 Dice above the untrained network, at most 0.05 below local training of equal steps."""
    study = simulate(tmp_path / "w", "-n", "3", "-t", "2")
    assert study.code == 0, study.out
    simulated.require_floor(study.record, trained="shared")


@pytest.mark.slow
def test_a_federation_of_processes_predicts_the_same_target(tmp_path: Path) -> None:
    """Kits, mutual TLS, the sites' own filters, which let the target's digest pass."""
    command = [
        sys.executable,
        "-m",
        "fedmedseg",
        "federation",
        "fclopt",
        "--sites",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    for change in TINY:
        command += ["--set", change]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, text=True, capture_output=True, timeout=600, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = (tmp_path / "out" / "results").glob("*/workspace/report")
    rounds = json.loads((report / "run.json").read_text())["rounds"]
    for entry in rounds[:2]:
        assert entry["notes"]["target"]["held"] == ["site-1", "site-2"]
        assert all(one["payload_up"] > one["bytes_up"] > 0 for one in entry["sites"].values())
