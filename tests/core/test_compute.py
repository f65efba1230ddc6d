"""Ways of computing: which are open, what a clock decides between them, and which are struck out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from fedmedseg.core import compute
from fedmedseg.core.compute import PLAIN, SHIPPED, ComputeChoice, decide, measure, objection, options
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.federation_settings import ComputeSection
from fedmedseg.core.training import Aborted

BF16 = ComputeChoice(precision="bf16", attention="explicit", layout="contiguous")
FUSED = ComputeChoice(precision="fp32", attention="fused", layout="contiguous")
LAST = ComputeChoice(precision="fp32", attention="explicit", layout="channels_last")
BF16_LAST = ComputeChoice(precision="bf16", attention="explicit", layout="channels_last")


class HandMade:
    """A trial whose steps take the seconds and give the losses that the test says."""

    def __init__(
        self,
        seconds: Mapping[ComputeChoice, float | list[float]],
        losses: Mapping[ComputeChoice, float | Exception] | None = None,
    ) -> None:
        self.seconds, self.losses = seconds, losses or {}
        self.now, self.steps, self.choice = 0.0, [], PLAIN

    def clock(self) -> float:
        return self.now

    def use(self, choice: ComputeChoice) -> None:
        self.choice = choice
        self.now += 100.0  # switching is not timed

    def check(self) -> Mapping[str, torch.Tensor]:
        loss = self.losses.get(self.choice, 2.0)
        if isinstance(loss, Exception):
            raise loss
        return {"loss": torch.tensor(loss)}

    def step(self) -> None:
        taken = self.seconds[self.choice]
        done = self.steps.count(self.choice)
        self.now += taken[done] if isinstance(taken, list) else taken
        self.steps.append(self.choice)


def run(trial: HandMade, *choices: ComputeChoice, **words: Callable[[], bool]) -> compute.Measurement:
    return measure(trial, choices, clock=trial.clock, **words)


def test_defaults_are_float32_and_leave_nothing_open() -> None:
    assert options(ComputeSection()) == [SHIPPED]
    assert str(SHIPPED) == "fp32/fused/contiguous"


def test_auto_opens_its_own_axis_and_starts_at_the_plain_way() -> None:
    assert options(ComputeSection(precision="auto")) == [SHIPPED, ComputeChoice(precision="bf16")]
    assert options(ComputeSection(attention="auto")) == [PLAIN, FUSED]
    assert options(ComputeSection(layout="auto", attention="explicit")) == [PLAIN, LAST]
    everything = options(ComputeSection(precision="auto", attention="auto", layout="auto"))
    assert everything[0] == PLAIN
    assert len(set(everything)) == 8
    assert everything[-1] == ComputeChoice(precision="bf16", attention="fused", layout="channels_last")


def test_kernels_that_are_one_in_this_work_are_not_told_apart() -> None:
    section = ComputeSection(precision="auto", attention="auto", layout="auto")
    assert {choice.attention for choice in options(section, fused_matters=False)} == {"explicit"}
    assert options(ComputeSection(), fused_matters=False) == [SHIPPED]


def test_the_fastest_way_is_taken() -> None:
    found = run(HandMade({PLAIN: 10.0, BF16: 5.0, FUSED: 8.0}), PLAIN, BF16, FUSED)
    assert found.choice == BF16
    assert found.ratios == {str(PLAIN): 1.0, str(BF16): 0.5, str(FUSED): 0.8}
    assert found.seconds == {str(PLAIN): 10.0, str(BF16): 5.0, str(FUSED): 8.0}


@pytest.mark.parametrize(("seconds", "taken"), [(9.4, BF16), (9.6, PLAIN), (10.0, PLAIN), (30.0, PLAIN)])
def test_plain_float32_stays_unless_a_way_is_clearly_faster(seconds: float, taken: ComputeChoice) -> None:
    assert run(HandMade({PLAIN: 10.0, BF16: seconds}), PLAIN, BF16).choice == taken


def test_of_ways_that_are_equally_fast_the_one_nearest_to_plain_is_taken() -> None:
    assert run(HandMade({PLAIN: 10.0, BF16: 5.05, BF16_LAST: 5.0}), PLAIN, BF16, BF16_LAST).choice == BF16
    assert run(HandMade({PLAIN: 10.0, BF16: 5.2, BF16_LAST: 5.0}), PLAIN, BF16, BF16_LAST).choice == BF16_LAST


def test_a_single_slow_repetition_decides_nothing() -> None:
    # plain's first step is ten times too long, bf16's second: medians of 1, 1.2, 1.2 ... are above 1
    trial = HandMade({PLAIN: [100.0, 10.0, 10.0, 10.0, 10.0], BF16: [12.0, 120.0, 12.0, 12.0, 12.0]})
    found = run(trial, PLAIN, BF16)
    assert found.choice == PLAIN
    assert found.ratios[str(BF16)] == pytest.approx(1.2)


def test_a_load_that_grows_meets_both_alike() -> None:
    # each turn is slower than the last: means over all turns would hide that bf16 takes 0.8 of every turn
    plain = [10.0, 20.0, 40.0, 80.0, 160.0]
    found = run(HandMade({PLAIN: plain, BF16: [0.8 * value for value in plain]}), PLAIN, BF16)
    assert found.choice == BF16
    assert found.ratios[str(BF16)] == pytest.approx(0.8)


def test_ways_take_turns_and_the_starting_place_moves_on() -> None:
    trial = HandMade({PLAIN: 10.0, BF16: 9.0})
    run(trial, PLAIN, BF16)
    assert trial.steps[:4] == [PLAIN, BF16, BF16, PLAIN]
    assert trial.steps.count(PLAIN) == trial.steps.count(BF16) == compute.LEAST_ROUNDS  # 100 s a switch end it early


def test_a_hopeless_way_is_timed_once() -> None:
    trial = HandMade({PLAIN: 10.0, BF16: 16.0, FUSED: 14.0})
    found = run(trial, PLAIN, BF16, FUSED)
    assert trial.steps.count(BF16) == 1
    assert trial.steps.count(FUSED) == trial.steps.count(PLAIN) == compute.LEAST_ROUNDS
    assert found.ratios[str(BF16)] == 1.6


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (float("nan"), "loss not finite"),
        (float("inf"), "loss not finite"),
        (2.2, "loss 10.0% off the reference's"),
        (RuntimeError("a patient's name"), "RuntimeError"),
        (torch.OutOfMemoryError("x"), "out of memory"),
        (FedMedSegError("gradient norm not finite", reason=Reason.LOCAL_DIVERGED), "LOCAL_DIVERGED: gradient norm not"),
    ],
)
def test_a_way_with_other_figures_is_struck_out_however_fast(loss: float | Exception, told: str) -> None:
    trial = HandMade({PLAIN: 10.0, BF16: 1.0, FUSED: 8.0}, {BF16: loss})
    found = run(trial, PLAIN, BF16, FUSED)
    assert found.choice == FUSED
    assert BF16 not in trial.steps
    assert list(found.struck) == [str(BF16)]
    assert found.struck[str(BF16)].startswith(told)


def test_a_reference_that_fails_is_not_covered_up() -> None:
    failure = FedMedSegError("loss", reason=Reason.LOCAL_DIVERGED)
    with pytest.raises(FedMedSegError, match="loss"):
        run(HandMade({}, {PLAIN: failure}), PLAIN, BF16)


def test_figures_may_differ_by_the_tolerance() -> None:
    expected = {"probabilities": torch.tensor([0.5, 0.5])}
    assert objection({"probabilities": torch.tensor([0.52, 0.48])}, expected) is None  # 0.04 of 1.0
    assert (
        objection({"probabilities": torch.tensor([0.53, 0.47])}, expected) == "probabilities 6.0% off the reference's"
    )
    assert objection({"loss": torch.tensor(0.0)}, {"loss": torch.tensor(0.0)}) is None


def test_measuring_stops_where_the_federation_asks_for_it() -> None:
    asked = iter([False, False, False, True])
    trial = HandMade({PLAIN: 1.0, BF16: 1.0})
    with pytest.raises(Aborted):
        run(trial, PLAIN, BF16, aborted=lambda: next(asked))
    assert trial.steps == [PLAIN]


def test_with_nothing_but_the_reference_left_nothing_is_timed() -> None:
    trial = HandMade({PLAIN: 1.0}, {BF16: float("nan")})
    assert run(trial, PLAIN, BF16).choice == PLAIN
    assert trial.steps == []


def test_the_choice_follows_from_timings_alone() -> None:
    found = decide({PLAIN: [4.0, 2.0, 4.0], BF16: [2.0, 3.0, 2.0]}, PLAIN, {})
    assert found.choice == BF16  # ratios 0.5, 1.5, 0.5
    assert found.ratios[str(BF16)] == 0.5
    assert found.plain()["choice"] == {"precision": "bf16", "attention": "explicit", "layout": "contiguous"}


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_without_bfloat16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: able)
    assert compute.require_supported([PLAIN, BF16], "cuda") == ([PLAIN, BF16] if able else [PLAIN])
    assert compute.require_supported([PLAIN, BF16], "cpu") == [PLAIN, BF16]
    if not able:
        with pytest.raises(ConfigurationError, match=r"compute\.precision.*got bf16.*auto"):
            compute.require_supported([BF16], "cuda")


def test_a_gpu_is_waited_for_before_every_reading_of_the_clock() -> None:
    """Kernels run on after the call that queued them: here a step takes its time only when it is waited for."""
    trial = HandMade({PLAIN: 0.0, BF16: 0.0})
    owed = {PLAIN: 10.0, BF16: 4.0}
    done = 0

    def synchronise() -> None:
        nonlocal done
        if len(trial.steps) > done:
            done = len(trial.steps)
            trial.now += owed[trial.steps[-1]]

    found = measure(trial, [PLAIN, BF16], clock=trial.clock, synchronise=synchronise)
    assert found.choice == BF16
    assert found.seconds == {str(PLAIN): 10.0, str(BF16): 4.0}


def test_casting_is_switched_on_by_bf16_and_off_by_fp32() -> None:
    a = torch.ones(2, 2)
    with BF16.autocast("cpu"):
        assert (a @ a).dtype == torch.bfloat16
        with PLAIN.autocast("cpu"):
            assert (a @ a).dtype == torch.float32
