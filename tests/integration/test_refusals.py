"""What a federation refuses, with real processes: within 10 s, nothing ran, and the audit trail holds a line.

One server and one site run for all tests; the other kits are spoiled and started one by one.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hospitals import ADMIN, LEAD, Hospitals
from nvflare.fuel.hci.client import file_transfer
from stand_in_job import stand_in_job

from fedmedseg.core import admin
from fedmedseg.core.audit import FOLDER, read, verify
from fedmedseg.core.errors import ConfigurationError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

SECONDS = 10.0
ENDING = 150.0
"""A job's process that refuses a class has to start first, and FLARE tells its parent nothing before it has ended."""
RUNS, EXPIRED, BORROWED, CLEAR = "site-1", "site-2", "site-3", "site-4"
FOREIGN = "site-5"
DEEP = "temporary/a/b/c/d"
CLIMBS = [f"{'../' * levels}escaped-{levels}.py" for levels in range(1, 7)]
"""Names in an archive, from just outside the folder it is unpacked in to six folders up."""
OTHER_HOSPITAL, MEMBER = "it@hospital-one.example.org", "member@hospital-three.example.org"
FLARES_MARK = "NVFLARE_ERROR: "
"""How FLARE begins what a site answers when its checks of a job fail."""
Entry = dict[str, Any]
Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    made = Hospitals(tmp_path_factory.mktemp("refusals"), sites=(RUNS, EXPIRED, BORROWED, CLEAR))
    # deep enough that an archive which climbs out of where it is unpacked still lands below the federation's folder
    made.environment["TMPDIR"] = str(made.folder / DEEP)
    (made.folder / DEEP).mkdir(parents=True)
    with made:
        made.start_all([RUNS], timeout=90)
        yield made
        for name in ("localhost", RUNS):
            assert verify(made.kits / name / FOLDER).problems == []


@pytest.fixture(scope="module")
def session(hospitals: Hospitals) -> Iterator[Any]:
    with admin.session(hospitals.admin) as opened:
        yield opened


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return stand_in_job(tmp_path / "job" / "study", {"stages": {"pretraining": {"rounds": 1}}})


def lines(kit: Path, *, after: int = 0) -> list[Entry]:
    """A kit's trail, or nothing where it has none yet."""
    try:
        return [entry for entry in read(kit / FOLDER) if entry["number"] > after]
    except ConfigurationError:
        return []


def line(kit: Path, *, seconds: float = SECONDS, after: int = 0, **wanted: str) -> Entry:
    """The first line that has what is wanted, waited for."""
    end = time.monotonic() + seconds
    while True:
        for entry in lines(kit, after=after):
            if all(entry[key] == value for key, value in wanted.items()):
                return entry
        assert time.monotonic() < end, (wanted, lines(kit))
        time.sleep(0.1)


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def config(side: str) -> str:
    return f"app/config/config_fed_{side}.json"


def tampered(job: Path) -> None:
    file = job / "app" / "config" / "experiment.yaml"
    file.write_text(file.read_text() + "\n# changed on its way\n")


def unsigned(job: Path) -> None:
    for file in [*job.rglob(".__nvfl_sig.json"), *job.rglob(".__nvfl_submitter.crt")]:
        file.unlink()


def own_code(job: Path) -> None:
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "mine.py").write_text("raise SystemExit('this ran')\n")


def own_image(job: Path) -> None:
    edit(job / "meta.json", lambda meta: meta.update(launcher_spec={"default": {"docker": {"image": "mine:1"}}}))


def own_image_at_a_site(job: Path) -> None:
    edit(job / "meta.json", lambda meta: meta.update(launcher_spec={RUNS: {"k8s": {"image": "mine:1"}}}))


def foreign_class(side: str, part: str) -> Spoil:
    """A harmless class that is on no list of ours, named outright."""
    harmless = {"id": "extra", "path": "collections.OrderedDict", "args": {}}
    return lambda job: edit(job / config(side), lambda content: content.setdefault(part, []).append(harmless))


