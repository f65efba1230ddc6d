"""The memory estimate against real tensors, and the GPU and memory checks from figures made by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedmedseg.core.findings import Level
from fedmedseg.core.machine_checks import GIB, MIB
from fedmedseg.networks.factory import build_segmentation
from fedmedseg.preflight import memory as subject
from fedmedseg.preflight.memory import Need, gpu, kept_for_backward, machine_memory, memory, needs


def test_a_linear_layer_keeps_its_input_and_nothing_else(study: Callable[..., Any]) -> None:
    layer = torch.nn.Linear(64, 64, bias=False)
    kept = kept_for_backward(study(), layer, lambda images: (layer(layer(images)) ** 2).sum())
    # the crop of zeros, the first layer's output and the second's, 32 x 64 float32 each, each once
    assert kept == (3 * 4 * 32 * 64, 4 * 32 * 64)


def test_counting_without_contents_equals_counting_a_real_forward_pass(study: Callable[..., Any]) -> None:
    experiment = study()
    network = build_segmentation(experiment).train()
    real = kept_for_backward(experiment, network, lambda images: network(images).sum())
    network = network.to("meta")
    assert kept_for_backward(experiment, network, lambda images: network(images).sum()) == real


def test_the_need_is_the_sum_of_its_parts(study: Callable[..., Any]) -> None:
    pretraining, fine_tuning = needs(study())
    network = build_segmentation(study())
    assert fine_tuning.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (fine_tuning.stage, fine_tuning.crops, fine_tuning.frozen) == ("fine_tuning", 4, 0)
    # two volumes with two crops each, and a teacher of the encoder's size
    assert (pretraining.stage, pretraining.crops) == ("pretraining", 4)
    assert pretraining.frozen == 4 * pretraining.parameters
    need = Need(stage="x", crops=3, parameters=10, frozen=40, per_crop=100, largest=7)
    assert need.total == 4 * 4 * 10 + 40 + 3 * (100 + 3 * 7)


@pytest.mark.parametrize(
    ("change", "stage"),
    [({"segmentation": {"batch": 8}}, "fine_tuning"), ({"fedata": {"crops_per_volume": 4}}, "pretraining")],
)
def test_twice_the_crops_need_twice_their_memory(change: dict[str, Any], stage: str) -> None:
    from fedmedseg.core.jobs import find_job, read_settings

    def of(*changes: dict[str, Any]) -> Need:
        found = needs(read_settings(find_job("fedata"), list(changes))[1])
        return next(need for need in found if need.stage == stage)

    assert of(change).crops == 2 * of().crops
    assert of(change).total - of().total == of().crops * (of().per_crop + subject.TRANSIENT * of().largest)


def test_a_stage_without_rounds_needs_nothing() -> None:
    from fedmedseg.core.jobs import find_job, read_settings

    change = {"stages": {"pretraining": {"rounds": 0}}, "fedata": {"starts": ["scratch"]}}
    left_out = read_settings(find_job("fedata"), [change])[1]
    assert [need.stage for need in needs(left_out)] == ["fine_tuning"]


def test_the_estimate_leaves_the_random_numbers_as_they_were(study: Callable[..., Any]) -> None:
    before = torch.get_rng_state()
    needs(study())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("device", "free", "total", "level"),
    [
        ("cpu", 8 * GIB, 8 * GIB, Level.PASS),
        ("cpu", 3 * GIB, 8 * GIB, Level.WARN),
        ("cpu", 2 * GIB, 2 * GIB, Level.FAIL),
        ("cuda", 3.5 * GIB, 4 * GIB, Level.PASS),
        ("cuda", 3 * GIB, 4 * GIB, Level.WARN),
    ],
)
def test_what_is_needed_is_held_against_what_is_there(device: str, free: float, total: float, level: Level) -> None:
    """2 GiB for two crops and half for the rest: 3.5 with a process, 3 with CUDA."""
    small = Need(stage="pretraining", crops=1, parameters=10, frozen=0, per_crop=1, largest=0)
    large = Need(stage="fine_tuning", crops=2, parameters=0, frozen=GIB // 4, per_crop=GIB, largest=0)
    found = memory([small, large], device=device, free=int(free), total=int(total))
    assert found.level is level, found
    assert "fine_tuning: 0.0 M parameters" in found.found
    assert "2 crop(s) x 1.0 GiB" in found.found


def test_a_study_that_trains_nothing_needs_nothing() -> None:
    assert memory([], device="cpu", free=1, total=1).level is Level.PASS


def test_a_containers_limit_counts_where_it_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    host = SimpleNamespace(available=10 * GIB, total=20 * GIB)
    monkeypatch.setattr(subject.psutil, "virtual_memory", lambda: host)
    for limit, used, expected in (
        (None, None, (10 * GIB, 20 * GIB)),
        (40 * GIB, GIB, (10 * GIB, 20 * GIB)),
        (4 * GIB, 3 * GIB, (GIB, 4 * GIB)),
        (2 * GIB, 3 * GIB, (0, 2 * GIB)),
    ):
        monkeypatch.setattr(subject, "_cgroup", {"memory.max": limit, "memory.current": used}.get)
        assert machine_memory() == expected


def test_a_gpu_is_asked_for_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subject, "DRIVER", tmp_path / "none")
    assert [gpu(wish, "fp32")[0].level for wish in ("cpu", "auto", "cuda")] == [Level.PASS, Level.PASS, Level.FAIL]
    (tmp_path / "driver").touch()
    monkeypatch.setattr(subject, "DRIVER", tmp_path / "driver")
    found, device, room = gpu("auto", "fp32")
    assert (found.level, device, room) == (Level.WARN, "cpu", None)


@pytest.mark.parametrize(
    ("able", "precision", "level"),
    [(True, "bf16", Level.PASS), (False, "bf16", Level.FAIL), (False, "auto", Level.PASS)],
)
def test_a_gpu_must_have_the_precision_the_study_demands(
    monkeypatch: pytest.MonkeyPatch, able: bool, precision: str, level: Level
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(name="Card", major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (5 * MIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    found, device, room = gpu("auto", precision)
    assert (found.level, device, room) == (level, "cuda", (5 * MIB, 16 * GIB))
    assert found.found.startswith("Card, 16.0 GiB, compute capability 7.5")


def test_a_network_beside_a_bank_that_trains_needs_both_and_no_scores() -> None:
    """FedCRLD: weights, gradients and moments twice, and nothing that grows with the square of the positions."""
    from fedmedseg.core.jobs import find_job, read_settings

    def of(**data: Any) -> Need:
        return needs(read_settings(find_job("fedcrld"), [{"data": data}, {"segmentation": {"batch": 1}}])[1])[0]

    need = of(crop=[64, 64, 6])
    assert (need.stage, need.crops) == ("relocalization", 1)
    assert need.frozen == need.training == 16 * need.parameters
    # four times the positions: four times the memory, where scores would make it up to sixteen
    assert of(crop=[128, 128, 6]).per_crop == pytest.approx(4 * need.per_crop, rel=0.1)
    deep = of(crop=[64, 64, 1], whole_depth=True)
    assert deep.per_crop == pytest.approx(subject.DEEP / 6 * need.per_crop, rel=0.1)


def test_a_federation_that_trains_the_whole_network_needs_its_memory_once() -> None:
    from fedmedseg.core.jobs import find_job, read_settings

    (need,) = needs(read_settings(find_job("segviz"), [])[1])
    assert (need.stage, need.crops, need.frozen) == ("training", 4, 0)
    assert 2e5 < need.parameters < 4e5
    assert need.per_crop > 0


def test_each_stage_of_cardiac_ct_counts_on_its_own_network_and_size() -> None:
    from fedmedseg.core.jobs import find_job, read_settings

    def of(**teacher: Any) -> dict[str, Need]:
        study = read_settings(find_job("cardiac_ct"), [{"cardiac_ct": {"teacher": teacher}}])[1]
        return {need.stage: need for need in needs(study)}

    usual, larger = of(), of(size=[64, 24, 24])
    assert list(usual) == ["teacher_hps", "teacher_ms", "teacher_calc", "distillation"]
    assert usual["distillation"].parameters > 5 * usual["teacher_hps"].parameters
    assert larger["teacher_ms"].per_crop == pytest.approx(2 * usual["teacher_ms"].per_crop, rel=0.05)
    assert larger["distillation"] == usual["distillation"]


def test_the_page_of_cardiac_ct_says_what_the_estimate_is() -> None:
    from fedmedseg.core.jobs import find_job, find_preset, read_settings
    from fedmedseg.core.schema import read_yaml

    job = find_job("cardiac_ct")
    page = (job / "README.md").read_text(encoding="utf-8")
    layers = [read_yaml(find_preset("cardiac_ct", "paper"))]
    published = {need.stage: need for need in needs(read_settings(job, layers)[1])}
    for stage, kind in (("teacher_hps", "CNN"), ("distillation", "transformer")):
        need = published[stage]
        (row,) = re.findall(rf"\| `paper`: {kind}[^|]*\| ([\d.]+) M \| ([\d.]+) GiB \| ([\d.]+) GiB \|", page)
        found = (need.parameters / 1e6, need.total / GIB, (need.total - need.training) / GIB)
        assert row == tuple(f"{number:.1f}" for number in found)
    shipped = {need.stage: need for need in needs(read_settings(job, [])[1])}
    (row,) = re.findall(r"\| ([\d.]+) M, ([\d.]+) M \| (\d+) MiB, (\d+) MiB \|", page)
    cnn, transformer = shipped["teacher_hps"], shipped["distillation"]
    assert row[:2] == tuple(f"{need.parameters / 1e6:.1f}" for need in (cnn, transformer))
    assert row[2:] == tuple(f"{need.total / 2**20:.0f}" for need in (cnn, transformer))


@pytest.mark.parametrize(("system", "views"), [("fcl", 1), ("fclopt", 2)])
def test_an_encoder_of_slices_counts_with_its_heads_and_without_the_decoder(system: str, views: int) -> None:
    """Beside it the network that follows it; of FCLOpt's online network both views are kept for the backward pass."""
    from fedmedseg.core.config import system_module
    from fedmedseg.core.jobs import find_job, read_settings

    experiment = read_settings(find_job(system), [])[1]
    need, fine_tuning = needs(experiment)
    plan: Any = system_module(system, "plan")
    heads = sum(
        tensor.numel()
        for name, tensor in plan.initial_shared(experiment).items()
        if name.startswith(("projector.", "predictor."))
    )
    encoder = sum(
        tensor.numel()
        for name, tensor in build_segmentation(experiment).state_dict().items()
        if name.startswith(("conv_0", "down_")) and tensor.is_floating_point()
    )
    assert heads > 0
    assert need.parameters == encoder + heads
    assert need.frozen == 4 * need.parameters
    assert need.crops == views * 4 * experiment.wing.parts
    # a decoder keeps at least as much as the encoder before it
    assert 0 < need.per_crop < 0.6 * fine_tuning.per_crop


