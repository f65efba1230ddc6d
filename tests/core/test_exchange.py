"""What an exchange declares, refuses, encodes and hands on."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.exchange import (
    FEATURES,
    PARTS,
    SCALES,
    Exchange,
    Features,
    canonical,
    even_shares,
    features_of_others,
    of_others,
    pooled,
    rows_in,
    split,
)
from fedmedseg.core.wire import StageContract, tensor_bytes

PLAIN = Exchange(width=16, most_rows=8, parts=4)
LARGE = Exchange(width=16, most_rows=40, parts=4)
SIZES = ((1, 40), (2, 40), (3, 4))
"""Sites and how many rows they give."""


def drawn(rows: int = 6, width: int = 16, seed: int = 1) -> Features:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return Features(
        vectors=torch.nn.functional.normalize(vectors, dim=1), parts=(torch.arange(rows) % 4).to(torch.uint8)
    )


def as_set(vectors: torch.Tensor, parts: torch.Tensor) -> set[tuple[float, ...]]:
    """Rows whatever their order, each with its part."""
    return {(*map(float, row), float(part)) for row, part in zip(vectors, parts, strict=True)}


@pytest.mark.parametrize(
    ("transport", "error"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 0.01)], ids=["fp32", "fp16", "int8"]
)
def test_rows_come_back_as_they_were_but_for_the_coarseness_of_their_transport(transport: Any, error: float) -> None:
    exchange = dataclasses.replace(PLAIN, transport=transport)
    features = drawn()
    decoded = exchange.decode(canonical(exchange.encode(features)))
    for vector, part in zip(features.vectors, features.parts, strict=True):
        distance, place = (decoded.vectors - vector).norm(dim=1).min(dim=0)
        assert float(distance) <= error * 4
        assert decoded.parts[place] == part
    torch.testing.assert_close(decoded.vectors.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize(("transport", "row"), [("fp32", 513), ("fp16", 257), ("int8", 133)])
def test_bytes_of_a_row_are_those_of_the_specification(transport: Any, row: int) -> None:
    """128 numbers and a part id; int8 has a scale of four bytes beside them."""
    exchange = Exchange(width=128, most_rows=2048, parts=4, transport=transport)
    assert exchange.row_bytes == row
    assert exchange.most_bytes == 2048 * row
    entries = exchange.encode(drawn(5, 128))
    assert tensor_bytes(entries) == 5 * row


def test_the_specifications_table_of_bytes_for_ten_sites() -> None:
    """1.05 MB up and 9.46 MB down for each site and round: N_q = 2048 features of 128 numbers."""
    exchange = Exchange(width=128, most_rows=2048, parts=4)
    given = canonical(exchange.encode(drawn(2048, 128)))
    assert tensor_bytes(given) == 1_050_624
    down = of_others({f"site-{number}": given for number in range(10)}, ["site-0"])["site-0"]
    assert tensor_bytes(down) == 9 * 1_050_624 == 9_455_616


def test_the_order_of_an_upload_is_new_every_time_and_seeds_do_not_repeat_it() -> None:
    features = drawn(8)
    orders = set()
    for _ in range(6):
        torch.manual_seed(1)
        entries = PLAIN.encode(features)
        orders.add(tuple(map(float, entries[FEATURES][:, 0])))
        assert as_set(entries[FEATURES], entries[PARTS]) == as_set(features.vectors, features.parts)
    assert len(orders) > 1


@pytest.mark.parametrize("transport", ["fp32", "fp16", "int8"])
def test_canonical_order_depends_on_the_rows_alone(transport: Any) -> None:
    exchange = dataclasses.replace(PLAIN, transport=transport)
    one, other = (canonical(exchange.encode(drawn(8))) for _ in range(2))
    assert set(one) == set(exchange.names)
    assert all(torch.equal(one[name], other[name]) for name in one)


WRONG: list[tuple[str, Any]] = [
    ("TENSOR_TYPE: .*float64", lambda e: {**e, FEATURES: e[FEATURES].double()}),
    ("TENSOR_TYPE: .*int64", lambda e: {**e, PARTS: e[PARTS].long()}),
    ("TENSOR_TYPE: .*list", lambda e: {**e, FEATURES: [[1.0]]}),
    ("TENSOR_TYPE", lambda e: {**e, FEATURES: e[FEATURES].to_sparse()}),
    ("UNKNOWN_TENSORS", lambda e: {FEATURES: e[FEATURES]}),
    ("UNKNOWN_TENSORS", lambda e: {**e, "exchange.patients": e[PARTS]}),
    ("UNKNOWN_TENSORS", lambda e: {}),
    ("UNKNOWN_TENSORS", lambda e: None),
    ("TENSOR_SHAPE", lambda e: {**e, FEATURES: e[FEATURES][:, :5]}),
    ("TENSOR_SHAPE", lambda e: {**e, FEATURES: e[FEATURES][:2]}),
    ("TENSOR_SHAPE", lambda e: {**e, PARTS: e[PARTS][:, None]}),
    ("EMPTY", lambda e: {name: tensor[:0] for name, tensor in e.items()}),
    ("OVERSIZE: 12 features, at most 8", lambda e: {name: torch.cat([tensor] * 2) for name, tensor in e.items()}),
    ("SCHEMA: a part of 4, declared below 4", lambda e: {**e, PARTS: e[PARTS] + 1}),
    ("NOT_FINITE", lambda e: {**e, FEATURES: e[FEATURES] * float("nan")}),
    ("NOT_FINITE", lambda e: {**e, FEATURES: e[FEATURES] * float("inf")}),
    ("SCHEMA: features whose length", lambda e: {**e, FEATURES: e[FEATURES] * 1.01}),
    ("SCHEMA: features whose length", lambda e: {**e, FEATURES: e[FEATURES] * 0.0}),
]


@pytest.mark.parametrize(("expected", "change"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_is_not_as_declared_has_a_problem_and_raises_nothing(expected: str, change: Any) -> None:
    entries = change(PLAIN.encode(drawn()))
    found = PLAIN.problem(entries)
    assert found is not None
    with pytest.raises(FedMedSegError, match="features from nobody") as caught:
        PLAIN.require(entries, sender="nobody")
    assert re.search(expected, f"{caught.value.reason}: {caught.value.got}")


def test_honest_entries_have_no_problem() -> None:
    for transport in ("fp32", "fp16", "int8"):
        exchange = dataclasses.replace(PLAIN, transport=transport)
        assert exchange.problem(exchange.encode(drawn())) is None


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), 1e9, -0.001])
def test_scales_of_int8_rows_are_judged_by_the_length_they_give(scale: float) -> None:
    exchange = dataclasses.replace(PLAIN, transport="int8")
    entries = exchange.encode(drawn())
    assert exchange.problem({**entries, SCALES: torch.full((6,), scale)}) is not None


def test_a_download_may_hold_more_rows_than_an_upload() -> None:
    entries = PLAIN.encode(drawn())
    both = pooled([entries, entries])
    assert PLAIN.problem(both) is not None
    assert PLAIN.problem(both, received=True) is None
    bounded = dataclasses.replace(PLAIN, most_received=11)
    found = bounded.problem(both, received=True)
    assert found is not None
    assert found[1] == "12 features, at most 11 declared"
    assert dataclasses.replace(PLAIN, most_received=12).problem(both, received=True) is None
    assert bounded.problem(entries) is None, "an upload has a bound of its own"


def test_noise_without_renormalising_widens_the_lengths_that_are_taken() -> None:
    longer = Features(vectors=drawn().vectors * 1.3, parts=drawn().parts)
    noisy = dataclasses.replace(PLAIN, noise=0.1)
    with pytest.raises(FedMedSegError, match="length"):
        PLAIN.encode(longer)
    entries = noisy.encode(longer)
    # and they are compared as long as they came
    torch.testing.assert_close(noisy.decode(entries).vectors.norm(dim=1), torch.full((6,), 1.3))
    # 1 + 0.1 x (4 + 8)
    assert noisy.bounds == (0.0, pytest.approx(2.2))
    assert noisy.problem(noisy.encode(Features(vectors=drawn().vectors * 2.1, parts=drawn().parts))) is None


@pytest.mark.parametrize(
    "features",
    [
        Features(vectors=torch.ones(3), parts=torch.zeros(3, dtype=torch.uint8)),
        Features(vectors=torch.ones(3, 16), parts=torch.zeros(2, dtype=torch.uint8)),
        Features(vectors=torch.ones(3, 16), parts=torch.zeros(3)),
        Features(vectors=torch.ones(3, 16, dtype=torch.int64), parts=torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_a_learner_that_hands_out_something_else_is_told(features: Features) -> None:
    with pytest.raises(FedMedSegError, match="uint8 parts"):
        PLAIN.encode(features)


def test_a_site_gets_the_others_rows_and_never_its_own() -> None:
    given = {f"site-{number}": canonical(PLAIN.encode(drawn(3, seed=number))) for number in (1, 2, 3)}
    received = of_others(given, ["site-1", "site-2", "site-3", "late"])
    for number in (1, 2, 3):
        got = as_set(received[f"site-{number}"][FEATURES], received[f"site-{number}"][PARTS])
        expected = set()
        for other in {1, 2, 3} - {number}:
            expected |= as_set(given[f"site-{other}"][FEATURES], given[f"site-{other}"][PARTS])
        assert got == expected
    assert rows_in(received["late"]) == 9
    assert of_others({"site-1": given["site-1"]}, ["site-1"]) == {}
    assert of_others({}, ["site-1"]) == {}


def test_what_a_site_gets_does_not_tell_which_row_is_of_which_site() -> None:
    """Renaming the givers changes nothing."""
    one, two = (canonical(PLAIN.encode(drawn(4, seed=number))) for number in (1, 2))
    first = of_others({"a": one, "b": two}, ["x"])["x"]
    second = of_others({"a": two, "b": one}, ["x"])["x"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_of_more_rows_than_a_site_may_be_sent_an_even_choice_is() -> None:
    """Three sites with 40, 40 and 4 rows of four parts: 30 rows are 7 or 8 of every part, and the small site's all."""
    given = {f"site-{number}": canonical(LARGE.encode(drawn(rows, seed=number))) for number, rows in SIZES}
    received = of_others(given, ["x", "y"], most=30, seed=3)
    for entries in received.values():
        assert rows_in(entries) == 30
        assert sorted(torch.bincount(entries[PARTS].long(), minlength=4).tolist()) == [7, 7, 8, 8]
        got = as_set(entries[FEATURES], entries[PARTS])
        assert len(got) == 30, "no row twice"
        of_site = [len(got & as_set(one[FEATURES], one[PARTS])) for one in given.values()]
        # of every part the small site's only row, and of the large ones' a half each of what is left
        assert of_site[2] == 4
        assert sum(of_site) == 30
        assert abs(of_site[0] - of_site[1]) <= 4
        assert all(torch.equal(entries[name], canonical(entries)[name]) for name in entries)
    assert not torch.equal(received["x"][FEATURES], received["y"][FEATURES]), "each site has a choice of its own"