def own_settings(job: Path) -> None:
    """Settings of FLARE's, which it finds by name, that would lift the list."""
    lifted = {"class_list_enforcement_mode": "off", "class_allow_list": ["*"]}
    (job / "app" / "config" / "resources.json").write_text(json.dumps({"format_version": 2, **lifted}))
    drivers = {"comm_driver_path": "app/custom", "allow_adhoc_conns": True}
    (job / "app" / "config" / "comm_config.json").write_text(json.dumps(drivers))
    foreign_class("server", "components")(job)


def foreign_executor(job: Path) -> None:
    harmless = {"path": "nvflare.app_common.np.np_trainer.NPTrainer"}
    edit(job / config("client"), lambda content: content["executors"][0].update(executor=harmless))


def signed_upload(monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    """Spoil what is uploaded after it was signed."""
    pack = file_transfer.zip_directory_to_file

    def spoiled(root: str, folder: str, out: str) -> None:
        # the session hands over the whole path, whatever the root is
        spoil(Path(root) / folder)
        pack(root, folder, out)

    monkeypatch.setattr(file_transfer, "zip_directory_to_file", spoiled)


def nothing_ran(hospitals: Hospitals, job_id: str) -> None:
    assert not (hospitals.kits / RUNS / job_id).exists(), "the site has no trace of it"
    assert not (hospitals.server / "store" / "jobs" / job_id / "workspace").exists()


@pytest.mark.parametrize(
    ("spoil", "signed", "reason"),
    [
        (tampered, True, "app app does not pass signature verification"),
        (unsigned, True, "unsigned job rejected"),
        (own_code, False, "BYOC not permitted"),
        (own_image, False, "BYOC not permitted"),
        (foreign_class("server", "workflows"), False, "a class outside class_allow_list: collections.OrderedDict"),
        (own_settings, False, "a class outside class_allow_list: collections.OrderedDict"),
    ],
    ids=["tampered", "unsigned", "own code", "own image", "class off the list", "settings that lift the list"],
)
def test_the_server_refuses_a_job(
    hospitals: Hospitals,
    session: Any,
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Spoil,
    signed: bool,
    reason: str,
) -> None:
    """Fault rows 38 and 39."""
    if signed:
        signed_upload(monkeypatch, spoil)
    else:
        spoil(job)
    job_id = admin.submit(session, job)
    entry = line(hospitals.server, job=job_id, outcome="refused")
    assert (entry["action"], entry["who"]) == ("deploy", "server")
    assert entry["reason"].startswith(reason)
    assert admin.status_of(admin.wait(session, job_id, timeout=SECONDS)) == "FINISHED:FAILED_TO_RUN"
    assert line(hospitals.server, action="submit_job", job=job_id)["who"].startswith(f"{ADMIN} (project_admin of")
    nothing_ran(hospitals, job_id)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (own_image_at_a_site, "BYOC not permitted"),
        (foreign_class("client", "components"), "a class outside class_allow_list: collections.OrderedDict"),
        (foreign_executor, "a class outside class_allow_list: nvflare.app_common.np.np_trainer.NPTrainer"),
    ],
    ids=["own image", "component off the list", "executor off the list"],
)
def test_a_site_refuses_a_job_before_its_process_is_started(
    hospitals: Hospitals, session: Any, job: Path, spoil: Spoil, reason: str
) -> None:
    """Fault row 39, at the site; the administrator is told why."""
    spoil(job)
    job_id = admin.submit(session, job)
    for kit, who in ((hospitals.kits / RUNS, ADMIN), (hospitals.server, RUNS)):
        entry = line(kit, job=job_id, who=who, outcome="refused")
        assert entry["reason"].removeprefix(FLARES_MARK) == reason
    meta = admin.wait(session, job_id, timeout=SECONDS)
    assert admin.status_of(meta) == "FINISHED:FAILED_TO_RUN"
    assert f"{RUNS}: {FLARES_MARK}{reason}" in meta["job_deploy_detail"]
    nothing_ran(hospitals, job_id)


