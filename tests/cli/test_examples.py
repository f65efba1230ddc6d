"""Every example of every command's help runs as it stands; of those that need a federation, a test is named."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from small_cardiac_ct import SMALL
from tiny_study import moved, tiny
from typed import call, commands, words_of

from fedmedseg.cardiac_ct.foundation import save_foundation
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.core import checkpoint
from fedmedseg.core.approval import require_approval
from fedmedseg.core.audit import FOLDER, Outcome, Trail
from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.jobs import find_job, merged, read_settings
from fedmedseg.core.wire import Schema
from fedmedseg.core.wishes import make_wish
from fedmedseg.data.site import write_phantoms
from fedmedseg.networks.factory import build_segmentation
from fedmedseg.segmentation.models import save_model
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.network import private_tensors
from fedmedseg.segviz.organs import own_study
from fedmedseg.segviz.publication import blank, laid_out, save_published

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    (" ".join(path), line.strip())
    for path, command in commands()
    for line in (command.epilog or "").splitlines()
    if line.startswith("  ")
]
RUN_BY = {
    "simulate": "integration/test_fedavg.py::test_the_simulator_ends_with_the_bytes_of_one_process",
    "compare": "cli/test_compare.py::test_the_smallest_study_runs_and_is_kept",
    "federation": "integration/test_federation_command.py::test_a_study_runs_from_kits_to_report",
    "monitor": "integration/test_submission.py::test_a_running_job_is_followed_to_its_end",
    "resume": "integration/test_process_faults.py::test_a_killed_server_job_is_resumed_and_ends_with_the_same_model",
}
"""Commands that need FLARE's processes, or minutes, and the test that types each."""
TINY = tiny("left ventricle", "wall")
SMALL_PHANTOMS = (
    "--sites", "1", "--size", "48,48,4", "--training", "2", "--validation", "1", "--test", "1", "--unlabeled", "0",
)  # fmt: skip
"""What is added to the one example that takes half a minute otherwise."""
EARLIER = datetime.now(UTC) - timedelta(days=1)


def image(path: Path, *, shape: tuple[int, int, int] = (20, 18, 2), seed: int = 0, voxel: float = 1.5) -> None:
    """A volume of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(50.0, 30.0, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([-voxel, voxel, voxel, 1.0])), path)


def shared(path: Path, experiment: Experiment, tensors: dict[str, torch.Tensor]) -> None:
    """A run's shared model, as its server leaves it."""
    content = {
        "format": 1, "system": experiment.system, "study": experiment.study, "experiment": experiment.digest,
        "settings": experiment.model_dump(mode="json", exclude={"resume"}), "run": "r1", "tensors": tensors,
    }  # fmt: skip
    checkpoint.save(path, content)


def record(study: str) -> str:
    answer = {"accepted": True, "metrics": {"dice/personal/liver": 0.8}, "examples": 3}
    rounds = [{"stage": "evaluation", "round": 0, "sites": {"a": answer}}]
    return json.dumps({"study": study, "system": "fedavg", "outcome": "finished", "sites": ["a"], "rounds": rounds})


def nothing(here: Path) -> None:
    (here / "runs").mkdir()


def decathlon(here: Path) -> None:
    """Twelve labelled volumes as the Decathlon hands them out."""
    listed = []
    for number in range(12):
        name = f"hippocampus_{number:03d}.nii.gz"
        image(here / "downloads" / "hippocampus" / "imagesTr" / name, shape=(8, 7, 6), seed=number, voxel=1.0)
        label = np.zeros((8, 7, 6), np.uint8)
        label[1:3, 2:5, 1:4], label[4:6, 2:5, 1:4] = 1, 2
        file = here / "downloads" / "hippocampus" / "labelsTr" / name
        file.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(label, np.diag([-1.0, 1.0, 1.0, 1.0])), file)
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Hippocampus", "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "modality": {"0": "MR"}, "training": listed, "test": [],
    }  # fmt: skip
    (here / "downloads" / "hippocampus" / "dataset.json").write_text(json.dumps(content))
    (here / "runs").mkdir()


def imported(here: Path) -> None:
    """What the example of `data import` leaves."""
    decathlon(here)
    ((_, line),) = [one for one in EXAMPLES if one[0] == "data import"]
    assert call(*words_of(line))[0] == 0


