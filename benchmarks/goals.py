"""The goals of performance: what each is, which benchmark shows it, and how its figure is read from its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scale import SLOPE, slope

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """One figure beside its goal; without a goal it is told and not judged."""

    id: str
    what: str
    value: float
    goal: float | None = None
    side: Literal["least", "most"] = "least"
    void: bool = False
    """The machine drifted while it was measured."""

    @property
    def verdict(self) -> str:
        """``reached``, ``missed``, ``void``, or ``-`` without a goal."""
        if self.void:
            return "void"
        if self.goal is None:
            return "-"
        return "reached" if (self.value >= self.goal if self.side == "least" else self.value <= self.goal) else "missed"


@dataclass(frozen=True)
class Benchmark:
    """A script beside this file, what it is called with, and what its result says."""

    name: str
    quick: tuple[str, ...] | None
    """Arguments for two cores and some minutes; None: only at full length."""
    full: tuple[str, ...]
    read: Callable[[Path], list[Figure]]
    """From the file that it was told to write."""
    script: Path | None = None
    """Where it is not ``benchmarks/<name>.py``."""
    gpu: bool = False
    """Whether it wants a GPU; without one it does not run."""
    pieces: str | None = None
    """Of one that takes ``--results FOLDER`` in place of ``--out FILE`` and goes on there piece by piece: where below
    that folder the pieces that ``read`` takes lie."""

    @property
    def file(self) -> Path:
        """The script."""
        return self.script or HERE / f"{self.name}.py"


@dataclass(frozen=True)
class Missing:
    """A goal that no benchmark here shows."""

    id: str
    what: str
    why: str
    unless: str = ""
    """Beginning of the name of a figure that shows it after all."""


def aggregation(file: Path) -> list[Figure]:
    """Each rule against copying memory, and the robust ones against sorting, at each number of sites."""
    found = []
    for one in _read(file)["results"]:
        at = f"{one['sites']} sites"
        for rule, goal in (("mean", 0.55), ("mean with every check", 0.45), ("trimmed mean", 0.25), ("median", 0.25)):
            what = f"aggregation, {rule} / copying memory, {at}"
            found.append(Figure("P4", what, one["of_copying"][rule], goal, void=one["void"]))
        for rule, times in one["times_sorting"].items():
            what = f"aggregation, {rule}: times as fast as by sorting, {at}"
            found.append(Figure("P4", what, times, 15.0, void=one["void"]))
    return found


def wire(file: Path) -> list[Figure]:
    """Bytes of each transport against dense float32, and what it costs in Dice where that was measured."""
    content, found = _read(file), []
    for network in ("unet", "swin_unetr"):
        for transport, goal in (("fp16", 0.51), ("int8", 0.26), ("topk", 0.02)) if network in content else ():
            one = content[network][transport]
            found.append(Figure("P5", f"bytes up / dense, {transport}, {network}", one["share"], goal, "most"))
            if "share_down" in one:
                what = f"bytes down / dense, {transport}, {network}"
                found.append(Figure("P5", what, one["share_down"], goal, "most"))
    for form, cost in content.get("dice", {}).get("costs", {}).items():
        if form != "fp32":
            found.append(Figure("P5", f"Dice that {form} costs", cost, 0.005, "most"))
    return found


def target_prediction(folder: Path) -> list[Figure]:
    """Bytes of FCLOpt's prediction with measured distances against sending both networks."""
    both, predicted = (_read(folder / f"{mode}.json") for mode in ("both", "ptnu_dp"))
    share = _moved(predicted) / _moved(both)
    return [Figure("P5", "FCLOpt, bytes of ptnu_dp / both, both ways", share, 0.55, "most")]


def masked_step(file: Path) -> list[Figure]:
    """The student's step with all tokens against that with the visible ones."""
    content = _read(file)
    where = "FedATA on a GPU" if "gpu" in content.get("device", {}) else "FedATA"
    return [
        Figure("P6", f"{where}, step with all tokens / with the visible, {tokens}", one["student_ratio"], one["goal"])
        for tokens, one in content.items()
        if tokens.endswith(" tokens")
    ]


