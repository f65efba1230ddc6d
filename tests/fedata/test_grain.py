"""Elements that share a mixing weight are those of a tensor, or those that one attention head owns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmedseg.fedata.grain import Grain, element, grains, head_grains, whole
from fedmedseg.fedata.network import MaskedEncoder

CASES = [("swin_unetr", (64, 64)), ("unetr", (32, 32))]


def _mixed(grain: Grain, weights: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The mixture of own 0 and shared 1: every element is its own weight."""
    return grain.lerp(torch.zeros(shape), torch.ones(shape), weights)


def test_a_weight_per_element_reaches_its_element_alone():
    weights = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    assert torch.equal(_mixed(element((2, 2)), weights, (2, 2)), weights)
    assert torch.equal(element((2, 2)).gather(weights), weights)


def test_a_weight_per_tensor_reaches_all_and_gathers_the_sum():
    grain = whole((2, 3))
    assert _mixed(grain, torch.tensor([[0.25]]), (2, 3)).tolist() == [[0.25] * 3] * 2
    assert grain.gather(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]])).tolist() == [[9.0]]
    assert float(_mixed(whole(()), torch.tensor(0.5), ())) == 0.5


class _Attention(nn.Module):
    """Two heads of two channels, under the names of MONAI's window attention."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.qkv = nn.Linear(4, 12)
        self.proj = nn.Linear(4, 4)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5, 2))


def test_heads_own_rows_of_qkv_columns_of_the_projection_and_of_the_bias_table():
    found = head_grains(_Attention())
    weights = torch.tensor([0.25, 0.75])
    rows = [0.25, 0.25, 0.75, 0.75] * 3
    shapes = {"qkv.weight": (12, 4), "qkv.bias": (12,), "proj.weight": (4, 4), "relative_position_bias_table": (5, 2)}
    mixed = {name: _mixed(found[name], weights.reshape(found[name].weights), shape) for name, shape in shapes.items()}
    assert mixed["qkv.weight"].tolist() == [[row] * 4 for row in rows]
    assert mixed["qkv.bias"].tolist() == rows
    assert mixed["proj.weight"].tolist() == [[0.25, 0.25, 0.75, 0.75]] * 4
    assert mixed["relative_position_bias_table"].tolist() == [[0.25, 0.75]] * 5
    assert found["proj.bias"] == whole((4,))


def test_a_head_gathers_over_what_it_owns():
    found = head_grains(_Attention())
    assert found["qkv.bias"].gather(torch.arange(12.0)).flatten().tolist() == [0 + 1 + 4 + 5 + 8 + 9, 66 - 27]
    assert found["proj.weight"].gather(torch.arange(16.0).reshape(4, 4)).flatten().tolist() == [
        0 + 1 + 4 + 5 + 8 + 9 + 12 + 13,
        120 - 52,
    ]


@pytest.mark.parametrize(("network", "crop"), CASES)
def test_taking_one_heads_own_tensors_changes_that_heads_output_and_no_other(study, network, crop):
    """On MONAI's own module: a mixed qkv and projection must cut where the module's reshape cuts."""
    encoder = MaskedEncoder(experiment=study(network, crop))
    attention = next(iter(encoder.attention_modules().values())).eval()
    heads, names = attention.num_heads, dict(attention.named_parameters())
    assert heads > 1
    found = head_grains(attention)
    projection = attention.proj if hasattr(attention, "proj") else attention.out_proj
    width = projection.in_features // heads
    before: list[torch.Tensor] = []
    projection.register_forward_pre_hook(lambda _module, given: before.append(given[0].detach()))
    tokens = torch.randn(2, 16 if network == "swin_unetr" else 4, projection.in_features)

    def run() -> torch.Tensor:
        with torch.no_grad():
            attention(tokens, None) if network == "swin_unetr" else attention(tokens)
        return before[-1].unflatten(-1, (heads, width))

    first = run()
    weights = torch.ones(heads)
    weights[1] = 0.0
    with torch.no_grad():
        for name in ("qkv.weight", "qkv.bias", "relative_position_bias_table"):
            if name in names:
                own = names[name] + torch.randn_like(names[name])
                names[name].copy_(found[name].lerp(own, names[name], weights.reshape(found[name].weights)))
    after = run()
    moved = [not torch.equal(first[..., head, :], after[..., head, :]) for head in range(heads)]
    assert moved == [head == 1 for head in range(heads)]


@pytest.mark.parametrize(("network", "crop"), CASES)
def test_the_number_of_weights_follows_the_granularity(study, network, crop):
    encoder = MaskedEncoder(experiment=study(network, crop))
    tensors, modules = encoder.shared(), encoder.attention_modules()

    def count(granularity):
        found = grains(tensors, granularity, modules)
        assert set(found) == set(tensors)
        ones = {name: found[name].ones(tensor) for name, tensor in tensors.items()}
        return ones, sum(one.numel() for one in ones.values())

    assert count("element")[1] == sum(tensor.numel() for tensor in tensors.values())
    assert count("tensor")[1] == len(tensors)
    ones, total = count("head")
    by_head = {name for name, one in ones.items() if one.numel() > 1}
    kinds = {name.split(".attn.")[1] for name in by_head}
    assert kinds <= {"qkv.weight", "qkv.bias", "proj.weight", "out_proj.weight", "relative_position_bias_table"}
    assert {f"{prefix}.qkv.weight" for prefix in modules} <= by_head
    heads = sum(
        module.num_heads * sum(f"{prefix}.{name}" in by_head for name, _ in module.named_parameters())
        for prefix, module in modules.items()
    )
    assert total == heads + len(tensors) - len(by_head)
