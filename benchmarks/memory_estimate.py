"""Whether the memory that `fedmedseg preflight` says a training step needs is what the step takes.

    python benchmarks/memory_estimate.py

For every network a fresh process does two real steps of fine-tuning on a CPU (forward, Dice with cross-entropy,
backward, AdamW) and reports how much memory that took at its peak, weights included, beside the estimate,
which was made before without computing anything. Writes benchmarks/results/memory_estimate.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from peak_memory import MIB, grown, in_fresh_process

from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.core.records import installed_versions
from fedmedseg.networks.factory import build_segmentation
from fedmedseg.preflight.memory import count, needs
from fedmedseg.segmentation.loss import SegmentationLoss

RESULT = Path(__file__).parent / "results" / "memory_estimate.json"
SWIN, UNETR = {"name": "swin_unetr"}, {"name": "unetr", "feature_size": 16, "hidden_size": 384, "mlp_dim": 1536}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "SwinUNETR fs24 256x256 batch 4": (SWIN | {"feature_size": 24}, (256, 256), 4),
    "SwinUNETR fs24 64^3 batch 1": (SWIN | {"feature_size": 24}, (64, 64, 64), 1),
    "SwinUNETR fs24 64^3 batch 2": (SWIN | {"feature_size": 24}, (64, 64, 64), 2),
    "SwinUNETR fs24 96^3 batch 1": (SWIN | {"feature_size": 24}, (96, 96, 96), 1),
    "UNETR fs16 64^3 batch 1": (UNETR, (64, 64, 64), 1),
    "UNETR fs16 96^3 batch 1": (UNETR, (96, 96, 96), 1),
}


def measure(name: str) -> dict[str, float]:
    """Estimate and measurement of one network, in this process. MiB."""
    network, crop, batch = NETWORKS[name]
    changes = {
        "data": {"spatial_dims": len(crop), "crop": list(crop), "phantom": None},
        "network": network,
        "segmentation": {"batch": batch},
    }
    _, experiment = read_settings(find_job("fedata"), [{"network": None}, changes])
    torch.set_num_threads(1)
    estimate = next(need for need in needs(experiment) if need.stage == "fine_tuning").total
    model = build_segmentation(experiment).train()
    loss, optimizer = SegmentationLoss(), torch.optim.AdamW(model.parameters())
    images = torch.randn(batch, 1, *crop)
    labels = torch.randint(0, experiment.data.classes, (batch, 1, *crop))

    def steps() -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            loss(model(images), labels, [None] * batch).backward()
            optimizer.step()

    taken = grown(steps)[0] + 4 * count(model) / MIB
    return {"estimate": estimate / MIB, "taken": taken, "ratio": estimate / MIB / taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(NETWORKS), help="measure one, and print it as JSON")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only)))
        return
    found = {}
    for name in NETWORKS:
        found[name] = in_fresh_process(__file__, "--only", name)
        print(f"{name}: estimated {found[name]['estimate']:.0f} MiB, taken {found[name]['taken']:.0f} MiB")
    record = {"networks": found, "versions": installed_versions(), "machine": platform.machine()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
