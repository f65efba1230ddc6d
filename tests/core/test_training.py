"""The training loop: interrupted anywhere and given again, it ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.learner import Task
from fedmedseg.core.seeding import seed_everything
from fedmedseg.core.training import Aborted, run_steps

STEPS = 5


class Killed(BaseException):
    """The process is gone: nothing after this point runs."""


class Noisy:
    """A linear model on random batches from all three global generators, with dropout and AdamW."""

    def __init__(self) -> None:
        torch.manual_seed(11)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.steps: list[int] = []
        self.prepared = 0
        self.fail_at: int | None = None
        self.loss_at: dict[int, float] = {}

    def prepare(self) -> None:
        self.prepared += 1
        with torch.no_grad():
            self.model[0].weight.add_(torch.randn_like(self.model[0].weight))

    def step(self, index: int) -> Mapping[str, float]:
        if index == self.fail_at:
            raise Killed
        self.steps.append(index)
        batch = torch.randn(6, 3) + float(np.random.rand())
        self.optimizer.zero_grad()
        loss = self.model(batch).square().mean()
        loss.backward()
        self.optimizer.step()
        return {"loss": self.loss_at.get(index, float(loss.detach())), "index": float(index)}

    def state(self) -> Any:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, tree: Any) -> None:
        self.model.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])

    @property
    def digest(self) -> str:
        moments = {f"{key}.{name}": value for key, slot in self.optimizer.state.items() for name, value in slot.items()}
        assert len(moments) == 12
        flat = {f"m{index}": value for index, value in enumerate(moments.values())}
        return content_sha256({**self.model.state_dict(), **flat})


def train(noisy: Noisy, task: Task, **more: Any) -> dict[str, float]:
    return run_steps(noisy, task=task, name="student", steps=STEPS, prepare=noisy.prepare, **more)


def another_process() -> Noisy:
    """A new process knows nothing of where the one before had its random numbers."""
    seed_everything(999)
    made = Noisy()
    seed_everything(1000)
    return made


@pytest.fixture
def uninterrupted(task: Callable[..., Task], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, float]]:
    from fedmedseg.core.state import SiteState

    state = SiteState(tmp_path_factory.mktemp("whole"), study="s", experiment="e", site="site-1", run="r")
    noisy = Noisy()
    figures = train(noisy, task(state=state))
    assert noisy.steps == list(range(STEPS))
    return noisy.digest, figures


@pytest.mark.parametrize("stop", range(STEPS))
def test_aborted_at_any_step_and_given_again_it_ends_with_the_same_bits(
    task: Callable[..., Task], uninterrupted: tuple[str, dict[str, float]], stop: int
) -> None:
    first = Noisy()
    with pytest.raises(Aborted):
        train(first, task(aborted=lambda: len(first.steps) == stop))
    assert first.steps == list(range(stop))
    second = another_process()
    figures = train(second, task())
    assert second.steps == list(range(stop, STEPS)), "no step is done twice"
    assert (first.prepared, second.prepared) == (1, 0)
    assert (second.digest, figures) == uninterrupted


@pytest.mark.parametrize("stop", range(STEPS))
@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_killed_at_any_step_and_given_again_it_ends_with_the_same_bits(
    task: Callable[..., Task], uninterrupted: tuple[str, dict[str, float]], stop: int, seconds: float
) -> None:
    """Fault row 24 at a site: with a checkpoint per step only the broken step is repeated, without one all are."""
    first = Noisy()
    first.fail_at = stop
    with pytest.raises(Killed):
        train(first, task(checkpoint_seconds=seconds))
    second = another_process()
    figures = train(second, task(checkpoint_seconds=seconds))
    kept = stop if seconds == 0.0 else 0
    assert second.steps == list(range(kept, STEPS))
    assert (second.digest, figures) == uninterrupted


def test_a_finished_task_given_again_returns_its_figures_without_a_step(
    task: Callable[..., Task], uninterrupted: tuple[str, dict[str, float]]
) -> None:
    train(Noisy(), task())
    again = Noisy()
    assert train(again, task()) == uninterrupted[1]
    assert (again.steps, again.prepared) == ([], 0)
    assert again.digest == uninterrupted[0], "the model is the trained one"


def test_figures_are_means_over_the_task(task: Callable[..., Task]) -> None:
    noisy = Noisy()
    noisy.loss_at = dict(enumerate([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert train(noisy, task()) == {"loss": 3.0, "index": 2.0}


@pytest.mark.parametrize("change", [{"round": 1}, {"base": "0ther"}, {"stage": "tuning"}])
def test_another_task_does_not_continue_this_one(task: Callable[..., Task], change: dict[str, Any]) -> None:
    train(Noisy(), task())
    other = Noisy()
    train(other, task(**change))
    assert (other.steps, other.prepared) == (list(range(STEPS)), 1)


def test_rounds_sites_and_seeds_draw_other_numbers_and_equal_ones_the_same(
    task: Callable[..., Task], tmp_path: Any, uninterrupted: tuple[str, dict[str, float]]
) -> None:
    from fedmedseg.core.state import SiteState

    digests = {uninterrupted[0]}
    for change in ({"seed": 8}, {"round": 1}, {"stage": "tuning"}):
        noisy = Noisy()
        train(noisy, task(**change))
        digests.add(noisy.digest)
    noisy = Noisy()
    state = SiteState(tmp_path / "other", study="s", experiment="e", site="site-2", run="r")
    train(noisy, task(site="site-2", state=state))
    assert len({*digests, noisy.digest}) == 5


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_is_told_and_nothing_of_it_is_saved(task: Callable[..., Task], loss: float) -> None:
    """Fault row 34."""
    noisy = Noisy()
    noisy.loss_at = {2: loss}
    with pytest.raises(FedMedSegError) as caught:
        train(noisy, task())
    assert caught.value.reason is Reason.LOCAL_DIVERGED
    assert caught.value.public == "LOCAL_DIVERGED: loss"
    assert noisy.steps == [0, 1, 2]
    assert task().state.load("running_student") is None


def test_after_divergence_the_last_good_checkpoint_is_the_one_before_the_bad_step(task: Callable[..., Task]) -> None:
    """Fault row 34."""
    noisy = Noisy()
    noisy.loss_at = {2: float("nan")}
    with pytest.raises(FedMedSegError):
        train(noisy, task(checkpoint_seconds=0.0))
    again = Noisy()
    train(again, task())
    assert again.steps == [2, 3, 4]


def test_progress_counts_every_step(task: Callable[..., Task]) -> None:
    seen: list[tuple[Any, ...]] = []

    class Listener:
        def update(self, *what: Any) -> None:
            seen.append(what)

    noisy = Noisy()
    noisy.loss_at = dict.fromkeys(range(STEPS), 0.5)
    train(noisy, task(progress=Listener()), work="student, warming")
    assert seen == [("student, warming", step, STEPS, 0.5) for step in range(1, STEPS + 1)]


def test_an_objective_that_makes_batches_ahead_is_told_each_next_steps_seed(task: Callable[..., Task]) -> None:
    class Foreseeing(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[int | None] = []
            self.seeds: list[int] = []

        def expect(self, seed: int) -> None:
            self.told.append(seed)

        def step(self, index: int) -> Mapping[str, float]:
            self.seeds.append(torch.initial_seed())
            return super().step(index)

    one, plain = Foreseeing(), Noisy()
    run_steps(one, task=task(), name="a", steps=STEPS)
    assert one.told == one.seeds[1:], "of every step but the first, before the step ahead of it"
    run_steps(plain, task=task(round=1), name="a", steps=STEPS)
    other = Foreseeing()
    run_steps(other, task=task(round=1), name="a2", draws="a", steps=STEPS)
    assert content_sha256(other.model.state_dict()) == content_sha256(plain.model.state_dict())
