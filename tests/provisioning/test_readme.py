"""The commands of provisioning/README.md, run as they stand there; what the key's owner alone must hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

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


@pytest.mark.integration
def test_every_command_of_the_readme_works_and_no_key_leaves_the_hospital(
    tmp_path: Path, commands: dict[str, str]
) -> None:
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    blocks = BLOCK.findall(BEFORE)
    assert len(blocks) >= 7
    run(blocks, tmp_path, commands)

    own = (tmp_path / "hospital-1" / "hospital-1.key").read_bytes()
    kit = tmp_path / "own" / "fedmedseg" / "prod_00" / "hospital-1"
    assert (kit / "startup" / "client.key").read_bytes() == own, "the kit's key is the one made at the hospital"
    secret = serialization.load_pem_private_key(own, password=None).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for archive in (tmp_path / "hospital-1" / "hospital-1.request.zip", tmp_path / "hospital-1.signed.zip"):
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                content = opened.read(name)
                assert b"PRIVATE KEY" not in content, f"{archive.name}: {name}"
                assert secret not in content
    for file in (tmp_path / "ca").rglob("*"):
        assert not file.is_file() or own not in file.read_bytes(), file
    assert not (tmp_path / "own" / "fedmedseg" / "state" / "cert.json").exists()


@pytest.mark.slow
@pytest.mark.integration
def test_kits_prepared_for_containers_as_the_readme_says_are_as_safe(
    kits: Path, tmp_path: Path, commands: dict[str, str]
) -> None:
    """`fedmedseg site-policy --check` is part of the commands, and would end them."""
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    made = shutil.copytree(kits, tmp_path / "kits" / "fedmedseg" / "prod_00", symlinks=True)
    blocks = BLOCK.findall(CONTAINERS)
    assert len(blocks) == 1
    run(blocks, tmp_path, commands)
    for runtime in ("docker", "k8s"):
        for who in ("hospital-1", "server.example.org"):
            assert (Path(made) / f"{runtime}-{who}" / "local" / "study_runtime.yaml").is_file()


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
