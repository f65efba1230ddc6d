"""FedATA in the simulator: exchange, equal bytes whatever the threads, and the floor of the shipped study."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import simulated

from fedmedseg.core import checkpoint
from fedmedseg.core.homes import homes_beside
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job

ROOT = Path(__file__).parents[2]
TINY = (
    "stages.pretraining.rounds=2",
    "fedata.local_steps=3",
    "segmentation.steps=4",
    "segmentation.batch=2",
    "data.phantom={family: cine_mr, unlabeled: 2, training: 1, validation: 1, test: 1}",
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


simulate = partial(simulated.simulate, "fedata")


@pytest.fixture(scope="module")
def three_threads(tmp_path_factory: pytest.TempPathFactory) -> simulated.Study:
    study = simulate(tmp_path_factory.mktemp("three") / "w", "-n", "3", "-t", "3", changes=TINY)
    assert study.code == 0, study.out
    return study


def in_one_process(folder: Path, sites: int, changes: tuple[str, ...]) -> tuple[InProcessFederation, dict[str, str]]:
    """The same study without FLARE's processes: the federation after its last stage, and its models' digests."""
    job = find_job("fedata")
    settings, _ = read_settings(job, [setting(change) for change in changes])
    names = [f"site-{index + 1}" for index in range(sites)]
    written = write_job(job, settings, folder / "job")
    federation = InProcessFederation(job=written, workspace=folder / "w", sites=names, run="oneprocess")
    for stage in federation.contracts:
        federation.run_stage(stage)
    models = {
        f"{name}/{file.stem}": checkpoint.content_sha256(checkpoint.load(file)["tensors"])
        for name in names
        for file in sorted((folder / "w.fedmedseg" / name).glob("models/**/*.safetensors"))
    }
    return federation, models


def test_one_process_for_all_sites_ends_with_the_same_bytes(three_threads: simulated.Study, tmp_path: Path) -> None:
    """What `core.in_process` says of itself; the study of what FedATA is worth stands on it."""
    federation, models = in_one_process(tmp_path, 3, TINY)
    assert checkpoint.content_sha256(federation.shared) == three_threads.record["shared_sha256"]
    assert models == three_threads.model_digests()


def test_federated_fine_tuning_averages_whole_networks_and_every_site_tests_one(tmp_path: Path) -> None:
    changes = (
        *TINY,
        "segmentation.fine_tuning=federated",
        "stages.fine_tuning.rounds=2",
        "fedata.starts=[shared, scratch]",
    )
    study = simulate(tmp_path / "w", "-n", "2", "-t", "2", changes=changes)
    assert study.code == 0, study.out
    tuning = [entry for entry in study.record["rounds"] if entry["stage"] == "fine_tuning"]
    assert [entry["accepted"] for entry in tuning] == [["site-1", "site-2"]] * 2
    first, later = (entry["sites"]["site-1"] for entry in tuning)
    # the encoder goes along once
    assert first["bytes_down"] > later["bytes_down"] == later["bytes_up"] == first["bytes_up"]
    federation, models = in_one_process(tmp_path / "one", 2, changes)
    assert checkpoint.content_sha256(federation.shared) == study.record["shared_sha256"]
    assert models == study.model_digests()


def test_exchange_really_happens(three_threads: simulated.Study) -> None:
    """Every site trained from the same base, came back with tensors of its own, and the aggregate moved."""
    pretraining = [entry for entry in three_threads.record["rounds"] if entry["stage"] == "pretraining"]
    assert [entry["accepted"] for entry in pretraining] == [["site-1", "site-2", "site-3"]] * 2
    assert pretraining[0]["shared_sha256"] != pretraining[1]["shared_sha256"]
    for entry in pretraining:
        for site in entry["sites"].values():
            assert site["bytes_up"] == site["bytes_down"] > 1_000_000
    names = ("site-1", "site-2", "site-3")
    trained = {checkpoint.content_sha256(three_threads.personal(name)["tensors"]) for name in names}
    teachers = {checkpoint.content_sha256(three_threads.personal(name)["teacher"]) for name in names}
    assert len(trained) == len(teachers) == 3


def test_the_attention_weights_of_every_round_are_on_record_and_sum_to_one(three_threads: simulated.Study) -> None:
    pretraining = [entry for entry in three_threads.record["rounds"] if entry["stage"] == "pretraining"]
    for entry in pretraining:
        for weights in entry["notes"]["attention"].values():
            assert sum(weights.values()) == pytest.approx(1.0, abs=1e-6)


def test_the_last_lines_tell_dice_report_and_models(three_threads: simulated.Study) -> None:
    tail = "\n".join(three_threads.out.splitlines()[-40:])
    for words in ("left ventricle", "site-1", "report:", "report.html", "shared model:", "site models:"):
        assert words in tail
    assert (three_threads.workspace / "server" / "simulate_job" / "report" / "report.html").stat().st_size > 10_000


def test_progress_is_told_on_the_way(three_threads: simulated.Study) -> None:
    for words in ("pretraining round", "step", "loss", "left"):
        assert words in three_threads.out


def test_no_patient_reaches_a_log_a_record_or_the_report(three_threads: simulated.Study) -> None:
    """Row 44: the phantoms' patients and files are planted markers."""
    markers = (b"phantom-0", b".nii.gz")
    # whatever kind of file, TensorBoard's events among them, and all that the processes wrote to their consoles
    console = homes_beside(three_threads.workspace) / "simulator.log"
    searched = [file for file in (console, *three_threads.workspace.rglob("*")) if file.is_file()]
    for file in searched:
        content = file.read_bytes()
        assert not [marker for marker in markers if marker in content], file
    assert console in searched
    assert any("tfevents" in file.name for file in searched)
    assert len(searched) > 10


