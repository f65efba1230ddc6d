"""Cardiac CT with encrypted replies in a real federation: CNN, pseudo-labels and transformer end in equal models.

The oracle is the same study in plain and in one process: the CNN, whose first round starts from the same bits there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import Ended, Hospitals, allow
from listening import HEARD_FILE
from small_cardiac_ct import ANYTHING, SMALL

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.ckks import GRID, SHARES
from fedmedseg.core.config import Experiment
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, write_job
from fedmedseg.core.sealing import sealed_name
from fedmedseg.data.site import write_phantoms
from fedmedseg.data.views import phantom_view

pytest.importorskip("tenseal", reason="the extra he is not installed")
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("site-1", "site-2")
UNUSED = ("teacher_hps", "teacher_ms", "head_tuning", "transfer")
SETTINGS: dict[str, Any] = {
    "study": "encrypted",
    "cardiac_ct": {
        "tasks": ["calc"],
        "head_mean": "all",
        "head_steps": 0,
        "transfer": None,
        "gate": ANYTHING,
    },
    "stages": {
        **{stage: {"rounds": 0} for stage in UNUSED},
        "teacher_calc": {"rounds": 1},
        "distillation": {"rounds": 2},
    },
}
"""Over ``SMALL``."""
ENCRYPTED = {"federation": {"encryption": "ckks"}}


def study(*changes: dict[str, Any]) -> tuple[dict[str, Any], Experiment]:
    return read_settings(find_job("cardiac_ct"), [SMALL, SETTINGS, *changes])


def job(out: Path) -> Path:
    """The encrypted study, with an ear at the server."""
    made = write_job(find_job("cardiac_ct"), study(ENCRYPTED)[0], out, meta={"name": "encrypted", "min_clients": 2})
    server = made / "app" / "config" / "config_fed_server.json"
    content = json.loads(server.read_text())
    content["components"].append({"id": "ear", "path": "listening.Ear"})
    server.write_text(json.dumps(content))
    return made


class Run:
    """The finished job, and the networks as each site opened them."""

    def __init__(self, ended: Ended, kits: Path) -> None:
        self.ended = ended
        self.kits = kits

    def opened(self, site: str, stage: str) -> dict[str, torch.Tensor]:
        [file] = (self.kits / site / self.ended.job_id).rglob(f"shared.{stage}.safetensors")
        return dict(checkpoint.load_file(file)["tensors"])


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("encrypted")
    with Hospitals(folder / "federation", sites=SITES, stand_ins=False, encryption=True) as hospitals:
        allow(hospitals.server, "listening.")
        experiment = study()[1]
        for index, site in enumerate(SITES):
            data = phantom_view(experiment, index).data
            listed = write_phantoms(data.phantom, seed=experiment.seed, name=site, home=folder / "volumes" / site)
            content = {"datasets": {data.role: {"list": str(listed)}}, "privacy": {"min_count": 0}}
            hospitals.write_site_file(site, content)
        hospitals.up()
        yield Run(hospitals.run(job(folder / "job"), timeout=600), hospitals.kits)


def test_the_study_finishes_and_the_hospital_without_calcium_declines_its_cnn(encrypted: Run) -> None:
    assert encrypted.ended.status == "FINISHED:COMPLETED"
    assert encrypted.ended.record["outcome"] == "finished", encrypted.ended.record["reason"]
    assert encrypted.ended.record["encryption"]["scheme"] == "ckks"
    [teaching] = encrypted.ended.rounds("teacher_calc")
    assert teaching["accepted"] == ["site-1"]
    assert teaching["sites"]["site-2"]["reason"] == "NO_CASES: section training"
    assert [one["accepted"] for one in encrypted.ended.rounds("distillation")] == [list(SITES)] * 2


def test_both_hospitals_open_the_same_networks_and_they_have_learned(encrypted: Run) -> None:
    ours, theirs = (encrypted.opened(site, "evaluation") for site in SITES)
    assert content_sha256(ours) == content_sha256(theirs)
    before = encrypted.opened("site-1", "distillation")
    student = [name for name in before if name.startswith("student.")]
    assert sum(not torch.equal(before[name], ours[name]) for name in student) > 0.8 * len(student)


def test_the_cnn_is_the_plain_studys(encrypted: Run, tmp_path: Path) -> None:
    plain = InProcessFederation(
        job=write_job(find_job("cardiac_ct"), study()[0], tmp_path / "job"),
        workspace=tmp_path / "w",
        sites=SITES,
        run="plain",
    )
    initial = dict(plain.shared)
    plain.run_stage("teacher_calc")
    opened = encrypted.opened("site-2", "evaluation")
    cnn = [name for name in opened if name.startswith("teacher.calc.")]
    assert cnn
    moved = max(float((plain.shared[name] - initial[name]).abs().max()) for name in cnn)
    worst = max(float((plain.shared[name] - opened[name]).abs().max()) for name in cnn)
    assert worst < GRID + 1 / SHARES < moved / 10


def test_no_plain_tensor_reaches_the_server(encrypted: Run) -> None:
    lines = [json.loads(line) for line in (encrypted.ended.folder / HEARD_FILE).read_text().splitlines()]
    training = [line for line in lines if line["what"] == "reply" and line.get("tensors")]
    # one CNN of one site, and the transformer of two sites twice
    sealed = sorted(next(iter(line["tensors"])) for line in training)
    assert sealed == sorted([sealed_name("teacher_calc")] + [sealed_name("distillation")] * 4)
    assert all(len(line["tensors"]) == 1 for line in training)
