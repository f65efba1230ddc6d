"""Planted markers of patients appear nowhere but in the hospitals' own data: fault row 44.

Each hospital's list has markers as name of its folder, its files, its patients and itself, and in the texts of the
volumes' headers; one volume is damaged. What the server holds after a study, every message it was sent, and the
sites' own logs are searched.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import pytest
from hospitals import Hospitals, allow
from overhearing import MESSAGES

from fedmedseg.core import simulation
from fedmedseg.core.allowed_classes import simulator_resources
from fedmedseg.core.homes import homes_beside
from fedmedseg.core.jobs import read_settings, write_job
from fedmedseg.reporting.site_page import FILE as SITE_PAGE

JOB = Path(__file__).parents[2] / "jobs" / "fedata"
SUPPORT = Path(__file__).parent / "support"
PACKAGE = Path(__file__).parents[2] / "custom"
SITES = ("site-1", "site-2")
MARKER = re.compile(rb"zq(patient|file|folder|list|descrip|dbname|aux)qz", re.IGNORECASE)
TINY = {
    "compute": {"threads": 1},
    "stages": {"pretraining": {"rounds": 1}},
    "fedata": {"local_steps": 1},
    "segmentation": {"steps": 2, "batch": 2, "validate_every": 2},
}
LOGS = (".txt", ".log", ".json", ".jsonl")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def mark(file: Path) -> None:
    """Texts in a volume's header, as scanners and converters write them."""
    image = nibabel.load(file)
    for field, text in (("descrip", "ZqdescripqZ"), ("db_name", "ZqdbnameqZ"), ("aux_file", "ZqauxqZ")):
        image.header[field] = text.encode()
    marked = file.with_name(f"ZqfileqZ-{file.name}")
    nibabel.save(nibabel.Nifti1Image(image.dataobj, image.affine, image.header), marked)
    file.unlink()


def plant(folder: Path) -> Path:
    """Two synthetic hospitals full of markers; returns the folder that holds one folder for each."""
    command = [sys.executable, "-m", "fedmedseg", "data", "phantoms", "cine_mr", "--out", str(folder), "--sites", "2"]
    counts = ["--training", "2", "--validation", "1", "--test", "1", "--unlabeled", "3"]
    subprocess.run([*command, *counts], check=True, capture_output=True, timeout=120)
    for site in SITES:
        hospital = (folder / site).rename(folder / f"ZqfolderqZ-{site}")
        for file in sorted(hospital.glob("*/*.nii.gz")):
            mark(file)
        listed = hospital / "datalist.json"
        text = re.sub(r'"(images|labels)/', r'"\1/ZqfileqZ-', listed.read_text())
        text = re.sub(r'"patient": "', '"patient": "ZqpatientqZ^', text)
        content = json.loads(text)
        content.update(name="ZqlistqZ", description="ZqlistqZ")
        damaged = hospital / content["unlabeled"][-1]["image"]
        damaged.write_bytes(damaged.read_bytes()[:500])
        listed.write_text(json.dumps(content))
    return folder


def job(out: Path) -> Path:
    """FedATA's job at its smallest, with an ear at the server."""
    made = write_job(JOB, read_settings(JOB, [TINY])[0], out)
    file = made / "app" / "config" / "config_fed_server.json"
    content = json.loads(file.read_text())
    content["components"].append({"id": "ear", "path": "overhearing.Overhearing"})
    file.write_text(json.dumps(content))
    return made


def site_file(planted: Path, site: str, **more: Any) -> str:
    lists = {"cmr": {"list": str(planted / f"ZqfolderqZ-{site}" / "datalist.json")}}
    return json.dumps({"datasets": lists, **more})


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's name and bytes, and those of what it packs."""
    yield name, name.encode()
    yield name, data
    if data[:2] == b"\x1f\x8b":
        with suppress(OSError, EOFError):
            yield name, gzip.decompress(data)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from contents(f"{name}!{member}", archive.read(member))


def marked(*folders: Path, logs_only: bool = False) -> list[str]:
    """Where under these folders a marker stands; what a site decides for itself, in `local`, names its data list."""
    found = []
    for folder in folders:
        files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
        assert files, folder
        for file in files:
            if file.relative_to(folder).parts[0] == "local" or (logs_only and not file.name.endswith(LOGS)):
                continue
            for where, data in contents(str(file.relative_to(folder)), file.read_bytes()):
                if (hit := MARKER.search(data)) is not None:
                    found.append(f"{where}: {hit.group().decode()}")
    return found


