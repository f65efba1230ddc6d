"""The contracts of SegViz: what each stage sends, returns and weighs by, and how much work it is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.segviz.plan import initial_shared, stages, work


def test_training_exchanges_the_trunk_and_the_rest_returns_figures(study: Callable[..., Experiment]) -> None:
    contracts = stages(study())
    assert list(contracts) == ["training", "head_tuning", "evaluation", "publication"]
    assert [(one.sends, one.returns) for one in contracts.values()] == [
        ("shared", "shared"),
        ("nothing", "metrics"),
        ("nothing", "metrics"),
        ("shared", "shared"),
    ]
    assert contracts["training"].weighting == "equal"


def test_candidates_that_are_received_are_sent_once_more(study: Callable[..., Experiment]) -> None:
    contracts = stages(study(segviz={"candidates": "received", "weights": "cases"}))
    assert [one.sends for one in contracts.values()] == ["shared"] * 4
    assert contracts["training"].weighting == "cases"


def test_the_shared_tensors_follow_from_the_seed_and_leave_the_generators(study: Callable[..., Experiment]) -> None:
    torch.manual_seed(5)
    first = initial_shared(study())
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    second, other = initial_shared(study()), initial_shared(study(seed=2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_rounds_work_counts_each_network(study: Callable[..., Experiment]) -> None:
    alone = study(segmentation={"steps": 9}, stages={"training": {"rounds": 2}})
    assert work(alone) == {"training": 5, "head_tuning": 0, "evaluation": 1, "publication": 1}
    both = study(
        segmentation={"steps": 9, "test_untrained": True},
        segviz={"local_baseline": True, "head_steps": 4},
        stages={"head_tuning": {"rounds": 1}},
    )
    assert work(both) == {"training": 10, "head_tuning": 4, "evaluation": 3, "publication": 1}
