"""First in first out, a share of the slices at most, and K drawn uniformly from own and received entries."""

import pytest
import torch

from fedmedseg.core.exchange import Features
from fedmedseg.fcl.bank import OTHERS, FeatureBank, capacity_of, received_rows, sampled, together
from fedmedseg.fcl.losses import Rows

CPU = torch.device("cpu")


def rows(first: int, count: int) -> Rows:
    numbers = torch.arange(first, first + count)
    return Rows(
        vectors=numbers[:, None].float().repeat(1, 2), parts=(numbers % 4).to(torch.uint8), slices=numbers.clone()
    )


def test_the_oldest_go_first() -> None:
    bank = FeatureBank(capacity=5, width=2, device=CPU)
    bank.push(rows(0, 3))
    assert len(bank) == 3
    bank.push(rows(3, 4))
    assert bank.rows.slices.tolist() == [2, 3, 4, 5, 6]
    assert bank.rows.vectors[:, 0].tolist() == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert bank.rows.parts.tolist() == [2, 3, 0, 1, 2]


def test_what_leaves_has_no_slices_and_is_a_copy() -> None:
    bank = FeatureBank(capacity=5, width=2, device=CPU)
    bank.push(rows(0, 3))
    leaving = bank.features()
    assert set(vars(leaving)) == {"vectors", "parts"}
    leaving.vectors.zero_()
    assert bank.rows.vectors[1, 0] == 1.0


@pytest.mark.parametrize(
    ("size", "share", "slices", "expected"),
    [(2048, 0.8, 100, 80), (50, 0.8, 100, 50), (9, 0.8, 5, 4), (9, 0.1, 3, 2), (9, 0.8, 1, 1)],
)
def test_a_bank_holds_a_share_of_the_sites_slices_at_most(size: int, share: float, slices: int, expected: int) -> None:
    assert capacity_of(size=size, share=share, slices=slices) == expected


def test_received_features_are_of_no_slice_of_this_site() -> None:
    received = received_rows(
        Features(vectors=torch.ones(2, 3), parts=torch.tensor([1, 2], dtype=torch.uint8)), width=3, device=CPU
    )
    assert received.slices.tolist() == [OTHERS, OTHERS]
    assert received_rows(None, width=3, device=CPU).vectors.shape == (0, 3)


def test_a_sample_repeats_by_its_seed_and_holds_no_entry_twice() -> None:
    own, received = rows(0, 6), rows(10, 6)
    torch.manual_seed(5)
    first = sampled(own, received, count=8)
    other = sampled(own, received, count=8)
    torch.manual_seed(5)
    again = sampled(own, received, count=8)
    assert first.slices.tolist() == again.slices.tolist() != other.slices.tolist()
    assert len(set(first.slices.tolist())) == 8
    # each row keeps its part
    assert first.parts.tolist() == [number % 4 for number in first.slices.tolist()]


def test_every_entry_is_drawn_as_often_as_every_other() -> None:
    own, received = rows(0, 3), rows(10, 9)
    torch.manual_seed(0)
    drawn = torch.cat([sampled(own, received, count=4).slices for _ in range(3000)])
    shares = torch.bincount(drawn, minlength=19)[together(own, received).slices] / 3000
    assert torch.allclose(shares, torch.full((12,), 4 / 12), atol=0.04)


def test_fewer_entries_than_k_are_all_taken() -> None:
    assert sorted(sampled(rows(0, 2), rows(10, 1), count=8).slices.tolist()) == [0, 1, 10]


def test_a_bank_goes_on_from_its_state() -> None:
    bank, other = (FeatureBank(capacity=3, width=2, device=CPU) for _ in range(2))
    bank.push(rows(0, 5))
    other.restore(bank.state())
    for one in (bank, other):
        one.push(rows(7, 1))
    assert other.rows.slices.tolist() == bank.rows.slices.tolist() == [3, 4, 7]
