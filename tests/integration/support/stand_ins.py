"""Executors that stand in for a system's own: one that trains nothing, and one that fails as it is told to.

`FEDMEDSEG_FAULT`, or the file that `FEDMEDSEG_FAULT_FILE` names, holds JSON: a list of {"site": ..., "round": ...,
"kind": ...}; site null strikes everywhere. {"site": null, "round": null, "kind": "remember"}, last in the list, makes
every step depend on what the site has remembered of all rounds before. {"site": ..., "round": "clock", "kind": 3600}
sets the clock of a site's job ahead by so many seconds. {"site": null, "round": null, "kind": "work 40"} keeps a core
busy with so many training steps, for the benchmarks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fedmedseg.core import kit_checks
from fedmedseg.core.allowed_classes import list_problems
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner, Reply, Task
from fedmedseg.core.place import Place
from fedmedseg.core.wire import Header

SUPPORT = {"stand_ins.", "listening.", "malice.", "overhearing.", "receiving."}


def _problems_but_for_tests(resources: Mapping[str, Any]) -> list[str]:
    """What the package finds in a kit's policy, apart from the modules of these tests."""
    listed = resources.get("class_allow_list")
    own = [entry for entry in listed if entry not in SUPPORT] if isinstance(listed, list) else listed
    return list_problems({**resources, "class_allow_list": own})


def _kind(site: str | None, round: object) -> str | None:
    """What is to go wrong at this site in this round."""
    file = os.environ.get("FEDMEDSEG_FAULT_FILE")
    for fault in json.loads(Path(file).read_text() if file else os.environ.get("FEDMEDSEG_FAULT", "[]")):
        if fault["site"] in (site, None) and fault["round"] in (round, None):
            return str(fault["kind"])
    return None


class StandInLearner:
    """Adds a step that differs by site and round to every shared tensor; knows no data."""

    def __init__(self, *, home: Path, site: str) -> None:
        self.home, self.site = home, site

    @property
    def needs_approval(self) -> bool:
        return _kind(self.site, None) == "ask"

    @property
    def state_root(self) -> Path:
        return self.home / "state"

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        kind = _kind(task.site, task.round) if task.stage == "pretraining" else None
        if kind == "raise once":
            seen = self.home / "raised"
            if not seen.exists():
                seen.parent.mkdir(parents=True, exist_ok=True)
                seen.touch()
                kind = "raise"
        if kind == "raise":
            raise RuntimeError("patient-of-site-1 lies in /secret/path")
        if kind == "diverge":
            raise FedMedSegError("loss", reason=Reason.LOCAL_DIVERGED)
        if kind == "decline":
            raise FedMedSegError("unlabeled", reason=Reason.NO_CASES)
        if kind == "hang":
            while not task.aborted():
                time.sleep(0.05)
        if kind == "die":
            os._exit(3)
        if kind == "hold":
            _hold(task)
        if kind and kind.startswith("work "):
            busy_work(int(kind.removeprefix("work ")))
        if task.stage == "pretraining":
            # no two sites take the same step, so leaving one out shows in the aggregate
            step = 0.0 if kind == "unchanged" else 0.5**task.round * int(task.site.rpartition("-")[2])
            if _kind(None, None) == "remember":
                step *= _remembered(task)
            tensors = {name: tensor + step for name, tensor in shared.items()}
            return Reply(tensors=tensors, metrics={"loss": 1.0 / (task.round + 1)}, examples=4, steps=1)
        if task.stage == "evaluation":
            return Reply(metrics={"dice/personal/left ventricle": 0.5, "cases": 2.0}, examples=2)
        return Reply(metrics={"loss/personal": 0.25}, examples=2, steps=1)


def busy_work(steps: int) -> float:
    """So many training steps of a small 3D network on one thread; returns its last loss."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(16, 1, 3, padding=1)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    image = torch.randn(1, 1, 48, 48, 48)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (network(image) - image).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def _remembered(task: Task) -> float:
    """A number made of this round's and of the site's memory of those before, which is lost with its state."""
    memory = task.state.load("memory") or {"round": -1, "sum": 0.0}
    if memory["round"] < task.round:
        memory = {"round": task.round, "sum": 0.5 * memory["sum"] + task.round + 1.0}
        task.state.save("memory", memory)
    return float(memory["sum"])


def _hold(task: Task) -> None:
    """Wait beside the fault file until the test takes the fault away; a file there tells it that the time has come."""
    here = Path(os.environ["FEDMEDSEG_FAULT_FILE"]).parent / f"held-{task.site}-{task.round}"
    here.touch()
    while _kind(task.site, task.round) == "hold" and not task.aborted():
        time.sleep(0.05)


class StandInExecutor(TrainingExecutor):
    """Runs `StandInLearner`; some faults strike only after the reply was made."""

    def __init__(self) -> None:
        super().__init__()
        # the kits of these tests list them, and a site whose list is not the package's own takes no part
        kit_checks.list_problems = _problems_but_for_tests
        self._clock_set = False

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        return StandInLearner(home=place.home, site=place.name)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        self._set_clock(fl_ctx.get_identity_name())
        kind = _kind(fl_ctx.get_identity_name(), shareable.get_header(Header.ROUND))
        if task_name == "pretraining" and kind == "version":
            # as if the server had another one: all simulated sites are installed alike
            versions = shareable.get_header(Header.VERSIONS)
            shareable.set_header(Header.VERSIONS, {**versions, "fedmedseg": "99.0"})
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        if task_name == "pretraining" and kind and "DXO" in reply:
            _spoil(reply["DXO"]["data"], kind)
        return reply

    def _set_clock(self, site: str) -> None:
        kind = "" if self._clock_set else str(_kind(site, "clock"))
        ahead = float(kind) if kind.removeprefix("-").isdigit() else 0.0
        self._clock_set = True
        if ahead:
            right = time.time
            time.time = lambda: right() + ahead


def _spoil(tensors: dict[str, object], kind: str) -> None:
    name = sorted(tensors)[0]
    tensor = tensors[name]
    assert isinstance(tensor, torch.Tensor)
    if kind == "nan":
        tensor.view(-1)[0] = float("nan")
    elif kind == "shape":
        tensors[name] = torch.zeros(2, 3, 4)
    elif kind == "extra key":
        tensors["unheard.of"] = torch.zeros(1)
    elif kind == "empty":
        tensors.clear()
    elif kind == "numpy":
        tensors[name] = tensor.numpy()


class SilentReporter:
    """Writes no report: the record is what these tests read."""

    def write(self, record: Mapping[str, object], folder: Path) -> Path:
        return folder / "run.json"

    def summary(self, record: Mapping[str, object]) -> str:
        return str(record["outcome"])
