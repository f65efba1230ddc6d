"""What the studies of what a system is worth have in common: sites, figures of a finished cell, and comparisons."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import merged
from fedmedseg.core.schema import read_yaml


def place_sites(sites: Path, workspace: Path, cache: Path) -> list[str]:
    """Give the workspace its site files, with one cache of prepared volumes for all groups."""
    files = sorted(sites.glob("*.yaml"))
    target = workspace / "local" / "sites"
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        content = read_yaml(file)
        for data_set in content["datasets"].values():
            data_set["list"] = str((file.parent / data_set["list"]).resolve())
        home = workspace.with_name(workspace.name + ".fedmedseg") / file.stem
        own = {"cache_dir": str((cache / file.stem).resolve())}
        own |= {key: str((home / key).resolve()) for key in ("state_dir", "models_dir")}
        (target / file.name).write_text(yaml.safe_dump(merged(content, own)), encoding="utf-8")
    return [file.stem for file in files]


def patients_of(federation: InProcessFederation, site: str, figure: str = "dice") -> list[dict[str, float | None]]:
    """``figure`` of every test patient per structure, in the order of the salted keys; no key is kept."""
    folder = federation.learner(site, "evaluation").bench.folder
    content = json.loads((folder / "test_scores.json").read_text())
    (model,) = content["models"].values()
    return [{name: one[figure] for name, one in case["structures"].items()} for case in model["patients"]]


def mean_of(figures: dict[str, float], kind: str) -> float:
    """A site's mean of ``kind`` (dice, hd95) over its structures."""
    return statistics.fmean(value for name, value in figures.items() if name.startswith(f"{kind}/"))


def dice_of(figures: dict[str, float]) -> float:
    """A site's mean test Dice over its structures."""
    return mean_of(figures, "dice")


def mean_dice(result: dict[str, Any]) -> float:
    """Mean over sites."""
    return statistics.fmean(dice_of(figures) for figures in result["sites"].values())


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All finished cells in ``folder``."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def difference(runs: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> str:
    """Mean Dice less that of ``baseline`` under the same seed: mean and SD over the seeds both have, and how many of
    them are above 0. Seeds share the networks' first weights and the labelled patients, which move all methods alike.
    """
    other = {one["seed"]: mean_dice(one) for one in baseline}
    found = [mean_dice(one) - other[one["seed"]] for one in runs if one["seed"] in other]
    if not found or runs == baseline:
        return ""
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):+.3f}{spread} ({sum(value > 0 for value in found)} of {len(found)})"