def test_the_choice_follows_from_the_seed_and_stays_away_from_the_sites_own_rows() -> None:
    given = {f"site-{number}": canonical(LARGE.encode(drawn(rows, seed=number))) for number, rows in SIZES}
    one, same, other = (of_others(given, ["site-1"], most=20, seed=seed)["site-1"] for seed in (1, 1, 2))
    assert torch.equal(one[FEATURES], same[FEATURES])
    assert not torch.equal(one[FEATURES], other[FEATURES])
    assert not as_set(one[FEATURES], one[PARTS]) & as_set(given["site-1"][FEATURES], given["site-1"][PARTS])
    everything = of_others(given, ["site-1"])["site-1"]
    assert torch.equal(of_others(given, ["site-1"], most=44, seed=1)["site-1"][FEATURES], everything[FEATURES])
    assert rows_in(of_others(given, ["site-1"], most=43, seed=1)["site-1"]) == 43


def test_every_round_has_a_choice_of_its_own_and_a_stage_without_an_exchange_none() -> None:
    given = {f"site-{number}": canonical(LARGE.encode(drawn(rows, seed=number))) for number, rows in SIZES}
    exchange = dataclasses.replace(LARGE, transport="fp32", most_received=20)

    def sent(**changes: Any) -> torch.Tensor:
        place = {"seed": 1, "stage": "pretraining", "number": 4, **changes}
        return features_of_others(exchange, given, ["site-1"], **place)["site-1"][FEATURES]

    assert torch.equal(sent(), sent()), "asked again, or after the server's death"
    for change in ({"number": 5}, {"seed": 2}, {"stage": "other"}):
        assert not torch.equal(sent(), sent(**change))
    assert features_of_others(None, given, ["site-1"], seed=1, stage="pretraining", number=4) == {}


