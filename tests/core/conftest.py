"""A toy system of two tensors and three stages: the core is tested without any wing, network or image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.private.privacy_manager import Scope

from fedmedseg.core import config, executor, in_process, persistor, workflow
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.learner import Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.question import Round
from fedmedseg.core.schema import Strict
from fedmedseg.core.scopes import ORDER
from fedmedseg.core.state import SiteState
from fedmedseg.core.wire import Header, Meta, Part, Schema, StageContract
from fedmedseg.privacy import filters as site_filters

RUN, NONCE = "a1b2", "c3d4"


class ToySection(Strict):
    """The toy system's own settings."""

    rate: float = 0.5


TOY = {
    "config": SimpleNamespace(Section=ToySection),
    "plan": SimpleNamespace(
        stages=lambda experiment: {
            "training": StageContract(sends="shared", returns="shared", metrics=("loss", "mixing/*")),
            "tuning": StageContract(sends="shared", returns="metrics", metrics=("loss/*",)),
            "testing": StageContract(sends="nothing", returns="metrics", metrics=("dice/*", "cases")),
        },
        initial_shared=lambda experiment: {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 2)},
        work=lambda experiment: {"training": 4, "tuning": 2, "testing": 1},
    ),
}


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    # the toy's kit has neither certificates nor a policy; what a real kit meets is in tests/preflight
    monkeypatch.setattr(executor, "require_fit", lambda place: None)
    # one process plays a server before and after its death
    monkeypatch.setattr(persistor, "hold_alone", lambda root, **key: None)
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.INFO)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the toy system for this test alone."""
    real = config.system_module

    def module(system: str, name: str) -> Any:
        return TOY[name] if system == "toy" else real(system, name)

    for place in (config, executor, in_process, persistor, workflow):
        monkeypatch.setattr(place, "system_module", module)


@pytest.fixture
def sent_once(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy system with a training that sends its tensors in the first round alone and returns figures."""
    training = StageContract(sends="shared", returns="metrics", metrics=("loss",), sent_later=Part(within=()))
    others = {name: contract for name, contract in TOY["plan"].stages(None).items() if name != "training"}
    monkeypatch.setattr(TOY["plan"], "stages", lambda experiment: {"training": training, **others})


@pytest.fixture
def with_contract(toy: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StageContract]:
    """with_contract("training", exchange=...): the toy system with that stage's contract changed; returns it."""

    def make(stage: str, **changes: Any) -> StageContract:
        stages = TOY["plan"].stages(None)
        made = replace(stages[stage], **changes)
        monkeypatch.setattr(TOY["plan"], "stages", lambda experiment: {**stages, stage: made})
        return made

    return make


@pytest.fixture
def settings() -> dict[str, Any]:
    """The content of a toy study's experiment.yaml, to be changed by the test."""
    return {
        "system": "toy",
        "study": "toy-study",
        "seed": 7,
        "data": {
            "role": "cmr",
            "modality": "mr",
            "spatial_dims": 2,
            "labels": {1: "left", 2: "right"},
            "crop": [32, 32],
        },
        "network": {"name": "unetr"},
        "segmentation": {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
        "stages": {"training": {"rounds": 2}, "tuning": {}, "testing": {}},
        "toy": {},
    }


@pytest.fixture
def study(toy: None, settings: dict[str, Any]) -> Callable[..., Experiment]:
    """study(resume=True, ...): the toy study with sections replaced."""
    return lambda **sections: parse_experiment({**settings, **sections})


@pytest.fixture
def experiment_file(toy: None, settings: dict[str, Any], tmp_path: Path) -> Path:
    """The toy study on the disk, in a job's config folder."""
    file = tmp_path / "kit" / "job" / "app" / "config" / "experiment.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def shared() -> dict[str, torch.Tensor]:
    """The toy system's shared tensors."""
    return dict(TOY["plan"].initial_shared(None))


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., FLContext]:
    """context("site-1", peer=None): a FLARE context of the kit in ``tmp_path``, or one that a reply came with."""

    def make(
        name: str = "site-1", *, peer: str | None = None, simulated: bool = False, filters: Any = None
    ) -> FLContext:
        kit = tmp_path / "kit"
        workspace = MagicMock()
        workspace.get_root_dir.return_value = str(kit)
        workspace.get_site_config_dir.return_value = str(kit / "local")
        workspace.get_app_config_dir.return_value = str(kit / "job" / "app" / "config")
        workspace.get_run_dir.return_value = str(kit / "job")
        (kit / "job").mkdir(parents=True, exist_ok=True)
        engine = MagicMock()
        engine.get_workspace.return_value = workspace
        scope = Scope()
        for one in [getattr(site_filters, name)() for name in ORDER] if filters is None else filters:
            scope.add_task_result_filter(one, FilterKey.OUT)
        fl_ctx = FLContext()
        for key, value in (
            (ReservedKey.ENGINE, engine),
            (ReservedKey.IDENTITY_NAME, name),
            (ReservedKey.RUN_NUM, "job"),
            (FLContextKey.SIMULATE_MODE, simulated),
            (FLContextKey.SCOPE_OBJECT, None if simulated else scope),
        ):
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        if peer is not None:
            other = FLContext()
            other.set_prop(ReservedKey.IDENTITY_NAME, peer, private=False, sticky=False)
            fl_ctx.set_peer_context(other)
        return fl_ctx

    return make