@pytest.mark.parametrize(
    ("system", "settings", "copies"),
    [
        ("fedavg", {}, 0),
        ("fedavg", {"strategy": "fedopt"}, 0),
        ("fedavg", {"strategy": "fedprox"}, 2),
        ("fedavg", {"strategy": "ditto"}, 2),
        ("fedavg", {"strategy": "scaffold", "sgd": {"learning_rate": 0.05, "momentum": 0.0}}, 4),
        ("segviz", {}, 0),
        ("segviz", {"mode": "one_model", "distillation": {}}, 1),
    ],
)
def test_what_a_strategy_holds_beside_the_network_is_in_the_estimate(
    system: str, settings: dict[str, Any], copies: int
) -> None:
    from fedmedseg.core.jobs import find_job, read_settings

    (need, *_) = needs(read_settings(find_job(system), [{system: settings}])[1])
    assert need.stage == "training"
    assert need.frozen == copies * 4 * need.parameters
    assert ("beside it" in need.explained()) is bool(copies)


def test_flares_penalty_keeps_as_much_as_the_network_for_the_backward_pass() -> None:
    """By FLARE's own class: one of the two copies that are counted for fedprox; the other is what was received."""
    from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss

    network, received = torch.nn.Linear(30, 20), torch.nn.Linear(30, 20).requires_grad_(False)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.numel()
        held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        PTFedProxLoss(0.5)(network, received)
    assert sum(kept.values()) == 30 * 20 + 20
