"""Measure whether phantoms are hard enough: thresholds and mean places fail, one site's model fails elsewhere, pooled
training works.

Usage: ``python benchmarks/phantom_difficulty.py cine_mr [--steps N] [--out FILE]`` with the package importable.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from landmark_difficulty import bright_place, landmark_errors, mean_place, train_landmarks

from fedmedseg.core.seeding import generator, seed_everything
from fedmedseg.data.phantoms.style import LABELS as DRAWN
from fedmedseg.data.phantoms.style import LANDMARKS
from fedmedseg.data.phantoms.writer import write_site

LABELS = {**DRAWN, "cardiac_ct": {1: "calcification"}}
"""What is measured; the coronaries, which are for transfer from a few cases, are not."""
SITES = 4
COUNTS = {
    "cine_mr": {"training": 6, "test": 4},
    "late_enhancement_mr": {"training": 10, "test": 4},
    "abdominal_ct": {"training": 6, "test": 4},
    "cardiac_ct": {"training": 8, "test": 4},
}
STEPS = {
    "cine_mr": (300, 750),
    "late_enhancement_mr": (600, 2400),
    "abdominal_ct": (200, 450),
    "cardiac_ct": (200, 500),
}
"""Steps of the training at one site and of the pooled training."""
LANDMARK_STEPS = (300, 750)
RESULTS = Path(__file__).parent / "results" / "phantom_difficulty"
BOUNDS = {"threshold_below": 0.5, "loss_elsewhere_at_least": 0.1, "pooled_at_least": 0.8}
LANDMARK_BOUNDS = {
    "pooled_error_below_mm": 4.0,
    "error_ratio_elsewhere_at_least": 1.5,
    "rule_error_at_least_mm": 5.0,
}
WINDOWS = {"abdominal_ct": (-175.0, 250.0), "cardiac_ct": (-200.0, 1200.0)}
CROPS: dict[str, tuple[int, ...]] = {"abdominal_ct": (64, 56, 40), "cardiac_ct": (48, 48, 32)}
BANDS = ((2.5, 97.5), (5.0, 95.0), (10.0, 90.0), (25.0, 75.0))


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A case on the canonical grid: normalised image (X, Y, Z) float32, label (X, Y, Z) uint8, landmarks.

    ``points`` is (landmarks, 3) in voxels, empty for families without; ``spacing`` in mm.
    """

    image: np.ndarray
    label: np.ndarray
    points: np.ndarray
    spacing: np.ndarray


def normalise(image: np.ndarray, family: str) -> np.ndarray:
    """MR: z-score over the voxels above the volume's mean; CT: the family's HU window to 0..1."""
    if family in WINDOWS:
        low, high = WINDOWS[family]
        return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)
    tissue = image[image > image.mean()]
    return ((image - tissue.mean()) / tissue.std()).astype(np.float32)


def load(family: str, folder: Path, site: int, *, seed: int = 1) -> dict[str, list[Volume]]:
    """Write one site, fully annotated, and read it back in canonical orientation."""
    path = write_site(
        family, site_index=site, out=folder / str(site), seed=seed, counts=COUNTS[family], full_annotation=True
    )
    content = json.loads(path.read_text(encoding="utf-8"))

    return {section: [_read(path.parent, entry, family) for entry in content[section]] for section in COUNTS[family]}


def _read(folder: Path, entry: dict[str, str], family: str) -> Volume:
    image = nib.as_closest_canonical(nib.load(folder / entry["image"]))
    label = nib.as_closest_canonical(nib.load(folder / entry["label"]))
    points = np.zeros((0, 3))
    if "landmarks" in entry:
        world = json.loads((folder / entry["landmarks"]).read_text(encoding="utf-8"))
        points = nib.affines.apply_affine(np.linalg.inv(image.affine), [world[name] for name in LANDMARKS])
    return Volume(
        image=normalise(np.asarray(image.dataobj).astype(np.float32), family),
        label=np.where(np.isin(label.dataobj, list(LABELS[family])), label.dataobj, 0).astype(np.uint8),
        points=points,
        spacing=np.array(image.header.get_zooms()[:3], dtype=np.float64),
    )


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Dice overlap of two masks; 1 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2 * int((found & truth).sum()) / total


