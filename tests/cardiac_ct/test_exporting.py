"""Each head of a run as a network of MONAI's own, which answers as the run's network does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from fedmedseg.cardiac_ct.exporting import exportable
from fedmedseg.cardiac_ct.foundation import Foundation, load_foundation, save_foundation
from fedmedseg.cardiac_ct.inference import activated
from fedmedseg.cardiac_ct.lessons import stacked
from fedmedseg.cardiac_ct.models import CNN, Networks
from fedmedseg.cardiac_ct.network import build_last_layer, build_student, build_teacher, load_parameters
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.cardiac_ct.prediction import Which, plainly_computed
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.site import Site
from fedmedseg.export.bundle import configuration
from fedmedseg.export.network import require_agreement

Study = Callable[..., Experiment]


@pytest.fixture
def foundation(study: Study, tmp_path: Path) -> Foundation:
    experiment = study(cardiac_ct={"conditioning": True, "landmarks": "heatmaps"}, data={"phantom": {"heart": True}})
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in initial_shared(experiment).items()
    }
    save_foundation(tmp_path / "all.safetensors", tensors, experiment=experiment)
    return load_foundation(tmp_path / "all.safetensors")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(
        name="here", state_root=tmp_path, cache=tmp_path, models=tmp_path, device="cpu",
        datasets={}, salt="", simulated=False,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["hps", "coronaries"])
def test_a_head_of_the_transformer_is_a_swinunetr(foundation: Foundation, task: str) -> None:
    source = exportable(foundation, task=task)
    assert (source.channels[1][:10], source.origin.model) == ("structures", "student")
    assert source.activation == ("sigmoid" if task == "hps" else "softmax")
    assert source.trained_in == (("distillation", "head_tuning") if task == "hps" else ("transfer",))
    student = build_student(foundation.experiment).eval()
    load_parameters(student, foundation.tensors, "student.")
    head = student.heads[task] if task in student.heads else build_last_layer(foundation.experiment, "student")
    if task not in student.heads:
        load_parameters(head, foundation.tensors, "transfer.student.")
    assert require_agreement(source, lambda images: head(student.features(images)), what="x") < 1e-6
    built = ConfigParser(configuration(source)).get_parsed_content("network_def")
    built.load_state_dict(source.network.state_dict())
    assert require_agreement(source, built.eval(), what="x") < 1e-6
    assert activated(built(source.example()), task, "heatmaps").shape[1] == source.classes


@pytest.mark.parametrize("task", ["calc", "coronaries"])
def test_a_cnn_is_a_dynunet(foundation: Foundation, task: str) -> None:
    source = exportable(foundation, which="cnn", task=task)
    assert source.whole
    moved = task == "coronaries"
    assert source.trained_in == (("transfer",) if moved else ("teacher_calc",))
    teacher = build_teacher(foundation.experiment, "hps" if moved else task).eval()
    load_parameters(teacher, foundation.tensors, "teacher.hps." if moved else f"teacher.{task}.")
    answer: Callable[[torch.Tensor], torch.Tensor] = teacher
    if moved:
        last = build_last_layer(foundation.experiment, CNN)
        load_parameters(last, foundation.tensors, "transfer.cnn.")
        answer = lambda images: last(teacher.skip_layers(images))  # noqa: E731
    assert require_agreement(source, answer, what="x") < 1e-6
    built = ConfigParser(configuration(source)).get_parsed_content("network_def")
    built.load_state_dict(source.network.state_dict())
    assert require_agreement(source, built.eval(), what="x") < 1e-6


@pytest.mark.parametrize("backbone", ["student", "cnn"])
def test_a_new_layer_for_a_task_with_a_head_is_exported_as_it_is_tested(
    study: Study, site: Site, tmp_path: Path, backbone: Which
) -> None:
    wing = {"gate": None, "head_steps": 0, "start": "0" * 64, "transfer": {"task": "calc", "backbones": [backbone]}}
    stages = ("teacher_hps", "teacher_ms", "teacher_calc", "pseudo_labelling", "distillation", "head_tuning")
    experiment = study(
        cardiac_ct=wing,
        stages={stage: {"rounds": 0} for stage in stages} | {"transfer": {"rounds": 1}},
    )
    generator = torch.Generator().manual_seed(5)
    tensors = {n: t + 0.2 * torch.randn(t.shape, generator=generator) for n, t in initial_shared(experiment).items()}
    save_foundation(tmp_path / "x.safetensors", tensors, experiment=experiment)
    source = exportable(load_foundation(tmp_path / "x.safetensors"), which=backbone, task="calc")
    image = torch.rand((1, 1, *source.shape), generator=generator)
    networks = Networks(experiment=plainly_computed(experiment), site=site, tensors=tensors)
    predict = networks.predict_student() if backbone == "student" else networks.predict_cnn()
    tested = predict(stacked(image[0].numpy(), None, experiment), ["calc"])["calc"]
    with torch.inference_mode():
        exported = torch.softmax(source.network(image), dim=1)[0]
    assert torch.allclose(exported, tested, atol=1e-6)


def test_one_of_several_heads_must_be_named(foundation: Foundation) -> None:
    with pytest.raises(ConfigurationError, match="--task: got none"):
        exportable(foundation)
    with pytest.raises(ConfigurationError, match="one of hps, ms, calc, coronaries"):
        exportable(foundation, task="heart")