def masked_memory(file: Path) -> list[Figure]:
    """Memory of the student's step with the visible tokens as a share of that with all."""
    content = _read(file)
    return [
        Figure(
            "P6", f"FedATA, memory with the visible tokens / with all, {tokens}", one["ratio"], content["goal"], "most"
        )
        for tokens, one in content["tokens"].items()
    ]


def compute_choice(file: Path) -> list[Figure]:
    """The chosen way of computing against the best fixed one and against plain float32, by seconds of a step."""
    content = _read(file)
    void = content["memory_copy_moved"] > 0.1
    worst = max(one["chosen_over_best"] for one in content["cases"].values())
    slowest = content["slowest_chosen_over_plain"]
    where = "on a GPU, " if "gpu" in content.get("device", {}) else ""
    best = f"{where}speed of the chosen way / of the best fixed one, worst network"
    plain = f"{where}seconds of the chosen way / of plain float32, worst network"
    return [
        Figure("P7", best, 1 / worst, 0.98, void=void),
        Figure("P7", plain, slowest, 1.0, "most", void=void),
    ]


def attention_memory(file: Path) -> list[Figure]:
    """FedCRLD's attention written out against the fused kernel, by memory."""
    return [Figure("-", "FedCRLD, memory of explicit / fused attention", _read(file)["transformer"]["ratio"])]


def memory_estimate(file: Path) -> list[Figure]:
    """Preflight's estimate against what a step took."""
    ratios = [one["ratio"] for one in _read(file)["networks"].values()]
    return [
        Figure("-", "preflight, least estimate / memory taken", min(ratios)),
        Figure("-", "preflight, largest estimate / memory taken", max(ratios)),
    ]


def round_overhead(file: Path) -> list[Figure]:
    """Rounds and jobs against Flower's, where that ran beside them, and work against rounds that hold it."""
    content, found = _read(file), []
    for size, one in content.get("rounds", {}).items():
        for id_, what, of in (("P2", "round", "of_flower"), ("P3", "job", "job_of_flower")):
            for way, ratio in one[of].items():
                name = f"{what} without training / Flower's, {way}, {size} MB"
                found.append(Figure(id_, name, ratio["ratio"], ratio["goal"], "most", void=one["void"]))
        for way in ("simulator", "deployed"):
            what = f"seconds of a round without training, {way}, {size} MB"
            found.append(Figure("-", what, one[way]["median_s"], void=one["void"]))
    efficiency = content.get("efficiency", {"work": {}})
    for length, one in efficiency["work"].items():
        for way in ("simulator", "deployed"):
            what = f"round efficiency, {way}, {length} of local work"
            found.append(Figure("P1", what, one[way]["efficiency"], one["goal"], void=efficiency["void"]))
    return found


def scale(folder: Path) -> list[Figure]:
    """Memory of the server for each further site, in models, by least squares over the numbers of sites."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for one in map(_read, sorted(folder.glob("*.json"))):
        groups.setdefault((one["where"], one["megabytes"]), []).append(one)
    found = []
    for (where, megabytes), cells in groups.items():
        if len(cells) > 1:
            rise = slope([(one["sites"], one["server_megabytes"]) for one in cells], megabytes)
            what = f"server memory per further site / model, {where}, {megabytes:g} MB"
            found.append(Figure("P8", what, rise, SLOPE, "most", void=any(one["void"] for one in cells)))
    return found


def encryption_cost(file: Path) -> list[Figure]:
    """Encrypted replies against plain ones, by bytes."""
    content = _read(file)
    plain, sealed = (content[way]["bytes_a_number"]["up"] for way in ("plain", "ckks"))
    return [Figure("-", "bytes up, encrypted / plain", sealed / plain)]


def data_loading(file: Path) -> list[Figure]:
    """Data's part of a step from the second epoch on."""
    content = _read(file)
    return [
        Figure("-", f"data loading / epoch, {name}", one["share"], content["goal"], "most", void=content["void"])
        for name, one in content["jobs"].items()
    ]


