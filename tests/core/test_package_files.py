"""Installed files against their record: every change and every added module is found."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, PathDistribution
from pathlib import Path

import pytest

import fedmedseg
from fedmedseg.core import package_files as module
from fedmedseg.core.findings import Level
from fedmedseg.core.package_files import package_files
from fedmedseg.core.release import Installed

FILES = {
    "fedmedseg/__init__.py": "one",
    "fedmedseg/core/wire.py": "two",
    "fedmedseg/bundle/constraints.txt": "three",
    "../../../bin/fedmedseg": "four",
}


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installation by pip."""
    folder = tmp_path / "lib" / "python" / "site-packages"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "fedmedseg" / "__pycache__").mkdir()
    (folder / "fedmedseg" / "__pycache__" / "x.cpython-311.pyc").write_text("")
    lines = [f"{name},sha256={digest(text)},{len(text)}" for name, text in FILES.items()]
    info = folder / "fedmedseg-0.1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("\n".join([*lines, "fedmedseg-0.1.0.dist-info/RECORD,,"]))
    monkeypatch.setattr(module, "distribution", lambda name: PathDistribution(info))
    monkeypatch.setattr(module, "installed", lambda: Installed(version="0.1.0"))
    monkeypatch.setattr(fedmedseg, "__file__", str(folder / "fedmedseg" / "__init__.py"))
    return folder


def test_files_left_alone_pass(packages: Path) -> None:
    found = package_files()
    assert (found.check, found.level, found.found) == (
        "package files", Level.PASS, "4 as in the installer's record",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda at: (at / "fedmedseg/core/wire.py").write_text("2"), "1 of 4 not as in the installer's record (fedm"),
        (lambda at: (at / "fedmedseg/core/wire.py").unlink(), "fedmedseg/core/wire.py"),
        (lambda at: (at / "fedmedseg/bundle/constraints.txt").write_text(""), "fedmedseg/bundle/constraints.txt"),
        (lambda at: (at / "../../../bin/fedmedseg").write_text(""), "(bin/fedmedseg)"),
        (lambda at: (at / "fedmedseg/plan.py").write_text(""), "1 file(s) of code that nobody recorded"),
        (lambda at: (at / "fedmedseg/core/wire.so").write_text(""), "fedmedseg/core/wire.so"),
        (lambda at: (at / "fedmedseg/core/wire.pyc").write_text(""), "fedmedseg/core/wire.pyc"),
    ],
)
def test_every_change_and_every_added_module_is_found(
    packages: Path, spoil: Callable[[Path], object], word: str
) -> None:
    spoil(packages)
    found = package_files()
    assert found.level is Level.FAIL
    assert word in found.found
    assert str(packages) not in found.found


def test_few_of_many_names_are_told(packages: Path) -> None:
    for number in range(9):
        (packages / "fedmedseg" / f"added{number}.py").write_text("")
    assert package_files().found.count("added") == 5


def test_a_rewritten_record_is_found_with_the_wheels_own(packages: Path) -> None:
    (packages / "fedmedseg/core/wire.py").write_text("evil")
    record = packages / "fedmedseg-0.1.0.dist-info" / "RECORD"
    record.write_text(record.read_text().replace(digest("two"), digest("evil")))
    assert package_files().level is Level.PASS
    wheel = {name: digest(text) for name, text in FILES.items() if name.startswith("fedmedseg")}
    found = package_files(wheel, of="the wheel")
    assert found.level is Level.FAIL
    assert "1 of 3 not as in the wheel" in found.found


def test_code_from_elsewhere_is_not_the_installed_package(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedmedseg, "__file__", str(packages.parent / "fedmedseg" / "__init__.py"))
    found = package_files()
    assert found.level is Level.FAIL
    assert "PYTHONPATH" in found.mend


def test_what_cannot_be_compared_is_a_warning(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = packages / "fedmedseg-0.1.0.dist-info" / "RECORD"
    record.write_text("fedmedseg/__init__.py,,\n")
    assert package_files().level is Level.WARN
    record.unlink()
    assert "noted no digests" in package_files().found
    monkeypatch.setattr(module, "installed", lambda: Installed(version="0.1.0", editable=True))
    assert "editable" in package_files().found

    def missing(name: str) -> PathDistribution:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", missing)
    assert package_files().level is Level.WARN
