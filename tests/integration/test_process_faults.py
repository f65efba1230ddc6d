"""What a study in a real federation does when processes are killed: sites', the server's, one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hospitals import Ended, Hospitals, resumed_as
from slow_link import slow_link
from stand_in_job import stand_in_job
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core import admin
from fedmedseg.core.audit import FOLDER, read

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

ROUNDS = 4
REMEMBER = {"site": None, "round": None, "kind": "remember"}
"""Every step of a site depends on its memory of all rounds before: a study that goes on without it ends otherwise."""
QUORUM_OF_TWO = {"quorum": 2, "wait_after_quorum": 60, "timeout": 60}
Federate = Callable[..., Hospitals]


def study(folder: Path, **changes: Any) -> Path:
    """A job of four rounds with stand-in executors, which FLARE misses soon when their process is gone."""
    job = stand_in_job(folder / "job" / "study", {"stages": {"pretraining": {"rounds": ROUNDS}}, **changes})
    server = job / "app" / "config" / "config_fed_server.json"
    text = server.read_text()
    assert '"dead_client_grace_period": 30' in text
    server.write_text(text.replace('"dead_client_grace_period": 30', '"dead_client_grace_period": 3'))
    return job


def held(site: str, round: int) -> dict[str, Any]:
    """A site that waits in a round until the test lets it go."""
    return {"site": site, "round": round, "kind": "hold"}


def wait_until_held(hospitals: Hospitals, site: str, round: int, *, patience: float = 120.0) -> None:
    end = time.monotonic() + patience
    while not (hospitals.faults.parent / f"held-{site}-{round}").exists():
        assert time.monotonic() < end, hospitals.log("localhost")[-3000:]
        time.sleep(0.1)


def job_process(hospitals: Hospitals, name: str) -> psutil.Process:
    """The process of a participant's running job."""
    (found,) = [one for one in hospitals.running(name) if "-n" in one.cmdline()]
    return found


def parent_process(hospitals: Hospitals, name: str) -> psutil.Process:
    """FLARE's own process of a participant."""
    words = {"nvflare.private.fed.app.server.server_train", "nvflare.private.fed.app.client.client_train"}
    (found,) = [one for one in hospitals.running(name) if words & set(one.cmdline())]
    return found


def finish(hospitals: Hospitals, session: Any, job_id: str, *, timeout: float = 200.0) -> Ended:
    meta = admin.wait(session, job_id, timeout=timeout)
    return hospitals.fetch(session, job_id, meta)


def test_a_sites_job_process_killed_does_not_end_the_others_job(federate: Federate, tmp_path: Path) -> None:
    """Fault rows 19 and 21: the quorum holds, the site is named, the rounds after it do not wait for it."""
    hospitals = federate(faults=[held("site-1", 1)])
    hospitals.up()
    with admin.session(hospitals.admin) as session:
        job_id = admin.submit(session, study(tmp_path, federation=QUORUM_OF_TWO))
        wait_until_held(hospitals, "site-1", 1)
        job_process(hospitals, "site-1").kill()
        ended = finish(hospitals, session, job_id)
    assert ended.status == admin.COMPLETED
    assert ended.record["outcome"] == "finished"
    rounds = ended.rounds()
    assert [one["accepted"] for one in rounds] == [["site-1", "site-2", "site-3"], *[["site-2", "site-3"]] * 3]
    assert {one["sites"]["site-1"]["reason"] for one in rounds[1:]} == {"LOST: its process is gone"}
    assert max(one["wall_seconds"] for one in rounds[2:]) < 5