def pages(folder: Path) -> int:
    """How many sites' own pages lie here; every one shows patients, and so is where the search would find them."""
    found = list(folder.rglob(SITE_PAGE))
    assert all(MARKER.search(page.read_bytes()) for page in found)
    return len(found)


def kinds(folder: Path) -> set[str]:
    """What a server's folder holds, by the ends of names."""
    return {file.suffix for file in folder.rglob("*") if file.is_file()}


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a ZqpatientqZ b")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"zqpatientqz"))
    with zipfile.ZipFile(tmp_path / "job.zip", "w") as archive:
        archive.writestr("zqfileqz.txt", "")
    (tmp_path / "clean.txt").write_text("nothing")
    assert {where.partition(":")[0].partition("!")[0] for where in marked(tmp_path)} == {
        "plain.txt",
        "packed.gz",
        "job.zip",
    }


@pytest.mark.slow
def test_in_the_simulator_no_marker_leaves_the_data(tmp_path: Path) -> None:
    planted = plant(tmp_path / "planted")
    assert marked(planted), "the hospitals' own folders are full of them"
    workspace = tmp_path / "workspace"
    resources = simulator_resources()
    resources["class_allow_list"].append("overhearing.")
    simulation.prepare_workspace(workspace, resources)
    (workspace / "local" / "sites").mkdir(parents=True)
    for site in SITES:
        (workspace / "local" / "sites" / f"{site}.yaml").write_text(site_file(planted, site))
    call = simulation.Simulation(
        job=job(tmp_path / "job" / "study"),
        workspace=workspace,
        sites=SITES,
        threads=2,
        log=tmp_path / "logs" / "simulator.log",
        environment={"PYTHONPATH": f"{SUPPORT}{os.pathsep}{PACKAGE}", "OMP_NUM_THREADS": "1"},
    )
    record = simulation.run(call, lambda event: None)
    log = call.log.read_text(errors="replace")
    assert record is not None, log[-3000:]
    assert record["outcome"] == "finished", record["reason"]
    server = workspace / "server"
    assert {".html", ".json", ".safetensors", ".txt"} <= kinds(server)
    assert list(server.rglob("events.out.tfevents*"))
    (messages,) = server.rglob(MESSAGES)
    assert messages.read_text().count("dice/") > 0, "the messages were heard"
    homes = homes_beside(workspace)
    assert marked(server, call.log.parent, homes / "server") == []
    assert pages(homes) == len(SITES)
    assert marked(*(workspace / site for site in SITES), logs_only=True) == []
    assert "set aside" in log, "the damaged volume was told, without its name"


@pytest.mark.slow
def test_in_a_federation_no_marker_leaves_the_data(tmp_path: Path) -> None:
    planted = plant(tmp_path / "planted")
    with Hospitals(tmp_path / "federation", sites=SITES, stand_ins=False) as hospitals:
        allow(hospitals.server, "overhearing.")
        for site in SITES:
            file = hospitals.kits / site / "local" / "fedmedseg.yaml"
            file.write_text(site_file(planted, site, privacy={"min_count": 0}))
        hospitals.up()
        ended = hospitals.run(job(tmp_path / "job" / "study"), timeout=600)
        assert ended.record["outcome"] == "finished", ended.record["reason"]
    assert (ended.folder / MESSAGES).read_text().count("dice/") > 0, "the messages were heard"
    assert (hospitals.server / "audit" / "trail.jsonl").is_file()
    assert marked(hospitals.server, hospitals.folder / "results") == []
    said = [hospitals.kits / f"{name}.log" for name in ("localhost", *SITES)]
    assert [file.name for file in said if MARKER.search(file.read_bytes())] == []
    assert pages(hospitals.kits) == len(SITES)
    for site in SITES:
        kit = hospitals.kits / site
        assert marked(kit / "audit", kit / ended.job_id, logs_only=True) == []
        assert [file.name for file in kit.glob("*log*") if MARKER.search(file.read_bytes())] == []
