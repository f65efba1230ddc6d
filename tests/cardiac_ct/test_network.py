"""Sizes of the published networks, and what each part of the student and the CNN gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedmedseg.cardiac_ct.network import (
    build_last_layer,
    build_student,
    build_teacher,
    head,
    load_parameters,
    parameters_of,
    teacher_features,
    teacher_outputs,
)
from fedmedseg.core.config import Experiment
from fedmedseg.core.jobs import find_job, find_preset, read_settings
from fedmedseg.core.schema import read_yaml
from fedmedseg.preflight.memory import count

Study = Callable[..., Experiment]


@pytest.fixture(scope="module")
def paper() -> Experiment:
    return read_settings(find_job("cardiac_ct"), [read_yaml(find_preset("cardiac_ct", "paper"))])[1]


def test_the_published_cnn_has_its_parameters(paper: Experiment) -> None:
    """Invariant 9: two inputs, six outputs, deep supervision."""
    with torch.device("meta"):
        assert count(build_teacher(paper, "hps")) == 30_781_970


def test_the_published_student_has_its_parameters(paper: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 9: 62,188,387 with the code's unused stock head of 49, and 294, 147 and 98 in the heads."""
    real = torch.linspace
    # MONAI reads the numbers of one tensor while it builds
    monkeypatch.setattr(torch, "linspace", lambda *given, **words: real(*given, **{**words, "device": "cpu"}))
    with torch.device("meta"):
        student = build_student(paper)
    assert count(student.trunk) + 49 == 62_188_387
    assert {task: count(layer) for task, layer in student.heads.items()} == {"hps": 294, "ms": 147, "calc": 98}


def test_the_new_last_layers_of_a_transfer_are_as_small_as_published(paper: Experiment) -> None:
    assert count(build_last_layer(paper, "student")) == 98
    assert count(build_last_layer(paper, "cnn")) == 66
    assert count(head(48, 8)) == 392


def test_a_cnn_in_training_gives_full_size_logits_of_each_level_and_one_in_use_one(study: Study) -> None:
    teacher, images = build_teacher(study(), "ms"), torch.randn(1, 1, 32, 32, 24)
    assert [tuple(level.shape) for level in teacher_outputs(teacher.train(), images)] == [(1, 3, 32, 32, 24)] * 2
    teacher.eval()
    (used,) = teacher_outputs(teacher, images)
    torch.testing.assert_close(teacher.output_block(teacher_features(teacher, images)), used)


def test_a_cnn_drops_whole_channels_in_training_where_the_study_says_so(study: Study) -> None:
    images = torch.randn(1, 1, 32, 32, 24)
    same = {}
    for dropout in (0.0, 0.5):
        teacher = build_teacher(study(cardiac_ct={"teacher": {"dropout": dropout}}), "ms").train()
        with torch.no_grad():
            same[dropout] = torch.equal(teacher(images), teacher(images))
    assert same == {0.0: True, 0.5: False}
    drops = [part for part in teacher.modules() if "dropout" in type(part).__name__.lower()]
    assert drops
    for drop in drops:
        assert drop.p == 0.5
        kept = drop(torch.ones(1, 64, 2, 2, 2)).flatten(2)
        # every channel whole or not at all
        assert bool((kept == kept[..., :1]).all())
        assert 0 < int((kept[..., 0] == 0).sum()) < 64


def test_as_many_deeper_levels_are_supervised_as_the_study_says(study: Study) -> None:
    images = torch.randn(1, 1, 32, 32, 24)
    four = {"filters": [4, 4, 4, 4], "strides": [1, 2, 2, 2]}
    for supervised in (0, 1, 2):
        teacher = build_teacher(study(cardiac_ct={"teacher": {**four, "supervised": supervised}}), "ms").train()
        assert len(teacher_outputs(teacher, images)) == 1 + supervised


def test_the_student_gives_logits_of_the_tasks_that_are_asked_for(study: Study) -> None:
    student = build_student(study())
    images = torch.randn(1, 1, 64, 32, 32)
    found = student(images, ["calc"])
    assert {task: tuple(logits.shape) for task, logits in found.items()} == {"calc": (1, 2, 64, 32, 32)}
    assert set(student(images)) == {"hps", "ms", "calc"}


def test_the_hearts_structures_are_a_second_input(study: Study) -> None:
    experiment = study(cardiac_ct={"conditioning": True})
    images = torch.randn(1, 2, 64, 32, 32)
    assert build_student(experiment)(images)["ms"].shape == (1, 3, 64, 32, 32)
    assert teacher_outputs(build_teacher(experiment, "ms").eval(), images[..., :32, :24])[0].shape[1] == 3


def test_checkpointing_changes_memory_and_no_gradient(study: Study) -> None:
    images = torch.randn(1, 1, 64, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        student = build_student(study(cardiac_ct={"checkpointing": checkpointing})).train()
        student(images)["hps"].square().mean().backward()
        gradients.append(
            {name: tensor.grad.clone() for name, tensor in student.named_parameters() if tensor.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_first_weights_depend_on_seed_and_task_alone(study: Study) -> None:
    def weights(experiment: Experiment, task: str) -> torch.Tensor:
        return next(build_teacher(experiment, task).parameters()).detach()

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = weights(study(), "ms")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(first, weights(study(), "ms"))
    assert not torch.equal(first, weights(study(), "calc"))
    assert not torch.equal(first, weights(study(seed=2), "ms"))


def test_parameters_come_back_under_their_names(study: Study) -> None:
    one, other = build_student(study()), build_student(study(seed=9))
    tensors = parameters_of(one, "student.")
    load_parameters(other, {**tensors, "teacher.x": torch.zeros(1)}, "student.")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(KeyError):
        load_parameters(other, {"student.nothing": torch.zeros(1)}, "student.")
