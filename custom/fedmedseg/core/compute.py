"""How a network is computed (precision, attention kernel, memory layout) and the choice among the ways by timing.

The reference of every comparison is plain computing: float32, attention written out, contiguous tensors. A way that
is not clearly faster than the reference, or whose figures are far from the reference's, is never chosen.

Only the forward pass is cast (``torch.autocast``): weights, gradients, moments of the optimiser, a teacher that
follows by moving average, and losses stay float32. bfloat16 has the exponent range of float32, so nothing has to be
scaled; float16, which needs a gradient scaler with a state of its own, is not offered.

All figures in this package's documents are of CPUs. What concerns a GPU (waiting for it before the clock is read, its
name in the key, refusing a precision it lacks) is tested with stand-ins and has not been run on one.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch

from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.federation_settings import ComputeSection
from fedmedseg.core.training import Aborted

logger = logging.getLogger(__name__)

MARGIN = 0.05
"""A way must save this share of the reference's time, or the reference stays: less is within the noise of a timing."""
LIKE = 0.02
"""Ways within this share of the fastest count as equally fast; the one that departs least from the reference wins."""
TOLERANCE = 0.05
"""Largest relative difference of a figure (loss, gradient norm, probabilities) from the reference's.

bfloat16 differs by less than 0.01 % in the loss and 0.5 % in the others on networks of the usual shape, and by up to
27 % in the gradient norm where a deepest map of two voxels is normalised (2D Swin, crop 64 x 32).
"""
ROUNDS = 5
"""Timed repetitions of every way that is still in the race."""
LEAST_ROUNDS = 3
SECONDS = 30.0
"""No further repetition is begun after so many seconds, beyond the least."""
HOPELESS = 1.5
"""A way that took so many times the fastest in every repetition so far is timed no more."""


@dataclass(frozen=True)
class ComputeChoice:
    """One way to compute a network."""

    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["explicit", "fused"] = "fused"
    layout: Literal["contiguous", "channels_last"] = "contiguous"

    def __str__(self) -> str:
        return f"{self.precision}/{self.attention}/{self.layout}"

    def autocast(self, device: str | torch.device) -> torch.autocast:
        """The context of a forward pass; with fp32 it switches casting off."""
        return torch.autocast(
            torch.device(device).type, dtype=torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=True
        )

    def memory_format(self, dims: int) -> torch.memory_format:
        """Of tensors with ``dims`` axes, batch and channels among them; other than 4 or 5 have one layout only."""
        if self.layout == "contiguous" or dims not in (4, 5):
            return torch.contiguous_format
        return torch.channels_last if dims == 4 else torch.channels_last_3d

    def on_device(self, images: torch.Tensor, device: str | torch.device) -> torch.Tensor:
        """``images`` (B, C, *crop) on ``device`` in this layout."""
        return images.to(device, memory_format=self.memory_format(images.ndim))


PLAIN = ComputeChoice(precision="fp32", attention="explicit", layout="contiguous")
"""What every option departs from."""

SHIPPED = ComputeChoice()
"""What the defaults of experiment.yaml say."""


class Trial(Protocol):
    """One real step of one real network that can be computed in several ways."""

    def use(self, choice: ComputeChoice) -> None:
        """Switch to ``choice``; not timed."""
        ...

    def check(self) -> Mapping[str, torch.Tensor]:
        """One step, and the figures to compare between ways: the same figures whenever the way is the same."""
        ...

    def step(self) -> None:
        """One step, to be timed."""
        ...


@dataclass(frozen=True)
class Measurement:
    """What was timed and what follows from it."""

    choice: ComputeChoice
    ratios: Mapping[str, float]
    """Time of each way over the reference's (median over repetitions, each against the reference of its own)."""
    seconds: Mapping[str, float]
    """Median seconds of a step."""
    struck: Mapping[str, str] = field(default_factory=dict)
    """Ways that were left out, and why."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def options(section: ComputeSection, *, fused_matters: bool = True) -> list[ComputeChoice]:
    """The ways that ``section`` leaves open, the reference of the comparison first, then by departures from it.

    An axis that is not ``auto`` is what it says. ``fused_matters`` false: both kernels are one in this work, so an
    open axis is not tried.
    """
    kernels = ("explicit", "fused") if fused_matters else ("explicit",)
    axes: Sequence[tuple[str, ...]] = [
        open_ways if given == "auto" else (given,)
        for given, open_ways in (
            (section.precision, ("fp32", "bf16")),
            (section.attention, kernels),
            (section.layout, ("contiguous", "channels_last")),
        )
    ]
    found = [
        ComputeChoice(precision=precision, attention=attention, layout=layout)  # type: ignore[arg-type]
        for precision, attention, layout in itertools.product(*axes)
    ]
    return sorted(found, key=lambda choice: _departures(choice, found[0]))


def require_supported(choices: Sequence[ComputeChoice], device: str | torch.device) -> list[ComputeChoice]:
    """``choices`` without those that ``device`` cannot compute.

    Raises:
        ConfigurationError: none is left, since bf16 is demanded of a GPU that has none. Every CPU has it, some only
            by emulation, which is slow.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        able = [choice for choice in choices if choice.precision != "bf16"]
        if not able:
            raise ConfigurationError(
                "compute.precision",
                got="bf16",
                expected="fp32 on this GPU, which has no bfloat16",
                remedy="set it to fp32, or to auto so that each site finds out for itself",
            )
        return able
    return list(choices)


