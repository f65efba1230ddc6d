"""A study with encrypted replies in a real federation, beside the same study in plain: the model, and what was heard.

The oracle is what FLARE hands the server, written down before any component of ours sees it (`listening.Ear`), and the
plain study's shared model. One hospital's second reply holds a NaN in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import SITES, Ended, Hospitals, allow
from listening import HEARD_FILE
from stand_in_job import stand_in_job

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.ckks import GRID, SHARES, packed_shape
from fedmedseg.core.config import load_experiment
from fedmedseg.core.encryption_keys import load_cipher
from fedmedseg.core.sealing import GUARDS_OFF, layouts, sealed_name, split, unseal
from fedmedseg.core.wire import Part, Schema
from fedmedseg.fedata import plan
from fedmedseg.provisioning.check import check_kit

pytest.importorskip("tenseal", reason="the extra he is not installed")
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(700)]

ROUNDS, FAULTY = 3, "site-2"
LIMIT = 300.0
"""Seconds for a job, on a machine that has other work."""
FAULTS = [{"site": FAULTY, "round": 1, "kind": "nan"}]
ENTRY = sealed_name("pretraining")


def study(folder: Path, **federation: Any) -> Path:
    """A job of stand-ins under the rule fedavg, with an ear at the server."""
    settings = {
        "study": folder.name,
        "fedata": {"server_aggregation": "fedavg"},
        "stages": {"pretraining": {"rounds": ROUNDS}},
        "federation": {"quorum": 2, "wait_after_quorum": 60, "timeout": 120, **federation},
    }
    job = stand_in_job(folder, settings)
    server = job / "app" / "config" / "config_fed_server.json"
    content = json.loads(server.read_text())
    content["components"].append({"id": "ear", "path": "listening.Ear"})
    server.write_text(json.dumps(content))
    return job


class Studies:
    """The two jobs, in one federation."""

    def __init__(self, hospitals: Hospitals, folder: Path) -> None:
        self.hospitals = hospitals
        self.plain = hospitals.run(study(folder / "plain"), timeout=LIMIT)
        self.job = study(folder / "encrypted", encryption="ckks")
        self.encrypted = hospitals.run(self.job, timeout=LIMIT)
        assert (self.plain.status, self.encrypted.status) == ("FINISHED:COMPLETED",) * 2
        self.experiment = load_experiment(self.job / "app" / "config" / "experiment.yaml")

    def opened(self, site: str) -> dict[str, torch.Tensor]:
        """The shared model as one site put it together at its next task."""
        folder = self.hospitals.kits / site / self.encrypted.job_id
        [file] = folder.rglob("shared.fine_tuning.safetensors")
        return dict(checkpoint.load_file(file)["tensors"])


def heard(ended: Ended) -> list[dict[str, Any]]:
    """Every result that reached the server."""
    lines = [json.loads(line) for line in (ended.folder / HEARD_FILE).read_text().splitlines()]
    return [line for line in lines if line["what"] == "reply"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studies]:
    folder = tmp_path_factory.mktemp("encrypted")
    hospitals = Hospitals(folder / "federation", faults=FAULTS, encryption=True)
    allow(hospitals.server, "listening.")
    try:
        hospitals.up()
        yield Studies(hospitals, folder)
    finally:
        hospitals.stop()


def test_every_kit_passes_its_check_but_for_what_these_tests_allow_in_it(studies: Studies) -> None:
    for name in ("localhost", *SITES):
        findings = check_kit(studies.hospitals.kits / name)
        # no wheel was given to provisioning
        assert {one.check for one in findings if one.level} == {"class allow-list", "release"}


def test_every_site_ends_with_the_plain_studys_model(studies: Studies) -> None:
    plain = checkpoint.load_file(studies.plain.folder / "models" / "shared.safetensors")["tensors"]
    for site in SITES:
        opened = studies.opened(site)
        assert sorted(opened) == sorted(plain)
        # rounding to the grid, and weights of whole shares on steps of at most 3
        worst = max(float((opened[name] - plain[name]).abs().max()) for name in plain)
        assert worst < GRID + ROUNDS * 3 / SHARES
    assert len({content_sha256(studies.opened(site)) for site in SITES}) == 1


def test_no_plain_tensor_reaches_the_server(studies: Studies) -> None:
    training = [line for line in heard(studies.encrypted) if line.get("tensors")]
    assert len(training) == ROUNDS * len(SITES) - 1
    count = sum(tensor.numel() for tensor in studies.opened(SITES[0]).values())
    for line in training:
        assert set(line["tensors"]) == {ENTRY}
        # bytes of declared size, from 0 to 255: no number of a model
        assert line["tensors"][ENTRY]["shape"] == list(packed_shape(count))
        assert (line["tensors"][ENTRY]["least"], line["tensors"][ENTRY]["most"]) == (0.0, 255.0)
    assert all(ENTRY not in line.get("tensors", {}) for line in heard(studies.plain))


def test_a_nan_is_refused_at_the_site_before_it_could_be_encrypted(studies: Studies) -> None:
    for ended in (studies.plain, studies.encrypted):
        assert ended.rounds()[1]["sites"][FAULTY]["reason"] == "PRIVACY: NOT_FINITE: tensors from this site"
        assert ended.rounds()[1]["accepted"] == [site for site in SITES if site != FAULTY]
    [line] = [line for line in heard(studies.encrypted) if line["site"] == FAULTY and line["code"] != "OK"]
    assert line["keys"] == []


def test_the_record_names_the_guards_that_are_off_and_what_it_cost(studies: Studies) -> None:
    record = studies.encrypted.record
    assert record["encryption"] == {"scheme": "ckks", "guards_off": list(GUARDS_OFF)}
    assert studies.plain.record["encryption"] is None
    for plain, sealed in zip(studies.plain.rounds(), studies.encrypted.rounds(), strict=True):
        assert (plain["guards_off"], sealed["guards_off"]) == ([], list(GUARDS_OFF))
        up = {name: one["sites"]["site-1"]["bytes_up"] for name, one in (("plain", plain), ("sealed", sealed))}
        assert 7 < up["sealed"] / up["plain"] < 9
        assert sum(one["weight"] for one in sealed["sites"].values() if one["accepted"]) == 1
    assert [one["guards_off"] for one in studies.encrypted.rounds("evaluation")] == [[]]


def test_the_server_hands_out_ciphertext_that_a_sites_kit_opens(studies: Studies) -> None:
    models = studies.encrypted.folder / "models"
    assert not (models / "shared.safetensors").exists()
    plain, sealed = split(checkpoint.load_file(models / "shared.sealed.safetensors")["tensors"])
    assert content_sha256(plain) == content_sha256(plan.initial_shared(studies.experiment))
    cipher = load_cipher(studies.hospitals.kits / SITES[0] / "startup", secret=True).cipher
    inside = layouts(Schema(plain), plan.stages(studies.experiment), Part())
    opened = unseal(cipher, plain, sealed, inside)
    assert content_sha256(opened) == content_sha256(studies.opened(SITES[0]))
