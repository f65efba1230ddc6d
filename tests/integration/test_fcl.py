"""FCL in the simulator and in a secure federation: who gets whose features, equal bytes, and the study's floor."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import simulated
import torch
import yaml

from fedmedseg.core import checkpoint
from fedmedseg.core.exchange import FEATURES, PARTS, of_others
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job

ROOT = Path(__file__).parents[2]
TINY = (
    "stages.pretraining.rounds=2",
    "network.features=[8, 8, 8, 8, 8]",
    "fcl.local_steps=2",
    "fcl.volumes_per_step=2",
    "fcl.warmup_rounds=1",
    "fcl.projector={out: 8}",
    "segmentation.steps=2",
    "segmentation.batch=2",
    "segmentation.test_untrained=false",
    "data.phantom={family: cine_mr, unlabeled: 2, training: 1, validation: 1, test: 1}",
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


simulate = partial(simulated.simulate, "fcl")


def in_one_process(folder: Path, sites: int, changes: tuple[str, ...]) -> InProcessFederation:
    """The same study's pretraining without FLARE's processes."""
    job = find_job("fcl")
    settings, _ = read_settings(job, [setting(change) for change in changes])
    names = [f"site-{index + 1}" for index in range(sites)]
    written = write_job(job, settings, folder / "job")
    federation = InProcessFederation(job=written, workspace=folder / "w", sites=names, run="oneprocess")
    federation.run_stage("pretraining")
    return federation


@pytest.fixture(scope="module")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> simulated.Study:
    """The smallest run: two sites with a thread each, two rounds."""
    study = simulate(tmp_path_factory.mktemp("two") / "w", "-n", "2", "-t", "2", changes=TINY)
    assert study.code == 0, study.out
    return study


def test_two_sites_exchange_features_over_two_rounds(two_sites: simulated.Study) -> None:
    """None in the first round; in the second each gets as many as the other gave, counted in rows and bytes."""
    first, second = (entry for entry in two_sites.record["rounds"] if entry["stage"] == "pretraining")
    assert [entry["accepted"] for entry in (first, second)] == [["site-1", "site-2"]] * 2
    for entry in first["sites"].values():
        assert entry["features_down"] == {"rows": 0, "bytes": 0}
        # eight float32 and a part id a row
        assert entry["features_up"]["bytes"] == 33 * entry["features_up"]["rows"] > 0
    for site, other in (("site-1", "site-2"), ("site-2", "site-1")):
        assert second["sites"][site]["features_down"] == first["sites"][other]["features_up"]
        assert second["sites"][site]["metrics"]["bank/received"] == first["sites"][other]["features_up"]["rows"]
        assert second["sites"][site]["bytes_down"] == (
            first["sites"][site]["bytes_down"] + first["sites"][other]["features_up"]["bytes"]
        )
        assert second["sites"][site]["metrics"]["loss/remote"] > 0 == first["sites"][site]["metrics"]["loss/remote"]
    assert len({entry["personal_crc32"] for entry in second["sites"].values()} | {None}) == 3
    assert second["notes"]["correspondence"] == []
    assert first["shared_sha256"] != second["shared_sha256"]


def test_one_process_for_all_sites_ends_with_the_same_bytes(two_sites: simulated.Study, tmp_path: Path) -> None:
    """Shuffled uploads, and the same model all the same."""
    federation = in_one_process(tmp_path, 2, TINY)
    pretraining = [entry for entry in two_sites.record["rounds"] if entry["stage"] == "pretraining"]
    assert checkpoint.content_sha256(federation.shared) == pretraining[-1]["shared_sha256"]
    received = of_others(federation.exchanged, federation.sites)
    for site, other in (("site-1", "site-2"), ("site-2", "site-1")):
        assert torch.equal(received[site][FEATURES], federation.exchanged[other][FEATURES])
        assert not torch.equal(received[site][FEATURES], federation.exchanged[site][FEATURES])


def test_features_are_nowhere_in_what_is_handed_out_and_no_patient_is_either(two_sites: simulated.Study) -> None:
    """Row 44, and the run folder, which is what an admin downloads."""
    markers = (b"phantom-0", b".nii.gz", FEATURES.encode(), PARTS.encode())
    searched = [file for file in two_sites.workspace.rglob("*") if file.is_file()]
    for file in searched:
        content = file.read_bytes()
        assert not [marker for marker in markers if marker in content], file
    assert len(searched) > 10


def test_report_and_last_lines_tell_dice_and_traffic(two_sites: simulated.Study) -> None:
    report = (two_sites.workspace / "server" / "simulate_job" / "report" / "report.html").read_text()
    assert "of which features" in report
    assert "shared" in "\n".join(two_sites.out.splitlines()[-30:])


@pytest.mark.slow
def test_a_site_is_sent_no_more_features_than_the_study_says(tmp_path: Path) -> None:
    """Five of two others' in every round but the first, in records and figures, and the same ones in one process."""
    changes = (*TINY, "fcl.most_received=5")
    study = simulate(tmp_path / "w", "-n", "3", "-t", "1", changes=changes)
    assert study.code == 0, study.out
    pretraining = [entry for entry in study.record["rounds"] if entry["stage"] == "pretraining"]
    for entry in pretraining[1:]:
        for site in entry["sites"].values():
            assert site["features_down"] == {"rows": 5, "bytes": 5 * 33}
            assert site["metrics"]["bank/received"] == 5
            assert site["features_up"]["rows"] > 5
    federation = in_one_process(tmp_path / "p", 3, changes)
    assert checkpoint.content_sha256(federation.shared) == pretraining[-1]["shared_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("fcl.transport=int8", "fcl.upload=recompute", "fcl.key_sync=keep"),
        ("fcl.transport=fp16", "fcl.noise={sigma: 0.05, renormalise: false}"),
        ("fcl.exchange=false", "fcl.positives=view", "fcl.structural=false", "fcl.warmup_rounds=5"),
        ("fcl.exchange=false", "fcl.aggregation=none", "fcl.starts=[personal, scratch]"),
        ("segmentation.fine_tuning=federated", "network.norm=group"),
    ],
    ids=["int8", "fp16 and noise", "FedSimCLR", "local", "federated fine-tuning"],
)
def test_every_way_of_it_runs_with_one_thread(tmp_path: Path, changes: tuple[str, ...]) -> None:
    """With one thread every task runs in a fresh process: optimiser, momentum encoder and bank live on the disk."""
    study = simulate(tmp_path / "w", "-n", "2", "-t", "1", changes=(*TINY, *changes))
    assert study.code == 0, study.out
    if "noise" not in str(changes):
        federation = in_one_process(tmp_path / "one", 2, (*TINY, *changes))
        pretraining = [entry for entry in study.record["rounds"] if entry["stage"] == "pretraining"]
        assert checkpoint.content_sha256(federation.shared) == pretraining[-1]["shared_sha256"]
    rows = [entry["features_up"] for entry in study.record["rounds"][0]["sites"].values()]
    assert (rows == [None, None]) == ("fcl.exchange=false" in changes)


