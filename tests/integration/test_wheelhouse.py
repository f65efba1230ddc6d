"""The package's way to a hospital without a network: the commands of provisioning/README.md, and what then is proved.

pip is kept from the network and from dependencies by its own environment variables, so that no gigabytes move; what
the package needs is lent to the hospital's environment by this one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KIT = Path("kits") / "fedmedseg" / "prod_00" / "hospital-1"
KEPT_OUT = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "runs", "simulator_workspace*", "tests"
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Place:
    """A source tree at a connected machine, which the hospital's files lie beside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder.with_name("home")
        home.mkdir()
        commands = str(Path(sys.executable).parent)
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.environment = {**kept, **offline, "HOME": str(home), "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}

    def run(self, block: str, *, code: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def lend(self) -> None:
        """Give the hospital's environment what the package needs; a .pth file there is not read again."""
        [packages] = (self.folder / "site").glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def check(self, *options: str) -> dict[str, dict[str, Any]]:
        """Findings of the hospital's preflight or site-policy, by check."""
        command = [str(self.folder / "site" / "bin" / "fedmedseg"), *options, "--json"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        return {one["check"]: one for one in json.loads(done.stdout)["findings"]}

    @property
    def wheel(self) -> Path:
        """The wheel in the wheelhouse."""
        [file] = (self.folder / "wheelhouse").glob("fedmedseg-*.whl")
        return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """After all the commands."""
    folder = tmp_path_factory.mktemp("wheelhouse") / "source"
    shutil.copytree(ROOT, folder, ignore=KEPT_OUT)
    place = Place(folder)
    blocks = BLOCK.findall((ROOT / "provisioning" / "README.md").read_text())
    assert len(blocks) == 4
    for block in blocks[:3]:
        place.run(block)
    place.lend()
    place.run(blocks[3])
    return place


def test_the_installed_package_is_the_wheel_that_the_kit_names(place: Place) -> None:
    told = json.loads((place.folder / KIT / "startup" / "release.json").read_text())
    assert told["wheel"]["name"] == place.wheel.name
    found = place.check("preflight", str(KIT), "--no-data")
    assert (found["package"]["level"], found["package files"]["level"]) == ("PASS", "PASS"), found
    assert "from the very wheel the kit names" in found["package"]["found"]
    found = place.check("site-policy", "--check", str(KIT), "--wheel", str(place.wheel))
    assert (found["wheel"]["level"], found["package files"]["level"]) == ("PASS", "PASS"), found
    assert found["package files"]["found"].endswith("as in the wheel")


@pytest.mark.slow
def test_a_file_changed_in_the_wheelhouse_is_found_before_anything_is_installed(place: Place) -> None:
    block = "(cd wheelhouse && sha256sum --check --strict --quiet SHA256SUMS)"
    file = place.folder / "wheelhouse" / "constraints.txt"
    whole = file.read_bytes()
    file.write_bytes(whole + b"#")
    try:
        assert "constraints.txt: FAILED" in place.run(block, code=1)
    finally:
        file.write_bytes(whole)
    place.run(block)


@pytest.mark.slow
def test_a_file_changed_after_the_installation_is_found_with_the_wheel_and_without(place: Place) -> None:
    [package] = (place.folder / "site").glob("lib/python*/site-packages/fedmedseg")
    file = package / "core" / "findings.py"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\n# changed\n")
    try:
        for options in (
            ("preflight", str(KIT), "--no-data"),
            ("site-policy", "--check", str(KIT), "--wheel", str(place.wheel)),
        ):
            found = place.check(*options)["package files"]
            assert found["level"] == "FAIL"
            assert "fedmedseg/core/findings.py" in found["found"]
    finally:
        file.write_bytes(whole)


@pytest.mark.slow
def test_another_wheel_of_the_same_version_is_found(place: Place, tmp_path: Path) -> None:
    other = tmp_path / place.wheel.name
    shutil.copyfile(place.wheel, other)
    with zipfile.ZipFile(other, "a") as archive:
        archive.comment = b"the same files in another archive"
    assert place.check("site-policy", "--check", str(KIT), "--wheel", str(other))["wheel"]["level"] == "FAIL"
    try:
        place.run(f"site/bin/python -m pip install --force-reinstall {other}")
        found = place.check("preflight", str(KIT), "--no-data")
        assert found["package"]["level"] == "FAIL"
        assert "installed from a wheel with SHA-256" in found["package"]["found"]
        assert found["package files"]["level"] == "PASS"
    finally:
        place.run(f"site/bin/python -m pip install --force-reinstall {place.wheel}")
