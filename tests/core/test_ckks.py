"""Encrypted sums beside plain ones, and everything that is no encryption of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedmedseg.core import ckks
from fedmedseg.core.ckks import (
    CHUNK_BYTES,
    GRID,
    LARGEST,
    SHARES,
    SLOTS,
    Cipher,
    chunks_of,
    make_contexts,
    packed_shape,
    whole_shares,
)
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason

tenseal = pytest.importorskip("tenseal", reason="the extra he is not installed")

COUNT = SLOTS + 3
"""One ciphertext is full, the next holds three numbers."""


@pytest.fixture(scope="module")
def contexts() -> tuple[bytes, bytes]:
    return make_contexts()


@pytest.fixture(scope="module")
def server(contexts: tuple[bytes, bytes]) -> Cipher:
    return Cipher(contexts[0])


@pytest.fixture(scope="module")
def site(contexts: tuple[bytes, bytes]) -> Cipher:
    return Cipher(contexts[1])


@pytest.fixture(scope="module")
def foreign() -> Cipher:
    """A site of another federation: the same parameters under another key."""
    return Cipher(make_contexts()[1])


def numbers(seed: int, size: float = 0.05) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=size, size=COUNT)


@pytest.fixture(scope="module")
def packed(site: Cipher) -> dict[str, torch.Tensor]:
    """What three sites send."""
    return {f"site-{index}": site.encrypt(numbers(index)) for index in (1, 2, 3)}


def refused(packed: object, cipher: Cipher, reason: Reason, words: str) -> None:
    found = cipher.problem(packed, COUNT)
    assert found is not None
    assert found[0] is reason
    assert words in found[1]


def test_only_the_sites_context_holds_a_key(server: Cipher, site: Cipher, packed: dict[str, torch.Tensor]) -> None:
    assert (server.private, site.private) == (False, True)
    with pytest.raises(ValueError, match="secret_key"):
        server.decrypt(packed["site-1"], COUNT)
    with pytest.raises(ValueError, match="encryption"):
        server.encrypt(numbers(1))


def test_the_servers_context_is_too_small_to_hold_one(contexts: tuple[bytes, bytes]) -> None:
    assert len(contexts[0]) < 200 < 100_000 < len(contexts[1])


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1), (1.0, 0.0, 0.0)])
def test_the_sum_is_the_plain_weighted_mean(
    server: Cipher, site: Cipher, packed: dict[str, torch.Tensor], weights: tuple[float, ...]
) -> None:
    shares = whole_shares(dict(zip(sorted(packed), weights, strict=True)))
    total = server.add(None, packed, shares)
    expected = sum(shares[name] / SHARES * numbers(index) for index, name in enumerate(sorted(packed), 1))
    found = site.decrypt(total, COUNT)
    assert np.abs(found - expected).max() <= GRID / 2 + 1e-7
    exact = sum(weight * numbers(index) for index, weight in enumerate(weights, 1))
    assert np.abs(found - exact).max() <= GRID / 2 + 1e-7 + 3 * 0.3 / SHARES


def test_rounds_add_up(server: Cipher, site: Cipher, packed: dict[str, torch.Tensor]) -> None:
    total = None
    for _ in range(4):
        total = server.add(total, packed, {"site-1": SHARES // 2, "site-2": SHARES // 2, "site-3": 0})
    assert total is not None
    expected = 4 * (numbers(1) + numbers(2)) / 2
    # the noise of four rounds is far below the grid, and rounding happens once
    assert np.abs(site.decrypt(total, COUNT) - expected).max() <= GRID / 2 + 1e-7


def test_the_order_of_arrival_changes_no_bit(server: Cipher, packed: dict[str, torch.Tensor]) -> None:
    shares = whole_shares({"site-1": 0.5, "site-2": 0.3, "site-3": 0.2})
    backwards = {name: packed[name] for name in sorted(packed, reverse=True)}
    assert torch.equal(server.add(None, packed, shares), server.add(None, backwards, dict(reversed(shares.items()))))


def test_what_comes_out_lies_on_the_grid_and_hides_the_noise(server: Cipher, site: Cipher) -> None:
    same = [site.decrypt(server.add(None, {"a": site.encrypt(numbers(1))}, {"a": SHARES}), COUNT) for _ in range(2)]
    for found in same:
        assert np.array_equal(found / GRID, np.round(found / GRID))
    # two encryptions of the same numbers differ in their noise, and come out alike but where rounding is a close call
    assert (same[0] != same[1]).mean() < 0.1


def test_two_encryptions_of_the_same_numbers_share_no_bytes(site: Cipher) -> None:
    first, second = (site.encrypt(numbers(1)).numpy()[:, 100:-600] for _ in range(2))
    assert (first == second).mean() < 0.02


def test_a_number_costs_32_bytes_and_the_tail_of_the_last_ciphertext(packed: dict[str, torch.Tensor]) -> None:
    assert tuple(packed["site-1"].shape) == packed_shape(COUNT) == (2, CHUNK_BYTES)
    assert 32 <= CHUNK_BYTES / SLOTS < 32.2
    assert [chunks_of(count) for count in (0, 1, SLOTS, SLOTS + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_before_encryption(site: Cipher, value: float) -> None:
    spoiled = numbers(1)
    spoiled[7] = value
    with pytest.raises(FedMedSegError) as caught:
        site.encrypt(spoiled)
    assert caught.value.reason is Reason.NOT_FINITE


def test_a_nan_would_be_encrypted_as_some_number_without_our_check(contexts: tuple[bytes, bytes]) -> None:
    """Why the check stands there: stock behaviour, kept in sight."""
    context = tenseal.context_from(contexts[1])
    assert all(math.isfinite(value) for value in tenseal.ckks_vector(context, [math.nan, 1.0]).decrypt())


def test_a_number_beyond_the_range_is_refused_and_one_at_its_edge_survives(server: Cipher, site: Cipher) -> None:
    edge = np.full(COUNT, LARGEST)
    found = site.decrypt(server.add(None, {"a": site.encrypt(edge * (1 - 1e-6))}, {"a": SHARES}), COUNT)
    assert np.abs(found - edge).max() < 1e-3
    with pytest.raises(FedMedSegError) as caught:
        site.encrypt(edge * 1.01)
    assert caught.value.reason is Reason.ENCRYPTION


def test_a_sum_that_has_left_the_range_is_refused_before_it_could_wrap(server: Cipher, site: Cipher) -> None:
    once = server.add(None, {"a": site.encrypt(np.full(COUNT, 50.0))}, {"a": SHARES})
    twice = server.add(once, {"a": site.encrypt(np.full(COUNT, 50.0))}, {"a": SHARES})
    with pytest.raises(FedMedSegError, match="beyond 64") as caught:
        site.decrypt(twice, COUNT)
    assert caught.value.reason is Reason.ENCRYPTION


@pytest.mark.parametrize("share", [1, 1000, SHARES])
def test_a_reply_under_another_key_passes_the_server_and_is_caught_at_every_site(
    server: Cipher, site: Cipher, foreign: Cipher, packed: dict[str, torch.Tensor], share: int
) -> None:
    mixed = {"site-1": packed["site-1"], "site-2": foreign.encrypt(numbers(2))}
    assert server.problem(mixed["site-2"], COUNT) is None, "nobody without the key can tell"
    total = server.add(None, mixed, {"site-1": SHARES - share, "site-2": share})
    with pytest.raises(FedMedSegError, match="under this site's key") as caught:
        site.decrypt(total, COUNT)
    assert caught.value.reason is Reason.ENCRYPTION


@pytest.mark.parametrize("place", [200, 70_000, 131_000])
def test_one_flipped_bit_of_a_ciphertext_is_refused_or_caught_at_the_site(
    server: Cipher, site: Cipher, packed: dict[str, torch.Tensor], place: int
) -> None:
    flipped = packed["site-1"].clone()
    flipped[1, place] ^= 1
    if server.problem(flipped, COUNT) is None:
        with pytest.raises(FedMedSegError) as caught:
            site.decrypt(server.add(None, {"a": flipped}, {"a": SHARES}), COUNT)
        assert caught.value.reason is Reason.ENCRYPTION


def spoil(change: Callable[[torch.Tensor], object]) -> Callable[[torch.Tensor], torch.Tensor]:
    def do(packed: torch.Tensor) -> torch.Tensor:
        copy = packed.clone()
        change(copy)
        return copy

    return do


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (lambda packed: packed[:1], Reason.TENSOR_SHAPE, "declared (2,"),
        (lambda packed: torch.cat([packed, packed]), Reason.TENSOR_SHAPE, "declared (2,"),
        (lambda packed: packed[:, :-1], Reason.TENSOR_SHAPE, "declared (2,"),
        (lambda packed: packed.reshape(-1), Reason.TENSOR_SHAPE, "declared (2,"),
        (lambda packed: packed.float(), Reason.TENSOR_TYPE, "something else than bytes"),
        (lambda packed: packed.numpy(), Reason.TENSOR_TYPE, "something else than bytes"),
        (lambda packed: bytes(10), Reason.TENSOR_TYPE, "something else than bytes"),
        (lambda packed: None, Reason.TENSOR_TYPE, "something else than bytes"),
        (spoil(lambda packed: packed.zero_()), Reason.ENCRYPTION, "ciphertext 0: ValueError"),
        (spoil(lambda packed: packed[1].fill_(255)), Reason.ENCRYPTION, "ciphertext 1: ValueError"),
        (spoil(lambda packed: packed[1, 4:60].zero_()), Reason.ENCRYPTION, "ciphertext 1"),
        (spoil(lambda packed: packed[0, :4].copy_(torch.tensor([1, 0, 0, 0]))), Reason.ENCRYPTION, "ciphertext 0"),
    ],
)
def test_what_is_no_encryption_of_so_many_numbers_is_refused(
    server: Cipher,
    packed: dict[str, torch.Tensor],
    change: Callable[[torch.Tensor], object],
    reason: Reason,
    words: str,
) -> None:
    refused(change(packed["site-1"]), server, reason, words)


def test_nothing_is_parsed_before_its_size_is_right(
    server: Cipher, packed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cipher, "_opened", lambda self, chunk: pytest.fail("parsed"))
    refused(packed["site-1"][:1], server, Reason.TENSOR_SHAPE, "declared")


@pytest.mark.parametrize(("scale", "slots"), [(30, SLOTS), (36, SLOTS - 1)], ids=["another scale", "fewer numbers"])
def test_a_ciphertext_of_other_parameters_is_refused(
    server: Cipher, site: Cipher, packed: dict[str, torch.Tensor], contexts: tuple[bytes, bytes], scale: int, slots: int
) -> None:
    context = tenseal.context_from(contexts[1])
    context.global_scale = 2.0**scale
    other = ckks._packed([tenseal.ckks_vector(context, np.ones(slots))] * 2)
    refused(other, server, Reason.ENCRYPTION, "other parameters")


def test_random_damage_never_ends_in_anything_but_a_reason(server: Cipher, packed: dict[str, torch.Tensor]) -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        damaged = packed["site-1"].clone()
        for place in draw.integers(0, 200, size=3):
            damaged[0, place] = int(draw.integers(0, 256))
        found = server.problem(damaged, COUNT)
        assert found is None or found[0] is Reason.ENCRYPTION


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a": 1.0}, {"a": 16384}),
        ({"b": 0.5, "a": 0.5}, {"a": 8192, "b": 8192}),
        # 5461.33 each: the one share that is left goes to the first by name
        ({"c": 1 / 3, "b": 1 / 3, "a": 1 / 3}, {"a": 5462, "b": 5461, "c": 5461}),
        ({"a": 0.99999, "b": 0.00001}, {"a": 16384, "b": 0}),
    ],
)
def test_shares_are_whole_and_add_up(weights: dict[str, float], expected: dict[str, int]) -> None:
    assert whole_shares(weights) == expected


@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(1000)], ids=["nothing", "no context", "zeros"])
def test_what_is_no_context_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigurationError, match="encryption context"):
        Cipher(content)


def test_a_context_of_flares_own_parameters_is_refused() -> None:
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=8192,
        coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = 2.0**40
    with pytest.raises(ConfigurationError, match="EncryptionBuilder"):
        Cipher(context.serialize(save_secret_key=True))


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tenseal", None)
    with pytest.raises(ConfigurationError, match=r"fedmedseg\[he\]"):
        make_contexts()
