"""A site times its network once, remembers the outcome, and forgets it when anything it depends on changes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fedmedseg.core.compute import PLAIN, SHIPPED, ComputeChoice, Measurement
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.federation_settings import ComputeSection
from fedmedseg.networks import timing
from fedmedseg.networks.timing import InferenceTrial, StepTrial, choose, key_of, machine

AUTO = ComputeSection(precision="auto", attention="auto", layout="auto")
BF16 = ComputeChoice(precision="bf16", attention="explicit", layout="contiguous")
SHAPE = (2, 1, 32, 32)


@pytest.fixture
def ask(study, tmp_path, monkeypatch):
    """ask(seconds..., **choose's words): the choice, with ``measured`` counting what was timed."""
    counted = []

    def measure(trial, ways, **_):
        counted.append([str(way) for way in ways])
        return Measurement(choice=ask.outcome, ratios={str(ask.outcome): 0.5}, seconds={}, struck={"x": "y"})

    monkeypatch.setattr(timing, "measure", measure)

    def ask(compute=AUTO, *, name="unetr", crop=(32, 32), **words):
        experiment = study(name, crop, **words.pop("network", {})).model_copy(update={"compute": compute})
        words = {"work": "supervised", "shape": SHAPE, "device": "cpu", **words}
        return choose(experiment, trial=lambda: None, cache=tmp_path, **words)

    ask.outcome = BF16
    ask.measured = counted
    ask.files = lambda: sorted((tmp_path / "compute").rglob("*.json"))
    return ask


def test_fixed_settings_are_not_timed(ask):
    assert ask(ComputeSection()) == SHIPPED
    assert ask(ComputeSection(precision="bf16", attention="explicit")) == BF16
    assert ask.measured == []
    assert ask.files() == []


@pytest.mark.parametrize(("name", "kernels"), [("unetr", {"explicit", "fused"}), ("basic_unet", {"explicit"})])
@pytest.mark.parametrize("work", ["supervised", "inference"])
def test_kernels_of_attention_are_tried_where_there_is_any(ask, name, kernels, work):
    ask.outcome = PLAIN
    ask(name=name, work=work)
    (timed,) = ask.measured
    assert {way.split("/")[1] for way in timed} == kernels


def test_what_was_timed_once_is_remembered_with_its_report(ask):
    assert ask() == BF16
    ask.outcome = PLAIN
    assert ask() == BF16
    assert len(ask.measured) == 1
    (file,) = ask.files()
    told = json.loads(file.read_text())
    assert told["choice"] == vars(BF16)
    assert told["struck"] == {"x": "y"}
    assert told["key"]["shape"] == list(SHAPE)


@pytest.mark.parametrize(
    "change",
    [
        {"work": "inference"},
        {"shape": (4, 1, 32, 32)},
        {"crop": (32, 16), "shape": (2, 1, 32, 16)},
        {"network": {"hidden_size": 48}},
        {"compute": ComputeSection(precision="auto")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_work_network_batch_or_setting_is_timed_anew(ask, change):
    ask()
    ask(**change)
    ask()
    assert len(ask.measured) == 2


@pytest.mark.parametrize("other", ["cpu", "flags", "threads", "torch", "monai"])
def test_another_machine_or_version_is_timed_anew(ask, monkeypatch, other):
    ask()
    if other == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    elif other == "torch":
        monkeypatch.setattr(torch, "__version__", "0.1")
    elif other == "monai":
        monkeypatch.setattr(timing, "version", lambda package: "0.1")
    else:
        found = machine("cpu")
        monkeypatch.setattr(timing, "machine", lambda device: {**found, other: "another"})
    ask.outcome = PLAIN
    assert ask() == PLAIN
    monkeypatch.undo()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"{}",
        b'{"key": "foreign", "choice": {"precision": "bf16"}}',
        None,
    ],
)
def test_a_damaged_or_foreign_record_is_timed_again(ask, content):
    ask()
    (file,) = ask.files()
    if content is None:
        told = json.loads(file.read_text())
        content = json.dumps({**told, "choice": {**told["choice"], "precision": "fp8"}}).encode()
    file.write_bytes(content)
    ask.outcome = PLAIN
    assert ask() == PLAIN
    assert len(ask.measured) == 2
    assert ask() == PLAIN
    assert len(ask.measured) == 2


def test_a_disk_that_cannot_be_written_costs_only_the_memory(ask, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedmedseg.data.cache.write_atomic", full)
    assert ask() == BF16
    assert ask.files() == []


def test_swins_supervised_training_does_not_time_two_names_of_one_kernel(ask):
    ask(name="swin_unetr", crop=(64, 64))
    ask(name="swin_unetr", crop=(64, 64), work="inference")
    ask(name="unetr")
    assert [len(ways) for ways in ask.measured] == [4, 8, 8]


def test_measuring_leaves_the_random_numbers_alone(study, tmp_path, monkeypatch):
    experiment = study("unetr", (32, 32)).model_copy(update={"compute": ComputeSection(precision="auto")})
    monkeypatch.setattr(
        timing,
        "measure",
        lambda trial, ways, **_: (
            torch.randn(3) is None or Measurement(choice=ways[0], ratios=dict.fromkeys(map(str, ways), 1.0), seconds={})
        ),
    )
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    choose(experiment, work="inference", shape=SHAPE, trial=lambda: torch.randn(2), cache=tmp_path, device="cpu")
    assert torch.equal(torch.rand(4), expected)


def test_the_key_of_a_gpu_is_its_name(study, monkeypatch):
    class Properties:
        name, major, minor = "a GPU", 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert machine("cuda") == {"gpu": "a GPU", "capability": "9.0"}
    keys = [
        key_of(study("unetr", (32, 32)), work="inference", shape=SHAPE, ways=[PLAIN], device=device)
        for device in ("cpu", "cuda")
    ]
    assert keys[0] != keys[1]


def test_a_step_gives_the_same_figures_each_time_and_leaves_weights_and_gradients(study):
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    inputs = torch.randn(8, 4)
    trial = StepTrial(networks=[network], loss=lambda choice: network(inputs).square().mean(), seed=5)
    trial.use(PLAIN)
    first = trial.check()
    trial.step()
    second = trial.check()
    assert first == second
    assert set(first) == {"loss", "gradient norm"}
    assert first["gradient norm"] > 0
    assert all(torch.equal(parameter, old) for parameter, old in zip(network.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_are_an_error(poison):
    network = nn.Conv2d(1, 2, 1)
    trial = StepTrial(networks=[network], loss=lambda choice: network(torch.ones(1, 1, 2, 2)).sum() * poison, seed=0)
    with pytest.raises(FedMedSegError, match="loss not finite") as caught:
        trial.check()
    assert caught.value.reason == Reason.LOCAL_DIVERGED
    with torch.no_grad():
        network.weight.fill_(poison)
    inference = InferenceTrial(network=network, windows=torch.ones(1, 1, 2, 2), device="cpu")
    with pytest.raises(FedMedSegError, match="probabilities not finite"):
        inference.check()
