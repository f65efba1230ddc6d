"""The weighted mean and what sites weigh in it, worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from fedmedseg.core.averaging import alike, normalised_weights, weighted_mean


@pytest.mark.parametrize(
    ("examples", "weights", "said"),
    [
        ({"a": 4, "b": 4}, {"a": 0.5, "b": 0.5}, 0),
        ({"a": 1, "b": 2, "c": 5}, {"a": 0.125, "b": 0.25, "c": 0.625}, 0),
        # row 10: the low median of (4, 4, 1e12) is 4, so the third weighs 40 of 48
        ({"a": 4, "b": 4, "c": 10**12}, {"a": 4 / 48, "b": 4 / 48, "c": 40 / 48}, 1),
        # row 10: of two sites the lower is the median, so the higher cannot vouch for itself
        ({"a": 1, "b": 10**12}, {"a": 1 / 11, "b": 10 / 11}, 1),
        ({"a": 4, "b": 40}, {"a": 4 / 44, "b": 40 / 44}, 0),
        # row 10: a suppressed count means equal weights
        ({"a": 4, "b": None, "c": 12}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 1),
        ({"a": 0, "b": 0}, {"a": 0.5, "b": 0.5}, 1),
        ({"a": 0, "b": 0, "c": 5}, {"a": 0.0, "b": 0.0, "c": 1.0}, 0),
        ({"a": 9}, {"a": 1.0}, 0),
    ],
)
def test_weights_follow_cases_up_to_ten_times_the_median(
    examples: dict[str, int | None], weights: dict[str, float], said: int
) -> None:
    found, lines = normalised_weights(examples)
    assert found == pytest.approx(weights)
    assert sum(found.values()) == pytest.approx(1.0)
    assert len(lines) == said


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 9, "b": 1}, {"a": 0.5, "b": 0.5}),
        ({"a": 9, "b": None}, {"a": 0.5, "b": 0.5}),
        ({"a": 9, "b": 1, "c": 0}, {"a": 0.5, "b": 0.5, "c": 0.0}),
    ],
)
def test_equal_weights_leave_out_a_site_without_cases_alone(
    counts: dict[str, int | None], expected: dict[str, float]
) -> None:
    assert normalised_weights(alike(counts)) == (expected, [])


def test_the_weighted_mean_agrees_with_plain_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    sites = {site: {"w": torch.randn(5, 7, generator=generator)} for site in "abc"}
    weights = {"a": 0.2, "b": 0.5, "c": 0.3}
    expected = torch.einsum("s,sij->ij", torch.tensor([0.2, 0.5, 0.3]), torch.stack([sites[s]["w"] for s in "abc"]))
    torch.testing.assert_close(weighted_mean(sites, weights)["w"], expected)


def test_the_weighted_mean_does_not_depend_on_the_order_of_its_mapping() -> None:
    """Fault row 48."""
    sites = {"a": 1e8, "b": 0.1, "c": -1e8, "d": 0.3}
    means = {
        weighted_mean({site: {"w": torch.tensor([sites[site]])} for site in order}, dict.fromkeys(sites, 0.25))[
            "w"
        ].item()
        for order in itertools.permutations(sites)
    }
    assert len(means) == 1


def test_half_precision_is_summed_in_single_precision() -> None:
    """Fault row 2: summed in float16, 60000 + 60000 - 60000 is infinite and 2048 + 1 + 1 is 2048."""
    values = {"a": [60000.0, 2048.0], "b": [60000.0, 1.0], "c": [-60000.0, 1.0]}
    sites = {site: {"w": torch.tensor(value, dtype=torch.float16)} for site, value in values.items()}
    mean = weighted_mean(sites, {"a": 1.0, "b": 1.0, "c": 1.0})["w"]
    assert mean.dtype == torch.float16
    assert mean.tolist() == [60000.0, 2050.0]
