"""`fedmedseg preflight` as a hospital types it: table, JSON, exit status, and names at the terminal alone."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import pytest
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core import machine_checks
from fedmedseg.preflight import run as subject

runner = CliRunner()


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    # a container may have no time service; that is a WARN and true
    monkeypatch.setattr(machine_checks, "kernel_clock", lambda: True)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small synthetic hospital, as `fedmedseg data phantoms` writes it."""
    out = tmp_path_factory.mktemp("phantoms") / "hospitals"
    counts = ["--training", "2", "--validation", "1", "--test", "1", "--unlabeled", "1"]
    call = ["data", "phantoms", "cine_mr", "--out", str(out), "--sites", "1", "--size", "64,64,5", *counts]
    assert runner.invoke(app, call).exit_code == 0
    return out


@pytest.fixture
def hospital(phantoms: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage; the site file."""
    import shutil

    shutil.copytree(phantoms, tmp_path / "hospitals")
    return tmp_path / "hospitals" / "sites" / "site-1.yaml"


def call(*arguments: object, code: int) -> str:
    """Output of one call with both streams, in one line."""
    result = runner.invoke(app, ["preflight", *map(str, arguments)], env={"COLUMNS": "240"})
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.output.split())


def report(*arguments: object, code: int) -> dict[str, Any]:
    result = runner.invoke(app, ["preflight", *map(str, arguments), "--json"])
    assert result.exit_code == code, (result.output, result.exception)
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def levels(content: dict[str, Any]) -> dict[str, str]:
    return {one["check"]: one["level"] for one in content["findings"]}


def test_a_sound_site_passes_with_code_0(hospital: Path) -> None:
    content = report(hospital, "--experiment", "fedata", code=0)
    assert content["result"] == "PASS"
    assert set(levels(content).values()) == {"PASS"}
    assert {"python", "packages", "clock", "gpu", "memory", "shared memory", "disk", "data cmr: duplicates"} <= set(
        levels(content)
    )
    text = call(hospital, "--experiment", "fedata", code=0)
    assert "0 WARN, 0 FAIL" in text
    assert "M parameters" in text


def test_a_damaged_volume_is_a_warning_with_code_1_told_by_key(hospital: Path) -> None:
    folder = hospital.parents[1] / "site-1"
    listed = json.loads((folder / "datalist.json").read_text())["training"]
    victim = folder / listed[0]["image"]
    victim.write_bytes(victim.read_bytes()[:-300])
    content = report(hospital, "--experiment", "fedata", code=1)
    found = next(one for one in content["findings"] if one["check"] == "data cmr: readable")
    assert (found["level"], len(found["cases"])) == ("WARN", 1)
    text = call(hospital, "--experiment", "fedata", code=1)
    for told in (text, json.dumps(content)):
        assert victim.name not in told
        assert listed[0]["patient"] not in told
    assert len(found["cases"][0]) == 12


def test_a_leak_between_splits_fails_with_code_2(hospital: Path) -> None:
    file = hospital.parents[1] / "site-1" / "datalist.json"
    listed = json.loads(file.read_text())
    image = nib.load(file.parent / listed["training"][0]["image"])
    nib.save(image, file.parent / "copied.nii.gz")
    listed["test"].append({**listed["training"][0], "image": "copied.nii.gz", "patient": "somebody else"})
    file.write_text(json.dumps(listed))
    content = report(hospital, "--experiment", "fedata", code=2)
    assert levels(content)["data cmr: duplicates"] == "FAIL"
    assert report(hospital, "--no-data", code=0)["result"] == "PASS"
    assert not any(check.startswith("data") for check in levels(report(hospital, "--no-data", code=0)))


def test_names_are_shown_at_a_terminal_and_nowhere_else(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hospital.parents[1] / "site-1"
    listed = json.loads((folder / "datalist.json").read_text())["training"]
    victim = folder / listed[0]["image"]
    victim.write_bytes(b"nothing")
    assert "--names: got output that goes to a file" in call(hospital, "--names", code=2)
    assert "--names: got JSON" in call(hospital, "--names", "--json", code=2)
    from fedmedseg.cli import preflight as command

    monkeypatch.setattr(command, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    assert victim.name in call(hospital, "--names", "--experiment", "fedata", code=1)


def test_keys_are_those_of_the_sites_own_logs(hospital: Path) -> None:
    from fedmedseg.data.datalist import case_key

    folder = hospital.parents[1] / "site-1"
    image = json.loads((folder / "datalist.json").read_text())["training"][0]["image"]
    (folder / image).write_bytes(b"nothing")
    hospital.write_text(hospital.read_text() + "\nsalt: pepper and salt\n")
    content = report(hospital, "--experiment", "fedata", code=1)
    assert [case_key("pepper and salt", image)] in [one["cases"] for one in content["findings"]]


def test_memory_and_cache_are_estimated_for_a_study_only(hospital: Path) -> None:
    assert "memory" not in levels(report(hospital, "--no-data", code=0))
    assert "add --experiment" in call(hospital, "--no-data", code=0)
    content = report(hospital, "--no-data", "--experiment", "fedata", code=0)
    assert levels(content)["memory"] == "PASS"


def test_a_study_too_large_for_the_machine_fails(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "machine_memory", lambda: (2**29, 2**30))
    content = report(hospital, "--no-data", "--experiment", "fedata", code=2)
    assert levels(content)["memory"] == "FAIL"


def test_a_role_the_site_does_not_offer_fails(hospital: Path) -> None:
    hospital.write_text(hospital.read_text().replace("cmr:", "brain:"))
    content = report(hospital, "--experiment", "fedata", code=2)
    assert levels(content)["data cmr: list"] == "FAIL"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("no/such/place",), "a startup kit"),
        ((".", "--experiment", "fedatta"), "write 'fedata'"),
        (("{folder}",), "name the folder that holds startup and local"),
    ],
)
def test_what_cannot_be_checked_is_an_error_with_its_remedy(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    assert told in call(*(one.format(folder=tmp_path) for one in arguments), code=2)


def test_a_wrong_site_file_is_a_finding_among_the_others(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("datasetz: {}\n")
    content = report(file, code=2)
    assert levels(content)["site file"] == "FAIL"
    assert levels(content)["python"] == "PASS"


@pytest.fixture
def kit(hospital: Path, tmp_path: Path) -> Path:
    """A kit of our own provisioning's form, with the phantom hospital's site file."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "preflight"))
    from kits import Federation

    now = datetime.now(UTC)
    dates = {"start": now - timedelta(days=1), "end": now + timedelta(days=90)}
    federation = Federation(tmp_path / "kits")
    made: Path = federation.kit(**dates, root=federation.root(**dates), target="127.0.0.1:9")
    text = hospital.read_text().replace("../", f"{hospital.parents[1]}/")
    (made / "local" / "fedmedseg.yaml").write_text(text)
    return made


def test_a_kit_is_checked_with_its_policy_its_server_and_its_data(kit: Path) -> None:
    content = report(kit, "--experiment", "fedata", code=2)
    found = levels(content)
    for check in ("certificate", "certificate dates", "private key", "class allow-list", "privacy", "site file"):
        assert found[check] == "PASS", check
    assert found["data cmr: labels"] == "PASS"
    assert found["what may leave"] == "FAIL"
    refused = next(one for one in content["findings"] if one["check"] == "server port")
    assert (refused["level"], refused["found"]) == ("FAIL", "127.0.0.1:9: refused")
    file = kit / "local" / "fedmedseg.yaml"
    file.write_text(file.read_text() + "\nprivacy: {min_count: 3, clip_norm: 2.5}\n")
    again = report(kit, "--no-data", code=2)
    leaving = next(one for one in again["findings"] if one["check"] == "what may leave")
    found = "counts from 3, differences clipped to norm 2.5, no noise, features of slices stay"
    assert (leaving["level"], leaving["found"]) == ("PASS", found)
    # named by its site file, the kit around it is found
    assert levels(report(kit / "local" / "fedmedseg.yaml", "--no-data", code=2))["certificate"] == "PASS"
    (kit / "local" / "privacy.json").unlink()
    assert levels(report(kit, "--no-data", code=2))["privacy"] == "FAIL"
    (kit / "local" / "fedmedseg.yaml").unlink()
    again = report(kit, code=2)
    assert [one["check"] for one in again["findings"]].count("site file") == 1