def threshold_dice(site: dict[str, list[Volume]], classes: int) -> dict[int, float]:
    """Best that a threshold can do: per structure, the intensity band of its training voxels (the best of a few
    percentile ranges, judged on the training volumes), then the largest connected component."""
    return {c: _best_band(site, c) for c in range(1, classes)}


def _best_band(site: dict[str, list[Volume]], structure: int) -> float:
    values = np.concatenate([v.image[v.label == structure] for v in site["training"]])
    if not len(values):
        return 0.0

    def score(volumes: list[Volume], low: float, high: float) -> float:
        present = [v for v in volumes if (v.label == structure).any()]
        found = [_largest((v.image >= low) & (v.image <= high)) for v in present]
        return float(np.mean([dice(f, v.label == structure) for f, v in zip(found, present, strict=True)] or [0.0]))

    bands = [np.percentile(values, band) for band in BANDS]
    low, high = max(bands, key=lambda band: score(site["training"], *band))
    return score(site["test"], low, high)


def _largest(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    parts, count = label(mask)
    if count == 0:
        return mask
    return parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))


def network(family: str, classes: int) -> torch.nn.Module:
    """A small MONAI U-Net: 2D for thick MR slices, 3D for CT."""
    from monai.networks.nets import UNet

    flat = family.endswith("_mr")
    return UNet(
        spatial_dims=2 if flat else 3,
        in_channels=1,
        out_channels=classes,
        channels=(16, 32, 64, 128) if flat else (12, 24, 48, 64),
        strides=(2, 2, 2),
        num_res_units=1,
        norm="instance",
    )


def crop_of(family: str) -> tuple[int, ...]:
    """Edges of a training crop in voxels; in abdominal CT nearly the volume: position tells the organs apart."""
    return CROPS.get(family, (64, 64))