@pytest.mark.slow
def test_a_site_whose_every_process_was_killed_joins_the_running_job_again(federate: Federate, tmp_path: Path) -> None:
    """Fault row 22: the watchdog starts the site, the server's guard its job, and with quorum all nothing is lost."""
    hospitals = federate(faults=[held("site-1", 1)])
    hospitals.up(watchdog=True)
    with admin.session(hospitals.admin) as session:
        job = study(tmp_path, federation={"timeout": 120})
        patient = job / "app" / "config" / "config_fed_server.json"
        patient.write_text(patient.read_text().replace('period": 3', 'period": 60'))
        job_id = admin.submit(session, job)
        wait_until_held(hospitals, "site-1", 1)
        for process in (parent_process(hospitals, "site-1"), job_process(hospitals, "site-1")):
            process.kill()
        hospitals.set_faults([])
        ended = finish(hospitals, session, job_id, timeout=200)
    assert ended.status == admin.COMPLETED
    assert [one["accepted"] for one in ended.rounds()] == [["site-1", "site-2", "site-3"]] * ROUNDS
    assert [one["attempts"] for one in ended.rounds()] == [1] * ROUNDS


@pytest.mark.slow
def test_a_site_whose_job_process_was_killed_is_started_again_and_loses_no_round(
    federate: Federate, tmp_path: Path
) -> None:
    """Fault row 21, with quorum all: the site itself lives, and the server's guard asks it to start its job again."""
    hospitals = federate(faults=[held("site-1", 1)])
    hospitals.up()
    with admin.session(hospitals.admin) as session:
        job = study(tmp_path, federation={"timeout": 120})
        patient = job / "app" / "config" / "config_fed_server.json"
        patient.write_text(patient.read_text().replace('period": 3', 'period": 60'))
        job_id = admin.submit(session, job)
        wait_until_held(hospitals, "site-1", 1)
        job_process(hospitals, "site-1").kill()
        hospitals.set_faults([])
        ended = finish(hospitals, session, job_id)
    assert ended.status == admin.COMPLETED
    assert [one["accepted"] for one in ended.rounds()] == [["site-1", "site-2", "site-3"]] * ROUNDS
    assert [one["attempts"] for one in ended.rounds()] == [1] * ROUNDS
    (told,) = [one for one in read(hospitals.server / FOLDER) if one["action"] == "rejoin"]
    assert (told["who"], told["job"], told["outcome"]) == ("site-1", job_id, "allowed")