def models(here: Path) -> None:
    """A network of two structures, at the server and at a site, its run's report, and images to look at."""
    study = read_settings(find_job("fedavg"), [TINY])[1]
    network = initial_network(study)
    moved(network, by=0.4, seed=3)
    shared(here / "models" / "shared.safetensors", study, dict(network.state_dict()))
    save_model(here / "personal.safetensors", network.state_dict(), experiment=study, start="personal", run="r1")
    for number, name in enumerate(("scan", "scans/a", "scans/b", "frames/ED", "frames/ES")):
        image(here / f"{name}.nii.gz", seed=number)
    (here / "phases.csv").write_text("patient,ed,es\nann,ED,ES\n")
    (here / "report").mkdir()
    told = json.loads(record("x")) | {"experiment_sha256": study.digest, "run": "r1", "labels": {"1": "left ventricle"}}
    (here / "report" / "run.json").write_text(json.dumps(told))


def reports(here: Path) -> None:
    for place in ("runs/trial/server/simulate_job/report", "results/report", "earlier/report"):
        (here / place).mkdir(parents=True)
        (here / place / "run.json").write_text(record(place.partition("/")[0]))


def kit(here: Path) -> None:
    """A hospital's kit with its site file, a short audit trail, and a job that waits for its people's word."""
    shutil.copytree(PROVISIONED[0] / "hospital-1", here / "kits" / "hospital-1", symlinks=True)
    made = here / "kits" / "hospital-1"
    assert call("data", "phantoms", "cine_mr", "--out", here / "phantoms", *SMALL_PHANTOMS)[0] == 0
    settings = {
        "datasets": {"cmr": {"list": str(here / "phantoms" / "site-1" / "datalist.json")}},
        "state_dir": str(here / "state"), "approval": "each_job", "device": "cpu",
    }  # fmt: skip
    (made / "local" / "fedmedseg.yaml").write_text(yaml.safe_dump(settings))
    Trail(made / FOLDER, participant="hospital-1").append(action="start", outcome=Outcome.ALLOWED)
    _, experiment = read_settings(find_job("fedata"), [])
    wish = make_wish(
        experiment, contracts=system_module("fedata", "plan").stages(experiment), schema=Schema({}), run="a1b2",
        submitter=None, scope="", components=b"",
    )  # fmt: skip
    with pytest.raises(FedMedSegError):
        require_approval(here / "state", wish, job="j", aborted=lambda: False, patience=0)
    MADE_UP["1f2e3d4c"] = wish.id


def weights(here: Path) -> None:
    """Somebody's weights of the encoder of `fedata`."""
    state = build_segmentation(read_settings(find_job("fedata"), [])[1]).swinViT.state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, here / "weights.pt")


def cardiac_ct(here: Path) -> None:
    """A run of a tiny cardiac CT study, one of its files, and a list whose scans have the heart's structures."""
    settings, study = read_settings(find_job("cardiac_ct"), [merged(SMALL, {"data": {"crop": [64, 32, 32]}})])
    (here / "experiment.yaml").write_text(yaml.safe_dump(settings))
    shared(here / "models" / "shared.safetensors", study, dict(initial_shared(study)))


def tunable(here: Path) -> None:
    cardiac_ct(here)
    study = read_settings(find_job("cardiac_ct"), [merged(SMALL, {"data": {"crop": [64, 32, 32]}})])[1]
    save_foundation(here / "student.safetensors", initial_shared(study), experiment=study, what="student")
    numbers = {"training": 1, "unlabeled": 0, "validation": 0, "test": 1, "sites": 1, "size": [96, 56, 56]}
    section = PhantomSection.model_validate(
        {"family": "cardiac_ct", "annotation": "published", "heart": True, **numbers}
    )
    listed = write_phantoms(section, seed=3, name="site-1", home=here / "site")
    content = json.loads(listed.read_text())
    for entry in (*content["training"], *content["test"]):
        entry.update({name: str(listed.parent / entry[name]) for name in ("image", "heart")})
        for unread in ("label", "annotated_labels", "landmarks"):
            entry.pop(unread, None)
    (here / "datalist.json").write_text(json.dumps(content))