def sample(
    volumes: list[Volume], family: str, rng: np.random.Generator, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of crops, two in three centred near a labelled voxel: images (B, 1, *crop), labels (B, 1, *crop)."""
    crop = crop_of(family)
    images, labels = [], []
    for _ in range(batch):
        volume = volumes[rng.integers(len(volumes))]
        image, label = volume.image, volume.label
        if len(crop) == 2:
            z = int(rng.integers(image.shape[2]))
            image, label = image[:, :, z], label[:, :, z]
        centre = [int(rng.integers(edge)) for edge in image.shape]
        if rng.uniform() < 0.67 and label.any():
            present = np.unique(label[label > 0])
            inside = np.argwhere(label == rng.choice(present))
            centre = list(inside[rng.integers(len(inside))] + rng.integers(-8, 9, size=image.ndim))
        corner = [int(np.clip(c - e // 2, 0, n - e)) for c, e, n in zip(centre, crop, image.shape, strict=True)]
        window = tuple(slice(a, a + e) for a, e in zip(corner, crop, strict=True))
        images.append(image[window] * rng.uniform(0.95, 1.05) + rng.uniform(-0.05, 0.05))
        labels.append(label[window])
    return (
        torch.from_numpy(np.stack(images)[:, None].astype(np.float32)),
        torch.from_numpy(np.stack(labels)[:, None].astype(np.int64)),
    )


def train(volumes: list[Volume], family: str, *, steps: int, seed: int = 1, rate: float = 2e-3) -> torch.nn.Module:
    """Fit the small network with Adam and Dice plus cross-entropy."""
    from monai.losses import DiceCELoss

    seed_everything(seed)
    rng = generator(seed, "phantom difficulty", family)
    model = network(family, len(LABELS[family]) + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    batch = 8 if family.endswith("_mr") else 1
    model.train()
    for _ in range(steps):
        image, label = sample(volumes, family, rng, batch)
        optimizer.zero_grad()
        loss = criterion(model(image), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict(model: torch.nn.Module, image: np.ndarray, family: str) -> np.ndarray:
    """Label volume (X, Y, Z) of one image, whole slices or the whole volume at once, padded to a multiple of 8."""
    array = torch.from_numpy(image)
    array = array.permute(2, 0, 1)[:, None] if family.endswith("_mr") else array[None, None]
    spatial = array.shape[2:]
    pad = [amount for edge in reversed(spatial) for amount in (0, -edge % 8)]
    scores = model(torch.nn.functional.pad(array, pad, mode="replicate"))
    scores = scores[(slice(None), slice(None), *(slice(0, edge) for edge in spatial))]
    classes = scores.argmax(dim=1).numpy().astype(np.uint8)
    return classes.transpose(1, 2, 0) if family.endswith("_mr") else classes[0]


def network_dice(model: torch.nn.Module, volumes: list[Volume], family: str) -> dict[int, float]:
    """Mean Dice over volumes per structure; a structure absent from a volume is left out of its mean."""
    scores: dict[int, list[float]] = {c: [] for c in LABELS[family]}
    for volume in volumes:
        found = predict(model, volume.image, family)
        for c, values in scores.items():
            if (volume.label == c).any():
                values.append(dice(found == c, volume.label == c))
    return {c: float(np.mean(values)) for c, values in scores.items() if values}


def mean(scores: dict[int, float]) -> float:
    """Mean over structures."""
    return float(np.mean(list(scores.values())))


def _row(scores: dict[int, float], names: dict[int, str]) -> dict[str, float]:
    return {names[c]: round(score, 3) for c, score in scores.items()} | {"mean": round(mean(scores), 3)}


def measure_threshold(family: str, folder: Path) -> dict[str, Any]:
    """Threshold baseline at every site; fast."""
    names = LABELS[family]
    table = {}
    for site in range(SITES):
        scores = threshold_dice(load(family, folder, site), len(names) + 1)
        table[f"site-{site + 1}"] = _row(scores, names)
    return table


def measure_segmentation(family: str, folder: Path, *, steps: tuple[int, int], home: int = 0) -> dict[str, Any]:
    """The three figures of a segmentation family: threshold, one site's model everywhere, pooled training."""
    sites = [load(family, folder, site) for site in range(SITES)]
    names = LABELS[family]
    local = train(sites[home]["training"], family, steps=steps[0])
    pooled = train([v for site in sites for v in site["training"]], family, steps=steps[1])

    def table(model: torch.nn.Module) -> dict[str, dict[str, float]]:
        rows = {}
        for index, site in enumerate(sites):
            scores = network_dice(model, site["test"], family)
            rows[f"site-{index + 1}"] = _row(scores, names)
        return rows

    local_table, pooled_table = table(local), table(pooled)
    own = local_table[f"site-{home + 1}"]["mean"]
    elsewhere = [row["mean"] for name, row in local_table.items() if name != f"site-{home + 1}"]
    threshold = measure_threshold(family, folder)
    return {
        "threshold": threshold,
        "one_site": local_table,
        "pooled": pooled_table,
        "summary": {
            "threshold": round(float(np.mean([row["mean"] for row in threshold.values()])), 3),
            "threshold_worst": max(row["mean"] for row in threshold.values()),
            "own_site": own,
            "elsewhere": round(float(np.mean(elsewhere)), 3),
            "loss_elsewhere": round(own - float(np.mean(elsewhere)), 3),
            "least_loss_elsewhere": round(own - max(elsewhere), 3),
            "pooled": round(float(np.mean([row["mean"] for row in pooled_table.values()])), 3),
        },
    }


def measure_rules(family: str, folder: Path) -> dict[str, Any]:
    """Errors in mm of rules without a network at every site: mean place, and threshold; fast."""
    mean_places, thresholds = {}, {}
    for site in range(SITES):
        sections = load(family, folder, site)
        mean_places[f"site-{site + 1}"] = mean_place(sections["training"], sections["test"])
        thresholds[f"site-{site + 1}"] = bright_place(sections["training"], sections["test"])
    return {
        "landmarks_mean_place": mean_places,
        "landmarks_threshold": thresholds,
        "landmark_rules": {
            "mean_place_mm": round(float(np.mean([row["mean"] for row in mean_places.values()])), 2),
            "threshold_mm": round(float(np.mean([row["mean"] for row in thresholds.values()])), 2),
            "best_of_a_site_mm": min(row["mean"] for row in [*mean_places.values(), *thresholds.values()]),
        },
    }


def measure_landmarks(family: str, folder: Path, *, home: int = 0) -> dict[str, Any]:
    """Errors in mm of one site's model everywhere and of pooled training."""
    sites = [load(family, folder, site) for site in range(SITES)]
    local = train_landmarks(sites[home]["training"], steps=LANDMARK_STEPS[0])
    pooled = train_landmarks([v for site in sites for v in site["training"]], steps=LANDMARK_STEPS[1])
    local_table = {f"site-{i + 1}": landmark_errors(local, site["test"]) for i, site in enumerate(sites)}
    pooled_table = {f"site-{i + 1}": landmark_errors(pooled, site["test"]) for i, site in enumerate(sites)}
    own = local_table[f"site-{home + 1}"]["mean"]
    elsewhere = float(np.mean([row["mean"] for i, row in enumerate(local_table.values()) if i != home]))
    return {
        "landmarks_one_site": local_table,
        "landmarks_pooled": pooled_table,
        "landmark_summary": {
            "own_site_mm": own,
            "elsewhere_mm": round(elsewhere, 2),
            "ratio": round(elsewhere / own, 2),
            "pooled_mm": round(float(np.mean([row["mean"] for row in pooled_table.values()])), 2),
        },
    }


def measure(family: str, folder: Path, *, steps: int | None = None) -> dict[str, Any]:
    """Everything that is measured for a family, with the settings and the seconds it took.

    Args:
        steps: Steps of the training at one site; the pooled training scales with it. Unset: the family's own.
    """
    torch.set_num_threads(1)
    start, busy = time.perf_counter(), time.process_time()
    local, pooled = STEPS[family]
    if steps is not None:
        local, pooled = steps, round(steps * pooled / local)
    result = measure_segmentation(family, folder, steps=(local, pooled))
    bounds = dict(BOUNDS)
    if family == "cardiac_ct":
        result |= measure_rules(family, folder) | measure_landmarks(family, folder)
        bounds |= LANDMARK_BOUNDS
    return {
        "family": family,
        "steps": local,
        "pooled_steps": pooled,
        "counts": COUNTS[family],
        "bounds": bounds,
        **result,
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - busy, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure one family, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("family", choices=sorted(LABELS))
    parser.add_argument("--steps", type=int, help="steps of the training at one site; pooled training scales with it")
    parser.add_argument("--out", type=Path, help="JSON file; default: results/phantom_difficulty/<family>.json")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(chosen.family, Path(folder), steps=chosen.steps)
    landmarks = ("landmarks_mean_place", "landmarks_threshold", "landmarks_one_site", "landmarks_pooled")
    for part in ("threshold", "one_site", "pooled", *landmarks):
        for site, row in result.get(part, {}).items():
            sys.stdout.write(f"{part:20s} {site:8s} " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()) + "\n")
    summary = result["summary"] | result.get("landmark_rules", {}) | result.get("landmark_summary", {})
    sys.stdout.write(json.dumps(summary) + f"  {result['processor_seconds']} s of one core\n")
    out = chosen.out or RESULTS / f"{chosen.family}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