@pytest.fixture
def round_of(shared: dict[str, torch.Tensor]) -> Callable[..., Round]:
    """round_of(stage="training", number=0): the round that replies are judged by."""

    def make(stage: str = "training", number: int = 0, tensors: Mapping[str, torch.Tensor] | None = None) -> Round:
        tensors = shared if tensors is None else tensors
        return Round.begin(
            run=RUN,
            stage=stage,
            number=number,
            nonce=NONCE,
            contract=TOY["plan"].stages(None)[stage],
            schema=Schema(tensors),
            shared=tensors,
            personal={},
        )

    return make


@pytest.fixture
def reply_to() -> Callable[..., Shareable]:
    """reply_to(round, data, examples=4, headers={...}): a site's reply, honest but for what the test changes."""

    def make(
        current: Round,
        data: Any,
        *,
        examples: object = 4,
        kind: str = DataKind.WEIGHT_DIFF,
        headers: Mapping[str, object] | None = None,
        **meta: object,
    ) -> Shareable:
        given = {Meta.EXAMPLES: examples, Meta.STEPS: 1, Meta.TRAIN_SECONDS: 0.5, Meta.METRICS: {}, **meta}
        reply = DXO(data_kind=kind, data={}, meta=given).to_shareable()
        reply["DXO"]["data"] = data
        for header, value in {
            Header.RUN: current.run,
            Header.STAGE: current.stage,
            Header.ROUND: current.number,
            Header.BASE: current.base,
            Header.NONCE: current.nonce,
            Header.SCHEMA: current.schema.digest,
            **(headers or {}),
        }.items():
            reply.set_header(header, value)
        return reply

    return make


@pytest.fixture
def aggregator(round_of: Callable[..., Round]) -> SharedKeysAggregator:
    """FedAvg with round 0 of training open."""
    made = SharedKeysAggregator()
    made.open_round(round_of())
    return made


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    """task(aborted=..., base=...): a task whose state outlives its process."""

    def make(**changes: Any) -> Task:
        given: dict[str, Any] = {
            "site": "site-1",
            "stage": "training",
            "round": 0,
            "rounds": 2,
            "seed": 7,
            "base": "ba5e",
            "state": SiteState(tmp_path / "state", study="toy-study", experiment="e" * 64, site="site-1", run=RUN),
            "progress": Progress(site="site-1", stage="training", round=0, rounds=2),
            **changes,
        }
        return Task(**given)

    return make


@pytest.fixture
def events_in() -> Callable[[Path], dict[str, dict[str, list[tuple[int, float]]]]]:
    """events_in(folder): by run (a folder) and tag, (step, value) of every scalar, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
        found: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for run in sorted(path for path in folder.iterdir() if path.is_dir()):
            events = EventAccumulator(str(run))
            events.Reload()
            found[run.name] = {
                tag: sorted((event.step, event.value) for event in events.Scalars(tag))
                for tag in events.Tags()["scalars"]
            }
        return found

    return read


@pytest.fixture(autouse=True)
def _nobody_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's sweeper and settings of memory would go on in the tests' own process."""
    monkeypatch.setattr("fedmedseg.core.workflow.keep_to_few_arenas", lambda: True)
    monkeypatch.setattr("fedmedseg.core.workflow.sweep_from_now_on", lambda: None)
