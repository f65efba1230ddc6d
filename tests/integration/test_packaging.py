"""The wheel alone, in an environment that holds only what it depends on, runs a one-round study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def call(command: list[str], **kwargs: object) -> str:
    done = subprocess.run(command, text=True, capture_output=True, timeout=500, check=False, **kwargs)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return str(done.stdout)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    # a copy: building in the tree leaves a build folder whose stale modules the next wheel would carry
    kept_out = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__", "runs", "simulator_workspace*"
    )
    shutil.copytree(ROOT, source, ignore=kept_out)
    call([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)])
    wheel = next(folder.glob("*.whl"))
    venv.create(folder / "env", with_pip=True)
    interpreter = folder / "env" / "bin" / "python"
    packages = call([str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    # the dependencies of the environment that runs this test; its editable install of the source tree is not seen,
    # because .pth files there are not read again
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call([str(interpreter), "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel)])
    return interpreter


def test_the_package_is_the_wheels_own(python: Path, tmp_path: Path) -> None:
    where = call([str(python), "-c", "import fedmedseg; print(fedmedseg.__file__)"], cwd=tmp_path).strip()
    assert str(python.parents[1]) in where


def test_the_command_tells_its_version(python: Path, tmp_path: Path) -> None:
    command = str(python.parent / "fedmedseg")
    assert call([command, "--version"], cwd=tmp_path).strip() == "0.1.0"


def test_the_wheel_knows_the_versions_it_was_tested_with(python: Path, tmp_path: Path) -> None:
    code = "from fedmedseg.preflight.run import tested; print(tested()['nvflare'])"
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("nvflare==")]
    assert call([str(python), "-c", code], cwd=tmp_path).split() == [pinned[0].partition("==")[2]]


def test_the_wheel_brings_the_files_that_kits_are_made_from(python: Path) -> None:
    code = "import fedmedseg, pathlib; print(pathlib.Path(fedmedseg.__file__).parent / 'bundle' / 'provisioning')"
    bundled = Path(call([str(python), "-c", code]).strip())
    for file in (ROOT / "provisioning").rglob("*.yml"):
        assert (bundled / file.relative_to(ROOT / "provisioning")).read_bytes() == file.read_bytes()


def test_a_one_round_study_runs_from_the_wheel(python: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), "-m", "fedmedseg", "simulate", "fedata", "-w", str(tmp_path / "w"), "-n", "2", "-t", "2"]
    for change in (
        "stages.pretraining.rounds=1",
        "fedata.local_steps=2",
        "fedata.starts=[personal]",
        "segmentation.steps=2",
        "data.phantom={family: cine_mr, unlabeled: 1, training: 1, validation: 1, test: 1}",
    ):
        command += ["--set", change]
    out = call(command, cwd=tmp_path, env=environment)
    record = json.loads((tmp_path / "w" / "server" / "simulate_job" / "report" / "run.json").read_text())
    assert record["outcome"] == "finished"
    assert "report.html" in out
