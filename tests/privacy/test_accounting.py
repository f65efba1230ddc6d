"""The account against other people's: a library's figures, the closed form of Renyi, and a plain integral."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import integrate, stats

from fedmedseg import privacy
from fedmedseg.privacy.accounting import epsilon_of, log_delta_of, loss_of, multiplier_for

# (multiplier, releases, delta) -> epsilon by dp-accounting 0.6.0, noise multiplier / 2 for a sensitivity of 2C:
# PLDAccountant (value_discretization_interval 1e-4), RdpAccountant
LIBRARY = {
    (1.0, 1, 1e-5): (9.99725615024243, 10.725509696418232),
    (2.0, 10, 1e-5): (17.85658683146691, 19.05359753163139),
    (0.5, 3, 1e-5): (52.77062707681208, 55.60169282486775),
    (10.0, 100, 1e-6): (10.997151218387838, 11.68862679916635),
    (50.0, 50, 1e-5): (1.0607897621178766, 1.1581505950444586),
}


@pytest.mark.parametrize(("setting", "library"), LIBRARY.items())
def test_the_account_is_that_of_a_library(setting: tuple[float, int, float], library: tuple[float, float]) -> None:
    multiplier, releases, delta = setting
    exact, renyi = library
    epsilon = epsilon_of(releases * loss_of(multiplier), delta)
    assert epsilon == pytest.approx(exact, rel=1e-6)
    assert epsilon < renyi, "moments of Renyi give an upper bound"


@pytest.mark.parametrize(("mu", "delta"), [(0.1, 1e-5), (1.0, 1e-3), (1.0, 1e-9), (4.0, 1e-5), (30.0, 1e-6)])
def test_epsilon_lies_below_the_closed_form_of_renyi_and_not_far(mu: float, delta: float) -> None:
    """Mironov 2017: RDP of order alpha is alpha mu^2 / 2; the best order in closed form, Bun and Steinke 2016."""
    closed = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    assert 0.6 * closed < epsilon_of(mu**2, delta) < closed


@pytest.mark.parametrize(("epsilon", "mu"), [(0.5, 1.0), (3.0, 1.0), (1.0, 0.3), (0.0, 2.0)])
def test_delta_is_the_integral_that_defines_it(epsilon: float, mu: float) -> None:
    """delta = max over sets of P(set) - e^epsilon Q(set), of N(mu, 1) and N(0, 1)."""
    gain = lambda x: max(0.0, stats.norm.pdf(x - mu) - math.exp(epsilon) * stats.norm.pdf(x))  # noqa: E731
    integral, _ = integrate.quad(gain, epsilon / mu + mu / 2, mu + 12)
    assert math.exp(log_delta_of(epsilon, mu)) == pytest.approx(integral, rel=1e-6)


def test_releases_compose_as_one_release_with_less_noise() -> None:
    assert epsilon_of(16 * loss_of(8.0), 1e-5) == pytest.approx(epsilon_of(loss_of(2.0), 1e-5), rel=1e-9)
    assert loss_of(2.0) == 1.0, "two updates in a ball of radius C are 2C apart"


def test_more_releases_less_noise_and_a_smaller_delta_cost_more() -> None:
    base = epsilon_of(10 * loss_of(5.0), 1e-5)
    assert epsilon_of(11 * loss_of(5.0), 1e-5) > base
    assert epsilon_of(10 * loss_of(4.9), 1e-5) > base
    assert epsilon_of(10 * loss_of(5.0), 1e-6) > base


@pytest.mark.parametrize("loss", [1e-12, 1e-3, 1.0, 1e4, 1e8])
def test_no_loss_is_too_small_or_too_large(loss: float) -> None:
    epsilon = epsilon_of(loss, 1e-5)
    assert 0 <= epsilon < math.inf
    assert log_delta_of(epsilon, math.sqrt(loss)) <= math.log(1e-5) + 1e-6


def test_nothing_released_costs_nothing() -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0


@pytest.mark.parametrize(("loss", "delta"), [(-1.0, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_what_has_no_meaning_is_an_error(loss: float, delta: float) -> None:
    with pytest.raises(ValueError, match="a loss"):
        epsilon_of(loss, delta)


@pytest.mark.parametrize(("epsilon", "releases"), [(1.0, 1), (8.0, 50), (50.0, 10)])
def test_the_multiplier_for_a_budget_just_keeps_it(epsilon: float, releases: int) -> None:
    multiplier = multiplier_for(epsilon=epsilon, delta=1e-5, releases=releases)
    assert epsilon_of(releases * loss_of(multiplier), 1e-5) <= epsilon
    assert epsilon_of(releases * loss_of(multiplier * 0.999), 1e-5) > epsilon


def test_the_table_of_the_readme_is_what_the_account_says() -> None:
    readme = (Path(privacy.__file__).parent / "README.md").read_text(encoding="utf-8")
    for epsilon in (1, 8, 50):
        exact = [multiplier_for(epsilon=epsilon, delta=1e-5, releases=releases) for releases in (1, 10, 50)]
        # rounded up, so that the budget holds with the figure as printed
        shown = " | ".join(f"{math.ceil(100 * multiplier) / 100:.2f}" for multiplier in exact)
        assert f"| {epsilon} | {shown} |" in readme
    ratio = 8.49 * math.sqrt(62e6)
    assert f"{round(ratio, -3):,.0f}".replace(",", " ") in readme


def test_the_noise_of_the_example_keeps_the_budget_it_names() -> None:
    """app_configs/sites/example.yaml: multiplier 8.5 is epsilon 8 after 50 rounds."""
    assert epsilon_of(50 * loss_of(8.5), 1e-5) <= 8.0 < epsilon_of(51 * loss_of(8.5), 1e-5)
