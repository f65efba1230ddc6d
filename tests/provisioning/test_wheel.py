"""The wheel that kits name: read, refused where it is another, and compared."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedmedseg
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.core.release import Installed
from fedmedseg.core.versions import own_versions
from fedmedseg.provisioning import check
from fedmedseg.provisioning.check import check_kit
from fedmedseg.provisioning.wheel import make_release, read_wheel

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "provisioning" / "project.yml").read_text()
SITE = "hospital-1"
HERE = fedmedseg.__version__
PINS = "nvflare==2.9.0\ntorch==2.13.0\nMonai==1.6.1\nnumpy>=2\n"


@pytest.fixture
def wheel(tmp_path: Path) -> Callable[..., Path]:
    """wheel(version=..., name=..., drop=..., pins=...): a wheel of two files."""

    def make(*, version: str = HERE, name: str = "fedmedseg", drop: str = "", pins: str = PINS, more: str = "") -> Path:
        file = tmp_path / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        contents = {
            "fedmedseg/__init__.py": f"# {more}\n",
            "fedmedseg/bundle/constraints.txt": pins,
            f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nName: a description\n",
            f"{info}/RECORD": f"fedmedseg/__init__.py,sha256=abc,7\n{info}/RECORD,,\n",
        }
        with zipfile.ZipFile(file, "w") as archive:
            for path, text in contents.items():
                if not drop or drop not in path:
                    archive.writestr(path, text)
        return file

    return make


def test_a_wheel_tells_its_version_digest_files_and_pins(wheel: Callable[..., Path]) -> None:
    file = wheel()
    found = read_wheel(file)
    assert (found.name, found.version) == (file.name, HERE)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.record == {"fedmedseg/__init__.py": "abc"}
    assert found.tested == {"nvflare": "2.9.0", "torch": "2.13.0", "monai": "1.6.1"}


@pytest.mark.parametrize("change", [{"drop": "METADATA"}, {"drop": "RECORD"}, {"name": "other"}])
def test_another_archive_is_no_wheel_of_ours(wheel: Callable[..., Path], change: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="Expected a wheel of fedmedseg"):
        read_wheel(wheel(**change))


def test_no_file_and_no_archive_are_told_apart_and_mended(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"No such file.*python -m build --wheel"):
        read_wheel(tmp_path / "x.whl")
    (tmp_path / "x.whl").write_text("no archive")
    with pytest.raises(ConfigurationError, match="no ZIP archive"):
        read_wheel(tmp_path / "x.whl")


def test_a_release_names_wheel_and_versions(wheel: Callable[..., Path]) -> None:
    file = wheel()
    release = make_release(file)
    assert release.wheel is not None
    assert release.wheel.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert release.version == HERE
    assert release.versions == {"nvflare": "2.9.0", "torch": "2.13.0", "monai": "1.6.1"}


def test_without_a_wheel_a_release_names_what_is_installed_here() -> None:
    release = make_release(None)
    assert (release.version, release.wheel) == (HERE, None)
    assert release.versions["nvflare"] == own_versions()["nvflare"]
    # with the constraints of the source tree
    assert "numpy" in release.versions
    assert "fedmedseg" not in release.versions


def test_kits_are_not_made_with_the_policy_of_another_version(wheel: Callable[..., Path]) -> None:
    with pytest.raises(ConfigurationError, match=rf"of version 99\.0.*version {HERE}, which is installed here"):
        make_release(wheel(version="99.0"))


@pytest.fixture
def named(tmp_path: Path, build: Callable[[Path, str], Path], wheel: Callable[..., Path]) -> tuple[Path, Path]:
    """Kits whose project names a wheel, and that wheel."""
    file = wheel()
    text = PROJECT.replace("      # wheel: dist/fedmedseg-0.1.0-py3-none-any.whl", f"      wheel: {file}")
    assert text != PROJECT
    return build(tmp_path / "kits", text), file


def levels(kit: Path, **options: Any) -> dict[str, Level]:
    return {one.check: one.level for one in check_kit(kit, **options)}


def test_every_kit_of_a_project_with_a_wheel_names_it(named: tuple[Path, Path]) -> None:
    kits, file = named
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for kit in kits.iterdir():
        told = json.loads((kit / "startup" / "release.json").read_text())
        assert told["wheel"] == {"name": file.name, "sha256": digest}
        assert levels(kit, wheel=file)["wheel"] is Level.PASS


def test_another_wheel_of_the_same_name_fails(named: tuple[Path, Path], wheel: Callable[..., Path]) -> None:
    kits, _ = named
    other = wheel(more="changed")
    found = {one.check: one for one in check_kit(kits / SITE, wheel=other)}
    assert found["wheel"].level is Level.FAIL
    assert "do not install it" in found["wheel"].mend
    assert "package files" not in found


def test_what_is_installed_is_compared_with_the_wheel_too(
    named: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kits, file = named
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(check, "installed", lambda: Installed(version=HERE))
    passed = check.passed("package files", "")
    monkeypatch.setattr(check, "package_files", lambda record, of: seen.append(record) or passed)
    assert levels(kits / SITE, wheel=file)["package files"] is Level.PASS
    assert seen == [{"fedmedseg/__init__.py": "abc"}]
    monkeypatch.setattr(check, "installed", lambda: Installed(version=HERE, editable=True))
    assert "package files" not in levels(kits / SITE, wheel=file)


def test_a_kit_without_a_wheel_says_so_and_vouches_for_none(kits: Path, wheel: Callable[..., Path]) -> None:
    told = json.loads((kits / SITE / "startup" / "release.json").read_text())
    assert told["wheel"] is None
    found = {one.check: one for one in check_kit(kits / SITE, wheel=wheel())}
    assert (found["release"].level, found["wheel"].level) == (Level.WARN, Level.FAIL)
    assert "names no wheel" in found["release"].found


def test_provisioning_says_that_no_wheel_was_given(
    tmp_path: Path, build: Callable[[Path, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "kits", PROJECT)
    assert f"no wheel was given: the kits name version {HERE} and no SHA-256" in capsys.readouterr().out
