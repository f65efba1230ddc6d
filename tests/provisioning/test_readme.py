"""The commands of provisioning/README.md, run as they stand there; what the key's owner alone must hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedmedseg.core.findings import Level
from fedmedseg.provisioning.check import check_kit

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


BEFORE, CONTAINERS = (ROOT / "provisioning" / "README.md").read_text().split("## Containers")


def run(blocks: list[str], folder: Path, commands: dict[str, str]) -> None:
    """Type ``blocks`` one after the other in ``folder``."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=folder,
        env=commands,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def certificate(kit: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((kit / "startup" / "client.crt").read_bytes())


def weaknesses(kit: Path, **options: Path) -> set[str]:
    """What `fedmedseg site-policy` warns of or more: in kits that name no wheel it is that."""
    return {one.check for one in check_kit(kit, **options) if one.level > Level.PASS}


def secret(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, password=None).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600)
def test_every_command_of_the_readme_works_and_no_key_leaves_the_hospital(
    tmp_path: Path, commands: dict[str, str], age: Callable[..., None]
) -> None:
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    before, renewal = BEFORE.split("## Renewal")
    made, blocks = BLOCK.findall(before), BLOCK.findall(renewal)
    assert (len(made), len(blocks)) >= (3, 7)
    run(made, tmp_path, commands)
    # a year goes by for one of them
    age(tmp_path / "kits" / "fedmedseg", "hospital-1")
    run(blocks, tmp_path, commands)

    first, *_, last = sorted((tmp_path / "kits" / "fedmedseg").glob("prod_*"))
    old, new = (certificate(kits / "hospital-1") for kits in (first, last))
    assert new.serial_number != old.serial_number
    assert new.public_key() != old.public_key(), "with a new key"
    assert new.not_valid_after_utc >= old.not_valid_after_utc
    assert weaknesses(last / "hospital-1") == {"release"}
    for name in ("hospital-2", "lead@hospital-two.example.org"):
        assert certificate(last / name) == certificate(first / name), "nobody else's ends soon"

    at_home = [tmp_path / folder / "fedmedseg" / "prod_00" / "hospital-1" for folder in ("own", "renewed")]
    keys = [(kit / "startup" / "client.key").read_bytes() for kit in at_home]
    assert keys[0] != keys[1]
    assert keys[1] == (tmp_path / "hospital-1" / "hospital-1.key").read_bytes(), "the one made at the hospital"
    for kit in at_home:
        assert weaknesses(kit, trusted_root=tmp_path / "ca" / "rootCA.pem") == {"release"}
    archives = ("hospital-1/hospital-1.request.zip", "hospital-1.signed.zip", "hospital-1.renewed.signed.zip")
    for archive in archives:
        with zipfile.ZipFile(tmp_path / archive) as opened:
            for name in opened.namelist():
                content = opened.read(name)
                assert b"PRIVATE KEY" not in content, f"{archive}: {name}"
                assert not any(secret(key) in content for key in keys)
    for file in (tmp_path / "ca").rglob("*"):
        assert not file.is_file() or not any(key in file.read_bytes() for key in keys), file
    assert not (tmp_path / "own" / "fedmedseg" / "state" / "cert.json").exists()


@pytest.mark.slow
@pytest.mark.integration
def test_kits_prepared_for_containers_as_the_readme_says_are_as_safe(
    kits: Path, tmp_path: Path, commands: dict[str, str]
) -> None:
    """`fedmedseg site-policy --check` is part of the commands, and would end them at more than a warning."""
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    made = shutil.copytree(kits, tmp_path / "kits" / "fedmedseg" / "prod_00", symlinks=True)
    blocks = BLOCK.findall(CONTAINERS)
    assert len(blocks) == 1
    run(blocks, tmp_path, commands)
    for runtime in ("docker", "k8s"):
        for who in ("hospital-1", "server.example.org"):
            assert (Path(made) / f"{runtime}-{who}" / "local" / "study_runtime.yaml").is_file()
            assert weaknesses(Path(made) / f"{runtime}-{who}") == {"release"}


@pytest.mark.parametrize("file", ["hospital.yml", "server.yml", "lead.yml"])
def test_a_definition_for_the_distributed_path_builds_kits_as_the_project_does(file: str) -> None:
    import yaml

    central = yaml.safe_load((ROOT / "provisioning" / "project.yml").read_text())
    own = yaml.safe_load((ROOT / "provisioning" / "distributed" / file).read_text())
    arguments = {one["path"]: one.get("args", {}) for one in central["builders"]}
    for builder in own["builders"]:
        assert builder.get("args", {}).items() <= arguments[builder["path"]].items(), builder["path"]
    assert "fedmedseg.provisioning.builder.SafeKitBuilder" in [one["path"] for one in own["builders"]]
    [participant] = own["participants"]
    assert participant in central["participants"]
    profile = yaml.safe_load((ROOT / "provisioning" / "distributed" / "profile.yml").read_text())
    [server] = [one for one in central["participants"] if one["type"] == "server"]
    assert profile["name"] == own["name"] == central["name"]
    assert profile["server"]["host"] == server["name"]
    assert profile["server"]["fed_learn_port"] == server["fed_learn_port"]
    assert profile["connection_security"] == "mtls"
