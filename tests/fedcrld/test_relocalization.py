"""Re-localization: attention against the sums written out, and how its memory grows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedmedseg.fedcrld.relocalization import Attention, Relocalization


def attention(*, faithful_reshape: bool = False, channels: int = 8, inner: int = 4) -> Attention:
    torch.manual_seed(1)
    return Attention(channels=channels, inner=inner, faithful_reshape=faithful_reshape)


def maps(channels: int = 8, shape: tuple[int, ...] = (2, 3, 3), items: int = 1, seed: int = 2) -> torch.Tensor:
    return torch.randn((items, channels, *shape), generator=torch.Generator().manual_seed(seed))


def written_out(module: Attention, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Position by position, without a matrix product over positions: O softmax(K(rows) Q(columns)^T) V(columns)."""
    key, query, value = module.key(rows)[0], module.query(columns)[0], module.value(columns)[0]
    depth, height, width = rows.shape[2:]
    places = [(d, h, w) for d in range(depth) for h in range(height) for w in range(width)]
    result = torch.zeros(1, module.inner, depth, height, width)
    for d, h, w in places:
        scores = torch.stack([key[:, d, h, w] @ query[:, e, i, x] for e, i, x in places])
        weights = torch.softmax(scores, dim=0)
        result[0, :, d, h, w] = sum(
            weight * value[:, e, i, x] for weight, (e, i, x) in zip(weights, places, strict=True)
        )
    return module.output(result)


@pytest.mark.parametrize("fused", [True, False])
def test_each_position_of_the_rows_asks_all_positions_of_the_columns(fused: bool) -> None:
    module, rows, columns = attention(), maps(seed=2), maps(seed=3)
    module.use_flash_attention = fused
    torch.testing.assert_close(module(rows, columns), written_out(module, rows, columns), atol=1e-5, rtol=1e-5)


def test_the_scores_are_not_divided_by_the_root_of_the_width() -> None:
    """Two tokens whose score is ln 3: weights 3/4 and 1/4, whatever the number of channels."""
    module = attention()
    key = torch.zeros(1, 2, 4)
    key[0, 0, 0] = 1.0
    query = torch.tensor([[[1.0986123, 0.0, 0.0, 0.0]]])
    value = torch.tensor([[[4.0], [8.0]]])
    torch.testing.assert_close(module.attend(query, key, value), torch.tensor([[[5.0]]]))


def test_the_published_reshape_mixes_channels_and_positions() -> None:
    plain, mixed = attention(), attention(faithful_reshape=True)
    rows, columns = maps(seed=2), maps(seed=3)
    assert not torch.allclose(plain(rows, columns), mixed(rows, columns), atol=1e-3)
    # as the published code has it: (N, inner) and (inner, N) by reshape, values too
    inner = mixed.inner
    key, query = mixed.key(rows).reshape(-1, inner), mixed.query(columns).reshape(inner, -1)
    attended = torch.softmax(key @ query, dim=-1) @ mixed.value(columns).reshape(-1, inner)
    expected = mixed.output(attended.reshape(1, inner, *rows.shape[2:]))
    torch.testing.assert_close(mixed(rows, columns), expected, atol=1e-5, rtol=1e-5)


def test_items_of_a_batch_do_not_see_each_other() -> None:
    for faithful in (False, True):
        module = attention(faithful_reshape=faithful)
        rows, columns = maps(items=2, seed=2), maps(items=2, seed=3)
        alone = torch.cat([module(rows[index, None], columns[index, None]) for index in range(2)])
        torch.testing.assert_close(module(rows, columns), alone, atol=1e-5, rtol=1e-5)


def test_a_kernel_that_holds_no_scores_takes_volumes_of_full_size_forward_and_back() -> None:
    """10 slices of 200 x 200 are 6,250 tokens of 256 channels: the memory-saving kernels alone are allowed here."""
    tokens = torch.randn(1, 6250, 256, requires_grad=True)
    module = attention()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        module.attend(tokens[:, :64], tokens, tokens).sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()


def test_fused_attention_keeps_nothing_of_the_size_of_the_scores() -> None:
    module = attention(channels=8, inner=8)
    rows = maps(shape=(4, 16, 16))
    positions = 4 * 16 * 16
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(rows, rows)
    assert max(kept) < positions**2
    kept.clear()
    module.use_flash_attention = False
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(rows, rows)
    assert max(kept) == positions**2, "written out, the scores are kept: what the switch is for"


def test_the_transformer_is_the_published_sequence_with_one_norm() -> None:
    torch.manual_seed(4)
    module = Relocalization(channels=8, inner=4, faithful_reshape=False)
    shared, local = maps(seed=5), maps(seed=6)

    def normed(x: torch.Tensor) -> torch.Tensor:
        return functional.group_norm(x, 4, module.norm.weight, module.norm.bias)

    first = normed(local + written_out(module.self_attention, local, local))
    first = normed(first + module.self_convolution(first))
    second = normed(first + written_out(module.cross_attention, shared, first))
    second = normed(second + module.cross_convolution(second))
    torch.testing.assert_close(module(shared, local), torch.cat([first, second], dim=1), atol=1e-4, rtol=1e-4)
    assert sum(isinstance(one, torch.nn.GroupNorm) for one in module.modules()) == 1
