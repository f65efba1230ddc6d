"""What a kit says of the package, and how what is installed compares with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import fedmedseg
from fedmedseg.core import release as module
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.core.kit import Kit
from fedmedseg.core.release import Installed, installed, package, read_release, release
from fedmedseg.core.versions import own_versions

WHEEL = {"name": "fedmedseg-0.1.0-py3-none-any.whl", "sha256": "a" * 64}
OTHERS = {name: version for name, version in own_versions().items() if name != "fedmedseg"}
HERE = fedmedseg.__version__


@pytest.fixture
def kit(tmp_path: Path) -> Callable[..., Kit]:
    """kit(wheel=...): a kit that says so; kit(text=...): one that says that instead."""

    def make(*, text: str | None = None, **change: Any) -> Kit:
        (tmp_path / "startup").mkdir(exist_ok=True)
        content = {"format": 1, "version": HERE, "wheel": WHEEL, "versions": OTHERS, **change}
        (tmp_path / "startup" / "release.json").write_text(json.dumps(content) if text is None else text)
        empty = dict.fromkeys(("name", "server", "host", "scheme", "security"), "")
        folders = dict.fromkeys(("certificate", "key", "authority"), tmp_path)
        return Kit(root=tmp_path, role="client", port=1, **empty, **folders)

    return make


@pytest.mark.parametrize(
    ("here", "level", "word"),
    [
        (Installed(version=HERE, archive_sha256="a" * 64), Level.PASS, "the very wheel"),
        (Installed(version=HERE, archive_sha256="b" * 64), Level.FAIL, "SHA-256 bbbbbbbbbbbbbbbb..., not aaaa"),
        (Installed(version=HERE), Level.WARN, "did not note"),
        (Installed(version=HERE, editable=True), Level.FAIL, "editable"),
        (Installed(version="0.0.9", archive_sha256="a" * 64), Level.FAIL, f"fedmedseg 0.0.9 (kit {HERE})"),
    ],
)
def test_the_installation_is_compared_with_the_wheel_of_the_kit(
    kit: Callable[..., Kit], here: Installed, level: Level, word: str
) -> None:
    found = package(kit(), here=here)
    assert (found.check, found.level) == ("package", level)
    assert word in found.found
    assert bool(found.mend) is (level is not Level.PASS)


@pytest.mark.parametrize("here", [Installed(version=HERE, editable=True), Installed(version=HERE)])
def test_without_a_wheel_the_version_alone_counts_and_that_is_a_warning(
    kit: Callable[..., Kit], here: Installed
) -> None:
    found = package(kit(wheel=None), here=here)
    assert found.level is Level.WARN
    assert "names no wheel" in found.found
    assert "wheel: in project.yml" in found.mend
    assert package(kit(wheel=None), here=Installed(version="0.0.9")).level is Level.FAIL


@pytest.mark.parametrize(("name", "version"), [("nvflare", "2.8.0"), ("torch", "1.13.0"), ("monai", "1.2.0")])
def test_a_kit_of_other_versions_of_other_packages_is_not_for_this_installation(
    kit: Callable[..., Kit], name: str, version: str
) -> None:
    found = package(kit(versions={**OTHERS, name: version}), here=Installed(version=HERE, archive_sha256="a" * 64))
    assert found.level is Level.FAIL
    assert f"{name} {OTHERS[name]} (kit {version})" in found.found


def test_the_check_of_the_kit_alone_tells_what_it_is_for(kit: Callable[..., Kit]) -> None:
    named, unnamed = release(kit()), release(kit(wheel=None))
    assert "SHA-256 aaaaaaaaaaaaaaaa..." in named.found
    assert "names no wheel" in unnamed.found
    assert (named.level, unnamed.level) == (Level.PASS, Level.WARN)
    assert "wheel: in project.yml" in unnamed.mend


@pytest.mark.parametrize(
    "change",
    [
        {"text": "{"},
        {"text": "[]"},
        {"format": 2},
        {"wheel": {"name": "x.whl"}},
        {"wheel": {**WHEEL, "sha256": "A" * 64}},
        {"wheel": {**WHEEL, "name": "../x.whl"}},
        {"spare": 1},
    ],
)
def test_a_damaged_statement_is_refused_with_its_name(kit: Callable[..., Kit], change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"release\.json.*network administrator"):
        read_release(kit(**change))


def test_a_kit_without_a_statement_is_refused(kit: Callable[..., Kit]) -> None:
    whole = kit()
    (whole.startup / "release.json").unlink()
    with pytest.raises(ConfigurationError, match=r"startup/release\.json: got no such file"):
        read_release(whole)


@pytest.mark.parametrize(
    ("noted", "editable", "digest"),
    [
        (None, False, None),
        ("{", False, None),
        ("[]", False, None),
        ('{"dir_info": {"editable": true}}', True, None),
        ('{"dir_info": {}}', False, None),
        (json.dumps({"archive_info": {"hashes": {"sha256": "c" * 64}}}), False, "c" * 64),
        (json.dumps({"archive_info": {"hash": f"sha256={'d' * 64}"}}), False, "d" * 64),
        (json.dumps({"archive_info": {"hash": f"md5={'d' * 32}"}}), False, None),
        ('{"archive_info": {"hashes": {"sha256": "short"}}}', False, None),
        ('{"archive_info": {}}', False, None),
    ],
)
def test_what_the_installer_noted_is_read(
    monkeypatch: pytest.MonkeyPatch, noted: str | None, editable: bool, digest: str | None
) -> None:
    monkeypatch.setattr(module, "distribution", lambda name: MagicMock(read_text=lambda file: noted))
    assert installed() == Installed(version=HERE, editable=editable, archive_sha256=digest)


def test_the_package_brings_the_versions_it_was_tested_with() -> None:
    assert module.tested()["nvflare"] == OTHERS["nvflare"]
