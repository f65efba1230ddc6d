"""The loss against a literal computation of the formula, entry by entry."""

import math

import pytest
import torch

from fedmedseg.fcl.losses import (
    SLICES,
    Rows,
    attraction,
    background,
    contrastive_losses,
    local_positives,
    structural_positives,
)

TAU = 0.1


def rows(count: int, *, seed: int, parts: list[int], slices: list[int], width: int = 5) -> Rows:
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Rows(
        vectors=torch.nn.functional.normalize(drawn, dim=1),
        parts=torch.tensor(parts, dtype=torch.uint8),
        slices=torch.tensor(slices),
    )


def brute_force(queries: Rows, keys: Rows, bank: Rows, *, denominator: str, positives: str) -> tuple[float, float]:
    """Loops over queries, positives and negatives, with plain exponentials."""
    locals_, remotes = [], []
    for i in range(len(queries.parts)):
        q, part, own = queries.vectors[i], int(queries.parts[i]), int(queries.slices[i])
        entries = [j for j in range(len(bank.parts)) if int(bank.slices[j]) != own]
        negatives = [j for j in entries if denominator == "paper" or int(bank.parts[j]) != part]
        total = sum(math.exp(float(q @ bank.vectors[j]) / TAU) for j in negatives)

        def term(vector: torch.Tensor, q: torch.Tensor = q, total: float = total) -> float:
            attracted = math.exp(float(q @ vector) / TAU)
            return -math.log(attracted / (attracted + total))

        drawn_to = [
            keys.vectors[j]
            for j in range(len(keys.parts))
            if int(keys.slices[j]) == own
            or (
                positives == "partition"
                and int(keys.parts[j]) == part
                and int(keys.slices[j]) // SLICES != own // SLICES
            )
        ]
        locals_.append(sum(map(term, drawn_to)) / len(drawn_to))
        matched = [bank.vectors[j] for j in entries if int(bank.parts[j]) == part]
        remotes.append(sum(map(term, matched)) / len(matched) if matched else 0.0)
    return sum(locals_) / len(locals_), sum(remotes) / len(remotes)


@pytest.fixture
def batch() -> tuple[Rows, Rows, Rows]:
    """Three volumes of two slices, one of them twice in the same part; a bank of own and received entries."""
    parts, slices = [0, 1, 0, 1, 0, 3], [0, 1, SLICES, SLICES + 1, 2, 2 * SLICES]
    queries = rows(6, seed=1, parts=parts, slices=slices)
    keys = rows(6, seed=2, parts=parts, slices=slices)
    bank = rows(8, seed=3, parts=[0, 0, 1, 1, 2, 2, 0, 1], slices=[0, SLICES, 1, 7, 9, -1, -1, -1])
    return queries, keys, bank


@pytest.mark.parametrize("denominator", ["paper", "exclude_same_partition"])
@pytest.mark.parametrize("positives", ["partition", "view"])
def test_both_terms_equal_the_formula_computed_entry_by_entry(
    batch: tuple[Rows, Rows, Rows], denominator: str, positives: str
) -> None:
    local, remote = contrastive_losses(
        *batch, temperature=TAU, denominator=denominator, positives=positives, structural=True
    )
    expected = brute_force(*batch, denominator=denominator, positives=positives)
    assert (float(local), float(remote)) == pytest.approx(expected, rel=1e-12)


def test_every_switch_changes_the_loss(batch: tuple[Rows, Rows, Rows]) -> None:
    base = {"temperature": TAU, "denominator": "paper", "positives": "partition", "structural": True}
    found = {tuple(map(float, contrastive_losses(*batch, **base)))}
    for change in (
        {"denominator": "exclude_same_partition"}, {"positives": "view"}, {"structural": False}, {"temperature": 0.5},
    ):  # fmt: skip
        found.add(tuple(map(float, contrastive_losses(*batch, **{**base, **change}))))
    assert len(found) == 5