def test_a_site_refuses_an_unsigned_job_that_its_server_would_run(
    hospitals: Hospitals, session: Any, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 38, at the site: a server that somebody made careless."""
    startup = hospitals.server / "startup" / "fed_server.json"
    before = startup.read_text()
    signed_upload(monkeypatch, unsigned)
    edit(startup, lambda content: content.update(require_signed_jobs=False))
    try:
        job_id = admin.submit(session, job)
        entry = line(hospitals.kits / RUNS, job=job_id)
        assert (entry["outcome"], entry["who"]) == ("refused", ADMIN)
        assert entry["reason"].startswith("unsigned job rejected")
        assert line(hospitals.server, job=job_id, who=RUNS)["reason"].startswith("unsigned job rejected")
        assert admin.status_of(admin.wait(session, job_id, timeout=SECONDS)) == "FINISHED:FAILED_TO_RUN"
    finally:
        startup.write_text(before)
    nothing_ran(hospitals, job_id)


def test_a_job_that_would_write_outside_its_folder_is_refused(
    hospitals: Hospitals, session: Any, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 37: the archive names files one to six folders up. FLARE unpacks it when the job is deployed."""
    pack = file_transfer.zip_directory_to_file
    # as FLARE unpacks: a temporary folder, in it one of the job's id; and at a site its run folder
    for unpacked in (hospitals.folder / DEEP / "temporary" / "id", hospitals.kits / RUNS / "id" / "app"):
        for name in CLIMBS:
            assert Path(os.path.normpath(unpacked / name)).is_relative_to(hospitals.folder), "it would be found"

    def slip(root: str, folder: str, out: str) -> None:
        pack(root, folder, out)
        with zipfile.ZipFile(out, "a") as archive:
            for name in CLIMBS:
                archive.writestr(name, "raise SystemExit")

    monkeypatch.setattr(file_transfer, "zip_directory_to_file", slip)
    job_id = admin.submit(session, job)
    entry = line(hospitals.server, job=job_id, outcome="refused")
    assert (entry["action"], entry["reason"]) == ("deploy", "it could not be unpacked or checked")
    assert "escaped" not in json.dumps(entry)
    assert admin.status_of(admin.wait(session, job_id, timeout=SECONDS)) == "FINISHED:FAILED_TO_RUN"
    assert list(hospitals.folder.rglob("escaped-*")) == []
    nothing_ran(hospitals, job_id)


@pytest.mark.slow
def test_the_server_loads_no_class_off_its_list_that_an_argument_names(
    hospitals: Hospitals, session: Any, job: Path
) -> None:
    """Fault row 39: such a class is met only as FLARE builds the component, in the job's process."""

    def nested(content: dict[str, Any]) -> None:
        (record,) = [one for one in content["components"] if one["id"] == "record"]
        record["args"]["reporter"] = attack(hospitals.folder / "ran")

    edit(job / config("server"), nested)
    job_id = admin.submit(session, job)
    entry = line(hospitals.server, seconds=ENDING, job=job_id, action="load classes")
    assert (entry["outcome"], entry["reason"].partition(":")[0]) == ("refused", "unsafe component")
    assert admin.status_of(admin.wait(session, job_id, timeout=ENDING)) == "FINISHED:EXECUTION_EXCEPTION"
    assert not (hospitals.folder / "ran").exists()


def attack(file: Path) -> dict[str, Any]:
    """A component that would start a program: a function that a module of this package imports from FLARE builds
    whatever class it is told to."""
    program = {"args": ["touch", str(file)]}
    builders = [{"config_type": "dict", "path": "subprocess.Popen", "args": program}]
    path = "fedmedseg.provisioning.loopback.prepare_builders"
    return {"path": path, "args": {"project_dict": {"builders": builders}}}


@pytest.mark.slow
def test_a_site_loads_no_class_off_its_list_that_an_argument_names(
    hospitals: Hospitals, session: Any, job: Path
) -> None:
    """Fault row 39, at the site; its own log and trail name what the administrator cannot see."""
    nested = {"path": "stand_ins.StandInExecutor", "args": {"more": attack(hospitals.folder / "ran")}}
    edit(job / config("client"), lambda content: content["executors"][0].update(executor=nested))
    job_id = admin.submit(session, job)
    entry = line(hospitals.kits / RUNS, seconds=ENDING, job=job_id, action="load classes")
    assert (entry["outcome"], entry["participant"]) == ("refused", RUNS)
    assert not (hospitals.folder / "ran").exists()
    session.abort_job(job_id)
    admin.wait(session, job_id, timeout=2 * ENDING)


def expire(kit: Path, federation: Hospitals) -> None:
    """The kit's certificate as the federation's root would have signed it, ended yesterday."""
    state = json.loads((federation.kits.parent / "state" / "cert.json").read_text())
    root = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
    file = kit / "startup" / "client.crt"
    old, now = x509.load_pem_x509_certificate(file.read_bytes()), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now - datetime.timedelta(days=1))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    file.write_bytes(builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))  # type: ignore[arg-type]


