"""FCL and FCLOpt after the server's job was killed between rounds: features, target and memory go on where they were.

What a round hands out is more than the shared weights: the others' features, or a target that every party predicts.
Both must come back with the job, and the study must end with the bytes of one that nobody disturbed.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hospitals import Hospitals, resumed_as
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core import admin
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job
from fedmedseg.data.site import write_phantoms

SITES = ("site-1", "site-2")
ROUNDS, KILLED_AFTER = 6, 2
PHANTOM = "data.phantom={family: cine_mr, unlabeled: 2, training: 1, validation: 1, test: 1}"
COMMON = (
    f"stages.pretraining.rounds={ROUNDS}",
    "segmentation.steps=1",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
    "network.features=[8, 8, 8, 8, 8]",
    PHANTOM,
)
STUDIES = {
    "fcl": (*COMMON, "fcl.local_steps=4", "fcl.volumes_per_step=2", "fcl.warmup_rounds=1", "fcl.projector={out: 8}"),
    "fclopt": (*COMMON, "fclopt.local_steps=4", "fclopt.volumes_per_step=2", "fclopt.distance={warm_up: 1, every: 3}"),
}

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]


def undisturbed(job: Path, folder: Path) -> str:
    """SHA-256 of the shared weights after the same pretraining in one process."""
    federation = InProcessFederation(job=job, workspace=folder, sites=list(SITES), run="undisturbed")
    federation.run_stage("pretraining")
    return content_sha256(federation.shared)


def kill_server_job(hospitals: Hospitals) -> None:
    """Kill the server's job process as soon as the record of a round in the middle is written."""
    end = time.monotonic() + 240
    while not any(hospitals.server.rglob(f"rounds/pretraining-{KILLED_AFTER:04d}.json")):
        assert time.monotonic() < end, hospitals.log("localhost")[-3000:]
        time.sleep(0.02)
    (process,) = [one for one in hospitals.running("localhost") if "-n" in one.cmdline()]
    process.kill()


@pytest.mark.parametrize("system", STUDIES)
def test_a_killed_server_hands_out_what_it_had_and_the_study_ends_with_the_same_bytes(
    tmp_path: Path, system: str
) -> None:
    settings, experiment = read_settings(find_job(system), [setting(change) for change in STUDIES[system]])
    job = write_job(find_job(system), settings, tmp_path / system, meta={"min_clients": 2})
    expected = undisturbed(job, tmp_path / "one")
    with Hospitals(tmp_path / "federation", sites=SITES, stand_ins=False) as hospitals:
        for site in SITES:
            home = tmp_path / "volumes" / site
            listed = write_phantoms(experiment.data.phantom, seed=experiment.seed, name=site, home=home)
            datasets = {experiment.data.role: {"list": str(listed)}}
            hospitals.write_site_file(site, {"datasets": datasets, "privacy": {"min_count": 0, "features": True}})
        hospitals.up()
        with admin.session(hospitals.admin) as session:
            job_id = admin.submit(session, job)
            kill_server_job(hospitals)
            assert admin.status_of(admin.wait(session, job_id, timeout=90)) != admin.COMPLETED
            done = CliRunner().invoke(app, ["resume", job_id, "--startup-kit", str(hospitals.admin)])
            assert done.exit_code == 0, done.output
            again = resumed_as(done.output)
            ended = hospitals.fetch(session, again, admin.wait(session, again, timeout=240))
    assert ended.status == admin.COMPLETED, ended.record
    rounds = ended.rounds()
    assert [one["round"] for one in rounds] == list(range(ROUNDS))
    assert [one["accepted"] for one in rounds] == [list(SITES)] * ROUNDS
    assert ended.shared == expected
    if system == "fcl":
        for before, after in itertools.pairwise(rounds):
            for site, other in (SITES, SITES[::-1]):
                assert after["sites"][site]["features_down"] == before["sites"][other]["features_up"]
    else:
        assert [one["notes"]["target"]["held"] for one in rounds] == [list(SITES)] * ROUNDS