def test_the_bare_command_makes_two_sites_and_ends_with_the_bytes_of_one_process(tmp_path: Path) -> None:
    """`nvflare simulator jobs/fedata` with neither -n, -c nor -t, in the folder that has the jobs and the site policy.

    Row 48 of the fault matrix, and state on disk: it has one thread, so every task runs in a fresh process. What one
    process ends with, one process per site ends with too (`test_one_process_for_all_sites_ends_with_the_same_bytes`).
    """
    import yaml

    settings, _ = read_settings(ROOT / "jobs" / "fedata", [setting(change) for change in TINY])
    write_job(ROOT / "jobs" / "fedata", settings, tmp_path / "jobs" / "fedata")
    shutil.copytree(ROOT / "simulator_workspace" / "local", tmp_path / "simulator_workspace" / "local")
    assert yaml.safe_load((tmp_path / "jobs/fedata/app/config/experiment.yaml").read_text())["seed"] == 1
    done = subprocess.run(
        [sys.executable, "-m", "nvflare.cli", "simulator", "jobs/fedata"],
        cwd=tmp_path, text=True, capture_output=True, timeout=800, check=False,
    )  # fmt: skip
    study = simulated.Study(
        workspace=tmp_path / "simulator_workspace", out=done.stdout + done.stderr, code=done.returncode
    )
    assert study.record["outcome"] == "finished", study.out[-3000:]
    assert study.record["sites"] == ["site-1", "site-2"]
    assert "report:" in study.out
    federation, models = in_one_process(tmp_path / "one", 2, TINY)
    assert checkpoint.content_sha256(federation.shared) == study.record["shared_sha256"]
    assert models == study.model_digests()
    assert len(models) == 6


@pytest.mark.slow
def test_one_site_alone_works_and_is_warned(tmp_path: Path) -> None:
    study = simulate(tmp_path / "w", "-n", "1", changes=(*TINY, "stages.pretraining.rounds=1"))
    assert study.code == 0, study.out
    assert "only one site takes part" in (tmp_path / "w.fedmedseg" / "simulator.log").read_text()


def test_the_same_job_runs_in_3d(tmp_path: Path) -> None:
    """Abdominal CT phantoms in HU, where each site has labels of one organ only, with the other backbone.

    In one process, which the simulator equals byte for byte in 2D.
    """
    changes = (
        *TINY[:-1],
        "data.spatial_dims=3",
        "data.modality=ct",
        "data.role=abdominal_ct",
        "data.labels={1: liver, 2: spleen, 3: pancreas, 4: kidneys}",
        "data.crop=[48, 48, 32]",
        "network={name: unetr, hidden_size: 24, mlp_dim: 48, heads: 2, feature_size: 4}",
        "data.phantom={family: abdominal_ct, unlabeled: 1, training: 1, validation: 1, test: 1}",
    )
    _, models = in_one_process(tmp_path, 2, changes)
    assert len(models) == 6
    scores = [json.loads(file.read_text()) for file in (tmp_path / "w.fedmedseg").rglob("test_scores.json")]
    assert len(scores) == 2
    assert all("kidneys" in json.dumps(one) for one in scores)


@pytest.mark.slow
def test_the_shipped_study_keeps_its_floor(tmp_path: Path) -> None:
    """At least 0.25 Dice above the untrained network, at most 0.05 below local training of equal steps."""
    study = simulate(tmp_path / "w", "-n", "3", "-t", "3")
    assert study.code == 0, study.out
    simulated.require_floor(study.record)
    assert "floor kept" in study.out


def test_pair_attention_sends_each_site_a_model_of_its_own(tmp_path: Path) -> None:
    """Two rounds through FLARE: shared tensors at first, then bytes that differ from site to site and from the mean.

    With averaged teachers, and the sums over sites that both add; one process sends the same.
    """
    changes = (
        *TINY,
        "fedata.server_aggregation=pair_att",
        "fedata.teacher_sync=aggregate",
        "fedata.pair={temperature: 1.0, prox: 0.1}",
        "fedata.local_steps=2",
        "segmentation.steps=1",
        "fedata.starts=[personal, shared]",
    )
    study = simulate(tmp_path / "w", "-n", "2", "-t", "2", changes=changes)
    assert study.code == 0, study.out
    first, second, tuning, _ = study.record["rounds"]
    assert [entry["personal_crc32"] for entry in first["sites"].values()] == [None, None]
    sent = {name: entry["personal_crc32"] for name, entry in second["sites"].items()}
    assert len({*sent.values(), first["shared_sha256"]}) == 3
    assert second["accepted"] == ["site-1", "site-2"], "each was judged by what it was sent"
    for entry in second["sites"].values():
        assert entry["bytes_down"] == entry["bytes_up"] == first["sites"]["site-1"]["bytes_down"]
        assert entry["metrics"]["loss/prox"] > 0
    for row in second["notes"]["pair_attention"].values():
        assert sum(row.values()) == pytest.approx(1.0)
    assert [entry["personal_crc32"] for entry in tuning["sites"].values()] == [None, None], "fine-tuning gets the mean"
    # what each site trained from is what the record says: it remembers the digest it was given with its last task
    bases = {
        name: checkpoint.load(next(study.site(name).glob("state/**/running_pretraining.safetensors")))["tree"]["key"]
        for name in sent
    }
    assert all(f"|{digest}|" in bases[name] for name, digest in sent.items())
    exported = checkpoint.load(next((tmp_path / "w" / "server").rglob("shared.safetensors")))
    assert checkpoint.content_sha256(exported["tensors"]) == second["shared_sha256"]
    federation, models = in_one_process(tmp_path / "one", 2, changes)
    assert checkpoint.content_sha256(federation.shared) == study.record["shared_sha256"]
    assert models == study.model_digests()
