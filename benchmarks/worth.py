"""What the studies of what a system is worth have in common: cells, sites, figures, comparisons, and the command."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedseg.comparison.cells import AnyCell as Kept
from fedmedseg.comparison.cells import digest_of
from fedmedseg.comparison.patients import bench_of
from fedmedseg.comparison.sites import place_site
from fedmedseg.comparison.tables import markdown
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, find_preset, read_settings
from fedmedseg.core.schema import read_yaml
from fedmedseg.reporting.paired import Paired, paired

__all__ = ["digest_of", "markdown", "place_site"]
"""What the studies share with `fedmedseg compare`."""
HERE = Path(__file__).parent
Method = tuple[list[str], dict[str, Any]]
"""Presets laid over a study's own settings, and changes laid over those."""


class AnyCell(Kept):
    """One method under one seed, or whatever else a study runs in one piece."""

    def write(self, result: Mapping[str, Any], figure: float) -> None:  # type: ignore[override]
        """Keep the result and say so, with its main figure."""
        super().write(result)
        print(f"{time.strftime('%H:%M:%S')} {self.file.parent.name}/{self.file.stem}: {figure:.3f}", flush=True)


def study_file(system: str, study: str) -> dict[str, Any]:
    """The study's own file: data preset, seeds, settings alike for all methods."""
    content: dict[str, Any] = read_yaml(HERE / "studies" / f"{system}_{study}.yaml")
    return content


def studies_of(system: str) -> list[str]:
    """Names of the system's studies."""
    return sorted(file.stem.removeprefix(f"{system}_") for file in (HERE / "studies").glob(f"{system}_*.yaml"))