def test_without_structural_matching_the_remote_term_is_nothing(batch: tuple[Rows, Rows, Rows]) -> None:
    _, remote = contrastive_losses(
        *batch, temperature=TAU, denominator="paper", positives="partition", structural=False
    )
    assert float(remote.detach()) == 0.0


def test_structural_positives_are_of_the_same_part_and_never_the_own_slice(batch: tuple[Rows, Rows, Rows]) -> None:
    queries, _, bank = batch
    found = structural_positives(queries, bank)
    for i, j in found.nonzero().tolist():
        assert queries.parts[i] == bank.parts[j]
        assert queries.slices[i] != bank.slices[j]
    # query 0 is slice 0 of part 0: entry 0 is itself, entries 1 and 6 are another volume's and another site's
    assert found[0].nonzero().flatten().tolist() == [1, 6]
    assert not found[5].any(), "nothing in the bank is of part 3"


def test_local_positives_are_of_other_volumes_and_the_own_second_view(batch: tuple[Rows, Rows, Rows]) -> None:
    queries, keys, _ = batch
    # query 0 and key 4 are two slices of one volume in the same part
    assert local_positives(queries, keys, which="partition")[0].tolist() == [True, False, True, False, False, False]
    assert local_positives(queries, keys, which="view")[0].tolist() == [True] + [False] * 5


def test_the_own_slice_in_the_bank_changes_nothing(batch: tuple[Rows, Rows, Rows]) -> None:
    queries, keys, bank = batch
    one = Rows(queries.vectors[:1], queries.parts[:1], queries.slices[:1])
    moved = Rows(bank.vectors.clone(), bank.parts, bank.slices)
    moved.vectors[0] = -moved.vectors[0]
    options = {"temperature": TAU, "denominator": "paper", "positives": "partition", "structural": True}
    before, after = (contrastive_losses(one, keys, entries, **options) for entries in (bank, moved))
    assert [float(term) for term in before] == [float(term) for term in after]


@pytest.mark.parametrize("empty", ["bank", "allowed"])
def test_nothing_to_be_compared_with_gives_a_loss_of_zero_and_a_gradient_that_is_a_number(
    batch: tuple[Rows, Rows, Rows], empty: str
) -> None:
    queries, keys, bank = batch
    vectors = queries.vectors.float().requires_grad_()
    if empty == "bank":
        bank = Rows(bank.vectors[:0], bank.parts[:0], bank.slices[:0])
    else:
        bank = Rows(bank.vectors[:1], bank.parts[:1], bank.slices[:1])
        queries = Rows(queries.vectors, queries.parts, torch.zeros_like(queries.slices))
    local, remote = contrastive_losses(
        Rows(vectors, queries.parts, queries.slices),
        Rows(keys.vectors.float(), keys.parts, torch.zeros_like(keys.slices) if empty == "allowed" else keys.slices),
        Rows(bank.vectors.float(), bank.parts, bank.slices),
        temperature=TAU,
        denominator="paper",
        positives="partition",
        structural=True,
    )
    (local + remote).backward()
    assert float(local.detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(remote.detach()) == 0.0
    assert torch.isfinite(vectors.grad).all()


def test_large_similarities_overflow_nothing() -> None:
    similar = torch.tensor([[1000.0, -1000.0]])
    against = background(similar, torch.ones(1, 2, dtype=torch.bool))
    assert float(against) == 1000.0
    assert torch.isfinite(attraction(similar, torch.ones(1, 2, dtype=torch.bool), against)).all()


def test_no_gradient_goes_to_keys_or_bank_of_the_objective(objective) -> None:  # type: ignore[no-untyped-def]
    made = objective(rounds=2)
    made.begin(round=1, rounds=2, received=None)
    made.initialise(made.shared(), None)
    made.step(0)
    assert not made.bank.rows.vectors.requires_grad
    assert all(parameter.grad is None for parameter in made.key.parameters())
    assert all(parameter.grad is not None for parameter in made.network.parameters())
