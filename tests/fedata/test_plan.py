"""What crosses the wire: deterministic, complete, floating, and a teacher in pretraining alone."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.wire import Schema
from fedmedseg.fedata.plan import initial_shared, stages
from fedmedseg.networks.factory import build_segmentation, encoder_names

CASES = [("swin_unetr", (64, 64)), ("swin_unetr", (64, 32, 32)), ("unetr", (32, 32)), ("unetr", (32, 16, 16))]


PREDICTOR = {f"predictor.{place}" for place in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")}


@pytest.mark.parametrize(("network", "crop"), CASES)
def test_the_shared_tensors_are_encoder_and_heads(study, network, crop):
    """Swin's masked tokens are replaced and read by a predictor; the ViT's are dropped and predicted by a decoder."""
    # 2 of (32, 16, 16) units masked of 2 would leave none visible
    experiment = study(network, crop, mask_ratio=0.5)
    shared = initial_shared(experiment)
    encoder = set(encoder_names(build_segmentation(experiment), experiment))
    assert encoder < set(shared)
    heads = set(shared) - encoder
    if network == "swin_unetr":
        assert heads == {"mask_token", *PREDICTOR}
    else:
        assert all(name.startswith("decoder.") for name in heads)
        assert "decoder.mask_token" in heads
    replaced = initial_shared(study(network, crop, mask_ratio=0.5, masked_tokens="replace"))
    assert set(replaced) == {*encoder, "mask_token", *PREDICTOR}
    assert Schema(shared).problem(shared) is None
    assert {tensor.dtype for tensor in shared.values()} == {torch.float32}


@pytest.mark.parametrize("pretext", ["distillation", "ibot", "simmim", "mae"])
def test_no_teacher_merging_centre_or_index_is_shared(study, pretext):
    for network, crop in (("swin_unetr", (64, 64)), ("unetr", (32, 32))):
        for name in initial_shared(study(network, crop, pretext=pretext)):
            parts = name.split(".")
            assert parts[0] in ("swinViT", "vit", "mask_token", "predictor", "decoder", "head", "pixels")
            assert not {"teacher", "norm_cross_attn", "relative_position_index", "optimizer", "centre"} & set(parts)
            assert not name.startswith("swinViT.layers4.0.downsample")


def test_the_same_study_starts_from_the_same_tensors_whatever_was_drawn_before(study):
    experiment = study("swin_unetr", (64, 64))
    first = initial_shared(experiment)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = initial_shared(experiment)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_starts_elsewhere(settings):
    from fedmedseg.core.config import parse_experiment

    one = initial_shared(parse_experiment(settings()))
    other = initial_shared(parse_experiment(settings() | {"seed": 2}))
    assert all(not torch.equal(one[name], other[name]) for name in one if name.endswith("mlp.linear1.weight"))


def test_only_pretraining_returns_tensors(study):
    assert {name: (stage.sends, stage.returns) for name, stage in stages(study()).items()} == {
        "pretraining": ("shared", "shared"),
        "fine_tuning": ("shared", "metrics"),
        "evaluation": ("nothing", "metrics"),
    }
    assert list(stages(study())) == ["pretraining", "fine_tuning", "evaluation"]


@pytest.mark.parametrize("rule", ["layer_att", "fedavg", "fedatt_faithful", "pair_att"])
def test_only_pair_attention_sends_a_site_tensors_of_its_own_and_in_pretraining_alone(study, rule):
    personal = {name for name, stage in stages(study(server_aggregation=rule)).items() if stage.personal}
    assert personal == ({"pretraining"} if rule == "pair_att" else set())


def _crossing(experiment):
    """Per stage: kinds of the names that go to a site in its first and in a later round, and that come back."""
    shared = initial_shared(experiment)

    def kinds(part):
        found = {name.split(".")[0] for name in part.of(shared)}
        return "".join(sorted({"vit": "e", "decoder": "d", "teacher": "t", "fine_tuned": "f"}[kind] for kind in found))

    crossing = {}
    for name, stage in stages(experiment).items():
        sends, returns = stage.sends == "shared", stage.returns == "shared"
        down = [kinds(stage.sent_in(number)) if sends else "" for number in (0, 1)]
        crossing[name] = (*down, kinds(stage.returned) if returns else "")
    return crossing


TOGETHER = {"fine_tuning": "federated", "steps": 2, "optimizer": {"learning_rate": 1e-3}}


@pytest.mark.parametrize(
    ("change", "federated", "expected"),
    [
        ({}, False, {"pretraining": ("de", "de", "de"), "fine_tuning": ("de", "de", ""), "evaluation": ("", "", "")}),
        (
            {"teacher_sync": "aggregate"},
            False,
            {"pretraining": ("det", "det", "det"), "fine_tuning": ("de", "de", ""), "evaluation": ("", "", "")},
        ),
        (
            {"starts": ["shared"]},
            True,
            {"pretraining": ("de", "de", "de"), "fine_tuning": ("def", "f", "f"), "evaluation": ("f", "f", "")},
        ),
        (
            {"starts": ["shared"], "teacher_sync": "aggregate"},
            True,
            {"pretraining": ("det", "det", "det"), "fine_tuning": ("def", "f", "f"), "evaluation": ("f", "f", "")},
        ),
        (
            {"server_aggregation": "none", "starts": ["personal"]},
            False,
            {"pretraining": ("de", "", ""), "fine_tuning": ("", "", ""), "evaluation": ("", "", "")},
        ),
    ],
)
def test_what_each_stage_sends_and_returns(settings, change, federated, expected):
    """d is the pretext's decoder, e the encoder, t a teacher, f a network of the federated fine-tuning."""
    from fedmedseg.core.config import parse_experiment

    content = settings(**change)
    if federated:
        content["segmentation"] = TOGETHER
    assert _crossing(parse_experiment(content)) == expected


def test_mixing_names_that_do_not_exist_are_not_declared(study):
    declared = stages(study())["pretraining"]
    declared.check_metrics({"mixing/mu": 0.5, "mixing/passes": 1.0, "memory_missing": 1.0})
    with pytest.raises(FedMedSegError, match="declare it"):
        declared.check_metrics({"mixing/weights": 0.5})
