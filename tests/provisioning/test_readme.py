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


@pytest.mark.integration
def test_every_command_of_the_readme_works_and_no_key_leaves_the_hospital(
    tmp_path: Path, commands: dict[str, str]
) -> None:
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    blocks = BLOCK.findall((ROOT / "provisioning" / "README.md").read_text())
    assert len(blocks) >= 8
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=commands,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

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