@pytest.mark.slow
def test_the_bare_command_makes_two_sites(tmp_path: Path) -> None:
    """`nvflare simulator jobs/fcl`, smaller."""
    import shutil

    settings, _ = read_settings(ROOT / "jobs" / "fcl", [setting(change) for change in TINY])
    write_job(ROOT / "jobs" / "fcl", settings, tmp_path / "jobs" / "fcl")
    shutil.copytree(ROOT / "simulator_workspace" / "local", tmp_path / "simulator_workspace" / "local")
    done = subprocess.run(
        [sys.executable, "-m", "nvflare.cli", "simulator", "jobs/fcl"],
        cwd=tmp_path, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    study = simulated.Study(
        workspace=tmp_path / "simulator_workspace", out=done.stdout + done.stderr, code=done.returncode
    )
    assert study.record["outcome"] == "finished", study.out[-3000:]
    assert study.record["sites"] == ["site-1", "site-2"]


@pytest.mark.slow
def test_the_shipped_study_keeps_its_floor(tmp_path: Path) -> None:
    """At least 0.25 Dice above the untrained network, at most 0.05 below local training of equal steps; no collapse."""
    study = simulate(tmp_path / "w", "-n", "3", "-t", "3")
    assert study.code == 0, study.out
    simulated.require_floor(study.record, trained="shared")
    last = [entry for entry in study.record["rounds"] if entry["stage"] == "pretraining"][-1]
    assert all(site["metrics"]["collapse_alarm"] == 0.0 for site in last["sites"].values())


@pytest.mark.slow
def test_a_secure_federation_exchanges_features_of_sites_that_allow_it(tmp_path: Path) -> None:
    """Kits as they are made, mutual TLS, the sites' own filters. One site keeps its features and declines the stage."""
    from hospitals import Hospitals

    from fedmedseg.data.phantoms import write_site

    job = find_job("fcl")
    changes = (*TINY, "stages.fine_tuning.rounds=1", "federation.timeout=300")
    settings, _ = read_settings(job, [setting(change) for change in changes])
    written = write_job(job, settings, tmp_path / "fcl")
    counts = {"unlabeled": 2, "training": 1, "validation": 1, "test": 1}
    with Hospitals(tmp_path / "federation", stand_ins=False) as hospitals:
        for index, site in enumerate(hospitals.sites):
            folder = hospitals.kits / site / "data"
            write_site("cine_mr", site_index=index, out=folder, seed=1, counts=counts, size=None)
            content = {
                "datasets": {"cmr": {"list": str(folder / "datalist.json")}},
                "privacy": {"min_count": 0, "features": site != "site-3"},
            }
            (hospitals.kits / site / "local" / "fedmedseg.yaml").write_text(yaml.safe_dump(content))
        hospitals.up()
        ended = hospitals.run(written, timeout=600)
    assert ended.status == "FINISHED:COMPLETED", ended.status
    first, second = ended.rounds()
    for entry in (first, second):
        assert entry["accepted"] == ["site-1", "site-2"]
    assert first["sites"]["site-3"]["declined"]
    assert first["sites"]["site-3"]["reason"].startswith("DENIED: features of single slices")
    for site, other in (("site-1", "site-2"), ("site-2", "site-1")):
        assert second["sites"][site]["features_down"] == first["sites"][other]["features_up"]
        assert first["sites"][site]["features_up"]["rows"] > 0
    # the site that keeps its features fine-tunes from the encoder all the same
    assert ended.rounds("evaluation")[0]["accepted"] == ["site-1", "site-2", "site-3"]