def fused(here: Path) -> None:
    """The shipped study of SegViz: two sites' files, and a run in which both published; scans, one list of them."""
    torch.set_num_threads(1)
    settings, study = read_settings(find_job("segviz"), [{"stages": {"publication": {"rounds": 1}}}])
    shipped = read_settings(find_job("segviz"), [])[1]
    network = initial_network(study)
    places = blank(network, study)
    private = private_tensors(network, study)
    trunk = {
        name: tensor for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and name not in private
    }  # fmt: skip
    shared(here / "run" / "models" / "shared.safetensors", study, trunk)
    (here / "run" / "experiment.yaml").write_text(yaml.safe_dump(settings))
    record = {"settings": study.model_dump(mode="json"), "experiment_sha256": study.digest, "rounds": []}
    (here / "run" / "report").mkdir()
    (here / "run" / "report" / "run.json").write_text(json.dumps(record))
    for name, organs in (("a", (1, 2)), ("b", (3, 4))):
        own = initial_network(own_study(study, organs))
        kept = {n: t for n, t in private_tensors(own, study).items() if t.is_floating_point()}
        save_published(
            here / "run" / "models" / "published" / f"{name}.safetensors", laid_out(kept, organs, places),
            experiment=study,
        )  # fmt: skip
        save_model(
            here / f"{name}.safetensors", own.state_dict(), experiment=own_study(shipped, organs), start="personal"
        )
    entries = []
    for number, name in enumerate(("scan", "scans/a", "scans/b")):
        image(here / f"{name}.nii.gz", shape=(40, 36, 34), seed=number, voxel=6.0)
    for name in ("a", "b"):
        label = np.zeros((40, 36, 34), np.uint8)
        for number in range(1, 5):
            label[8 * number : 8 * number + 5, 5:15, 5:15] = number
        nib.save(nib.Nifti1Image(label, np.diag([-6.0, 6.0, 6.0, 1.0])), here / f"{name}_label.nii.gz")
        entries.append({"image": f"scans/{name}.nii.gz", "label": f"{name}_label.nii.gz", "patient": name})
    (here / "datalist.json").write_text(json.dumps({"training": [], "test": entries}))


PREPARED: dict[str, Callable[[Path], None]] = {
    "init": nothing,
    "job": nothing,
    "report": reports,
    "predict": models,
    "export": models,
    "preflight": kit,
    "site-policy": kit,
    "audit": kit,
    "approval": kit,
    "data import": decathlon,
    "data check": imported,
    "data folds": imported,
    "data phantoms": nothing,
    "encoder import": weights,
    "encoder report": weights,
    "foundation export": cardiac_ct,
    "foundation tune": tunable,
    "fuse predict": fused,
    "fuse score": fused,
}
"""Commands whose examples run here, and what each finds in the folder it is typed in."""
WRITES: dict[str, tuple[str, ...]] = {
    "init": ("heart/project.yml",),
    "report": ("report.html",),
    "predict": ("volumes.csv", "scan_labels.nii.gz"),
    "export": ("README.md",),
    "data import": ("runs/hippocampus/sites/site-4.yaml",),
    "data folds": ("runs/folds",),
    "data phantoms": ("runs/phantoms/sites/site-1.yaml",),
    "encoder import": ("encoder.safetensors",),
    "foundation export": ("student.safetensors",),
    "foundation tune": ("heart.safetensors",),
    "fuse predict": ("volumes.csv", "labels.nii.gz"),
    "fuse score": ("scores.json",),
}
"""One of these is new after each example."""
ENDS = {"preflight": (2, "server.example.org"), "site-policy": (1, "wheel")}
"""Codes other than 0, and what for: the example's server is nowhere, a failure; the kit names no wheel, a warning."""
LONG = {"foundation tune"}
"""200 steps."""
MADE_UP: dict[str, str] = {}
"""Numbers in the examples that only a run can give -> those of the folder made here."""
PROVISIONED: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _provisioned(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.provisioning.conftest import PROJECT, build

    PROVISIONED[:] = [build(tmp_path_factory.mktemp("provisioned") / "kits", PROJECT.read_text())]


def test_every_command_is_run_here_or_by_a_test_that_is_named() -> None:
    assert not set(PREPARED) & set(RUN_BY)
    assert set(PREPARED) | set(RUN_BY) == {" ".join(path) for path, _ in commands()} == {name for name, _ in EXAMPLES}


@pytest.mark.parametrize("name", RUN_BY)
def test_a_command_that_is_run_elsewhere_is_typed_there(name: str) -> None:
    """In the file of the named test, or in a module of the tests' own that it imports."""
    place, _, test = RUN_BY[name].partition("::")
    text = (ROOT / "tests" / place).read_text(encoding="utf-8")
    nodes = ast.parse(text).body
    assert test in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    imported = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    support = [ROOT / "tests/integration/support" / f"{module}.py" for module in imported]
    typed = text + "".join(file.read_text(encoding="utf-8") for file in support if file.is_file())
    assert f'"{name}"' in typed


@pytest.mark.parametrize(
    ("name", "line"),
    [
        pytest.param(name, line, id=line, marks=[pytest.mark.slow] if name in LONG else [])
        for name, line in EXAMPLES
        if name in PREPARED
    ],
)
def test_an_example_runs_as_it_stands(name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    PREPARED[name](tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for told, real in MADE_UP.items():
        line = line.replace(told, real)
    code, said = call(*words_of(line), *(SMALL_PHANTOMS if name == "data phantoms" else ()))
    expected, why = ENDS.get(name, (0, ""))
    assert code == expected, (line, said)
    assert why in said
    new = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} - {
        path.relative_to(tmp_path).as_posix() for path in before
    }
    if name in WRITES:
        assert any(one in made for one in WRITES[name] for made in new), (line, sorted(new), said)
