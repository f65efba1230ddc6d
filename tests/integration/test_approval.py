"""Two hospitals whose people decide on each job, in a real federation: asked, told who signed, and obeyed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hospitals import LEAD, Hospitals
from stand_in_job import stand_in_job
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core import admin

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

ASKING = ("site-1", "site-2")
PATIENCE = 120
"""Seconds until a request must be there, on a machine that has other work."""


def command(*words: str) -> list[dict[str, Any]]:
    """`fedmedseg approval` as the site's people type it."""
    done = CliRunner().invoke(app, ["approval", *words, "--json"])
    assert done.exit_code == 0, done.output
    content: list[dict[str, Any]] = json.loads(done.stdout)
    return content


class People(threading.Thread):
    """Somebody at each asking site, who answers the next request as the test says; what was asked is kept."""

    def __init__(self, hospitals: Hospitals, answers: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.hospitals, self.answers = hospitals, answers
        self.asked: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.asked) < len(self.answers) and time.monotonic() < end:
            for site, (verb, *more) in self.answers.items():
                kit = str(self.hospitals.kits / site)
                for one in command(kit):
                    if one["status"] == "waiting" and site not in self.asked:
                        self.asked[site] = one
                        command(kit, f"--{verb}", one["id"], *more)
            time.sleep(0.3)


def test_every_submission_is_asked_for_and_both_words_are_kept_to(
    federate: Callable[..., Hospitals], tmp_path: Path
) -> None:
    hospitals = federate(faults=[{"site": site, "round": None, "kind": "ask"} for site in ASKING])
    hospitals.up()
    job = stand_in_job(tmp_path / "job" / "study", {"stages": {"pretraining": {"rounds": 2}}})

    people = People(hospitals, {"site-1": ("approve",), "site-2": ("deny", "--reason", "no ethics vote")})
    people.start()
    ended = hospitals.run(job, kit=hospitals.kits / LEAD)
    people.join(timeout=PATIENCE)
    assert ended.status == admin.COMPLETED
    for site in ASKING:
        asked = people.asked[site]
        # the names of the lead's certificate, which signed what was deployed here
        assert asked["wish"]["submitter"] == {"name": LEAD, "org": "hospital_two", "role": "lead", "signed": True}
        assert asked["wish"]["study"] == ended.record["study"]
        assert asked["wish"]["experiment"] == ended.record["experiment_sha256"]
        assert asked["job"] == ended.job_id
    assert [one["accepted"] for one in ended.rounds()] == [["site-1", "site-3"]] * 2
    told = ended.rounds()[0]["sites"]["site-2"]
    assert (told["declined"], told["reason"]) == (True, "DENIED: by a person at this site: no ethics vote")

    again = People(hospitals, dict.fromkeys(ASKING, ("approve",)))
    again.start()
    ended = hospitals.run(job, kit=hospitals.kits / LEAD)
    again.join(timeout=PATIENCE)
    assert ended.status == admin.COMPLETED
    assert [one["accepted"] for one in ended.rounds()] == [["site-1", "site-2", "site-3"]] * 2
    assert {again.asked[site]["id"] for site in ASKING} & {people.asked[site]["id"] for site in ASKING} == set()