def borrow(kit: Path, federation: Hospitals) -> None:
    """The certificate and key of the site that runs."""
    for name in ("client.crt", "client.key"):
        shutil.copy(federation.kits / RUNS / "startup" / name, kit / "startup" / name)


def undress(kit: Path, federation: Hospitals) -> None:
    """A site that speaks clear text."""
    edit(kit / "startup" / "fed_client.json", lambda content: content["client"].update(connection_security="clear"))


@pytest.mark.parametrize(
    ("site", "spoil", "why"),
    [
        (EXPIRED, expire, "the certificate ended on"),
        pytest.param(BORROWED, borrow, "the certificate is another participant's", marks=pytest.mark.slow),
        pytest.param(CLEAR, undress, "the server takes no connection without TLS", marks=pytest.mark.slow),
    ],
    ids=["expired certificate", "another site's certificate", "clear text"],
)
def test_a_site_that_does_not_prove_who_it_is_is_not_let_in_and_knows_why(
    hospitals: Hospitals, session: Any, site: str, spoil: Callable[[Path, Hospitals], None], why: str
) -> None:
    """Fault row 41. Refused in the handshake, the server never meets it: the line is the site's own."""
    kit = hospitals.kits / site
    spoil(kit, hospitals)
    refused_at_the_site(hospitals, site, why)
    assert site not in admin.last_seen(session)
    if site == BORROWED:
        # this one passes TLS with a certificate of the federation, and the server sees it
        entry = line(hospitals.server, action="connect", who=site)
        assert (entry["outcome"], entry["reason"]) == ("refused", f"it holds the certificate of {RUNS}")
        assert sorted(admin.last_seen(session)) == [RUNS], "and the one whose certificate it is stays"
    registered = {entry["who"] for entry in lines(hospitals.server) if entry["action"] == "register"}
    assert site not in registered, "no token was issued"


@pytest.mark.slow
def test_a_site_of_another_federation_is_not_let_in_and_knows_why(
    hospitals: Hospitals, session: Any, tmp_path: Path
) -> None:
    """Fault row 41: the root certificate is a foreign one."""
    with Hospitals(tmp_path, sites=[FOREIGN]) as foreign:
        file = foreign.kits / FOREIGN / "startup" / "fed_client.json"
        file.write_text(file.read_text().replace(f":{foreign.port}", f":{hospitals.port}"))
        refused_at_the_site(foreign, FOREIGN, "TLS: this site refuses the server's certificate")
    assert FOREIGN not in admin.last_seen(session)
    assert FOREIGN not in {entry["who"] for entry in lines(hospitals.server)}, "it got no further than the handshake"


