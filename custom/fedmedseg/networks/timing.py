"""Times a network's ways of computing on this machine, and remembers on the site's disk which was fastest."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedmedseg.core.compute import SHIPPED, ComputeChoice, Trial, measure, options, require_supported
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.network_settings import BasicUNetSection, SwinUNETRSection, UNetSection
from fedmedseg.core.seeding import derive_seed
from fedmedseg.data.cache import Cache
from fedmedseg.networks.compute import logits_of, prepare

logger = logging.getLogger(__name__)

Work = Literal["pretext", "supervised", "inference"]
KIND = "compute"
"""Name of the records in the site's cache folder."""
FORMAT = 1


def choose(
    experiment: Experiment,
    *,
    work: Work,
    shape: Sequence[int],
    trial: Callable[[], Trial],
    cache: Path,
    device: str | torch.device,
    aborted: Callable[[], bool] = lambda: False,
) -> ComputeChoice:
    """The way ``experiment.compute`` asks for, measured on this machine where it says ``auto``.

    ``shape`` is of a batch as the network sees it, (B, 1, *crop). ``trial()`` builds what is timed, and is called
    only where this site's disk holds no measurement of the same work, settings, machine and versions. What is
    damaged or of something else is measured again. The global random state is left as it was.

    Raises:
        Aborted: ``aborted()`` became true while measuring.
        ConfigurationError: a precision this device does not have.
        FedMedSegError: the step is not finite even in the reference (reason LOCAL_DIVERGED).
    """
    # networks of convolutions have no attention, and SwinUNETR's decoder none that is timed
    without = (BasicUNetSection, UNetSection, *((SwinUNETRSection,) if work == "supervised" else ()))
    fused_matters = not isinstance(experiment.network, without)
    ways = require_supported(options(experiment.compute, fused_matters=fused_matters), device)
    if len(ways) == 1:
        return ways[0]
    key = key_of(experiment, work=work, shape=shape, ways=ways, device=device)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    records = Cache(folder=cache)
    known = _recall(records.record(KIND, digest), key, ways)
    if known is not None:
        return known
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
        torch.manual_seed(derive_seed(experiment.seed, "compute", work))
        found = measure(
            trial(),
            ways,
            synchronise=waiting_for(device),
            aborted=aborted,
        )
    records.write_record(KIND, digest, {"key": key, **found.plain()})
    logger.info(
        "%s is computed as %s: %s of the time of %s%s",
        work,
        found.choice,
        f"{found.ratios[str(found.choice)]:.2f}",
        ways[0],
        "".join(f"; not {way}: {reason}" for way, reason in found.struck.items()),
    )
    return found.choice


def waiting_for(device: str | torch.device) -> Callable[[], None]:
    """What waits until ``device`` has done all it was told to; a CPU has."""
    return torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None


def key_of(
    experiment: Experiment,
    *,
    work: Work,
    shape: Sequence[int],
    ways: Sequence[ComputeChoice],
    device: str | torch.device,
) -> dict[str, Any]:
    """Everything that the speed of a step depends on; a remembered choice holds where all of it is the same."""
    section = experiment.wing.model_dump(mode="json") if work == "pretext" else None
    return {
        "format": FORMAT,
        "work": work,
        "shape": list(shape),
        "classes": experiment.data.classes,
        "network": experiment.network.model_dump(mode="json"),
        "system": {experiment.system: section},
        "ways": [str(way) for way in ways],
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "monai": _version("monai"), "fedmedseg": _version("fedmedseg")},
    }


def machine(device: str | torch.device) -> dict[str, str]:
    """What computes: the GPU's name, or the CPU's model and a digest of its instruction sets."""
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
    model, flags = _cpu()
    return {"cpu": model, "flags": flags, "torch_uses": torch.backends.cpu.get_cpu_capability()}


@lru_cache(maxsize=1)
def _cpu() -> tuple[str, str]:
    """Model and digest of the flags; where the system has no /proc/cpuinfo, what Python knows, and no flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}", ""
    told: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    flags = " ".join(sorted(told.get("flags", told.get("Features", "")).split()))
    return told.get("model name", platform.machine()), hashlib.sha256(flags.encode()).hexdigest()[:16]


def _recall(record: Mapping[str, Any] | None, key: Mapping[str, Any], ways: Sequence[ComputeChoice]) -> Any:
    """The remembered way, or None where the record is absent, of something else, or not one of ``ways``."""
    if record is None or record.get("key") != key:
        return None
    return next((way for way in ways if vars(way) == record.get("choice")), None)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


class StepTrial:
    """Forward and backward of ``loss`` through ``networks`` on one batch; no weight changes.

    ``loss(choice)`` is the objective's own loss of that batch: the first of ``networks`` is the one whose gradients
    are taken. Whatever is random in it is seeded alike for every way.
    """

    def __init__(
        self, *, networks: Sequence[nn.Module], loss: Callable[[ComputeChoice], torch.Tensor], seed: int
    ) -> None:
        self.networks, self.loss, self.seed = networks, loss, seed
        self.choice = SHIPPED

    def use(self, choice: ComputeChoice) -> None:
        """Switch every network to ``choice``."""
        self.choice = choice
        for network in self.networks:
            prepare(network, choice)

    def check(self) -> Mapping[str, torch.Tensor]:
        """Loss and gradient norm.

        Raises:
            FedMedSegError: one of them is not finite (reason LOCAL_DIVERGED).
        """
        torch.manual_seed(self.seed)
        loss = self._backward()
        norm = nn.utils.get_total_norm(
            [tensor.grad for tensor in self.networks[0].parameters() if tensor.grad is not None]
        )
        self._clear()
        return _finite({"loss": loss, "gradient norm": norm})

    def step(self) -> None:
        """Forward, backward, and gradients dropped as an optimiser's step would."""
        self._backward()
        self._clear()

    def _backward(self) -> torch.Tensor:
        loss = self.loss(self.choice)
        loss.backward()
        # the reading waits for a GPU, as an objective's own check of its loss does
        return loss.detach().cpu()

    def _clear(self) -> None:
        for network in self.networks:
            network.zero_grad(set_to_none=True)


class InferenceTrial:
    """Class probabilities of one batch of windows, as sliding-window prediction asks for them."""

    def __init__(self, *, network: nn.Module, windows: torch.Tensor, device: str | torch.device) -> None:
        self.network, self.windows, self.device = network, windows, device
        self.choice = SHIPPED

    def use(self, choice: ComputeChoice) -> None:
        """Switch the network to ``choice``."""
        self.choice = choice
        prepare(self.network, choice)

    def check(self) -> Mapping[str, torch.Tensor]:
        """The probabilities.

        Raises:
            FedMedSegError: they are not finite (reason LOCAL_DIVERGED).
        """
        return _finite({"probabilities": self._forward()})

    def step(self) -> None:
        """One forward pass."""
        self._forward()

    @torch.inference_mode()
    def _forward(self) -> torch.Tensor:
        return torch.softmax(logits_of(self.network, self.windows, self.choice, self.device), dim=1).cpu()


def _finite(figures: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """``figures``, where all are finite.

    Raises:
        FedMedSegError: reason LOCAL_DIVERGED, naming the first that is not.
    """
    for name, value in figures.items():
        if not bool(torch.isfinite(value).all()):
            raise FedMedSegError(f"{name} not finite", expected="finite numbers", reason=Reason.LOCAL_DIVERGED)
    return figures
