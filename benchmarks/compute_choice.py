"""Whether the way of computing that a site chooses by timing is faster than plain float32, and never slower.

    python benchmarks/compute_choice.py --seconds 2
    python benchmarks/compute_choice.py --device cuda --compile

For every network and work: what ``compute: {precision: auto, attention: auto, layout: auto}`` chooses
(``core.compute.measure``, as a site does it), and then, in a second timing that knows nothing of the first, plain
float32 in turns with every way that was not hopeless. ``chosen_over_plain`` and ``chosen_over_best`` are of the second
timing, so that a choice by luck would show. Copies of memory before, between and after tell how steady the machine
was. --compile sets the chosen way compiled by torch beside it (``compiled_over_chosen``), which no site does: whether
it should. On a GPU the networks have their usual size and crops of 96 x 96 x 96. Plain float32 is what MONAI's own
defaults compute. Writes benchmarks/results/compute_choice.json, on a GPU compute_choice_cuda.json.
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

import torch
from devices import DEVICES, result_of

from fedmedseg.core.compute import HOPELESS, PLAIN, ComputeChoice, Trial, measure, options, require_supported
from fedmedseg.core.config import Experiment
from fedmedseg.core.records import installed_versions
from fedmedseg.networks.timing import machine, waiting_for
from fedmedseg.segmentation.compute import inference_trial, supervised_trial
from fedmedseg.segmentation.inference import windows_per_forward
from fedmedseg.segmentation.starts import initial_network

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

FULL_SIZE: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "SwinUNETR fs48 96x96x96 batch 2": (SWIN, (96, 96, 96), 2),
    "UNETR hidden 768 96x96x96 batch 2": ({"name": "unetr"}, (96, 96, 96), 2),
    "UNet 16 to 256 96x96x96 batch 8": ({"name": "unet"}, (96, 96, 96), 8),
}
"""What a GPU trains."""


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


def compare(
    trial: Trial, experiment: Experiment, seconds: float, *, fused_matters: bool, device: str
) -> tuple[ComputeChoice, dict[str, Any]]:
    """The choice, and the second timing of everything that was not struck out."""
    ways = require_supported(options(experiment.compute, fused_matters=fused_matters), device)
    began = time.perf_counter()
    choice = measure(trial, ways, synchronise=waiting_for(device))
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
    return choice.choice, {
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


def compiled(as_it_is: Trial, by_torch: Trial, choice: ComputeChoice, seconds: float) -> dict[str, Any]:
    """The same step of the network as it is and compiled, in turns; without a compiler on this machine, that."""
    for trial in (as_it_is, by_torch):
        trial.use(choice)
    began = time.perf_counter()
    try:
        by_torch.step()
    except Exception as error:
        # the compiler's own errors are of no common kind
        return {"not_compiled": type(error).__name__}
    compiling = time.perf_counter() - began
    times: dict[str, list[float]] = {"as it is": [], "compiled": []}
    began = time.perf_counter()
    for turn in range(MOST_TURNS):
        if turn >= LEAST_TURNS and time.perf_counter() - began > seconds:
            break
        for name, trial in (("as it is", as_it_is), ("compiled", by_torch)):
            start = time.perf_counter()
            trial.step()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds_to_compile": round(compiling, 2),
        "compiled_s": round(medians["compiled"], 4),
        "compiled_over_chosen": round(medians["compiled"] / medians["as it is"], 3),
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


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of the second timing, per network and work")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="set the compiled network beside the chosen way")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results, by device")
    arguments = parser.parse_args(words)
    device = arguments.device
    out = result_of(arguments, "compute_choice")
    torch.set_num_threads(arguments.threads)
    copies = [copy_rate()]
    cases: dict[str, Any] = {}
    for name, (network, crop, batch) in (FULL_SIZE if device == "cuda" else NETWORKS).items():
        if arguments.only not in name:
            continue
        experiment = study(network, crop, batch)
        builds: dict[str, tuple[Callable[..., Trial], int]] = {
            "supervised": (supervised_trial, batch),
            "inference": (inference_trial, windows_per_forward(experiment.data)),
        }
        for work, (build, count) in builds.items():
            torch.manual_seed(0)
            settings: dict[str, Any] = {"shape": (count, 1, *crop), "experiment": experiment, "device": device}
            trial = build(initial_network(experiment), **settings)
            # in training MONAI's Swin has one kernel only: what a site does not time is not timed here
            choice, found = compare(
                trial,
                experiment,
                arguments.seconds,
                fused_matters=not (work == "supervised" and experiment.network.name == "swin_unetr"),
                device=device,
            )
            if arguments.compile:
                other = build(torch.compile(initial_network(experiment)), **settings)
                found |= compiled(trial, other, choice, arguments.seconds)
            cases[f"{name}, {work}"] = found
            print(
                f"{name + ', ' + work:48s} {found['plain_s'] * 1e3:7.0f} ms plain, {found['chosen_s'] * 1e3:7.0f} ms "
                f"{found['chosen']:30s} {found['chosen_over_plain']:.2f} of plain, "
                f"{found['chosen_over_best']:.2f} of the best"
                + (f", compiled {found['compiled_over_chosen']:.2f} of it" if "compiled_s" in found else "")
                + (f", not compiled: {found['not_compiled']}" if "not_compiled" in found else ""),
                flush=True,
            )
        copies.append(copy_rate())
    result = {
        "command": f"python benchmarks/compute_choice.py --seconds {arguments.seconds:g} --threads {arguments.threads}"
        + (f" --device {device}" if device != "cpu" else "")
        + (" --compile" if arguments.compile else "")
        + (f" --only {arguments.only!r}" if arguments.only else ""),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {machine('cpu')['cpu']}",
        "device": machine(device),
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
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
