"""SegViz in the simulator: a trunk that is exchanged, private parts that are not, the floor of the shipped study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import simulated

from fedmedseg.core import checkpoint
from fedmedseg.core.homes import homes_beside
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job
from fedmedseg.data.phantoms import write_site
from fedmedseg.segviz.publication import published_models

TINY = (
    "segmentation.steps=4",
    "segmentation.batch=2",
    "segmentation.test_untrained=false",
    "stages.training.rounds=2",
    "network.channels=[4, 8, 16]",
    "segviz.local_baseline=false",
    "data.spacing=[8, 8, 8]",
    "data.crop=[16, 16, 16]",
    "data.phantom={family: abdominal_ct, annotation: shared_out, sites: 2, unlabeled: 0, training: 1, validation: 1, "
    "test: 1, size: [32, 32, 24]}",
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def simulate(workspace: Path, *options: str, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """The record of a finished call of `fedmedseg simulate`."""
    study = simulated.simulate("segviz", workspace, *options, changes=changes)
    assert study.code == 0, study.out
    return study.record


def site_files(workspace: Path, site: str, pattern: str) -> list[Path]:
    return sorted((homes_beside(workspace) / site).glob(pattern))


@pytest.mark.parametrize("threads", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_two_sites_share_a_trunk_and_end_with_the_bytes_of_one_process(tmp_path: Path, threads: str) -> None:
    """The smallest run. With one thread every task is a fresh process: head, norms and moments come from the disk."""
    record = simulate(tmp_path / "w", "-n", "2", "-t", threads, changes=TINY)
    training = [entry for entry in record["rounds"] if entry["stage"] == "training"]
    assert [entry["accepted"] for entry in training] == [["site-1", "site-2"]] * 2
    assert training[0]["shared_sha256"] != training[1]["shared_sha256"]
    settings, _ = read_settings(find_job("segviz"), [setting(change) for change in TINY])
    federation = InProcessFederation(
        job=write_job(find_job("segviz"), settings, tmp_path / "job"),
        workspace=tmp_path / "one",
        sites=["site-1", "site-2"],
        run="oneprocess",
    )
    for stage in federation.contracts:
        federation.run_stage(stage)
    assert checkpoint.content_sha256(federation.shared) == record["shared_sha256"]
    for site in ("site-1", "site-2"):
        (ours,), (theirs,) = (
            site_files(tmp_path / name, site, "models/**/personal.safetensors") for name in ("w", "one")
        )
        assert checkpoint.load(ours)["labels"] == checkpoint.load(theirs)["labels"]
        digests = {checkpoint.content_sha256(checkpoint.load(file)["tensors"]) for file in (ours, theirs)}
        assert len(digests) == 1
    figures = next(entry for entry in record["rounds"] if entry["stage"] == "evaluation")["sites"]
    scored = {
        site: {name.split("/")[-1] for name in one["metrics"] if name.startswith("failures/")}
        for site, one in figures.items()
    }
    assert scored == {"site-1": {"liver", "pancreas"}, "site-2": {"spleen", "kidneys"}}


@pytest.mark.slow
def test_with_four_sites_each_marks_one_organ_and_what_they_publish_is_fused(tmp_path: Path) -> None:
    """`-n` decides who marks what, though the study was written for two."""
    changes = (*TINY, "stages.publication.rounds=1")
    record = simulate(tmp_path / "w", "-n", "4", "-t", "4", changes=changes)
    publication = record["rounds"][-1]
    assert (publication["stage"], len(publication["accepted"])) == ("publication", 4)
    count = setting("data.phantom.sites=4")
    study = read_settings(find_job("segviz"), [*(setting(change) for change in changes), count])[1]
    models = published_models(tmp_path / "w" / "server" / "simulate_job" / "models", experiment=study)
    assert [model.data.labels for model in models.values()] == [
        {1: "liver"},
        {1: "spleen"},
        {1: "pancreas"},
        {1: "kidneys"},
    ]
    outside = write_site(
        "abdominal_ct", site_index=9, out=tmp_path / "x", seed=2, counts={"test": 2}, size=(32, 32, 24)
    )
    run = tmp_path / "w" / "server" / "simulate_job"
    command = [sys.executable, "-m", "fedmedseg", "fuse", "score", str(outside), "--models", str(run / "models")]
    command += [
        "--experiment",
        str(run / "app_server" / "config" / "experiment.yaml"),
        "--out",
        str(tmp_path / "s.json"),
    ]
    done = subprocess.run(command, text=True, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    patients = json.loads((tmp_path / "s.json").read_text())["patients"]["models"]
    assert [set(one) for one in patients] == [{"liver", "spleen", "pancreas", "kidneys"}] * 2
    evaluation = next(entry for entry in record["rounds"] if entry["stage"] == "evaluation")["sites"]
    scored = [
        {name.split("/")[-1] for name in one["metrics"] if name.startswith("failures/")}
        for _, one in sorted(evaluation.items())
    ]
    assert scored == [{"liver"}, {"spleen"}, {"pancreas"}, {"kidneys"}]


@pytest.mark.slow
def test_the_shipped_study_keeps_its_floor(tmp_path: Path) -> None:
    """At least 0.25 Dice above the untrained network, at most 0.05 below local training of equal steps."""
    record = simulate(tmp_path / "w", "-n", "2", "-t", "2")
    simulated.require_floor(record)
