"""How much memory a study's training steps need, computed without doing one.

What autograd keeps for the backward pass is counted exactly, on tensors without contents (torch's ``meta`` device):
the forward pass of the study's own network on one crop, float32, each buffer once. To it come weights, gradients and
AdamW's two moments for every parameter, and a reserve for what lives for a moment only. bfloat16, fused attention and
SGD, which has one moment, need less: the estimate is an upper one there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.findings import Finding, failed, passed, warned
from fedmedseg.core.machine_checks import GIB, human
from fedmedseg.core.network_settings import BasicUNetSection
from fedmedseg.networks.factory import READERS, build_segmentation, encoder_place
from fedmedseg.networks.unet_encoder import UNetEncoder

SUPERVISED = ("training", "fine_tuning")
"""Stages that train the whole segmentation network on labels."""
COPIES = 4
"""float32 numbers a trained parameter needs: weight, gradient, AdamW's two moments."""
TRANSIENT = 3
"""Largest kept buffers that the backward pass holds beside the kept ones: two gradients and a workspace."""
CUDA_CONTEXT = GIB // 2
"""What CUDA and its libraries take on a GPU before the first tensor."""
PROCESS = GIB
"""What Python, torch, MONAI and FLARE take of a machine's memory."""
DRIVER = Path("/proc/driver/nvidia/version")
DEEP = 20
"""Slices of a deep short-axis stack: what a crop of whole depth is taken to have."""
CROWDED = 0.8
"""Share of what is free now above which a need is called tight: `benchmarks/memory_estimate.py` finds the estimate
within a quarter of what a step takes on a CPU, to either side."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Memory of one training step, in bytes."""

    stage: str
    crops: int
    parameters: int
    """Trained numbers."""
    frozen: int
    """Bytes of networks beside the trained one: a teacher, a bank with its moments, what a penalty is a distance to."""
    per_crop: int
    """Bytes kept for the backward pass, for one crop."""
    largest: int
    """Bytes of the largest buffer among them."""

    @property
    def training(self) -> int:
        """Weights, gradients and moments."""
        return COPIES * 4 * self.parameters

    @property
    def total(self) -> int:
        """All of it, at the step's worst moment."""
        return self.training + self.frozen + self.crops * (self.per_crop + TRANSIENT * self.largest)

    def explained(self) -> str:
        """The sum, part by part."""
        beside = f" + beside it {human(self.frozen)}" if self.frozen else ""
        return (
            f"{self.stage}: {self.parameters / 1e6:.1f} M parameters {human(self.training)}{beside} + {self.crops} "
            f"crop(s) x {human(self.per_crop + TRANSIENT * self.largest)} = {human(self.total)}"
        )


def needs(experiment: Experiment) -> list[Need]:
    """What each training stage that is not left out needs, in the order of the stages."""
    plan: Any = system_module(experiment.system, "plan")
    if hasattr(plan, "trained"):
        steps = plan.trained(experiment).items()
        return [_of_step(experiment, stage, *step) for stage, step in steps if experiment.stages[stage].rounds]
    with torch.random.fork_rng(devices=[]):
        network = build_segmentation(experiment).to("meta").train()
    found = []
    for stage, crops in (plan.crops(experiment) if hasattr(plan, "crops") else {}).items():
        if experiment.stages[stage].rounds:
            found.append(_own_stage(experiment, network, stage, crops))
    beside = plan.beside(experiment) if hasattr(plan, "beside") else {}
    for stage in (stage for stage in SUPERVISED if stage in experiment.stages and experiment.stages[stage].rounds):
        kept, largest = kept_for_backward(experiment, network, lambda images: _loss(network(images)))
        found.append(
            Need(
                stage=stage,
                crops=experiment.segmentation.batch,
                parameters=count(network),
                frozen=4 * count(network) * beside.get(stage, 0),
                per_crop=kept,
                largest=largest,
            )
        )
    return found