def measure(
    trial: Trial,
    choices: Sequence[ComputeChoice],
    *,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
    aborted: Callable[[], bool] = lambda: False,
) -> Measurement:
    """Time every choice against the first, in turns, and take the fastest of those that may be taken.

    First each way does a step whose figures are compared with the reference's (which also warms it up); then all
    that passed take turns, the starting place moving on from turn to turn, so that a load which comes and goes meets
    all alike. ``clock`` gives seconds; ``synchronise`` waits for a GPU and is called before every reading.

    Raises:
        Aborted: ``aborted()`` became true between two steps.
        FedMedSegError: the reference's own figures are not finite (reason LOCAL_DIVERGED).
    """
    reference = choices[0]
    struck: dict[str, str] = {}
    expected = _checked(trial, reference, aborted)
    racing = [reference]
    for choice in choices[1:]:
        try:
            reason = objection(_checked(trial, choice, aborted), expected)
        except torch.OutOfMemoryError:
            reason = "out of memory"
        except (RuntimeError, FedMedSegError) as error:
            # an operator that does not exist in this way; its message may hold anything, so only its kind is told
            reason = error.public if isinstance(error, FedMedSegError) else type(error).__name__
        if reason is None:
            racing.append(choice)
        else:
            struck[str(choice)] = reason
    times: dict[ComputeChoice, list[float]] = {choice: [] for choice in racing}
    began = clock()
    for turn in range(ROUNDS):
        if len(racing) == 1 or (turn >= LEAST_ROUNDS and clock() - began > SECONDS):
            break
        first = turn % len(racing)
        for choice in racing[first:] + racing[:first]:
            _unless_aborted(aborted)
            trial.use(choice)
            synchronise()
            start = clock()
            trial.step()
            synchronise()
            times[choice].append(clock() - start)
        fastest = min(min(times[choice]) for choice in racing)
        racing = [choice for choice in racing if choice == reference or min(times[choice]) <= HOPELESS * fastest]
    return decide(times, reference, struck)


def decide(
    times: Mapping[ComputeChoice, Sequence[float]], reference: ComputeChoice, struck: Mapping[str, str]
) -> Measurement:
    """The choice that follows from timings, pure: ``times[way][i]`` and ``times[reference][i]`` are of one turn."""
    ratios = {
        choice: statistics.median(own / plain for own, plain in zip(found, times[reference], strict=False))
        for choice, found in times.items()
        if found
    } or {reference: 1.0}
    best = min(ratios.values())
    taken = reference
    if best < 1.0 - MARGIN:
        near = [choice for choice, ratio in ratios.items() if ratio <= best * (1.0 + LIKE) and ratio < 1.0 - MARGIN]
        taken = min(near, key=lambda choice: (_departures(choice, reference), ratios[choice]))
    return Measurement(
        choice=taken,
        ratios={str(choice): ratio for choice, ratio in ratios.items()},
        seconds={str(choice): statistics.median(found) for choice, found in times.items() if found},
        struck=dict(struck),
    )


def objection(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str | None:
    """Why figures disqualify a way: not finite, or summed differences above ``TOLERANCE`` of the sum; else None."""
    for name, wanted in expected.items():
        got, reference = found[name].double(), wanted.double()
        if not bool(torch.isfinite(got).all()):
            return f"{name} not finite"
        scale = float(reference.abs().sum())
        off = float((got - reference).abs().sum()) / scale if scale else float((got - reference).abs().sum())
        if off > TOLERANCE:
            return f"{name} {off:.1%} off the reference's"
    return None


def _checked(trial: Trial, choice: ComputeChoice, aborted: Callable[[], bool]) -> Mapping[str, torch.Tensor]:
    _unless_aborted(aborted)
    trial.use(choice)
    return trial.check()


def _departures(choice: ComputeChoice, reference: ComputeChoice) -> int:
    return sum(value != asdict(reference)[axis] for axis, value in asdict(choice).items())


def _unless_aborted(aborted: Callable[[], bool]) -> None:
    if aborted():
        raise Aborted