@pytest.mark.slow
def test_a_lost_quorum_ends_the_job_soon_and_leaves_the_last_good_model(federate: Federate, tmp_path: Path) -> None:
    """Fault row 23."""
    hospitals = federate(faults=[held("site-1", 2), held("site-2", 2)])
    hospitals.up()
    with admin.session(hospitals.admin) as session:
        job_id = admin.submit(session, study(tmp_path, federation=QUORUM_OF_TWO))
        for site in ("site-1", "site-2"):
            wait_until_held(hospitals, site, 2)
            job_process(hospitals, site).kill()
        began = time.monotonic()
        ended = finish(hospitals, session, job_id)
    assert time.monotonic() - began < QUORUM_OF_TWO["timeout"] + 30
    assert ended.status == "FINISHED:EXECUTION_EXCEPTION"
    assert ended.record["outcome"] == "stopped"
    assert "1 of 2 needed replies" in ended.record["reason"]
    assert ended.record["reason"].count("LOST: its process is gone") == 2
    assert ended.shared == ended.rounds()[1]["shared_sha256"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the model that an uninterrupted run of the study ends with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    hospitals = Hospitals(folder, faults=[REMEMBER])
    with hospitals:
        hospitals.up()
        ended = hospitals.run(study(folder))
    assert ended.status == admin.COMPLETED
    return ended.shared


def resume(hospitals: Hospitals, job_id: str) -> str:
    """`fedmedseg resume`; the new job's id."""
    call = ["resume", job_id, "--startup-kit", str(hospitals.admin)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    return resumed_as(done.output)


@pytest.mark.slow
def test_a_killed_server_job_is_resumed_and_ends_with_the_same_model(
    federate: Federate, tmp_path: Path, undisturbed: str
) -> None:
    """Fault row 24."""
    hospitals = federate(faults=[held("site-1", 2), REMEMBER])
    hospitals.up()
    with admin.session(hospitals.admin) as session:
        job_id = admin.submit(session, study(tmp_path))
        wait_until_held(hospitals, "site-1", 2)
        job_process(hospitals, "localhost").kill()
        meta = admin.wait(session, job_id, timeout=60)
        assert admin.status_of(meta) != admin.COMPLETED
        hospitals.set_faults([REMEMBER])
        ended = finish(hospitals, session, resume(hospitals, job_id))
    assert ended.status == admin.COMPLETED
    assert [one["round"] for one in ended.rounds()] == [0, 1, 2, 3]
    assert ended.shared == undisturbed


@pytest.mark.slow
def test_a_killed_server_tells_its_dead_job_and_resumes_it(
    federate: Federate, tmp_path: Path, undisturbed: str
) -> None:
    """Fault row 25: every process of the server is killed; its watchdog starts it again."""
    hospitals = federate(faults=[held("site-1", 2), REMEMBER])
    hospitals.up(watchdog=True)
    with admin.session(hospitals.admin) as session:
        job_id = admin.submit(session, study(tmp_path))
    wait_until_held(hospitals, "site-1", 2)
    # the parent alone: its job goes on for a while without it
    parent_process(hospitals, "localhost").kill()
    hospitals.set_faults([REMEMBER])
    end = time.monotonic() + 90
    while hospitals.log("localhost").count("Server started") < 2:
        assert time.monotonic() < end, hospitals.log("localhost")[-3000:]
        time.sleep(0.5)
    with admin.session(hospitals.admin, patience=60) as session:
        assert admin.status_of(admin.meta_of(session, job_id)) == "FINISHED:ABANDONED"
        while sorted(admin.last_seen(session)) != ["site-1", "site-2", "site-3"]:
            assert time.monotonic() < end, "the sites did not come back"
            time.sleep(1)
        ended = finish(hospitals, session, resume(hospitals, job_id))
    assert ended.status == admin.COMPLETED
    assert [one["round"] for one in ended.rounds()] == [0, 1, 2, 3]
    assert ended.shared == undisturbed


@pytest.mark.slow
def test_a_site_that_hangs_is_left_out_of_its_round_and_asked_again(federate: Federate, tmp_path: Path) -> None:
    """Fault row 20: its process lives and says nothing; the round ends without it, the next one has it again."""
    hospitals = federate(faults=[held("site-1", 1), held("site-2", 2)])
    hospitals.up()
    with admin.session(hospitals.admin) as session:
        patience = {"quorum": 2, "wait_after_quorum": 10, "timeout": 60}
        job_id = admin.submit(session, study(tmp_path, federation=patience))
        wait_until_held(hospitals, "site-1", 1)
        # the next round begins without it, and waits for it: its process lives
        wait_until_held(hospitals, "site-2", 2)
        hospitals.set_faults([])
        ended = finish(hospitals, session, job_id)
    assert ended.status == admin.COMPLETED
    first, hung, *rest = ended.rounds()
    assert first["accepted"] == ["site-1", "site-2", "site-3"]
    assert hung["accepted"] == ["site-2", "site-3"]
    assert hung["sites"]["site-1"]["reason"] == "no reply in time"
    assert hung["wall_seconds"] < 30
    assert [one["accepted"] for one in rest] == [["site-1", "site-2", "site-3"]] * 2


@pytest.mark.slow
def test_a_full_disk_at_the_server_ends_the_job_and_spoils_nothing(
    federate: Federate, tmp_path: Path, undisturbed: str
) -> None:
    """Fault row 27: no file of the server's job can grow any more; with room again the study goes on."""
    hospitals = federate(faults=[held("site-1", 2), REMEMBER])
    hospitals.up()
    with admin.session(hospitals.admin) as session:
        job_id = admin.submit(session, study(tmp_path))
        wait_until_held(hospitals, "site-1", 2)
        job_process(hospitals, "localhost").rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
        hospitals.set_faults([REMEMBER])
        ended = finish(hospitals, session, job_id)
        assert ended.status == "FINISHED:EXECUTION_EXCEPTION"
        # among the results lies a whole model, at most a minute older than the checkpoint that is gone on from
        assert ended.shared in [one["shared_sha256"] for one in ended.rounds()]
        again = finish(hospitals, session, resume(hospitals, job_id))
    assert again.status == admin.COMPLETED
    assert again.shared == undisturbed
    assert [one["round"] for one in again.rounds()] == list(range(len(again.rounds()))), (
        "no round is lost or done twice"
    )


@pytest.mark.slow
def test_one_study_runs_once_at_a_time_and_others_beside_it(federate: Federate, tmp_path: Path) -> None:
    """Fault row 46: two jobs at one site keep apart; a second job of the same study is refused and harms nothing."""
    hospitals = federate(faults=[held("site-1", 1)])
    hospitals.up()
    with admin.session(hospitals.admin) as session:
        first = admin.submit(session, study(tmp_path / "first"))
        wait_until_held(hospitals, "site-1", 1)
        twin = admin.submit(session, study(tmp_path / "twin"))
        other = admin.submit(session, study(tmp_path / "other", study="another"))
        refused = finish(hospitals, session, twin)
        assert refused.status == "FINISHED:EXECUTION_EXCEPTION"
        assert "another job with these settings is running" in (refused.folder / "log.txt").read_text()
        hospitals.set_faults([])
        ends = [finish(hospitals, session, job_id) for job_id in (first, other)]
    assert [one.status for one in ends] == [admin.COMPLETED] * 2
    assert [len(one.rounds()) for one in ends] == [ROUNDS] * 2
    assert ends[0].shared == ends[1].shared, "stand-ins take the same steps in both"


def behind(hospitals: Hospitals, site: str, port: int) -> None:
    """Have a site reach the server through ``port``."""
    client = hospitals.kits / site / "startup" / "fed_client.json"
    text = client.read_text()
    assert f"localhost:{hospitals.port}" in text
    client.write_text(text.replace(f"localhost:{hospitals.port}", f"localhost:{port}"))


@pytest.mark.slow
def test_a_line_that_breaks_and_clocks_an_hour_apart_change_nothing(
    federate: Federate, tmp_path: Path, undisturbed: str
) -> None:
    """Fault row 45: every connection of one site is cut three times on the way; two job processes' clocks are wrong."""
    clocks = [{"site": "site-2", "round": "clock", "kind": 3600}, {"site": "site-3", "round": "clock", "kind": -3600}]
    hospitals = federate(faults=[*clocks, REMEMBER])
    cuts = (4_000_000, 7_000_000, 10_000_000)
    with slow_link(hospitals.port, bytes_per_second=20_000_000, delay=0.0, breaks_after=cuts) as port:
        behind(hospitals, "site-1", port)
        hospitals.up()
        ended = hospitals.run(study(tmp_path, federation={"timeout": 200}), timeout=300)
        hospitals.stop()
    assert ended.status == admin.COMPLETED
    assert ended.shared == undisturbed
    for one in ended.rounds():
        assert one["accepted"] == ["site-1", "site-2", "site-3"]
        assert all(0 <= site["move_seconds"] < 300 for site in one["sites"].values()), "nobody's clock is in a figure"


@pytest.mark.slow
def test_a_slow_link_delays_a_study_and_doubles_nothing(federate: Federate, tmp_path: Path, undisturbed: str) -> None:
    """Fault row 45: one site behind a line of 1 MB/s with 20 ms for every 16 KiB, so some 450 kB/s in all."""
    hospitals = federate(faults=[REMEMBER])
    with slow_link(hospitals.port, bytes_per_second=1_000_000, delay=0.02) as port:
        behind(hospitals, "site-1", port)
        hospitals.up()
        ended = hospitals.run(study(tmp_path), timeout=240)
        hospitals.stop()
    assert ended.status == admin.COMPLETED
    assert ended.shared == undisturbed
    for one in ended.rounds():
        assert one["attempts"] == 1
        assert one["refusals"] == []
        # 1.4 MB each way: 6 s, beside what any site needs; in round 0 that is the start of its process, too
        assert one["sites"]["site-1"]["move_seconds"] > one["sites"]["site-2"]["move_seconds"] + 3
