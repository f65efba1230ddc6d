"""Whether the way of computing that a site chooses by timing is faster than plain float32, and never slower.

    python benchmarks/compute_choice.py --seconds 2

For every network and work: what ``compute: {precision: auto, attention: auto, layout: auto}`` chooses
(``core.compute.measure``, as a site does it), and then, in a second timing that knows nothing of the first, plain
float32 in turns with every way that was not hopeless. ``chosen_over_plain`` and ``chosen_over_best`` are of the second
timing, so that a choice by luck would show. Copies of memory before, between and after tell how steady the machine
was. Writes benchmarks/results/compute_choice.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedmedseg.core.compute import HOPELESS, PLAIN, ComputeChoice, Trial, measure, options
from fedmedseg.core.config import Experiment
from fedmedseg.core.records import installed_versions
from fedmedseg.networks.timing import machine
from fedmedseg.segmentation.compute import inference_trial, supervised_trial
from fedmedseg.segmentation.inference import windows_per_forward
from fedmedseg.segmentation.starts import initial_network

RESULT = Path(__file__).parent / "results" / "compute_choice.json"
LEAST_TURNS, MOST_TURNS = 3, 15
SWIN, UNETR = {"name": "swin_unetr"}, {"name": "unetr", "feature_size": 16}
WIDTH_96 = {"hidden_size": 96, "mlp_dim": 384, "heads": 6}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "SwinUNETR fs12 64x64 batch 4": (SWIN | {"feature_size": 12, "window": 4}, (64, 64), 4),
    "SwinUNETR fs12 96x96 batch 8": (SWIN | {"feature_size": 12}, (96, 96), 8),
    "SwinUNETR fs24 96x96 batch 4": (SWIN | {"feature_size": 24}, (96, 96), 4),
    "SwinUNETR fs12 64x64x64 batch 1": (SWIN | {"feature_size": 12}, (64, 64, 64), 1),
    "UNETR hidden 96 96x96 batch 8": (UNETR | WIDTH_96, (96, 96), 8),
    "UNETR hidden 96 48x48x48 batch 1": (UNETR | WIDTH_96, (48, 48, 48), 1),
}


def study(network: dict[str, Any], crop: tuple[int, ...], batch: int) -> Experiment:
    """A study of three structures with everything open."""
    everything = dict.fromkeys(("precision", "attention", "layout"), "auto")
    return Experiment.model_validate(
        {
            "system": "none",
            "study": "benchmark",
            "data": {
                "role": "cmr",
                "modality": "mr",
                "spatial_dims": len(crop),
                "labels": {1: "left", 2: "wall", 3: "right"},
                "crop": crop,
            },
            "network": network,
            "segmentation": {"steps": 1, "batch": batch, "optimizer": {"learning_rate": 1e-3}},
            "stages": {},
            "compute": everything,
        }
    )


def in_turns(trial: Trial, ways: list[ComputeChoice], seconds: float) -> dict[ComputeChoice, list[float]]:
    """Seconds of every way, all of them once a turn; the first of each was warmed up by the choice."""
    times: dict[ComputeChoice, list[float]] = {way: [] for way in ways}
    began = time.perf_counter()
    for turn in range(MOST_TURNS):
        if turn >= LEAST_TURNS and time.perf_counter() - began > seconds:
            break
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            trial.use(way)
            start = time.perf_counter()
            trial.step()
            times[way].append(time.perf_counter() - start)
    return times


def compare(trial: Trial, experiment: Experiment, seconds: float, *, fused_matters: bool) -> dict[str, Any]:
    """The choice, and the second timing of everything that was not struck out."""
    ways = options(experiment.compute, fused_matters=fused_matters)
    began = time.perf_counter()
    choice = measure(trial, ways)
    choosing = time.perf_counter() - began
    fastest = min(choice.ratios.values())
    near = [way for way in ways if choice.ratios.get(str(way), math.inf) <= HOPELESS * fastest or way == PLAIN]
    times = in_turns(trial, near, seconds)
    ratio = {
        str(way): statistics.median(own / plain for own, plain in zip(found, times[PLAIN], strict=True))
        for way, found in times.items()
    }
    medians = {str(way): statistics.median(found) for way, found in times.items()}
    mads = {
        str(way): statistics.median(abs(value - medians[str(way)]) for value in found) for way, found in times.items()
    }
    chosen = str(choice.choice)
    return {
        "chosen": chosen,
        "seconds_to_choose": round(choosing, 2),
        "plain_s": round(medians[str(PLAIN)], 4),
        "chosen_s": round(medians[chosen], 4),
        "chosen_over_plain": round(ratio[chosen], 3),
        "chosen_over_best": round(medians[chosen] / min(medians.values()), 3),
        "turns": len(times[PLAIN]),
        "over_plain": {way: round(value, 3) for way, value in ratio.items()},
        "median_s": {way: round(value, 4) for way, value in medians.items()},
        "mad_s": {way: round(value, 4) for way, value in mads.items()},
        "over_plain_when_choosing": {way: round(value, 3) for way, value in choice.ratios.items()},
        "struck_out": dict(choice.struck),
    }


def copy_rate(megabytes: int = 256, repeats: int = 5) -> float:
    """GB/s of copying memory."""
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    best = []
    for _ in range(repeats):
        began = time.perf_counter()
        target.copy_(source)
        best.append(time.perf_counter() - began)
    return megabytes * 2**20 / statistics.median(best) / 1e9


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of the second timing, per network and work")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    copies = [copy_rate()]
    cases: dict[str, Any] = {}
    for name, (network, crop, batch) in NETWORKS.items():
        if arguments.only not in name:
            continue
        experiment = study(network, crop, batch)
        builds: dict[str, tuple[Callable[..., Trial], int]] = {
            "supervised": (supervised_trial, batch),
            "inference": (inference_trial, windows_per_forward(experiment.data)),
        }
        for work, (build, count) in builds.items():
            torch.manual_seed(0)
            trial = build(initial_network(experiment), shape=(count, 1, *crop), experiment=experiment, device="cpu")
            # in training MONAI's Swin has one kernel only: what a site does not time is not timed here
            found = compare(
                trial,
                experiment,
                arguments.seconds,
                fused_matters=not (work == "supervised" and experiment.network.name == "swin_unetr"),
            )
            cases[f"{name}, {work}"] = found
            print(
                f"{name + ', ' + work:48s} {found['plain_s'] * 1e3:7.0f} ms plain, {found['chosen_s'] * 1e3:7.0f} ms "
                f"{found['chosen']:30s} {found['chosen_over_plain']:.2f} of plain, "
                f"{found['chosen_over_best']:.2f} of the best",
                flush=True,
            )
        copies.append(copy_rate())
    result = {
        "command": f"python benchmarks/compute_choice.py --seconds {arguments.seconds:g} --threads {arguments.threads}"
        + (f" --only {arguments.only!r}" if arguments.only else ""),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {machine('cpu')['cpu']}",
        "capability": {
            "torch": torch.backends.cpu.get_cpu_capability(),
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx": torch.cpu._is_amx_tile_supported(),
        },
        "threads": arguments.threads,
        "versions": installed_versions(),
        "memory_copy_gb_s": [round(rate, 1) for rate in copies],
        "memory_copy_moved": round(max(copies) / min(copies) - 1, 3),
        "slowest_chosen_over_plain": max(found["chosen_over_plain"] for found in cases.values()),
        "cases": cases,
    }
    print(f"slowest choice over plain float32: {result['slowest_chosen_over_plain']:.3f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
