"""The baseline in the simulator: its smallest run, every strategy on the same disk states, the floor of the study."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import simulated

from fedmedseg.core import checkpoint
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job
from fedmedseg.core.schema import read_yaml

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "app_configs" / "presets" / "fedavg"
TINY = (
    "stages.training.rounds=2",
    "stages.fine_tuning.rounds=0",
    "fedavg.starts=[personal]",
    "network.channels=[4, 8]",
    "network.res_units=1",
    "segmentation.steps=2",
    "segmentation.batch=1",
    "segmentation.validate_every=4",
    "segmentation.test_untrained=false",
    "data.crop=[32, 32]",
    "data.phantom={family: cine_mr, sites: 2, unlabeled: 0, training: 1, validation: 1, test: 1, size: [48, 48, 4]}",
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


simulate = partial(simulated.simulate, "fedavg")


def in_one_process(folder: Path, strategy: str, *changes: str) -> tuple[InProcessFederation, dict[str, str]]:
    """The same study without FLARE's processes: the federation after its last stage, and its models' digests."""
    job = find_job("fedavg")
    base = [] if strategy == "fedavg" else [read_yaml(PRESETS / f"{strategy}.yaml")]
    settings, _ = read_settings(job, [*base, *(setting(change) for change in (*TINY, *changes))])
    names = ["site-1", "site-2"]
    written = write_job(job, settings, folder / "job")
    federation = InProcessFederation(job=written, workspace=folder / "w", sites=names, run="oneprocess")
    for stage in federation.contracts:
        federation.run_stage(stage)
    return federation, simulated.digests(folder / "w", names)


def same_as_one_process(folder: Path, strategy: str, *changes: str) -> simulated.Study:
    """One thread, so that every task is a process of its own that finds the site's state on the disk."""
    preset = () if strategy == "fedavg" else ("--preset", strategy)
    study = simulate(folder / "w", "-t", "1", *preset, changes=(*TINY, *changes))
    assert study.code == 0, study.out
    rounds = [entry for entry in study.record["rounds"] if entry["stage"] == "training"]
    assert [entry["accepted"] for entry in rounds] == [["site-1", "site-2"]] * 2
    assert rounds[0]["shared_sha256"] != rounds[1]["shared_sha256"]
    assert not any("memory_missing" in site["metrics"] for entry in rounds for site in entry["sites"].values())
    federation, models = in_one_process(folder / "one", strategy, *changes)
    assert checkpoint.content_sha256(federation.shared) == study.record["shared_sha256"]
    assert models == study.model_digests()
    assert len(models) == 2
    return study


def test_the_simulator_ends_with_the_bytes_of_one_process(tmp_path: Path) -> None:
    """The smallest run, of a strategy whose state lies at sites and server alike."""
    same_as_one_process(tmp_path, "scaffold")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedopt", "ditto", "fedbn"])
def test_every_strategy_finds_its_state_in_fresh_processes(tmp_path: Path, strategy: str) -> None:
    same_as_one_process(tmp_path, strategy)


@pytest.mark.slow
def test_a_thin_way_down_ends_with_the_bytes_of_one_process_and_is_counted_on_the_wire(tmp_path: Path) -> None:
    study = same_as_one_process(tmp_path, "fedavg", "federation.transport_down=int8", "network.channels=[16, 32]")
    for entry in study.record["rounds"]:
        for site in entry["sites"].values():
            if entry["stage"] == "training":
                assert site["bytes_down"] < 0.35 * site["bytes_up"]
                assert site["payload_down"] < 0.5 * site["payload_up"]


@pytest.mark.slow
def test_the_shipped_study_keeps_its_floor(tmp_path: Path) -> None:
    """At least 0.25 Dice above the untrained network, at most 0.05 below local training of equal steps."""
    study = simulate(tmp_path / "w", "-t", "2")
    assert study.code == 0, study.out
    simulated.require_floor(study.record)
    assert "floor kept" in study.out
