"""What sites publish reaches the run's folder, a file per site, and nothing of it the shared model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.core import checkpoint
from fedmedseg.core.config import Experiment
from fedmedseg.core.contribution import Contribution
from fedmedseg.core.question import Round
from fedmedseg.core.wire import Schema
from fedmedseg.segviz import aggregator as module
from fedmedseg.segviz.aggregator import PublishedModels
from fedmedseg.segviz.plan import initial_shared, stages


@pytest.fixture
def publish(
    study: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, torch.Tensor]]:
    """publish({"site-1": 2.0}): what a round moves the shared tensors by; a site publishes its number everywhere."""
    experiment = study(stages={"publication": {"rounds": 1}})
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    rule = PublishedModels(str(file))
    context: Any = FLContext()
    context.get_job_id = lambda: "a job's"
    monkeypatch.setattr(module, "place_of", lambda fl_ctx: SimpleNamespace(run=tmp_path / "run"))
    contract = stages(experiment)["publication"]
    places = contract.returned.of(initial_shared(experiment))

    def call(published: dict[str, float]) -> dict[str, torch.Tensor]:
        schema = Schema(places)
        rule.open_round(
            Round(
                run="run", stage="publication", number=0, base="base", nonce="nonce", contract=contract,
                schema=schema, shared=places,
            )
        )  # fmt: skip
        for site, value in published.items():
            rule.contributions[site] = Contribution(
                site=site, differences={name: torch.full_like(one, value) for name, one in places.items()},
                examples=1, steps=1, train_seconds=0.0, metrics={},
            )  # fmt: skip
        return dict(from_shareable(rule.aggregate(context)).data)

    return call


def test_each_site_has_a_file_of_its_own_and_the_shared_tensors_stay(
    publish: Callable[..., dict[str, torch.Tensor]], study: Callable[..., Experiment], tmp_path: Path
) -> None:
    moved = publish({"site-1": 2.0, "site-2": 5.0})
    assert moved
    assert not any(bool(difference.any()) for difference in moved.values())
    folder = tmp_path / "run" / "models" / "published"
    assert sorted(file.name for file in folder.iterdir()) == ["site-1.safetensors", "site-2.safetensors"]
    for site, value in (("site-1", 2.0), ("site-2", 5.0)):
        tree = checkpoint.load(folder / f"{site}.safetensors")
        assert tree["experiment"] == study(stages={"publication": {"rounds": 1}}).digest
        assert tree["tensors"].keys() == moved.keys()
        assert all(bool((tensor == value).all()) for tensor in tree["tensors"].values())


def test_where_nobody_publishes_there_is_no_folder_and_nothing_of_an_earlier_round(
    publish: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    publish({"site-1": 2.0})
    file = tmp_path / "run" / "models" / "published" / "site-1.safetensors"
    file.unlink()
    assert publish({}) == {}
    assert not file.exists()
