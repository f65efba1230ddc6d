"""A hospital's kit on the disk with a toy study in it, and FLARE's own client runner around one scripted reply."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.fed.client.client_engine_executor_spec import TaskAssignment
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig, TaskRouter
from nvflare.private.fed.utils.fed_utils import create_job_processing_context_properties
from nvflare.private.privacy_manager import PrivacyService

from fedmedseg.core import config
from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.exchange import Exchange
from fedmedseg.core.question import Round
from fedmedseg.core.schema import Strict
from fedmedseg.core.scopes import privacy_policy
from fedmedseg.core.wire import Header, Meta, Schema, StageContract
from fedmedseg.privacy import filters

JOB = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
RUN, NONCE = "a1b2", "c3d4"
SHARED = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 2)}
STAGES = {
    "training": StageContract(sends="shared", returns="shared", metrics=("loss", "set_aside"), counts=("set_aside",)),
    "testing": StageContract(
        sends="nothing", returns="metrics", metrics=("dice/*", "cases", "failures/*"), counts=("cases", "failures/*")
    ),
}


class ToySection(Strict):
    """The toy system has no settings."""


TOY = {
    "config": SimpleNamespace(Section=ToySection),
    "plan": SimpleNamespace(stages=lambda experiment: STAGES, initial_shared=lambda experiment: SHARED),
}
STUDY = {
    "system": "toy",
    "study": "toy-study",
    "seed": 7,
    "data": {"role": "cmr", "modality": "mr", "spatial_dims": 2, "labels": {1: "left"}, "crop": [32, 32]},
    "network": {"name": "unetr"},
    "segmentation": {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
    "stages": {"training": {"rounds": 2}, "testing": {}},
    "toy": {},
}


class Says(Executor):
    """Answers every task with what the test made."""

    def __init__(self, reply: Any) -> None:
        super().__init__()
        self.reply = reply

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        return self.reply


class Kit:
    """One hospital's kit: ``local`` with site file and privacy.json, and a deployed job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.app = root / JOB / "app_site-1" / "config"
        for folder in (root / "local", root / "startup", self.app):
            folder.mkdir(parents=True)
        (root / "list.json").write_text("{}")
        (self.app / "experiment.yaml").write_text(yaml.safe_dump(STUDY))
        self.site(privacy={"min_count": 0})
        self.policy(privacy_policy())
        self.meta()

    def site(self, **sections: Any) -> None:
        """Write the site file; ``privacy=...`` is the section under test."""
        content = {"datasets": {"cmr": {"list": str(self.root / "list.json")}}, **sections}
        (self.root / "local" / "fedmedseg.yaml").write_text(yaml.safe_dump(content))

    def policy(self, content: Any) -> None:
        """Write privacy.json."""
        (self.root / "local" / "privacy.json").write_text(json.dumps(content))

    def meta(self, **content: Any) -> None:
        """Write the job's meta.json as FLARE deploys it."""
        (self.root / JOB / "meta.json").write_text(json.dumps({"name": "toy", **content}))

    @property
    def state(self) -> Path:
        """The site's state_dir."""
        return self.root / "fedmedseg" / "state"

    def run(self, reply: Any, stage: str = "training") -> Shareable:
        """What FLARE sends of ``reply``: its own client runner, privacy manager and scope, as in a job process."""
        workspace = Workspace(str(self.root), "site-1")
        PrivacyService.initialize(create_privacy_manager(workspace, names_only=False))
        engine = MagicMock()
        engine.get_workspace.return_value = workspace
        router = TaskRouter()
        router.add_executor([stage], Says(reply))
        runner = ClientRunner({}, ClientRunnerConfig(router, {}, {}), JOB, engine)
        fl_ctx, peer = FLContext(), FLContext()
        peer.set_prop(ReservedKey.RUN_NUM, JOB, private=False, sticky=False)
        for key, value in {
            ReservedKey.ENGINE: engine,
            ReservedKey.IDENTITY_NAME: "site-1",
            ReservedKey.RUN_NUM: JOB,
            FLContextKey.SIMULATE_MODE: False,
            **create_job_processing_context_properties(workspace, JOB),
        }.items():
            fl_ctx.set_prop(key, value, private=True, sticky=False)
        fl_ctx.set_peer_context(peer)
        return runner._process_task(TaskAssignment(stage, "task", Shareable()), fl_ctx)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy system is installed, and no policy outlives its test."""
    real = config.system_module

    def module(system: str, name: str) -> Any:
        return TOY[name] if system == "toy" else real(system, name)

    for place in (config, filters):
        monkeypatch.setattr(place, "system_module", module)
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.INFO)
    yield
    PrivacyService.initialize(None)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """A kit whose site withholds nothing and whose policy is ours."""
    return Kit(tmp_path / "kit")


@pytest.fixture
def made_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype], None]:
    """made_of(torch.float16): the toy system's tensors in another type."""

    def change(dtype: torch.dtype) -> None:
        for name, tensor in SHARED.items():
            monkeypatch.setitem(SHARED, name, tensor.to(dtype))

    return change


@pytest.fixture
def exchanging(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exchange], None]:
    """exchanging(exchange): the toy system's training exchanges features."""

    def change(exchange: Exchange) -> None:
        monkeypatch.setitem(STAGES, "training", dataclasses.replace(STAGES["training"], exchange=exchange))

    return change


@pytest.fixture
def current() -> Callable[..., Round]:
    """current("training"): the server's round that a reply is judged by."""

    def make(stage: str = "training") -> Round:
        sent = SHARED if STAGES[stage].sends == "shared" else {}
        return Round(
            run=RUN,
            stage=stage,
            number=0,
            base=content_crc32(sent),
            nonce=NONCE,
            contract=STAGES[stage],
            schema=Schema(SHARED),
            shared=SHARED,
        )

    return make


@pytest.fixture
def reply(current: Callable[..., Round]) -> Callable[..., Shareable]:
    """reply({"a": ...}, metrics={...}, stage="training", examples=9): a reply as our executors make it."""

    def make(
        tensors: Any = None,
        *,
        stage: str = "training",
        metrics: Any = None,
        examples: object = 9,
        kind: str = DataKind.WEIGHT_DIFF,
        headers: Mapping[str, object] | None = None,
        **meta: object,
    ) -> Shareable:
        if tensors is None:
            tensors = {name: torch.ones_like(tensor) for name, tensor in SHARED.items()} if stage == "training" else {}
        given = {Meta.EXAMPLES: examples, Meta.STEPS: 3, Meta.TRAIN_SECONDS: 0.5, Meta.METRICS: metrics or {}, **meta}
        made = DXO(data_kind=kind, data={}, meta=given).to_shareable()
        made["DXO"]["data"] = tensors
        judged = current(stage)
        for header, value in {
            Header.RUN: RUN,
            Header.STAGE: stage,
            Header.ROUND: 0,
            Header.BASE: judged.base,
            Header.NONCE: NONCE,
            Header.SCHEMA: judged.schema.digest,
            **(headers or {}),
        }.items():
            made.set_header(header, value)
        return made

    return make


@pytest.fixture
def toy() -> tuple[dict[str, StageContract], dict[str, torch.Tensor]]:
    """The toy system's contracts and shared tensors, to be changed for one test."""
    return STAGES, SHARED
