"""What `nvflare provision` writes from project.yml, and what one more hospital changes."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.utils import load_yaml

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.scopes import privacy_policy, problems
from fedmedseg.data.site import SiteFile
from fedmedseg.provisioning.builder import SafeKitBuilder
from fedmedseg.provisioning.check import check_kit

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "provisioning" / "project.yml"
SITES = ("hospital-1", "hospital-2", "hospital-3")
SERVER = "server.example.org"
ADMINS = {
    "admin@network.example.org": "project_admin",
    "it@hospital-one.example.org": "org_admin",
    "lead@hospital-two.example.org": "lead",
    "member@hospital-three.example.org": "member",
}
EVERYBODY = (*SITES, SERVER, *ADMINS)


def files(kit: Path) -> dict[str, str]:
    """Relative path -> SHA-256 and mode of every file of a kit."""
    return {
        file.relative_to(kit).as_posix(): f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_mode:o}"
        for file in sorted(kit.rglob("*"))
        if file.is_file()
    }


def certificate(kit: Path) -> x509.Certificate:
    [file] = [*kit.glob("startup/server.crt"), *kit.glob("startup/client.crt")]
    return x509.load_pem_x509_certificate(file.read_bytes())


def test_server_three_hospitals_and_an_administrator_of_each_role_get_a_kit(kits: Path) -> None:
    assert sorted(folder.name for folder in kits.iterdir()) == sorted(EVERYBODY)
    for name, role in ADMINS.items():
        [attribute] = certificate(kits / name).subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)
        assert attribute.value == role


@pytest.mark.parametrize("name", EVERYBODY)
def test_every_kit_passes_its_own_check_but_for_the_wheel_that_was_not_given(kits: Path, name: str) -> None:
    findings = check_kit(kits / name, trusted_root=kits / SERVER / "startup" / "rootCA.pem")
    assert [one.check for one in findings if one.level] == ["release"], "no wheel was given"


@pytest.mark.parametrize("name", EVERYBODY)
def test_no_spare_file_of_flare_and_no_shared_folder_is_left(kits: Path, name: str) -> None:
    assert [*(kits / name).rglob("*.default"), *(kits / name).rglob("*.sample")] == []
    for file in (kits / name / "local").iterdir():
        assert "/tm" + "p" not in file.read_text(), file.name


@pytest.mark.parametrize("name", EVERYBODY)
def test_certificates_live_as_long_as_the_project_says(kits: Path, name: str) -> None:
    own = certificate(kits / name)
    root = x509.load_pem_x509_certificate((kits / name / "startup" / "rootCA.pem").read_bytes())
    assert own.not_valid_after_utc - own.not_valid_before_utc == datetime.timedelta(days=365)
    assert root.not_valid_after_utc - root.not_valid_before_utc == datetime.timedelta(days=1825)
    own.verify_directly_issued_by(root)


def test_the_root_key_and_private_keys_are_their_owners_alone(kits: Path) -> None:
    state = kits.parent / "state"
    assert state.stat().st_mode & 0o777 == 0o700
    for file in (*kits.rglob("*.key"), state / "cert.json"):
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_a_site_offers_the_gpus_of_its_entry_and_streams_no_logs(kits: Path) -> None:
    for name, gpus, memory in (("hospital-1", 1, 16), ("hospital-2", 1, 24), ("hospital-3", 2, 40)):
        resources = json.loads((kits / name / "local" / "resources.json").read_text())
        [manager] = [one for one in resources["components"] if one["id"] == "resource_manager"]
        assert manager["args"]["num_of_gpus"] == gpus
        assert manager["args"]["mem_per_gpu_in_GiB"] == memory
        assert resources["allow_log_streaming"] is False


@pytest.mark.parametrize("name", SITES)
def test_a_site_gets_the_annotated_site_file_and_active_filters(kits: Path, name: str) -> None:
    local = kits / name / "local"
    assert (local / "fedmedseg.yaml").read_bytes() == (ROOT / "app_configs" / "sites" / "example.yaml").read_bytes()
    SiteFile.model_validate(yaml.safe_load((local / "fedmedseg.yaml").read_text()))
    policy = json.loads((local / "privacy.json").read_text())
    assert policy == privacy_policy()
    assert problems(policy) == []


def test_the_server_knows_the_scopes_and_filters_nothing(kits: Path) -> None:
    """FLARE would run a server's filters over results that the sites have filtered already."""
    policy = json.loads((kits / SERVER / "local" / "privacy.json").read_text())
    assert [scope["name"] for scope in policy["scopes"]] == [scope["name"] for scope in privacy_policy()["scopes"]]
    assert all(set(scope) == {"name"} for scope in policy["scopes"])


