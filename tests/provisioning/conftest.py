"""Kits made once by the commands a person types, and copies of them to spoil."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "provisioning" / "project.yml"


def environment(home: Path) -> dict[str, str]:
    """This environment with the commands of this Python first and a home of its own: FLARE writes into it."""
    home.mkdir(exist_ok=True)
    commands = str(Path(sys.executable).parent)
    return {**os.environ, "HOME": str(home), "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}


def provision(workspace: Path, *more: str, project: Path = PROJECT) -> Path:
    """The newest folder of kits that `nvflare provision` writes."""
    command = [str(Path(sys.executable).parent / "nvflare"), "provision", "-p", str(project), "-w", str(workspace)]
    done = subprocess.run(
        [*command, *more], env=environment(workspace.parent / "home"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(workspace.glob("*/prod_*"))[-1]


def build(workspace: Path, text: str) -> Path:
    """The newest folder of kits, made in this process from the text of a project file: without 5 s of imports."""
    content = yaml.safe_load(text)
    provisioner = Provisioner(str(workspace), prepare_builders(content))
    context = provisioner.provision(prepare_project(content))
    assert not context.get_errors()
    return Path(context.get_result_location())


@pytest.fixture(scope="session", name="build")
def build_fixture() -> Callable[[Path, str], Path]:
    """``build`` for tests that change the project's text."""
    return build


@pytest.fixture(scope="session", name="provision")
def provision_fixture() -> Callable[..., Path]:
    """``provision`` for tests that change the project."""
    return provision


def age(workspace: Path, name: str, *, days: int = 20) -> None:
    """Let a participant's certificate, as the workspace holds it, end in ``days``: the root signed it a year ago."""
    file = workspace / "state" / "cert.json"
    state = json.loads(file.read_text())
    root = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
    old, now = x509.load_pem_x509_certificate(state[name]["cert"].encode()), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=365 - days))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(root, hashes.SHA256())  # type: ignore[arg-type]
    state[name]["cert"] = signed.public_bytes(serialization.Encoding.PEM).decode()
    file.write_text(json.dumps(state))


@pytest.fixture(scope="session", name="age")
def age_fixture() -> Callable[..., None]:
    """``age`` for tests of renewal."""
    return age


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """Environment for the commands of a test."""
    return environment(tmp_path / "home")


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kits of project.yml; only to be read."""
    return provision(tmp_path_factory.mktemp("provisioned") / "kits")


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kits of another federation with the same names."""
    return build(tmp_path_factory.mktemp("foreign") / "kits", PROJECT.read_text())


@pytest.fixture
def copy(kits: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A kit of one's own, by participant."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(kits / name, tmp_path / name, symlinks=True))

    return make
