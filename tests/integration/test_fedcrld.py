"""FedCRLD in the simulator: two sequences train one encoder, and the shipped study keeps its floor."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import simulated

from fedmedseg.core import checkpoint
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job

ROOT = Path(__file__).parents[2]
PHANTOM = "sites: 1, unlabeled: 0, training: 2, validation: 1, test: 1, size: [48, 48, 4]"
LATE = "{1: left ventricle, 2: myocardium, 3: infarct, 4: no-reflow}"
TINY = (
    "stages.relocalization.rounds=2",
    "fedcrld.local_steps=2",
    "segmentation.steps=2",
    "segmentation.batch=1",
    "segmentation.validate_every=4",
    "data.crop=[48, 48, 4]",
    f"data.phantom={{family: cine_mr, {PHANTOM}}}",
    f"data.alternatives=[{{role: lge, labels: {LATE}, phantom: {{family: late_enhancement_mr, {PHANTOM}}}}}]",
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


simulate = partial(simulated.simulate, "fedcrld")


def in_one_process(folder: Path, changes: tuple[str, ...]) -> tuple[InProcessFederation, dict[str, str]]:
    """The same study without FLARE's processes: the federation after its last stage, and its models' digests."""
    job = find_job("fedcrld")
    settings, _ = read_settings(job, [setting(change) for change in changes])
    names = ["site-1", "site-2"]
    written = write_job(job, settings, folder / "job")
    federation = InProcessFederation(job=written, workspace=folder / "w", sites=names, run="oneprocess")
    for stage in federation.contracts:
        federation.run_stage(stage)
    return federation, simulated.digests(folder / "w", names)


@pytest.mark.parametrize("threads", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_cine_and_late_enhancement_train_one_encoder(tmp_path: Path, threads: str) -> None:
    """The smallest run: two rounds. With one thread every task is a process that finds its client and bank."""
    changes = (*TINY, "fedcrld.starts=[personal]", "stages.fine_tuning.rounds=0")
    study = simulate(tmp_path / "w", "-t", threads, changes=changes)
    assert study.code == 0, study.out
    record = study.record
    assert record["sites"] == ["site-1", "site-2"]
    rounds = [entry for entry in record["rounds"] if entry["stage"] == "relocalization"]
    assert [entry["accepted"] for entry in rounds] == [["site-1", "site-2"]] * 2
    assert rounds[0]["shared_sha256"] != rounds[1]["shared_sha256"]
    for entry in rounds:
        for site in entry["sites"].values():
            assert site["bytes_up"] == site["bytes_down"] > 300_000
            assert site["weight"] == 0.5
            assert "memory_missing" not in site["metrics"]
    figures = {name: site["metrics"] for name, site in record["rounds"][-1]["sites"].items()}
    assert not any("infarct" in name for name in figures["site-1"])
    assert any(name == "failures/personal/infarct" for name in figures["site-2"])
    assert "infarct" in study.out
    assert record["structures"][-1] == "no-reflow"

    federation, models = in_one_process(tmp_path / "one", changes)
    assert checkpoint.content_sha256(federation.shared) == record["shared_sha256"]
    assert models == study.model_digests()
    assert len(models) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("fedcrld.share=everything",),
        ("fedcrld.share=everything_but_norms",),
        ("fedcrld.share=nothing",),
        ("fedcrld.loss={contrast: 'off', distillation_weight: 0.0, history_weight: 0.0}",),
        ("fedcrld.loss.form=published", "fedcrld.weights=cases"),
        ("fedcrld.starts=[personal, continued]",),
        ("data.whole_depth=true",),
    ],
    ids=lambda changes: changes[0].split(".", 1)[1],
)
def test_every_way_of_sharing_and_training_runs_to_its_end(tmp_path: Path, changes: tuple[str, ...]) -> None:
    federation, models = in_one_process(tmp_path, (*TINY, *changes))
    starts = federation.experiment.wing.starts
    assert set(models) == {f"{site}/{start}" for site in ("site-1", "site-2") for start in starts}


@pytest.mark.slow
def test_the_shipped_study_keeps_its_floor(tmp_path: Path) -> None:
    """At least 0.25 Dice above the untrained network, at most 0.05 below local training of equal steps."""
    study = simulate(tmp_path / "w", "-t", "2")
    assert study.code == 0, study.out
    simulated.require_floor(study.record)
    assert "floor kept" in study.out