def job_settings(
    system: str, study: Mapping[str, Any], method: Method, own: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The job's settings as its experiment.yaml would say them: data, study, method, and the cell's ``own``."""
    presets, changes = method
    data = read_yaml(find_preset(system, study["preset"]))
    overlays = [read_yaml(find_preset(system, name)) for name in presets]
    return read_settings(find_job(system), [data, study["settings"], *overlays, changes, *own])[0]


def place_sites(sites: Path, workspace: Path, cache: Path) -> list[str]:
    """Give the workspace its site files, with one cache of prepared volumes for all groups."""
    files = sorted(sites.glob("*.yaml"))
    for file in files:
        content = read_yaml(file)
        for data_set in content["datasets"].values():
            data_set["list"] = str((file.parent / data_set["list"]).resolve())
        place_site(file.stem, content, workspace, cache)
    return [file.stem for file in files]


def run_token(cell: Any) -> str:
    """Token of a cell's run: letters and digits."""
    return f"{cell.method}{cell.seed}".replace("_", "")


def patients_of(federation: InProcessFederation, site: str, figure: str = "dice") -> list[dict[str, float | None]]:
    """``figure`` of every test patient per structure, in the data list's order of patients; no key is kept."""
    folder = bench_of(federation, site).folder
    content = json.loads((folder / "test_scores.json").read_text())
    (model,) = content["models"].values()
    return [{name: one[figure] for name, one in case["structures"].items()} for case in model["patients"]]


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures as a result keeps them."""
    return {name: round(value, 5) for name, value in figures.items()}


def mean_of(figures: Mapping[str, float], kind: str) -> float:
    """A site's mean of ``kind`` (dice, hd95) over its structures."""
    return statistics.fmean(value for name, value in figures.items() if name.startswith(f"{kind}/"))


def dice_of(figures: Mapping[str, float]) -> float:
    """A site's mean test Dice over its structures."""
    return mean_of(figures, "dice")


def mean_dice(result: Mapping[str, Any]) -> float:
    """Mean over sites."""
    return statistics.fmean(dice_of(figures) for figures in result["sites"].values())


def mean_present(values: Iterable[float | None]) -> float:
    """Mean of the figures there are; nan where there is none."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else math.nan


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All finished cells in ``folder``."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def with_spread(values: Sequence[float]) -> str:
    """Mean, and SD where there is more than one."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def site_cells(runs: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> list[str]:
    """Columns of a table of Dice: per site over seeds, mean over sites with its spread over seeds, worst site."""
    per_site = [statistics.fmean(dice_of(one["sites"][site]) for one in runs) for site in sites]
    worst = [min(dice_of(one["sites"][site]) for site in sites) for one in runs]
    means = with_spread([mean_dice(one) for one in runs])
    return [*(f"{value:.3f}" for value in per_site), means, f"{statistics.fmean(worst):.3f}"]


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


def by_patient(
    runs: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    figures: Callable[[Mapping[str, Any]], list[float]],
) -> Paired | None:
    """Wilcoxon's test over patients, each the mean over the seeds that both methods have; None without such a seed.

    ``figures`` gives a result's figure of every patient, in the same order for every method and seed.
    """
    seeds = {one["seed"] for one in runs} & {one["seed"] for one in baseline}
    if not seeds:
        return None

    def means(results: Sequence[Mapping[str, Any]]) -> list[float]:
        chosen = [figures(one) for one in results if one["seed"] in seeds]
        return [statistics.fmean(values) for values in zip(*chosen, strict=True)]

    return paired(means(runs), means(baseline))


def options_of(doc: str | None, work: str, methods: Sequence[str], more: Sequence[str]) -> argparse.ArgumentParser:
    """What every study's command takes; by default it runs ``methods``, and ``more`` where they are named."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=Path, help="folder of site files, as the import writes them")
    parser.add_argument("--work", type=Path, default=Path(work), help="states and cached volumes")
    parser.add_argument("--methods", nargs="+", choices=[*methods, *more], default=list(methods))
    parser.add_argument("--minutes", type=float, default=110.0, help="begin no cell after so many minutes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser


def require_sites(parser: argparse.ArgumentParser, options: argparse.Namespace, least: int = 1) -> None:
    """End the command where --sites has fewer site files than the study needs."""
    if options.sites is None or len(list(options.sites.glob("*.yaml"))) < least:
        parser.error(
            f"--sites must name a folder of site files (<site>.yaml), at least {least}, as `fedmedseg data import` "
            "writes it"
        )


def work_on(function: Callable[..., None], pieces: Sequence[Any], options: argparse.Namespace) -> None:
    """``function(piece, sites, work, deadline)`` for each piece, so many at once as the command says."""
    deadline = time.time() + 60 * options.minutes
    sites, work = options.sites.resolve(), options.work.resolve()
    # spawn: a forked torch may hang in its thread pool
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
        pool.starmap(function, [(piece, sites, work, deadline) for piece in pieces], chunksize=1)


def paired_lines(
    main: Sequence[Mapping[str, Any]],
    others: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Mapping[str, str],
    figures: Callable[[Mapping[str, Any], str], list[float]],
    times: str = "seeds",
) -> list[str]:
    """Lines of a table of one method less each other, patient by patient; none where there is nothing to compare.

    ``figures`` gives a result's dice or hd95 (mm) of every patient; ``times`` heads the column that says of how many
    results a patient's figures are the mean.
    """
    rows = []
    for name, runs in others.items():
        found = {
            figure: by_patient(main, runs, lambda one, figure=figure: figures(one, figure))  # type: ignore[misc]
            for figure in ("dice", "hd95")
        }
        dice, hd95 = found["dice"], found["hd95"]
        if dice is None or hd95 is None:
            continue
        seeds = {one["seed"] for one in main} & {one["seed"] for one in runs}
        compared = [f"{dice.difference:+.3f}", f"{dice.p:.2g}", f"{hd95.difference:+.2f}", f"{hd95.p:.2g}"]
        rows.append([names[name], *compared, str(dice.n), str(len(seeds))])
    if not rows:
        return []
    title = f"{names[main[0]['method']]} less"
    return ["", *markdown([title, "Dice", "p", "HD95 (mm)", "p", "patients", times], rows)]


def best_rates(trials: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Per method the learning rate whose trial validated best; of equals the lower one."""
    best: dict[str, tuple[float, float]] = {}
    for one in trials:
        found = (one["chosen_by"], -one["rate"])
        best[one["method"]] = max(best.get(one["method"], found), found)
    return {method: -rate for method, (_, rate) in best.items()}


def trial_table(trials: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Markdown: validation Dice of every trial, the best of each method in bold."""
    if not trials:
        return "no finished trial"
    rates, best = sorted({one["rate"] for one in trials}), best_rates(trials)
    found = {(one["method"], one["rate"]): one["chosen_by"] for one in trials}
    rows = []
    for method in (name for name in names if name in best):
        figures = [f"{found[method, rate]:.3f}" if (method, rate) in found else "" for rate in rates]
        marked = [f"**{text}**" if rate == best[method] else text for rate, text in zip(rates, figures, strict=True)]
        rows.append([names[method], *marked])
    return "\n".join(markdown(["validation Dice at a rate of", *(f"{rate:g}" for rate in rates)], rows))
