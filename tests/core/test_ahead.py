"""Batches that are made beside the step before theirs."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from fedmedseg.core.ahead import Ahead, drawn

MOST = 30.0
"""Seconds to wait for another thread."""


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(3)


def steps(ahead: Ahead[np.ndarray], *, expecting: bool) -> list[np.ndarray]:
    """As the training loop asks: each step seeded, the next one's seed told before it."""
    found = []
    for index in range(4):
        torch.manual_seed(index)
        if expecting and index < 3:
            ahead.expect(index + 1)
        found.append(ahead.next())
    return found


def test_a_batch_is_the_same_whether_it_was_expected_or_not() -> None:
    made = [steps(Ahead(numbers), expecting=expecting) for expecting in (True, False)]
    assert np.array_equal(*made)
    assert not np.array_equal(made[0][0], made[0][1])


def test_to_ask_moves_the_global_generator_as_one_draw_does_expected_or_not() -> None:
    left = []
    for expecting in (True, False):
        steps(Ahead(numbers), expecting=expecting)
        left.append(torch.rand(1))
    torch.manual_seed(3)
    drawn()
    assert left[0] == left[1] == torch.rand(1)


def test_an_expected_batch_is_made_beside_the_step_and_once() -> None:
    begun, made = threading.Event(), []

    def make(seed: int) -> int:
        made.append(threading.current_thread())
        begun.set()
        return seed

    ahead = Ahead(make)
    ahead.expect(5)
    ahead.expect(5)
    assert begun.wait(MOST), "it is not waited for until it is asked for"
    torch.manual_seed(5)
    ahead.next()
    assert len(made) == 1
    assert made[0] is not threading.current_thread()


def test_an_expected_batch_that_is_not_asked_for_is_not_given_for_another() -> None:
    ahead = Ahead(numbers)
    ahead.expect(1)
    torch.manual_seed(2)
    expected = drawn()
    torch.manual_seed(2)
    assert np.array_equal(ahead.next(), numbers(expected))


def test_a_step_that_draws_before_it_asks_is_noticed() -> None:
    ahead = Ahead(numbers)
    for index in range(2):
        torch.manual_seed(index)
        ahead.expect(index + 1)
        torch.rand(1)
        ahead.next()
    with pytest.raises(RuntimeError, match="was not asked for"):
        ahead.expect(3)


def test_it_goes_with_its_last_user_and_so_does_its_thread() -> None:
    ahead = Ahead(numbers)
    torch.manual_seed(1)
    ahead.next()
    (thread,) = ahead._worker._threads
    gc.disable()
    try:
        del ahead
        thread.join(MOST)
    finally:
        gc.enable()
    assert not thread.is_alive()


def test_what_fails_there_is_raised_where_the_batch_is_asked_for() -> None:
    def make(seed: int) -> int:
        raise ValueError("no such slice")

    ahead = Ahead(make)
    ahead.expect(1)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="no such slice"):
        ahead.next()
    ahead.expect(2)
    ahead.forget()


def test_when_all_is_forgotten_nothing_is_being_made() -> None:
    go, running, ended = threading.Event(), threading.Event(), []

    def make(seed: int) -> int:
        running.set()
        assert go.wait(MOST)
        ended.append(seed)
        return seed

    ahead = Ahead(make)
    ahead.expect(1)
    assert running.wait(MOST)
    ahead.expect(2)
    threading.Timer(0.05, go.set).start()
    ahead.forget()
    assert len(ended) == 1, "the one that ran has ended, the one that waited was never begun"
    torch.manual_seed(1)
    ahead.next()
    assert len(ended) == 2, "what was forgotten is made again"
