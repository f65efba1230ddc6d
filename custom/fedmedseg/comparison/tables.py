"""The results of a comparison as rows, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedmedseg.comparison.cells import Result
from fedmedseg.comparison.needs import needs
from fedmedseg.comparison.sites import POOL
from fedmedseg.comparison.statistics import (
    Array,
    Interval,
    compare,
    holm,
    interval,
    mean_of_sites,
    over_seeds,
    patient_array,
)
from fedmedseg.comparison.study import Comparison
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError
from fedmedseg.reporting.paired import Paired

FIGURES = ("dice", "hd95")
UNITS = {"dice": "Dice", "hd95": "HD95 (mm)"}
PLACES = {"dice": 3, "hd95": 1}
COLUMNS = (
    "study", "method", "label", "labelled", "seed", "site", "structure", "patients", "dice", "hd95_mm", "failures",
    "unpredicted_volumes", "steps_a_site", "parameters", "site_seconds", "cell_seconds", "mb_down", "mb_up",
    "process_peak_mb", "needs", "tuned",
)  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """A method's results with one amount of labels, one per seed."""

    method: str
    label: str
    results: tuple[Result, ...]
    needs: Mapping[str, Any]

    @cached_property
    def sites(self) -> list[str]:
        """Every site that is tested."""
        return sorted(self.results[0]["patients"])

    @cached_property
    def structures(self) -> list[str]:
        """In the order of the label map."""
        found = [name for one in self.results for of_site in one["patients"].values() for p in of_site for name in p]
        return list(dict.fromkeys(found))

    @cached_property
    def seeds(self) -> list[int]:
        """Those that are there."""
        return [one["seed"] for one in self.results]

    def arrays(self, figure: str, seeds: Iterable[int] | None = None) -> list[Array]:
        """Per site the patients' figures (n, structures), each the mean over ``seeds`` (unset: all there are)."""
        wanted = self.seeds if seeds is None else list(seeds)
        chosen = [one for one in self.results if one["seed"] in wanted]
        return [
            over_seeds([patient_array(one["patients"][site], self.structures, figure) for one in chosen])
            for site in self.sites
        ]

    def by_seed(self, figure: str) -> list[list[Array]]:
        """Per seed: per site the patients' figures."""
        return [self.arrays(figure, [seed]) for seed in self.seeds]

    def of_site(self, figure: str, site: str) -> float:
        """Mean over seeds of one site's mean."""
        place = self.sites.index(site)
        return statistics.fmean(mean_of_sites([arrays[place]]) for arrays in self.by_seed(figure))

    def mean(self, figure: str) -> float:
        """Mean over seeds of the mean over sites."""
        return statistics.fmean(self.means(figure))

    def means(self, figure: str) -> list[float]:
        """Per seed the mean over sites."""
        return [mean_of_sites(arrays) for arrays in self.by_seed(figure)]

    def worst(self, figure: str) -> float:
        """Mean over seeds of the worst site's mean: the lowest Dice, the largest distance."""
        pick = min if figure == "dice" else max
        return statistics.fmean(pick(mean_of_sites([one]) for one in arrays) for arrays in self.by_seed(figure))

    def interval(self, figure: str) -> Interval:
        """Of the mean, over patients."""
        return interval(self.arrays(figure))

    def cost(self, name: str) -> float:
        """Mean over seeds and sites: ``site_seconds``, megabytes ``down`` or ``up``; or of the cell, as
        ``process_peak_mb``, the peak of the one process that holds all sites.
        """
        if name in ("down", "up"):
            return statistics.fmean(_mean(site[name] for site in one["megabytes"].values()) for one in self.results)
        if name == "site_seconds":
            return statistics.fmean(_mean(one[name].values()) for one in self.results)
        return statistics.fmean(one[name] for one in self.results)


@dataclass(frozen=True)
class Contrast:
    """One method less the one it is compared with, over the patients of the seeds that both have."""

    method: str
    labelled: str
    figure: str
    paired: Paired
    interval: Interval
    corrected: float
    seeds: int


def grouped(comparison: Comparison, results: Sequence[Result]) -> dict[str, list[Runs]]:
    """Name of an amount of labels -> the methods that have results there, in the study's order.

    Raises:
        DataError: results of other data, or of other patients, than the rest: what is paired must be one patient's.
    """
    _require_same_patients(results)
    experiments = _experiments(comparison, results)
    reference = experiments.get(comparison.section.reference) or comparison.experiment(comparison.section.reference)
    found: dict[str, list[Runs]] = {}
    for level in comparison.section.labelled.levels:
        for name, method in comparison.section.methods.items():
            here = [one for one in results if (one["labelled"], one["method"]) == (level.name, name)]
            if here:
                here.sort(key=lambda one: int(one["seed"]))
                told = needs(experiments[name], reference)
                found.setdefault(level.name, []).append(Runs(name, method.label or name, tuple(here), told))
    return found