def refused_at_the_site(federation: Hospitals, site: str, why: str) -> None:
    """Start a site and wait for the line that says why it was not let in."""
    kit = federation.kits / site
    federation.start(site)
    try:
        entry = line(kit, seconds=90, action="connect")
        assert entry["outcome"] == "refused"
        assert why in entry["reason"]
        assert "Successfully registered" not in federation.log(site)
        # with an expired certificate FLARE comes to no event, and the first line is this one
        began, told = (datetime.datetime.fromisoformat(one["time"]) for one in (lines(kit)[0], entry))
        assert (told - began).total_seconds() < SECONDS
    finally:
        federation.stop(site)


COMMANDS: dict[str, Callable[[Any, str], object]] = {
    "abort_job": lambda session, job_id: session.abort_job(job_id),
    "clone_job": lambda session, job_id: session.clone_job(job_id),
    "delete_job": lambda session, job_id: session.delete_job(job_id),
    "download_job": lambda session, job_id: session.download_job_result(job_id),
    "get_job_log": lambda session, job_id: session.get_job_logs(job_id),
}


def test_who_may_do_what_to_whose_job(hospitals: Hospitals, session: Any, job: Path) -> None:
    """Fault row 40. The jobs never ran: they bring code of their own."""
    own_code(job)
    with (
        admin.session(hospitals.kits / LEAD) as lead,
        admin.session(hospitals.kits / OTHER_HOSPITAL) as other,
        admin.session(hospitals.kits / MEMBER) as member,
    ):
        leads, admins = admin.submit(lead, job), admin.submit(session, job)
        for one in (leads, admins):
            admin.wait(session, one, timeout=SECONDS)
        table = [
            # who, command, whose job, allowed
            (lead, LEAD, "abort_job", admins, False),
            (lead, LEAD, "clone_job", admins, False),
            (lead, LEAD, "delete_job", admins, False),
            (lead, LEAD, "download_job", admins, False),
            (lead, LEAD, "get_job_log", admins, False),
            (other, OTHER_HOSPITAL, "abort_job", leads, False),
            (other, OTHER_HOSPITAL, "clone_job", leads, False),
            (other, OTHER_HOSPITAL, "delete_job", leads, False),
            (other, OTHER_HOSPITAL, "download_job", leads, False),
            (other, OTHER_HOSPITAL, "get_job_log", leads, False),
            (member, MEMBER, "abort_job", leads, False),
            (member, MEMBER, "get_job_log", leads, False),
            (lead, LEAD, "clone_job", leads, True),
            (lead, LEAD, "delete_job", leads, True),
            (session, ADMIN, "delete_job", admins, True),
        ]
        for opened, name, command, job_id, allowed in table:
            after = lines(hospitals.server)[-1]["number"]
            with suppress(Exception):
                # FLARE's client raises errors of many kinds; what counts is what the server did
                COMMANDS[command](opened, job_id)
            entry = line(hospitals.server, after=after, action=command, job=job_id)
            case = (name, command, entry)
            assert entry["who"].partition(" ")[0] == name, case
            assert entry["outcome"] == ("allowed" if allowed else "refused"), case
            exists = (hospitals.server / "store" / "jobs" / job_id).exists()
            assert exists is not (allowed and command == "delete_job"), case
        for opened, name in ((member, MEMBER), (other, OTHER_HOSPITAL)):
            after = lines(hospitals.server)[-1]["number"]
            with pytest.raises(ConfigurationError, match="may not submit"):
                admin.submit(opened, job)
            entry = line(hospitals.server, after=after, action="submit_job")
            assert (entry["who"].partition(" ")[0], entry["outcome"]) == (name, "refused")


def test_the_trail_names_no_folder_and_no_job(hospitals: Hospitals) -> None:
    """Fault row 44, of the trail: what a submitter calls a job may be a patient's name."""
    said = json.dumps([entry for name in ("localhost", RUNS) for entry in lines(hospitals.kits / name)])
    assert str(hospitals.folder) not in said
    assert "experiment.yaml" not in said
