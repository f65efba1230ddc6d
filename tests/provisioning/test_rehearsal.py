"""A federation for a person: kits used again or refused, phantom hospitals, and an end that nothing disturbs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.core.jobs import find_job, read_settings, setting
from fedmedseg.core.kit import open_kit
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.site import SiteFile
from fedmedseg.provisioning import rehearsal
from fedmedseg.provisioning.check import check_kit

SITES = ("site-1", "site-2")
TINY = "data.phantom={family: cine_mr, unlabeled: 1, training: 1, validation: 1, test: 1}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which kits were made; only to be read."""
    out = tmp_path_factory.mktemp("rehearsal")
    rehearsal.kits_in(out, sites=SITES)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(made, tmp_path / "out", symlinks=True))


def experiment(*changes: str) -> Experiment:
    return read_settings(find_job("fedata"), [setting(change) for change in changes])[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_kits_are_made_once_and_then_used_again(out: Path) -> None:
    before = contents(out)
    kits = rehearsal.kits_in(out, sites=SITES)
    assert contents(out) == before
    for name in ("localhost", *SITES):
        assert all(finding.level < Level.FAIL for finding in check_kit(kits / name)), name
    assert open_kit(rehearsal.administrator(kits)).role == "admin"


def test_kits_of_another_number_of_sites_are_refused(out: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--sites: got 3\. Expected 2, .*choose another --out"):
        rehearsal.kits_in(out, sites=[*SITES, "site-3"])


@pytest.mark.parametrize("name", ["localhost", "site-2"])
def test_kits_that_are_weaker_than_they_were_made_are_refused(out: Path, name: str) -> None:
    file = next((out / "kits").glob(f"*/prod_*/{name}/local/resources.json"))
    content = json.loads(file.read_text())
    content["class_allow_list"].append("os.")
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=rf"kit of {name}: class allow-list.*os\..*choose another --out"):
        rehearsal.kits_in(out, sites=SITES)


def test_kits_whose_port_another_program_uses_are_refused(out: Path) -> None:
    port = open_kit(next((out / "kits").glob("*/prod_*/localhost"))).port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ConfigurationError, match=rf"port: got {port}, which another program uses"):
            rehearsal.kits_in(out, sites=SITES)


def test_kits_in_which_processes_still_run_are_refused_with_their_numbers(out: Path) -> None:
    left = subprocess.Popen(["sleep", "60"], cwd=next((out / "kits").glob("*/prod_*/site-1")))
    try:
        with pytest.raises(ConfigurationError, match=rf"earlier call that still run there: {left.pid}\."):
            rehearsal.kits_in(out, sites=SITES)
    finally:
        left.kill()
        left.wait()


def test_every_hospital_gets_volumes_of_its_own_and_a_file_that_names_them(out: Path) -> None:
    kits = rehearsal.kits_in(out, sites=SITES)
    told: list[str] = []
    rehearsal.place_phantoms(kits, out, sites=SITES, experiment=experiment(TINY), on_site=told.append)
    lists = {}
    for site in SITES:
        file = SiteFile.model_validate(yaml.safe_load((kits / site / "local" / "fedmedseg.yaml").read_text()))
        lists[site] = file.datasets["cmr"].list
        assert file.privacy is not None
        assert file.privacy.min_count == 0, "otherwise so few patients would withhold every figure"
        assert file.privacy.features, "otherwise every hospital would decline what fcl's sites exchange"
        assert lists[site].is_relative_to(out / "data" / site)
        assert len(read_datalist(lists[site], salt="x")["training"]) == 1
        assert all(finding.level < Level.FAIL for finding in check_kit(kits / site))
    images = [next((listed.parent / "images").iterdir()).read_bytes() for listed in lists.values()]
    assert images[0] != images[1]
    assert told == list(SITES)
    written = {file: file.stat().st_mtime_ns for file in (out / "data").rglob("*.nii.gz")}
    rehearsal.place_phantoms(kits, out, sites=SITES, experiment=experiment(TINY), on_site=told.append)
    assert written == {file: file.stat().st_mtime_ns for file in (out / "data").rglob("*.nii.gz")}


def test_a_job_without_phantoms_is_refused(out: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.phantom: got none.*simulate --sites"):
        rehearsal.place_phantoms(
            out, out, sites=SITES, experiment=experiment("data.phantom=null"), on_site=lambda site: None
        )


def test_nothing_disturbs_the_end_and_afterwards_everything_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with rehearsal._undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_participant_that_does_not_start_leaves_no_process(out: Path) -> None:
    kits = rehearsal.kits_in(out, sites=SITES)
    (kits / "localhost" / "startup" / "sub_start.sh").write_text("sleep 61 &\necho no such thing\n")
    with pytest.raises(TimeoutError, match="no such thing"):
        rehearsal.run_job(kits, out, sites=SITES, out=out, tell=lambda text: None, show=lambda event: None)
    assert rehearsal.LoopbackFederation(kits).running("localhost") == []


def test_hospitals_share_out_what_is_marked_by_how_many_they_are(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    marks = []
    sites = ("site-1", "site-2", "site-3")
    for site in sites:
        (kits / site / "local").mkdir(parents=True)
    few = {"unlabeled": 0, "training": 1, "validation": 0, "test": 0, "size": [32, 32, 24]}
    study = read_settings(find_job("segviz"), [{"data": {"phantom": few}}])[1]
    rehearsal.place_phantoms(kits, tmp_path / "out", sites=sites, experiment=study, on_site=lambda site: None)
    for site in sites:
        file = SiteFile.model_validate(yaml.safe_load((kits / site / "local" / "fedmedseg.yaml").read_text()))
        listed = file.datasets["abdominal_ct"].list
        marks.append(read_datalist(listed, salt="x")["training"][0].annotated_labels)
    assert marks == [(1, 4), (2,), (3,)]


def test_an_encrypted_study_gets_kits_with_keys_and_none_without(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("tenseal", reason="the extra he is not installed")
    with pytest.raises(ConfigurationError, match=r"made without keys.*choose another --out"):
        rehearsal.kits_in(out, sites=SITES, encryption=True)
    kits = rehearsal.kits_in(tmp_path / "sealed", sites=SITES, encryption=True)
    for name in SITES:
        assert (kits / name / "startup" / "client_context.tenseal").is_file()
    assert not (kits / "localhost" / "startup" / "client_context.tenseal").exists()
