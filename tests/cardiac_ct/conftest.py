"""Sites of a few phantoms, each annotating what the test says, under networks of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marked_scans import CALCIFIED, CNN, SEPTUM, SHAPE
from small_cardiac_ct import ANYTHING, SMALL

from fedmedseg.cardiac_ct import lessons as lessons_module
from fedmedseg.cardiac_ct.learner import KnowledgeDistillationLearner
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.cardiac_ct.pseudo_labels import ScanLabels, save_index, save_labels
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import CONFIG, find_job, merged, read_settings, write_job
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.start_file import START_FILE, save_start
from fedmedseg.core.state import SiteState
from fedmedseg.data.site import Site
from fedmedseg.data.spheres import draw_spheres

LABELS = {"calc": CALCIFIED, "ms": SEPTUM, "coronaries": CALCIFIED}
"""What somebody drew on the scans of ``run``."""
TINY: dict[str, Any] = merged(
    SMALL,
    {
        "study": "tiny",
        "data": {"crop": [64, 32, 32]},
        "cardiac_ct": {"head_steps": 1, "transfer": {"steps": 1, "cnn": "hps"}},
        "stages": {"teacher_hps": {"rounds": 1}, "teacher_ms": {"rounds": 1}, "teacher_calc": {"rounds": 1}},
    },
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study(cardiac_ct={...}): the tiny study with changes."""
    return lambda **changes: read_settings(find_job("cardiac_ct"), [TINY, changes])[1]


@pytest.fixture
def federate(tmp_path: Path) -> Callable[..., InProcessFederation]:
    """federate(name="a", sites=2, cardiac_ct={...}): the tiny study's federation over phantom sites.

    ``start`` are tensors of an earlier run; the sites are new ones unless their ``workspace`` was used before.
    """

    def make(
        *,
        name: str = "a",
        sites: int = 2,
        start: Mapping[str, torch.Tensor] | None = None,
        workspace: Path | None = None,
        **changes: Any,
    ) -> InProcessFederation:
        begun = {} if start is None else {"cardiac_ct": {"start": content_sha256(start)}}
        settings, _ = read_settings(find_job("cardiac_ct"), [TINY, changes, begun])
        home = tmp_path / name
        job = write_job(find_job("cardiac_ct"), settings, home / "job")
        if start is not None:
            save_start(job / CONFIG / START_FILE, start)
        names = [f"site-{number + 1}" for number in range(sites)]
        return InProcessFederation(job=job, workspace=workspace or home / "w", sites=names, run="run")

    return make


@dataclass
class Case:
    """What lessons ask of a case."""

    key: str
    patient: str
    heart: object = None