def determinism(file: Path) -> list[Figure]:
    """How many different final models two runs with one seed make."""
    return [
        Figure(
            "-",
            f"different models of two runs with one seed, {job}",
            float(len(set(one["shared_sha256"]))),
            1.0,
            "most",
        )
        for job, one in _read(file)["jobs"].items()
    ]


BENCHMARKS = (
    Benchmark("wire", (), ("--large", "--dice", "--seeds", "1", "2", "3"), wire),
    Benchmark(
        "aggregation",
        ("--sites", "4", "8", "--megabytes", "16", "--repeats", "3"),
        ("--sites", "4", "8", "16", "--megabytes", "64"),
        aggregation,
    ),
    Benchmark("masked_step", ("--repeats", "3", "--whole-repeats", "1"), (), masked_step),
    Benchmark("masked_memory", ("--edges", "6"), (), masked_memory),
    Benchmark(
        "round_overhead",
        ("--parts", "rounds", "--rounds", "6", "--repeats", "1"),
        ("--sizes", "1", "20", "250", "--seconds", "10", "30"),
        round_overhead,
    ),
    Benchmark("attention_memory", (), (), attention_memory),
    Benchmark("compute_choice", ("--seconds", "1"), (), compute_choice),
    Benchmark(
        "masked_step_gpu",
        ("--device", "cuda", "--width", "768", "--repeats", "5"),
        ("--device", "cuda", "--width", "768", "--repeats", "15"),
        masked_step,
        script=HERE / "masked_step.py",
        gpu=True,
    ),
    Benchmark(
        "compute_choice_gpu",
        ("--device", "cuda", "--compile"),
        ("--device", "cuda", "--compile", "--seconds", "10"),
        compute_choice,
        script=HERE / "compute_choice.py",
        gpu=True,
    ),
    Benchmark("memory_estimate", (), (), memory_estimate),
    Benchmark(
        "scale",
        None,
        ("--where", "deployed", "--sites", "2", "4", "8", "--sizes", "250"),
        scale,
        pieces=".",
    ),
    Benchmark("data_loading", ("--jobs", "fedavg", "segviz"), (), data_loading),
    Benchmark(
        "determinism",
        ("--jobs", "fedavg", "--set", "stages.training.rounds=2", "--set", "segmentation.steps=6"),
        (),
        determinism,
    ),
    Benchmark("encryption_cost", None, (), encryption_cost),
    Benchmark(
        "target_prediction",
        None,
        ("--parts", "traffic", "--minutes", "60"),
        target_prediction,
        pieces="traffic",
    ),
)
"""In the order in which they run: what shows most goals for its time comes first."""
MISSING = (
    Missing("P1", "round efficiency >= 0.95 with 30 s of local work, >= 0.88 with 10 s", "measured at full length",
            unless="round efficiency"),
    Missing("P2", "round without training / Flower's: deployed <= 1.2, simulator <= 3 (1 MB), <= 1.5 (250 MB)",
            "Flower was not run beside it: --flower PYTHON", unless="round without training / Flower's"),
    Missing("P3", "whole job / Flower's <= 1.25", "Flower was not run beside it: --flower PYTHON",
            unless="job without training / Flower's"),
    Missing("P6", "FedATA on a GPU, step with all tokens / with the visible >= 3", "this machine has no GPU",
            unless="FedATA on a GPU"),
    Missing("P8", "server memory per further site / model <= 0.1, 2 to 8 sites, 250 MB", "measured at full length",
            unless="server memory per further site"),
)  # fmt: skip
"""Goals that nothing here shows; they are printed, so that nobody takes the table for all of them."""


def _moved(content: Mapping[str, Any]) -> int:
    """Bytes of all rounds and sites, both ways."""
    return sum(ways["down"] + ways["up"] for one in content["traffic"] for ways in one.values())


def _read(file: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