def contrasts(comparison: Comparison, groups: Mapping[str, Sequence[Runs]]) -> list[Contrast]:
    """Every method against the reference at every amount of labels, by Dice and by HD95.

    Holm's correction counts all comparisons of one figure in the study.
    """
    found: list[Contrast] = []
    for figure in FIGURES:
        raw = []
        for labelled, every in groups.items():
            reference = next((one for one in every if one.method == comparison.section.reference), None)
            for runs in every if reference is not None else []:
                seeds = [seed for seed in runs.seeds if reference is not None and seed in reference.seeds]
                if reference is None or runs is reference or not seeds:
                    continue
                difference, between = compare(runs.arrays(figure, seeds), reference.arrays(figure, seeds))
                raw.append((runs.method, labelled, difference, between, len(seeds)))
        corrected = holm([one[2].p for one in raw])
        found += [
            Contrast(method, labelled, figure, difference, between, p, seeds)
            for (method, labelled, difference, between, seeds), p in zip(raw, corrected, strict=True)
        ]
    return found


def csv_text(comparison: Comparison, groups: Mapping[str, Sequence[Runs]]) -> str:
    """One row per method, amount of labels, seed, site and structure."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for labelled, every in groups.items():
        for runs in every:
            for result in runs.results:
                for site, figures in sorted(result["sites"].items()):
                    for structure, one in figures.items():
                        moved = result["megabytes"].get(site, {})
                        writer.writerow(
                            {
                                "study": comparison.section.study,
                                "method": runs.method,
                                "label": runs.label,
                                "labelled": labelled,
                                "seed": result["seed"],
                                "site": site,
                                "structure": structure,
                                "patients": int(one["n"]),
                                "dice": one["dice"],
                                "hd95_mm": one["hd95"],
                                "failures": int(one["failures"]),
                                "unpredicted_volumes": result["unpredicted"][site],
                                "steps_a_site": result["steps_a_site"],
                                "parameters": result["parameters"],
                                # of central training the pool's, which is one
                                "site_seconds": result["site_seconds"].get(site, result["site_seconds"].get(POOL, "")),
                                "cell_seconds": result["seconds"],
                                "mb_down": moved.get("down", 0.0),
                                "mb_up": moved.get("up", 0.0),
                                "process_peak_mb": result["process_peak_mb"],
                                "needs": told(runs.needs),
                                "tuned": tuned(comparison, result),
                            }
                        )
    return stream.getvalue()


def markdown_text(comparison: Comparison, groups: Mapping[str, Sequence[Runs]], *, missing: int = 0) -> str:
    """The tables: figures and costs per method, every site and structure, and the paired tests."""
    section = comparison.section
    lines = [f"# {section.study}", ""]
    if missing:
        lines += [f"{missing} cells are missing.", ""]
    if section.participation < 1.0:
        lines += [f"Each round of a federation's training asks {section.participation:.0%} of the sites, in turn.", ""]
    titles = {level.name: level.title for level in section.labelled.levels}
    every = contrasts(comparison, groups)
    for labelled, runs in groups.items():
        lines += [f"## {titles[labelled]}", "", *_main(comparison, runs), "", *_structures(runs), ""]
        lines += _paired(comparison, [one for one in every if one.labelled == labelled])
    if not groups:
        lines.append("No finished cell.")
    else:
        lines += [
            "Means are over patients, then structures, sites and seeds; in brackets 95 % intervals (bootstrap over "
            "patients within sites). A patient whom a model finds nothing in, or whom a method was not tested on, "
            "counts with Dice 0 and the volume's diagonal; a structure that neither truth nor prediction holds counts "
            "nowhere, and one that is predicted where the truth has none is a failure like the others. Differences are "
            "means over the patients of all sites alike, each the mean over structures and seeds, which larger sites "
            "have more of; their intervals draw the same patients, p is Wilcoxon's signed-rank test over them, and "
            "Holm's correction counts all comparisons of one figure in this study.",
        ]
    return "\n".join(lines).rstrip() + "\n"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def told(settings: Mapping[str, Any]) -> str:
    """Settings in one line; empty where a method needs nothing."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def tuned(comparison: Comparison, result: Result) -> str:
    """What a method's trials chose, of how many; empty where the study has none."""
    trials = len(comparison.section.methods[result["method"]].grid)
    return f"{told(result['chosen'])} (of {trials} trials)" if trials else ""


