"""What crosses the wire: deterministic, complete, floating, and never the teacher."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.wire import Schema
from fedmedseg.fedata.plan import STAGES, initial_shared
from fedmedseg.networks.factory import build_segmentation, encoder_names

CASES = [("swin_unetr", (64, 64)), ("swin_unetr", (64, 32, 32)), ("unetr", (32, 32)), ("unetr", (32, 16, 16))]


@pytest.mark.parametrize(("network", "crop"), CASES)
def test_the_shared_tensors_are_encoder_mask_token_and_predictor(study, network, crop):
    # 2 of (32, 16, 16) units masked of 2 would leave none visible
    experiment = study(network, crop, mask_ratio=0.5)
    shared = initial_shared(experiment)
    encoder = encoder_names(build_segmentation(experiment), experiment)
    predictor = {f"predictor.{place}" for place in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")}
    assert set(shared) == {*encoder, "mask_token", *predictor}
    assert Schema(shared).problem(shared) is None
    assert {tensor.dtype for tensor in shared.values()} == {torch.float32}


def test_no_teacher_merging_head_or_index_is_shared(study):
    for network, crop in (("swin_unetr", (64, 64)), ("unetr", (32, 32))):
        for name in initial_shared(study(network, crop)):
            parts = name.split(".")
            assert parts[0] in ("swinViT", "vit", "mask_token", "predictor")
            assert not {"teacher", "norm_cross_attn", "relative_position_index", "optimizer"} & set(parts)
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
    assert not torch.equal(one["mask_token"], other["mask_token"])


def test_only_pretraining_returns_tensors():
    assert {name: (stage.sends, stage.returns) for name, stage in STAGES.items()} == {
        "pretraining": ("shared", "shared"),
        "fine_tuning": ("shared", "metrics"),
        "evaluation": ("nothing", "metrics"),
    }
    assert list(STAGES) == ["pretraining", "fine_tuning", "evaluation"]
