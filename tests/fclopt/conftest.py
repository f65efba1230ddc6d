"""A small FCLOpt study, volumes in memory, a site of temporary folders, and a federation of them without processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from encoded import arrived
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.learner import Reply, Task
from fedmedseg.core.progress import Progress
from fedmedseg.core.question import Round
from fedmedseg.core.replies import ECHOED, encode
from fedmedseg.core.state import SiteState
from fedmedseg.core.wire import Schema
from fedmedseg.data import slices
from fedmedseg.data.slices import SliceAt
from fedmedseg.fclopt.aggregator import TargetPredictionAggregator
from fedmedseg.fclopt.learner import BootstrapLearner
from fedmedseg.fclopt.plan import initial_shared, stages

STAGE = "pretraining"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def content(rounds: int = 3, network: Mapping[str, Any] | None = None, **fclopt: Any) -> dict[str, Any]:
    return {
        "system": "fclopt",
        "study": "test",
        "data": {
            "role": "cmr",
            "modality": "mr",
            "spatial_dims": 2,
            "labels": {1: "left", 2: "right"},
            "crop": [32, 32],
        },
        "network": {"name": "basic_unet", "features": [2, 2, 4, 4, 4], **(network or {})},
        "segmentation": {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
        "stages": {"pretraining": {"rounds": rounds}, "fine_tuning": {}, "evaluation": {}},
        "fclopt": {
            "local_steps": 2,
            "momentum": 0.9,
            "hidden": 8,
            "projection": 4,
            "volumes_per_step": 2,
            "parts": 2,
            **fclopt,
        },
    }


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """The content of an experiment.yaml, to be changed by the test."""
    return content


@pytest.fixture
def study() -> Callable[..., Experiment]:
    """study(mode="ptnu"): a whole valid experiment."""
    return lambda *args, **kwargs: parse_experiment(content(*args, **kwargs))


class MemoryVolumes:
    """Four volumes of smooth blobs, all tissue, six slices each."""

    def __init__(self, count: int = 4, seed: int = 3, slices: int = 6) -> None:
        rng = np.random.default_rng(seed)
        coarse = rng.normal(size=(count, 10, 10, slices)).astype(np.float32)
        self.arrays = coarse.repeat(4, axis=1).repeat(4, axis=2)
        self.quarantined = {"key": "unreadable"}

    def __len__(self) -> int:
        return len(self.arrays)

    def image(self, index: int) -> np.ndarray:
        return self.arrays[index][None]

    def tissue(self, index: int) -> float:
        return -100.0

    def slice_tissue(self, index: int) -> np.ndarray:
        return np.ones(self.arrays.shape[-1])


@pytest.fixture
def volumes() -> MemoryVolumes:
    return MemoryVolumes()


@pytest.fixture
def make_volumes() -> type[MemoryVolumes]:
    return MemoryVolumes


class Federation:
    """Server rule and sites of one study. Every message goes through FLARE's encoding, and no object outlives a round:
    each site's learner, and the server's rule, are built anew for every task, as after a death.
    """

    def __init__(self, experiment: Experiment, folder: Path, sites: int = 2) -> None:
        self.experiment, self.folder = experiment, folder
        self.file = folder / "experiment.yaml"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
        self.contract = stages(experiment)[STAGE]
        self.shared: dict[str, torch.Tensor] = initial_shared(experiment)
        self.schema = Schema(self.shared)
        self.volumes = {f"site-{index + 1}": MemoryVolumes(count=3 + index, seed=index) for index in range(sites)}
        self.history: list[dict[str, Any]] = []
        self.replies: dict[str, Reply] = {}
        self.given: dict[str, dict[str, torch.Tensor]] = {}
        self.uploads: dict[str, Shareable] = {}
        self.behind: Collection[str] = ()

    @property
    def sites(self) -> list[str]:
        return sorted(self.volumes)

    def open(self, number: int) -> tuple[TargetPredictionAggregator, Round]:
        aggregator = TargetPredictionAggregator(str(self.file))
        self.behind = aggregator.behind(self.history, stage=STAGE, number=number, sites=self.sites)
        current = Round.begin(
            run="run",
            stage=STAGE,
            number=number,
            nonce=f"n{number}",
            contract=self.contract,
            schema=self.schema,
            shared=self.shared,
            personal={},
            behind=self.behind,
        )
        aggregator.open_round(current)
        return aggregator, current

    def train(self, site: str, current: Round) -> Shareable:
        """What ``site`` sends in this round."""
        given = arrived(dict(current.given_to(site)))
        self.given[site] = given
        learner = BootstrapLearner(
            experiment=self.experiment,
            site=SimpleNamespace(state_root=self.folder / "state", cache=self.folder / "cache", device="cpu"),
        )
        learner.__dict__["volumes"] = self.volumes[site]
        request = Shareable()
        values = (current.run, current.stage, current.number, current.base_of(site), current.nonce)
        for header, value in zip(ECHOED, values, strict=True):
            request.set_header(header, value)
        reply = learner.run(self.task(site, current), given)
        self.replies[site] = reply
        upload = encode(reply, given=given, schema=self.schema, contract=self.contract, request=request, seconds=0.0)
        self.uploads[site] = arrived(upload)
        return self.uploads[site]

    def task(self, site: str, current: Round, **more: Any) -> Task:
        rounds = self.experiment.stages[STAGE].rounds
        state = SiteState(self.folder / "state", study="test", experiment=self.experiment.digest, site=site, run="run")
        return Task(
            site=site,
            stage=STAGE,
            round=current.number,
            rounds=rounds,
            seed=self.experiment.seed,
            base=current.base_of(site),
            state=state,
            progress=Progress(site=site, stage=STAGE, round=current.number, rounds=rounds),
            **more,
        )

    def round(self, number: int, *, taking_part: Collection[str] | None = None) -> TargetPredictionAggregator:
        """One round, of which only ``taking_part`` (all by default) answer."""
        aggregator, current = self.open(number)
        for site in self.sites if taking_part is None else taking_part:
            assert aggregator.accept(self.train(site, current), sender(site)), aggregator.rejections
        self.close(aggregator, number)
        return aggregator

    def close(self, aggregator: TargetPredictionAggregator, number: int) -> None:
        result = from_shareable(aggregator.aggregate(FLContext()))
        if result.data_kind == DataKind.WEIGHTS:
            self.shared = dict(result.data)
        else:
            self.shared = {name: tensor + result.data.get(name, 0.0) for name, tensor in self.shared.items()}
        self.history.append({"stage": STAGE, "round": number, "notes": aggregator.notes})


def sender(site: str) -> FLContext:
    peer, context = FLContext(), FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    context.set_peer_context(peer)
    return context


def plain_views(
    volumes: MemoryVolumes, places: Sequence[SliceAt], rng: np.random.Generator, data: DataSection
) -> torch.Tensor:
    """Views without turns and deformations, which take most of the time of so small a network."""
    width, height = data.crop
    crops = np.stack([volumes.image(at.volume)[:, :width, :height, at.slice] for at in places])
    return torch.from_numpy(crops + rng.normal(scale=0.1, size=crops.shape).astype(np.float32))


@pytest.fixture
def federation(
    tmp_path: Path, study: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Federation]:
    """federation(mode="ptnu", sites=2, folder="a"): a study before its first round."""
    monkeypatch.setattr(slices, "slice_views", plain_views)

    def make(*args: Any, sites: int = 2, folder: str = "f", **kwargs: Any) -> Federation:
        return Federation(study(*args, **kwargs), tmp_path / folder, sites)

    return make


@pytest.fixture
def sent_by() -> Callable[[str], FLContext]:
    """sent_by("site-1"): the context that a reply of that site comes with."""
    return sender