def _main(comparison: Comparison, every: Sequence[Runs]) -> list[str]:
    sites = sorted({site for runs in every for site in runs.sites})
    header = [
        "method", *sites, "mean Dice", "SD of seeds", "worst site", "HD95 (mm)", "worst HD95", "seconds a site",
        "MB down a site", "MB up a site", "peak MB of all sites' process", "steps a site", "parameters", "seeds",
        "needs", "tuned",
    ]  # fmt: skip
    rows = []
    for runs in every:
        means = runs.means("dice")
        rows.append(
            [
                runs.label,
                *(_number(runs.of_site("dice", site) if site in runs.sites else math.nan, 3) for site in sites),
                _with_interval(runs, "dice"),
                _number(statistics.stdev(means), 3) if len(means) > 1 else "-",
                _number(runs.worst("dice"), 3),
                _with_interval(runs, "hd95"),
                _number(runs.worst("hd95"), 1),
                _number(runs.cost("site_seconds"), 1),
                _number(runs.cost("down"), 2),
                _number(runs.cost("up"), 2),
                _number(runs.cost("process_peak_mb"), 0),
                _number(runs.cost("steps_a_site"), 0),
                f"{runs.results[0]['parameters']:,}",
                str(len(runs.seeds)),
                told(runs.needs) or "-",
                tuned(comparison, runs.results[0]) or "-",
            ]
        )
    return markdown(header, rows)


def _structures(every: Sequence[Runs]) -> list[str]:
    names = list(dict.fromkeys(name for runs in every for name in runs.structures))
    header = [
        "method",
        "site",
        "patients",
        "volumes not predicted",
        *(f"{name}: {UNITS[figure]}" for name in names for figure in FIGURES),
    ]
    rows = []
    for runs in every:
        for place, site in enumerate(runs.sites):
            cells = []
            for name in names:
                for figure in FIGURES:
                    value = math.nan
                    if name in runs.structures:
                        column = runs.structures.index(name)
                        arrays = [seed[place][:, [column]] for seed in runs.by_seed(figure)]
                        value = statistics.fmean(mean_of_sites([one]) for one in arrays)
                    cells.append(_number(value, PLACES[figure]))
            first = runs.results[0]
            missing = statistics.fmean(one["unpredicted"][site] for one in runs.results)
            rows.append([runs.label, site, str(len(first["patients"][site])), f"{missing:g}", *cells])
    return markdown(header, rows)


def _paired(comparison: Comparison, here: Sequence[Contrast]) -> list[str]:
    if not here:
        return []
    methods = comparison.section.methods
    reference = comparison.section.reference
    header = ["", "Dice", "p", "p (Holm)", "HD95 (mm)", "p", "p (Holm)", "patients", "seeds"]
    rows = []
    for name in dict.fromkeys(one.method for one in here):
        of = {one.figure: one for one in here if one.method == name}
        cells = []
        for figure in FIGURES:
            one, places = of[figure], PLACES[figure]
            low, high = (f"{value:+.{places}f}" for value in one.interval)
            cells += [f"{one.paired.difference:+.{places}f} ({low} to {high})", _p(one.paired.p), _p(one.corrected)]
        rows.append([methods[name].label or name, *cells, str(of["dice"].paired.n), str(of["dice"].seeds)])
    return [f"Less {methods[reference].label or reference}, patient by patient:", "", *markdown(header, rows), ""]


def _with_interval(runs: Runs, figure: str) -> str:
    low, high = runs.interval(figure)
    places = PLACES[figure]
    return f"{_number(runs.mean(figure), places)} ({_number(low, places)} to {_number(high, places)})"


def _require_same_patients(results: Sequence[Result]) -> None:
    """Refuse to compare what was not measured on the same data.

    Raises:
        DataError: names the first result that differs.
    """
    for one in results:
        first = results[0]
        if one["data_sha256"] != first["data_sha256"]:
            raise DataError(
                _named(one),
                got=f"a result on the data {one['data_sha256'][:12]}",
                expected=f"the data of {_named(first)}, {first['data_sha256'][:12]}",
                remedy="compare without --table: it runs again what was measured on other data",
            )
        for site in sorted(one["tested"].keys() | first["tested"].keys()):
            own, other = one["tested"].get(site, []), first["tested"].get(site, [])
            if own != other or len(own) != len(one["patients"].get(site, [])):
                raise DataError(
                    _named(one),
                    got=f"{len(own)} tested patients at {site}, {len(set(own) & set(other))} of them those of "
                    f"{_named(first)}" + (", in another order" if sorted(own) == sorted(other) else ""),
                    expected=f"its {len(other)}, one after the other",
                    remedy=f"remove the cell's file and compare without --table: it runs again ({_named(one)})",
                )


def _named(result: Result) -> str:
    return f"{result['method']} {result['labelled']} seed {result['seed']}"


def _experiments(comparison: Comparison, results: Sequence[Result]) -> dict[str, Experiment]:
    """Each method's settings as its results have them: with what its trials chose."""
    return {one["method"]: comparison.experiment(one["method"], chosen=one["chosen"]) for one in results}


def _number(value: float, places: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.fmean(found) if found else 0.0
