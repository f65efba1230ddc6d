"""A new last layer on frozen networks: from whom, on which, and that nothing of them moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from marked_scans import same
from torch import nn

from fedmedseg.cardiac_ct.models import Networks
from fedmedseg.cardiac_ct.network import parameters_of
from fedmedseg.core.learner import Reply

Run = Callable[..., Reply]


def transfer(run: Run, **section: Any) -> Reply:
    """A step of a last layer for the coronaries, on the CNN of hinge points and ostia unless another is named."""
    return run("transfer", cardiac_ct={"transfer": {"steps": 1, "backbones": ["cnn"], "cnn": "hps", **section}})


def test_a_last_layer_learns_from_as_many_patients_as_it_may(run: Run) -> None:
    every, one = transfer(run), transfer(run, patients=1)
    assert (every.examples, one.examples) == (2, 1)
    assert (every.metrics["cases/coronaries"], one.metrics["cases/coronaries"]) == (2.0, 1.0)


def test_the_frozen_cnn_is_the_one_that_is_named(run: Run) -> None:
    assert not same(transfer(run), transfer(run, cnn="ms"))


@pytest.mark.parametrize(
    ("stage", "kinds", "learns"),
    [("head_tuning", ["Student"], ("heads.ms.", "heads.calc.")), ("transfer", ["Student", "DynUNet"], ())],
)
def test_what_is_frozen_neither_moves_nor_has_a_gradient(
    run: Run, monkeypatch: pytest.MonkeyPatch, stage: str, kinds: list[str], learns: tuple[str, ...]
) -> None:
    """The student's trunk in head tuning, of which the scans teach two heads; the student and the CNN in transfer."""
    built: list[tuple[nn.Module, dict[str, torch.Tensor]]] = []

    def remembering(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def remembered(*given: Any) -> nn.Module:
            network = build(*given)
            built.append((network, parameters_of(network, "")))
            return network

        return remembered

    monkeypatch.setattr(Networks, "student", remembering(Networks.student))
    monkeypatch.setattr(Networks, "teacher", remembering(Networks.teacher))
    run(stage, cardiac_ct={"transfer": {"steps": 1}})
    assert [type(network).__name__ for network, _ in built] == kinds
    for network, before in built:
        for name, tensor in network.named_parameters():
            free = name.startswith(learns)
            assert (tensor.grad is not None) == free, name
            assert torch.equal(tensor, before[name]) != free, name
