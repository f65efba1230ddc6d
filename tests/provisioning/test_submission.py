"""Who signed a job is read from the signature, with certificates of a real federation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from nvflare.lighter.utils import load_private_key_file, sign_folders

from fedmedseg.core.place import Place
from fedmedseg.core.submission import submission
from fedmedseg.core.wishes import Submitter

LEAD = "lead@hospital-two.example.org"
CLAIMED = {"submitter_name": "admin@network.example.org", "submitter_org": "network", "submitter_role": "project_admin"}
CLAIM = Submitter(name="admin@network.example.org", org="network", role="project_admin", signed=False)


@pytest.fixture
def deployed(copy: Callable[[str], Path]) -> Callable[[Path], Place]:
    """deployed(kits): a job that the lead of ``kits`` signed, unpacked at a hospital; the server names another one."""

    def make(signers: Path) -> Place:
        kit = copy("hospital-1")
        app = kit / "job" / "app_hospital-1"
        (app / "config").mkdir(parents=True)
        (app / "config" / "experiment.yaml").write_text("study: x\n")
        (kit / "job" / "meta.json").write_text(json.dumps(CLAIMED))
        startup = signers / LEAD / "startup"
        sign_folders(str(app), load_private_key_file(str(startup / "client.key")), str(startup / "client.crt"))
        return Place(
            name="hospital-1",
            simulated=False,
            folder=kit.name,
            workspace=kit,
            local=kit / "local",
            config=app / "config",
            run=kit / "job",
        )

    return make


def test_who_signed_counts_and_not_whom_the_server_names(deployed: Callable[[Path], Place], kits: Path) -> None:
    submitter, _ = submission(deployed(kits))
    assert submitter == Submitter(name=LEAD, org="hospital_two", role="lead", signed=True)


def test_a_changed_job_is_not_signed(deployed: Callable[[Path], Place], kits: Path) -> None:
    place = deployed(kits)
    (place.config / "experiment.yaml").write_text("study: y\n")
    assert submission(place)[0] == CLAIM


def test_a_signature_of_another_federation_is_none(deployed: Callable[[Path], Place], foreign: Path) -> None:
    assert submission(deployed(foreign))[0] == CLAIM