@dataclass
class Scans:
    """Scans of ``shape``, each filled with its own number.

    ``drawn`` says which have a real label of which task: a mask, or points (K, 3) in voxels.
    """

    experiment: Any
    count: int = 3
    shape: tuple[int, int, int] = (8, 8, 8)
    drawn: Mapping[str, Mapping[int, np.ndarray]] = field(default_factory=dict)
    hearts: Mapping[int, np.ndarray] = field(default_factory=dict)
    section: str = "scans"
    quarantined: Mapping[str, str] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.full((2, 3), 4.0))
    """Where every scan that annotates points has them."""

    @property
    def cases(self) -> list[Case]:
        return [Case(f"key{index}", f"patient{index}", self.hearts.get(index)) for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        return np.full((1, *self.shape), float(index), np.float32)

    def heart(self, index: int) -> np.ndarray | None:
        return self.hearts.get(index)

    def to_voxel(self, index: int, points: np.ndarray) -> np.ndarray:
        return points

    def to_world(self, index: int, voxels: np.ndarray) -> np.ndarray:
        return voxels

    def spacing(self, index: int) -> tuple[float, float, float]:
        return 1.0, 1.0, 1.0


class Marked:
    """Those of ``volumes`` that somebody marked."""

    def __init__(self, *, volumes: Scans, task: str, radius: float) -> None:
        self.volumes, self.task, self.radius = volumes, task, radius
        self.indices: Sequence[int] = sorted(volumes.drawn.get(task, {}))
        if not self.indices:
            raise DataError("section", got=f"none of {task}", reason=Reason.NO_CASES)
        self.cases = [volumes.cases[index] for index in self.indices]
        self.patients = [case.patient for case in self.cases]

    def label(self, place: int) -> np.ndarray:
        drawn = self.volumes.drawn[self.task][self.indices[place]]
        return draw_spheres(drawn, self.volumes.shape, radius=self.radius) if drawn.ndim == 2 else drawn

    def truth(self, place: int) -> np.ndarray:
        return self.volumes.points


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> type[Scans]:
    """Scans of a few voxels, which lessons then read in place of files."""
    monkeypatch.setattr(lessons_module, "TaskVolumes", Marked)
    return Scans


@pytest.fixture
def new_site(tmp_path: Path) -> Callable[[str], Site]:
    """new_site("a"): a site whose files all lie in a new folder of that name."""

    def make(name: str) -> Site:
        folder = tmp_path / name
        folder.mkdir()
        return Site(
            name="site-1", state_root=folder, cache=folder, models=folder, device="cpu", datasets={}, salt="salt",
            simulated=True,
        )  # fmt: skip

    return make


@pytest.fixture
def run(
    study: Callable[..., Experiment], in_memory: type[Scans], new_site: Callable[[str], Site]
) -> Callable[..., Reply]:
    """run("teacher_calc", cardiac_ct={...}): a stage's reply at one site of two scans that have points and a mask.

    ``marked`` are the scans that have them: for distillation none, and ``answers`` are what the CNNs are taken to have
    said of each. ``hearts`` are maps of the heart's structures by scan, ``number`` is the round.
    """

    class Noise(in_memory):  # type: ignore[misc,valid-type]
        def image(self, index: int) -> np.ndarray:
            drawn = np.random.default_rng(index).normal(size=(1, *self.shape)).astype(np.float32)
            return np.asarray(drawn + 3.0 * CALCIFIED, np.float32)

    made: list[SiteState] = []

    def make(
        stage: str,
        *,
        cardiac_ct: Mapping[str, Any],
        marked: Sequence[int] | None = None,
        hearts: Mapping[int, np.ndarray] | None = None,
        answers: ScanLabels | None = None,
        number: int = 0,
        **changes: Any,
    ) -> Reply:
        experiment = study(cardiac_ct=merged({"teacher": CNN, "radius": 2.0, "gate": ANYTHING}, cardiac_ct), **changes)
        if marked is None:
            marked = () if stage == "distillation" else (0, 1)
        drawn = {task: dict.fromkeys(marked, label) for task, label in LABELS.items()}
        scans = Noise(experiment=experiment, count=2, shape=SHAPE, drawn=drawn, hearts=hearts or {}, points=SEPTUM)
        site = new_site(str(len(made)))
        learner = KnowledgeDistillationLearner(experiment=experiment, site=site)
        learner.__dict__ |= {"training": scans, "scans": scans}
        folder = site.state_root
        state = SiteState(folder, study="s", experiment="e" * 64, site="site-1", run="r")
        made.append(state)
        if answers is not None:
            for key in ("key0", "key1"):
                save_labels(state, key, answers, teachers="t")
            save_index(state, {key: set(answers.kept) for key in ("key0", "key1")}, teachers="t")
        shared = initial_shared(experiment)
        task = Task(
            site="site-1",
            stage=stage,
            round=number,
            rounds=experiment.stages[stage].rounds,
            seed=1,
            base=content_sha256(shared),
            state=state,
            progress=Progress(site="site-1", stage=stage, round=number, rounds=1, file=folder / "progress.jsonl"),
        )
        return learner.run(task, shared)

    make.states = made  # type: ignore[attr-defined]
    return make