def test_whatever_the_sites_gave_the_bytes_that_a_site_is_sent_have_a_bound() -> None:
    given = canonical(LARGE.encode(drawn(40)))
    for sites in (2, 5, 30):
        down = of_others({f"site-{number}": given for number in range(sites)}, ["site-0"], most=100)["site-0"]
        assert tensor_bytes(down) == min(100, 40 * (sites - 1)) * LARGE.row_bytes


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([5, 5, 5], 9, [3, 3, 3]),
        ([1, 10, 10], 9, [1, 4, 4]),
        ([0, 3, 20], 11, [0, 3, 8]),
        ([2, 2], 9, [2, 2]),
        ([5, 5, 5], 0, [0, 0, 0]),
    ],
)
def test_shares_are_as_even_as_what_is_there_allows(counts: list[int], total: int, expected: list[int]) -> None:
    assert even_shares(counts, total, np.random.default_rng(0)) == expected


def test_who_gets_one_more_is_drawn() -> None:
    found = {tuple(even_shares([5, 5, 5], 7, np.random.default_rng(seed))) for seed in range(30)}
    assert found == {(3, 2, 2), (2, 3, 2), (2, 2, 3)}


def test_splitting_parts_features_from_everything_else() -> None:
    tensors = {"a": torch.ones(1), FEATURES: torch.ones(1, 2), PARTS: torch.ones(1)}
    plain, exchanged = split(tensors)
    assert (set(plain), set(exchanged)) == ({"a"}, {FEATURES, PARTS})
    assert rows_in({}) == 0


@pytest.mark.parametrize("wrong", [{"width": 0}, {"most_rows": 0}, {"parts": 0}, {"parts": 257}, {"noise": -1.0}])
def test_an_exchange_of_nothing_is_no_exchange(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        dataclasses.replace(PLAIN, **wrong)
    with pytest.raises(ValueError, match="most_received must be at least 1, not 0"):
        dataclasses.replace(PLAIN, most_received=0)
    with pytest.raises(ValueError, match="transport"):
        dataclasses.replace(PLAIN, transport="fp8")


def test_only_a_stage_that_sends_and_returns_tensors_exchanges_features() -> None:
    StageContract(sends="shared", returns="shared", exchange=PLAIN)
    for sends, returns in (("nothing", "shared"), ("shared", "metrics")):
        with pytest.raises(ValueError, match="sends and returns"):
            StageContract(sends=sends, returns=returns, exchange=PLAIN)  # type: ignore[arg-type]
