"""What dropping masked tokens saves: a ViT student that drops 3 of 4 tokens against one that replaces them.

    python benchmarks/masked_step.py
    python benchmarks/masked_step.py --device cuda --width 768

Both students hold the same encoder weights (MONAI's ViT of UNETR, 12 blocks) and see the same crops and masks.
A student step is forward, loss and backward, decoder or predictor included, without teacher and optimiser; a whole
step is what a site does: crops, teacher, student, clipping, AdamW, moving average. The repeats of the two are
interleaved and their medians compared. A memory copy is timed beside every repeat: where it drifts, the machine was
busy with something else, the run is void, and nothing is written. Otherwise prints a table and writes
benchmarks/results/masked_step.json, on a GPU masked_step_cuda.json. Goals are for one thread of a CPU and for a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from devices import DEVICES, result_of

from fedmedseg.core.config import Experiment, parse_experiment
from fedmedseg.core.records import installed_versions
from fedmedseg.fedata.masking import places, random_masks
from fedmedseg.fedata.objective import MaskedDistillationObjective
from fedmedseg.networks.timing import machine, waiting_for

GOALS = {"cpu": {216: 2.2, 512: 2.3, 1000: 2.8}, "cuda": {216: 3.0, 512: 3.0, 1000: 3.0}}
SIZES = {"cpu": {6: 4, 8: 2, 10: 1}, "cuda": {6: 32, 8: 16, 10: 8}}
"""Tokens an axis -> crops a step: as many tokens in a step, so that every size has matrices of a useful height."""
RATIO = 0.75
DRIFT = 1.25


def experiment(edge: int, crops: int, width: int, masked_tokens: str) -> Experiment:
    """A 3D study on a ViT with ``edge`` tokens per axis."""
    return parse_experiment(
        {
            "system": "fedata",
            "study": "masked-step",
            "data": {
                "role": "ct",
                "modality": "ct",
                "spatial_dims": 3,
                "labels": {1: "organ"},
                "crop": [16 * edge] * 3,
            },
            "network": {"name": "unetr", "hidden_size": width, "mlp_dim": 4 * width, "heads": width // 64},
            "segmentation": {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
            "stages": {"pretraining": {"rounds": 1}, "fine_tuning": {}, "evaluation": {}},
            "fedata": {
                "local_steps": 100,
                "mask_ratio": RATIO,
                "masked_tokens": masked_tokens,
                "volumes_per_step": crops,
                "crops_per_volume": 1,
                "optimizer": {"learning_rate": 1e-4},
            },
        }
    )


def objectives(edge: int, crops: int, width: int, device: str = "cpu") -> dict[str, MaskedDistillationObjective]:
    """The two sites' objectives, with the same encoder."""
    images = torch.randn(crops, 1, *[16 * edge] * 3, generator=torch.Generator().manual_seed(1))

    def crop(volume: int, rng: np.random.Generator) -> torch.Tensor:
        return images[volume]

    made = {}
    for kind in ("drop", "replace"):
        torch.manual_seed(0)
        made[kind] = MaskedDistillationObjective(
            experiment=experiment(edge, crops, width, kind), volumes=crops, crop=crop, device=torch.device(device)
        )
    made["replace"].network.encoder.load_state_dict(made["drop"].network.encoder.state_dict())
    return made


def student_step(objective: MaskedDistillationObjective, crops: int) -> Callable[[], None]:
    """Forward, loss and backward on a batch whose targets are known."""
    network, pretext = objective.network, objective.pretext
    drawn = torch.stack([objective.crop(volume, np.random.default_rng(0)) for volume in range(crops)])
    images = drawn.to(objective.device)
    masks = random_masks(
        crops, objective.experiment.data.crop, unit=16, ratio=RATIO, generator=torch.Generator().manual_seed(2)
    ).to(objective.device)
    where = places(masks)
    with torch.no_grad():
        targets = pretext.targets(objective.teacher, images, where)

    def step() -> None:
        network.train()
        network.zero_grad(set_to_none=True)
        pretext.loss(network(images, masks), targets, where, position=0, total=100).loss.backward()

    return step