def _of_step(
    experiment: Experiment,
    stage: str,
    build: Callable[[], nn.Module],
    forward: Callable[[Any, torch.Tensor], list[torch.Tensor]],
    shape: tuple[int, ...],
    items: int,
) -> Need:
    """A system that says itself what its stages train: networks of its own on inputs (channels, *edges)."""
    network = build().to("meta").train()

    def loss(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([_loss(logits) for logits in forward(network, images)]).sum()

    kept, largest = kept_for_backward(experiment, network, loss, shape=shape)
    return Need(stage=stage, crops=items, parameters=count(network), frozen=0, per_crop=kept, largest=largest)


def _own_stage(experiment: Experiment, network: nn.Module, stage: str, crops: int) -> Need:
    """A system's own training: of an encoder beside its teacher or the network that follows it, or of the whole network
    beside a bank that trains.
    """
    kind = experiment.network.name
    if isinstance(experiment.network, BasicUNetSection):
        encoder = UNetEncoder(model=network)
        kept, largest = kept_for_backward(experiment, encoder, encoder)
        # with the heads behind it: what the stage sends when it begins
        plan: Any = system_module(experiment.system, "plan")
        sent = plan.stages(experiment)[stage].sent_in(0).of(plan.initial_shared(experiment))
        size = sum(tensor.numel() for tensor in sent.values())
        return Need(stage=stage, crops=crops, parameters=size, frozen=4 * size, per_crop=kept, largest=largest)
    if kind not in READERS:
        kept, largest = kept_for_backward(experiment, network, lambda images: _loss(network(images)))
        size = count(network)
        # the bank has gradients and moments of its own; its graph is there when the client's is gone
        return Need(stage=stage, crops=crops, parameters=size, frozen=COPIES * 4 * size, per_crop=kept, largest=largest)
    tokens, reader = getattr(network, encoder_place(experiment)), READERS[kind]
    kept, largest = kept_for_backward(experiment, tokens, lambda images: reader.block_tokens(tokens, images, top=1)[-1])
    size = count(tokens)
    return Need(stage=stage, crops=crops, parameters=size, frozen=4 * size, per_crop=kept, largest=largest)


def count(network: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def kept_for_backward(
    experiment: Experiment,
    network: nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    *,
    shape: tuple[int, ...] | None = None,
) -> tuple[int, int]:
    """Bytes that autograd keeps of ``forward`` on one crop beside the network's own, and of the largest buffer.

    ``shape`` (channels, *edges) is of one item; unset: one channel and a crop of the study.

    Works on the device the network is on; on ``meta`` nothing is computed and nothing allocated.
    """
    device = next(network.parameters()).device
    own = {_buffer(tensor) for tensor in (*network.parameters(), *network.buffers())}
    sizes: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = _buffer(tensor)
        if place not in own and place not in sizes:
            sizes[place] = tensor.untyped_storage().nbytes()
            # a freed buffer's place could be given to another
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(torch.zeros(1, *(shape or (1, *_crop(experiment))), device=device))
    return sum(sizes.values()), max(sizes.values(), default=0)


def memory(wanted: list[Need], *, device: str, free: int, total: int) -> Finding:
    """Whether the largest of ``wanted`` fits; ``free`` and ``total`` are bytes of the GPU, or of the machine."""
    check, where = "memory", "of the GPU" if device == "cuda" else "of this machine"
    if not wanted:
        return passed(check, "nothing is trained")
    worst = max(wanted, key=lambda need: need.total)
    base = CUDA_CONTEXT if device == "cuda" else PROCESS
    need = worst.total + base
    text = (
        f"about {human(need)} needed, {human(free)} free of {human(total)} {where} "
        f"({worst.explained()}, and {human(base)} for {'CUDA' if device == 'cuda' else 'the process'})"
    )
    smaller = "ask the study lead for a smaller data.crop, batch or network"
    if need > total:
        return failed(check, text, f"use a machine with more, or {smaller}")
    if need > CROWDED * free:
        return warned(check, text, "end what else uses it while the study runs")
    return passed(check, text)


def machine_memory() -> tuple[int, int]:
    """Bytes free and in all of this machine, or of the container this runs in where that has less."""
    status = psutil.virtual_memory()
    free, total = int(status.available), int(status.total)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - (used or 0)))
    return free, total


def gpu(wish: str, precision: str) -> tuple[Finding, str, tuple[int, int] | None]:
    """The GPU check, the device that will be used, and bytes free and in all of the GPU.

    ``wish`` is the site file's device, or the experiment's where that leaves it open; ``precision`` the experiment's.
    """
    check = "gpu"
    if wish == "cpu":
        return passed(check, "not used: the device is cpu"), "cpu", None
    if not torch.cuda.is_available():
        if wish == "cuda":
            mend = "mend the graphics driver (nvidia-smi must work), install torch with CUDA, or set device: cpu"
            return failed(check, "device: cuda, and torch finds no GPU", mend), "cpu", None
        if DRIVER.exists():
            mend = "install torch with CUDA for this driver, or set device: cpu"
            text = "a graphics driver is here, but torch finds no GPU: the CPU will be used"
            return warned(check, text, mend), "cpu", None
        return passed(check, "none on this machine: the CPU will be used"), "cpu", None
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    text = f"{properties.name}, {human(total)}, compute capability {properties.major}.{properties.minor}"
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found = failed(check, f"{text}, without the bfloat16 that the study demands", "use another GPU, or device: cpu")
    else:
        found = passed(check, text)
    return found, "cuda", (int(free), int(total))


def _loss(logits: torch.Tensor) -> torch.Tensor:
    """The shape of Dice with cross-entropy: what it keeps are both kinds of probabilities."""
    probabilities = torch.softmax(logits, dim=1)
    return torch.log_softmax(logits, dim=1).mul(probabilities).mean() + (probabilities * probabilities).sum()


def _crop(experiment: Experiment) -> tuple[int, ...]:
    """A crop of the study; with ``data.whole_depth`` of ``DEEP`` slices, or of the fewest where those are more."""
    crop = experiment.data.crop
    return (*crop[:2], max(DEEP, crop[2])) if experiment.data.whole_depth else crop


def _buffer(tensor: torch.Tensor) -> int:
    """What tells buffers apart, also those without an address."""
    return int(tensor.untyped_storage()._cdata)


def _cgroup(name: str) -> int | None:
    """A figure of this process's memory group, or None where it has none."""
    try:
        with open(f"/sys/fs/cgroup/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
