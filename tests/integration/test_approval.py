"""Two hospitals whose people decide on each job, in a real federation: asked, told who signed, and obeyed."""

from __future__ import annotations

import json
import re
import subprocess
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

RUNBOOK = Path(__file__).parents[2] / "provisioning" / "runbooks" / "hospital.md"
ASKING = ("site-1", "site-2")
PATIENCE = 120
"""Seconds until a request must be there, on a machine that has other work."""


def requests(kit: Path) -> list[dict[str, Any]]:
    """What `fedmedseg approval` lists."""
    done = CliRunner().invoke(app, ["approval", str(kit), "--json"])
    assert done.exit_code == 0, done.output
    content: list[dict[str, Any]] = json.loads(done.stdout)
    return content


def told_by_the_runbook() -> dict[str, str]:
    """Answer -> the line that the hospital's runbook tells people to type."""
    (block,) = re.findall(r"^```bash\n(.*?)^```$", RUNBOOK.read_text(), flags=re.MULTILINE | re.DOTALL)
    approve, deny = block.splitlines()
    return {"approve": approve, "deny": deny}


class People(threading.Thread):
    """Somebody at each asking site, who answers the next request as the runbook and the test say; the rest is kept."""

    def __init__(self, hospitals: Hospitals, answers: Mapping[str, str]) -> None:
        super().__init__()
        self.hospitals, self.answers = hospitals, answers
        self.asked: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []

    def run(self) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.asked) < len(self.answers) and time.monotonic() < end:
            for site, answer in self.answers.items():
                for one in requests(self.hospitals.kits / site):
                    if one["status"] == "waiting" and site not in self.asked:
                        self.asked[site] = one
                        self.type(told_by_the_runbook()[answer], site=site, request=one["id"])
            time.sleep(0.3)

    def type(self, line: str, *, site: str, request: str) -> None:
        """Type a line of the runbook in the folder that holds the kits."""
        done = subprocess.run(
            ["bash", "-euc", line.replace("hospital-1", site)], cwd=self.hospitals.kits,
            env={**self.hospitals.environment, "id": request}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if done.returncode:
            self.failed.append(f"{line}: {done.stdout}{done.stderr}")


def test_every_submission_is_asked_for_and_both_words_are_kept_to(
    federate: Callable[..., Hospitals], tmp_path: Path
) -> None:
    hospitals = federate(faults=[{"site": site, "round": None, "kind": "ask"} for site in ASKING])
    hospitals.up()
    job = stand_in_job(tmp_path / "job" / "study", {"stages": {"pretraining": {"rounds": 2}}})

    people = People(hospitals, {"site-1": "approve", "site-2": "deny"})
    people.start()
    ended = hospitals.run(job, kit=hospitals.kits / LEAD)
    people.join(timeout=PATIENCE)
    assert people.failed == []
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

    again = People(hospitals, dict.fromkeys(ASKING, "approve"))
    again.start()
    ended = hospitals.run(job, kit=hospitals.kits / LEAD)
    again.join(timeout=PATIENCE)
    assert again.failed == []
    assert ended.status == admin.COMPLETED
    assert [one["accepted"] for one in ended.rounds()] == [["site-1", "site-2", "site-3"]] * 2
    assert {again.asked[site]["id"] for site in ASKING} & {people.asked[site]["id"] for site in ASKING} == set()