def test_one_more_hospital_leaves_every_other_kit_as_it_is(
    tmp_path: Path, build: Callable[[Path, str], Path], provision: Callable[..., Path]
) -> None:
    before = build(tmp_path / "kits", PROJECT.read_text())
    added = ROOT / "provisioning" / "add-site.yml"
    after = provision(tmp_path / "kits", "--add-client", str(added), "--force")
    assert after != before
    assert {folder.name for folder in after.iterdir()} == {*EVERYBODY, "hospital-4"}
    for name in EVERYBODY:
        assert files(after / name) == files(before / name), name
    root = x509.load_pem_x509_certificate((before / SERVER / "startup" / "rootCA.pem").read_bytes())
    certificate(after / "hospital-4").verify_directly_issued_by(root)
    findings = check_kit(after / "hospital-4", trusted_root=before / SERVER / "startup" / "rootCA.pem")
    assert [one.check for one in findings if one.level] == ["release"], "no wheel was given"


def test_provisioning_again_renews_only_what_ends_soon(tmp_path: Path, build: Callable[[Path, str], Path]) -> None:
    text = PROJECT.read_text()
    assert " valid_days: 365" in text
    assert "renew_days: 60" in text
    before = build(tmp_path / "kits", text.replace(" valid_days: 365", " valid_days: 30").replace(": 60", ": 1"))
    for days, renewed in ((29, False), (30, True)):
        after = build(tmp_path / "kits", text.replace("renew_days: 60", f"renew_days: {days}"))
        for name in EVERYBODY:
            assert (certificate(after / name) != certificate(before / name)) is renewed
            root = x509.load_pem_x509_certificate((before / name / "startup" / "rootCA.pem").read_bytes())
            certificate(after / name).verify_directly_issued_by(root)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"listening_host": "node-1"}, "listening_host"), ({"type": "relay", "listening_host": "node-1"}, "relay")],
)
def test_an_open_port_at_a_hospital_is_refused(tmp_path: Path, change: dict[str, str], word: str) -> None:
    content = load_yaml(str(PROJECT))
    content["participants"] = [content["participants"][0], {**content["participants"][1], **change}]
    project = prepare_project(content)
    context = ProvisionContext(str(tmp_path), project)
    for participant in project.get_all_participants():
        Path(context.get_local_dir(participant)).mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=word):
        SafeKitBuilder().build(project, context)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("fed_learn_port: 8002", "fed_learn_port: -5", "fed_learn_port: got -5. Expected a port"),
        ("num_of_gpus: 1", "num_of_gpus: -1", "num_of_gpus: got -1"),
        ("num_of_gpus: 1", "num_of_gpu: 1", "write 'num_of_gpus'"),
        ("capacity:", "capacty:", "write 'capacity'"),
        ("role: lead", "role: leader", "write 'lead'"),
        ("name: hospital-1", "name: n", "participants.n.name: got 'n', which FLARE's start script hands on as"),
        ("name: hospital-1", "name: 1e5", "write 'site-1e5'"),
        ("org: hospital_one", "org: 'no'", "participants.hospital-1.org: got 'no', which FLARE's start script hands"),
        ("org: network", "org: t", "participants.server.example.org.org: got 't'"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    text = PROJECT.read_text()
    assert old in text
    project = prepare_project(yaml.safe_load(text.replace(old, new, 1)))
    context = ProvisionContext(str(tmp_path), project)
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        SafeKitBuilder().build(project, context)
    assert not list(tmp_path.rglob("*.json"))