def whole_step(objective: MaskedDistillationObjective) -> Callable[[], None]:
    """All that a site does in a step."""

    def step() -> None:
        torch.manual_seed(3)
        objective.step(0)

    return step


def seconds(step: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of one call, the GPU's work included."""
    wait = waiting_for(device)
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


class Probe:
    """A memory copy of 128 MB, timed again and again."""

    def __init__(self) -> None:
        self.source = torch.ones(32 * 2**20)
        self.target = torch.empty_like(self.source)
        self.times: list[float] = []

    def measure(self) -> None:
        """The best of five copies: what the machine can do now."""
        self.times.append(min(seconds(lambda: self.target.copy_(self.source)) for _ in range(5)))

    @property
    def drift(self) -> float:
        """The slowest time over the fastest."""
        return max(self.times) / min(self.times)


def measure(
    edge: int, crops: int, width: int, repeats: int, whole_repeats: int, probe: Probe, device: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Medians of both students at one number of tokens, and their parameters."""
    made = objectives(edge, crops, width, device)
    steps = {f"student {kind}": student_step(one, crops) for kind, one in made.items()}
    steps |= {f"whole {kind}": whole_step(one) for kind, one in made.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for repeat in range(repeats):
        for name, step in steps.items():
            if name.startswith("student") or repeat < whole_repeats:
                times[name].append(seconds(step, device))
        probe.measure()
    medians = {name: statistics.median(values) for name, values in times.items()}
    spread = {name: statistics.median(abs(value - medians[name]) for value in values) for name, values in times.items()}
    result: dict[str, Any] = {
        "crops": crops,
        "visible": edge**3 - math.ceil(RATIO * edge**3),
        **{f"{name}_s": round(value, 4) for name, value in medians.items()},
        **{f"{name}_mad_s": round(value, 4) for name, value in spread.items()},
        "student_ratio": round(medians["student replace"] / medians["student drop"], 2),
        "whole_ratio": round(medians["whole replace"] / medians["whole drop"], 2),
    }
    parameters = {
        kind: sum(parameter.numel() for parameter in one.network.trained().values()) for kind, one in made.items()
    }
    return result, parameters


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384, help="channels of a token; heads of 64")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--whole-repeats", type=int, default=3)
    parser.add_argument("--edges", type=int, nargs="+", choices=tuple(SIZES["cpu"]), default=tuple(SIZES["cpu"]))
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results, by device")
    arguments = parser.parse_args(words)
    device = arguments.device
    out = result_of(arguments, "masked_step")
    torch.set_num_threads(1)
    probe = Probe()
    probe.measure()
    result: dict[str, Any] = {
        "command": f"python benchmarks/masked_step.py --width {arguments.width} --repeats {arguments.repeats} "
        f"--whole-repeats {arguments.whole_repeats}" + (f" --device {device}" if device != "cpu" else ""),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, one thread, float32",
        "device": machine(device),
        "versions": installed_versions(),
        "network": f"ViT, 12 blocks, width {arguments.width}, decoder 2 blocks of half the width, mask {RATIO}",
    }
    print("tokens  crops  student: replace / drop            whole step: replace / drop")
    for edge in arguments.edges:
        crops, goal = SIZES[device][edge], GOALS[device][edge**3]
        one, parameters = measure(
            edge, crops, arguments.width, arguments.repeats, arguments.whole_repeats, probe, device
        )
        one |= {"goal": goal, "reached": one["student_ratio"] >= goal, "parameters": parameters}
        result[f"{edge**3} tokens"] = one
        print(
            f"{edge**3:6d}  {crops:5d}  {one['student replace_s']:7.3f} / {one['student drop_s']:.3f} s = "
            f"{one['student_ratio']:.2f} (goal {goal})  {one['whole replace_s']:7.3f} / {one['whole drop_s']:.3f} s = "
            f"{one['whole_ratio']:.2f}",
            flush=True,
        )
    result["memory_copy_drift"] = round(probe.drift, 3)
    if probe.drift > DRIFT:
        raise SystemExit(f"void: the memory copy drifted by {probe.drift:.2f}, more than {DRIFT}; nothing written")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
