"""A way of computing does to a network what its name says, and nothing to its values."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fedmedseg.core.compute import PLAIN, SHIPPED, ComputeChoice
from fedmedseg.networks.compute import applied, attention_modules, layout_of, logits_of, prepare
from fedmedseg.networks.factory import build_segmentation

BF16 = ComputeChoice(precision="bf16")
LAST = ComputeChoice(layout="channels_last")
NETWORKS = [("swin_unetr", (64, 64)), ("swin_unetr", (64, 32, 32)), ("unetr", (32, 32)), ("unetr", (32, 16, 16))]


@pytest.fixture(params=NETWORKS, ids=lambda case: f"{case[0]}-{len(case[1])}d")
def network(study, request):
    torch.manual_seed(0)
    model = build_segmentation(study(*request.param)).eval()
    return model, torch.randn(2, 1, *request.param[1])


def outputs(model, images, choice):
    """What every convolution and linear layer gave."""
    seen = []
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    hooks = [
        module.register_forward_hook(lambda layer, _, output: seen.append((layer, output)))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    prepare(model, choice)
    logits = logits_of(model, images, choice, "cpu")
    for hook in hooks:
        hook.remove()
    return seen, logits


def test_bf16_is_what_layers_compute_and_float32_what_comes_out(network):
    model, images = network
    seen, logits = outputs(model, images, BF16)
    assert {tensor.dtype for _, tensor in seen} == {torch.bfloat16}
    assert logits.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    plain, _ = outputs(model, images, SHIPPED)
    assert {tensor.dtype for _, tensor in plain} == {torch.float32}


def test_gradients_of_bf16_are_float32(network):
    model, images = network
    prepare(model, BF16)
    logits_of(model, images, BF16, "cpu").square().mean().backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_channels_last_reaches_weights_and_activations(network):
    model, images = network
    last = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
    for choice, expected in ((LAST, last), (SHIPPED, torch.contiguous_format)):
        seen, _ = outputs(model, images, choice)
        # a kernel of one voxel, or of one channel, lies both ways and takes the layout it is given; Swin's tokens
        # come out of their movements channels last in any case
        maps = [
            tensor for layer, tensor in seen if layer.weight.ndim == images.ndim and min(layer.weight.shape[1:]) > 1
        ]
        assert len(maps) > 5
        assert all(tensor.is_contiguous(memory_format=last) for tensor in maps) is (choice is LAST)
        weights = [weight for weight in model.parameters() if weight.ndim == images.ndim]
        assert all(weight.is_contiguous(memory_format=expected) for weight in weights)
        assert layout_of(model) == choice.layout


def test_the_attention_kernel_is_the_one_asked_for(network, monkeypatch):
    model, images = network
    calls = []
    real = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda *args, **words: calls.append(1) or real(*args, **words)
    )
    with torch.no_grad():
        prepare(model, PLAIN)
        logits_of(model, images, PLAIN, "cpu")
        assert calls == []
        prepare(model, SHIPPED)
        logits_of(model, images, SHIPPED, "cpu")
    assert len(calls) == len(attention_modules(model)) > 0


@pytest.mark.parametrize("name", ["swin_unetr", "unetr"])
def test_in_training_swin_writes_attention_out_whatever_is_asked_for(study, monkeypatch, name):
    """Why its supervised training does not time the kernels; a MONAI that changes it makes this fail."""
    model = build_segmentation(study(name, (64, 64)))
    calls = []
    real = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda *args, **words: calls.append(1) or real(*args, **words)
    )
    prepare(model, SHIPPED)
    logits_of(model, torch.randn(1, 1, 64, 64), SHIPPED, "cpu")
    assert bool(calls) is (name == "unetr")


def test_ways_agree_on_the_logits(network):
    model, images = network
    with torch.no_grad():
        _, plain = outputs(model, images, PLAIN)
        for choice, tolerance in ((SHIPPED, 1e-4), (LAST, 1e-4), (BF16, 0.1)):
            _, found = outputs(model, images, choice)
            torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)


def test_no_value_changes_with_the_layout(network):
    model, _ = network
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepare(model, LAST)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_way_applied_for_a_while_is_undone_even_after_an_error(network):
    model, _ = network
    prepare(model, ComputeChoice(attention="explicit", layout="channels_last"))

    def fail_inside():
        with applied(model, SHIPPED):
            assert layout_of(model) == "contiguous"
            assert all(module.use_flash_attention for module in attention_modules(model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert layout_of(model) == "channels_last"
    assert not any(module.use_flash_attention for module in attention_modules(model))
    with applied(model, None):
        assert layout_of(model) == "channels_last"


def test_an_optimiser_keeps_hold_of_weights_and_gradients_of_another_layout(network):
    model, images = network
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    logits_of(model, images, SHIPPED, "cpu").square().mean().backward()
    name, weight = next((name, weight) for name, weight in model.named_parameters() if weight.ndim == images.ndim)
    before, gradient = weight.detach().clone(), weight.grad.clone()
    prepare(model, LAST)
    optimizer.step()
    torch.testing.assert_close(model.get_parameter(name).detach(), before - gradient)
