"""What part of a site's training goes into its data: reading, cropping and augmenting, from the second epoch on.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --jobs fedavg --set segmentation.steps=40

Each shipped job trains on the phantoms of one site, in one process, its first stage once. Timed are every step and, in
it, the call that makes its batch, or waits for it where batches are made beside steps (`core/ahead.py`; where all cores
are busy that gains nothing). An epoch is as many items as the site has volumes, and the steps of the first, in which
volumes are read for the first time, are left out. Preprocessing is before the first step and is told apart: it is done
once and lies in the site's cache. Writes benchmarks/results/data_loading.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stand_in_runs import circumstances, copying

from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job

RESULT = Path(__file__).parent / "results" / "data_loading.json"
GOAL = 0.05


@dataclass(frozen=True)
class Loader:
    """Where a job's first stage makes a batch and where it does a step, and by which name a step finds its volumes."""

    stage: str
    batch: tuple[str, str]
    step: tuple[str, str]
    items: Callable[[Any], int]
    """Items of a step, of the object that does it."""
    volumes: Callable[[Any], int]
    """Volumes of the site, of the same."""


LOADERS = {
    "cardiac_ct": Loader(
        "teacher_hps",
        ("fedmedseg.cardiac_ct.batches", "WholeHearts.draw"),
        ("fedmedseg.cardiac_ct.objective", "TaskObjective.step"),
        lambda one: int(one.draw.__self__.batch),
        lambda one: len(one.draw.__self__.lessons),
    ),
    "fedavg": Loader(
        "training",
        ("fedmedseg.segmentation.batches", "LabelledBatches.draw"),
        ("fedmedseg.segmentation.objective", "SupervisedObjective.step"),
        lambda one: int(one.experiment.segmentation.batch),
        lambda one: len(one.training),
    ),
    "fedata": Loader(
        "pretraining",
        ("fedmedseg.fedata.objective", "MaskedDistillationObjective._batch"),
        ("fedmedseg.fedata.objective", "MaskedDistillationObjective.step"),
        lambda one: int(one.section.volumes_per_step),
        lambda one: int(one.volumes),
    ),
    "fcl": Loader(
        "pretraining",
        ("fedmedseg.core.ahead", "Ahead.next"),
        ("fedmedseg.fcl.objective", "ContrastiveObjective.step"),
        lambda one: int(one.section.volumes_per_step),
        lambda one: len(one.volumes),
    ),
    "fclopt": Loader(
        "pretraining",
        ("fedmedseg.core.ahead", "Ahead.next"),
        ("fedmedseg.fclopt.objective", "BootstrapObjective.step"),
        lambda one: int(one.section.volumes_per_step),
        lambda one: len(one.volumes),
    ),
    "fedcrld": Loader(
        "relocalization",
        ("fedmedseg.fedcrld.batches", "EpochBatches.draw"),
        ("fedmedseg.fedcrld.objective", "RelocalizationObjective.step"),
        lambda one: int(one.experiment.segmentation.batch),
        lambda one: len(one.batches),
    ),
    "segviz": Loader(
        "training",
        ("fedmedseg.segmentation.batches", "LabelledBatches.draw"),
        ("fedmedseg.segviz.objective", "PartialLabelObjective.step"),
        lambda one: int(one.experiment.segmentation.batch),
        lambda one: len(one._batches.volumes),
    ),
}


@dataclass
class Clock:
    """Seconds of each step and of the batch in it."""

    steps: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    epoch: float = 0.0
    """Steps of an epoch."""
    first: float | None = None
    """When the first step began."""


@contextmanager
def timed(loader: Loader) -> Iterator[Clock]:
    """The loader's two calls with a clock in them; afterwards they are as they were."""
    clock = Clock()
    current = [0.0]

    def batch(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*given, **named)
        finally:
            current[0] += time.perf_counter() - began

    def step(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        clock.epoch = loader.volumes(given[0]) / loader.items(given[0])
        current[0], began = 0.0, time.perf_counter()
        clock.first = began if clock.first is None else clock.first
        made = call(*given, **named)
        clock.steps.append(time.perf_counter() - began)
        clock.batches.append(current[0])
        return made

    with wrapped(*loader.batch, batch), wrapped(*loader.step, step):
        yield clock


@contextmanager
def wrapped(module: str, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """``around`` gets each call of a function, ``Class.method`` or ``function``, with the function first."""
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    call = getattr(owner, last)
    setattr(owner, last, lambda *given, **named: around(call, *given, **named))
    try:
        yield
    finally:
        setattr(owner, last, call)


def share(clock: Clock) -> dict[str, float]:
    """Data's part of the steps after the first epoch, and of those in it."""
    first = max(1, round(clock.epoch))
    later = slice(first, None)
    if not clock.steps[later]:
        raise SystemExit(f"{len(clock.steps)} steps are no second epoch of {clock.epoch:.1f} steps: raise the steps")
    return {
        "share": round(sum(clock.batches[later]) / sum(clock.steps[later]), 4),
        "first_epoch_share": round(sum(clock.batches[:first]) / sum(clock.steps[:first]), 4),
        "steps_of_an_epoch": round(clock.epoch, 2),
        "steps": len(clock.steps),
        "seconds_of_a_step": round(sum(clock.steps[later]) / len(clock.steps[later]), 4),
    }


def measure(name: str, changes: Sequence[str]) -> dict[str, Any]:
    """The job's first stage at one site, one round."""
    loader = LOADERS[name]
    quorum = {"federation": {"quorum": 1}, "stages": {loader.stage: {"rounds": 1}}}
    settings, _ = read_settings(find_job(name), [quorum, *map(setting, changes)])
    with tempfile.TemporaryDirectory() as folder:
        job = write_job(find_job(name), settings, Path(folder) / "job")
        federation = InProcessFederation(job=job, workspace=Path(folder) / "w", sites=["site-1"], run="benchmark")
        began = time.perf_counter()
        with timed(loader) as clock:
            federation.run_stage(loader.stage)
    assert clock.first is not None
    return {**share(clock), "seconds_before_the_first_step": round(clock.first - began, 2)}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=sorted(LOADERS), default=sorted(LOADERS))
    parser.add_argument("--set", dest="changes", action="append", default=[], help="one setting of every job")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(words)
    before, found = copying(), {}
    for name in given.jobs:
        found[name] = measure(name, given.changes)
        one = found[name]
        verdict = "reached" if one["share"] < GOAL else "missed"
        print(
            f"{name}: {one['share']:.1%} of a step of {one['seconds_of_a_step']:.3f} s "
            f"(first epoch {one['first_epoch_share']:.1%}); goal {GOAL:.0%}: {verdict}"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"jobs": found, "goal": GOAL, **circumstances(before)}
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
