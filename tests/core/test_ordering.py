"""Networks of minima and maxima: they sort, they leave out what is not wanted, and they give what sorting gives."""

from __future__ import annotations

import itertools

import pytest
import torch

from fedmedseg.core import ordering
from fedmedseg.core.ordering import comparators, in_order, median, network, trimmed_mean


def by_sorting(tensors: list[torch.Tensor], trim: int) -> torch.Tensor:
    """What a library's sort gives, summed from the least to the largest."""
    rows = torch.sort(torch.stack(tensors).float(), dim=0).values[trim : len(tensors) - trim]
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return (total / len(rows)).to(tensors[0].dtype)


@pytest.mark.parametrize("wires", range(1, 11))
def test_it_sorts_every_pattern_of_zeros_and_ones(wires: int) -> None:
    """The 0-1 principle: a network that sorts these sorts everything."""
    for pattern in itertools.product((0, 1), repeat=wires):
        row = list(pattern)
        for low, high in comparators(wires):
            row[low], row[high] = min(row[low], row[high]), max(row[low], row[high])
        assert row == sorted(pattern)


@pytest.mark.parametrize("wires", [4, 8, 16])
def test_it_has_as_many_comparators_as_batchers(wires: int) -> None:
    assert len(list(comparators(wires))) == {4: 5, 8: 19, 16: 63}[wires]


def test_what_no_wanted_output_depends_on_is_left_out() -> None:
    whole, middle = network(8, tuple(range(8))), network(8, (3, 4))
    assert all(minimum and maximum for _, _, minimum, maximum in whole)
    halves = sum(minimum + maximum for _, _, minimum, maximum in middle)
    assert halves < 2 * len(whole)


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 5, 7, 8, 9, 16, 33])
def test_the_trimmed_mean_is_that_of_sorting_bit_for_bit(sites: int) -> None:
    draws = torch.Generator().manual_seed(sites)
    tensors = [torch.randn(7, 300, generator=draws) * 10.0**place for place in range(-3, 1)] * sites
    tensors = [tensor.clone() for tensor in tensors[:sites]]
    # ties, zeros of both signs and very large numbers among them
    for tensor in tensors[::2]:
        tensor[0, :3] = torch.tensor([0.0, -0.0, 3e37])
    before = [tensor.clone() for tensor in tensors]
    for trim in range((sites - 1) // 2 + 1):
        assert torch.equal(trimmed_mean(tensors, trim), by_sorting(tensors, trim))
    assert torch.equal(median(tensors), by_sorting(tensors, (sites - 1) // 2))
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True)), "inputs stay"


def test_blocks_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "BLOCK", 16)
    for numbers in (1, 15, 16, 17, 50):
        tensors = [torch.randn(numbers) for _ in range(5)]
        assert torch.equal(trimmed_mean(tensors, 1), by_sorting(tensors, 1))


def test_half_precision_is_summed_in_single_precision_and_odd_layouts_are_read_right() -> None:
    halves = [torch.full((3,), 60000.0, dtype=torch.float16) for _ in range(4)]
    assert trimmed_mean(halves, 1).tolist() == [60000.0] * 3
    assert trimmed_mean(halves, 1).dtype == torch.float16
    turned = [torch.randn(4, 6).T for _ in range(3)]
    assert torch.equal(median(turned), by_sorting(turned, 1))
    scalars = [torch.tensor(float(value)) for value in (3, 1, 2)]
    assert median(scalars).item() == 2.0
    assert trimmed_mean([torch.zeros(0)] * 3, 1).shape == (0,)


@pytest.mark.parametrize(("sites", "trim"), [(2, 1), (4, 2), (3, -1)])
def test_nothing_left_is_refused(sites: int, trim: int) -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        trimmed_mean([torch.zeros(1)] * sites, trim)


def test_by_hand() -> None:
    rows = [torch.tensor([5.0, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 9.0]), torch.tensor([100.0, -7.0])]
    assert trimmed_mean(rows, 1).tolist() == [4.0, 1.5]
    assert median(rows[:3]).tolist() == [3.0, 2.0]
    kept = in_order([row.numpy() for row in rows], [3], [torch.empty(2).numpy() for _ in range(6)])
    assert [row.tolist() for row in kept] == [[100.0, 9.0]]
