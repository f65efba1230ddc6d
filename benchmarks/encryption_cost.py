"""What encrypted replies cost: bytes each way, and seconds to encrypt, add up and decrypt, beside plain replies.

    python benchmarks/encryption_cost.py --millions 1 --sites 3 --repeats 5

One site's differences of that many numbers (float32), the server's sum over the sites with weights of whole shares, and
what a site does with the sum. Plain is what the same classes do without encryption: checks, weighted mean, addition.
Seconds are the processor's, in one thread, so that a busy machine changes them little. Prints medians and writes
benchmarks/results/encryption_cost.json. Needs the extra he.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedmedseg.core.averaging import single_threaded, weighted_mean
from fedmedseg.core.ckks import SHARES, Cipher, make_contexts, whole_shares
from fedmedseg.core.records import installed_versions
from fedmedseg.core.sealing import seal, sealed_name, unseal
from fedmedseg.core.wire import Schema, tensor_bytes

RESULT = Path(__file__).parent / "results" / "encryption_cost.json"
ENTRY = sealed_name("pretraining")
Tensors = dict[str, torch.Tensor]


def median(call: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """What ``call`` returns, and the median of its processor seconds with the median absolute deviation."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        found = call()
        seconds.append(time.process_time() - began)
    middle = statistics.median(seconds)
    return found, {"median_s": round(middle, 4), "mad_s": round(statistics.median(abs(x - middle) for x in seconds), 4)}


def plain(start: Tensors, replies: dict[str, Tensors], weights: dict[str, float], repeats: int) -> dict[str, Any]:
    """The way without encryption."""
    schema = Schema(start)

    def judged() -> None:
        for tensors in replies.values():
            assert schema.problem(tensors) is None

    def added() -> Tensors:
        with single_threaded():
            return weighted_mean(replies, weights)

    times = {"check at the server": median(judged, repeats)[1]}
    mean, times["add"] = median(added, repeats)
    opened, times["apply"] = median(lambda: {name: start[name] + mean[name] for name in start}, repeats)
    return {"opened": opened, "times": times, "up": tensor_bytes(start), "down": tensor_bytes(start)}


def encrypted(start: Tensors, replies: dict[str, Tensors], weights: dict[str, float], repeats: int) -> dict[str, Any]:
    """The way with it."""
    server, site = (Cipher(content) for content in make_contexts())
    count, shares = sum(tensor.numel() for tensor in start.values()), whole_shares(weights)
    sealed = {name: seal(site, tensors) for name, tensors in replies.items()}
    first = next(iter(sealed))
    _, encrypting = median(lambda: seal(site, replies[first]), repeats)

    def judged() -> None:
        for packed in sealed.values():
            assert server.problem(packed, count) is None

    times = {"encrypt": encrypting, "check at the server": median(judged, repeats)[1]}
    before = server.add(None, {first: sealed[first]}, {first: SHARES})
    _, times["add"] = median(lambda: server.add(before, sealed, shares), repeats)
    total = server.add(None, sealed, shares)
    inside = {ENTRY: Schema(start)}
    opened, times["decrypt"] = median(lambda: unseal(site, start, {ENTRY: total}, inside), repeats)
    up = sealed[first].numel()
    # the plain start goes along
    return {"opened": opened, "times": times, "up": up, "down": up + tensor_bytes(start)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=1.0)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(1)
    count = int(arguments.millions * 1e6)
    start = {"weight": torch.randn(count, generator=draw) * 0.05}
    sites = [f"site-{index + 1}" for index in range(arguments.sites)]
    replies = {site: {"weight": torch.randn(count, generator=draw) * 0.01} for site in sites}
    weights = {site: 1 / len(sites) for site in sites}
    ways = {
        "plain": plain(start, replies, weights, arguments.repeats),
        "ckks": encrypted(start, replies, weights, arguments.repeats),
    }
    worst = float((ways["ckks"]["opened"]["weight"] - ways["plain"]["opened"]["weight"]).abs().max())
    result: dict[str, Any] = {
        "command": f"python benchmarks/encryption_cost.py --millions {arguments.millions:g} --sites {arguments.sites} "
        f"--repeats {arguments.repeats}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": installed_versions(),
        "numbers": count,
        "sites": arguments.sites,
        "largest_difference_to_plain": worst,
    }
    for name, way in ways.items():
        each = {key: round(way[key] / count, 2) for key in ("up", "down")}
        result[name] = {"bytes_a_number": each, "processor_seconds": way["times"]}
        times = ", ".join(f"{what} {time_['median_s']:.3f} s" for what, time_ in way["times"].items())
        print(f"{name:6s} {each['up']:.2f} bytes a number up, {each['down']:.2f} down; {times}")
    print(f"largest difference to plain: {worst:.2e}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
