"""The model card: what the model marks, what it was trained on, what was measured, and where its limits are."""

from __future__ import annotations

from collections.abc import Sequence

import fedmedseg
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.core.live import FEWEST
from fedmedseg.data.preprocessing import FIXED
from fedmedseg.export.metadata import MODALITIES, NOT_GIVEN
from fedmedseg.export.network import NEW_LAYER, Exportable
from fedmedseg.export.run_facts import Measured, MeasuredCalcium, MeasuredPoint, RunFacts
from fedmedseg.reporting.meanings import PRETRAINING, on_card
from fedmedseg.segmentation.predicted_files import NOTICE

NO_LICENCES = (
    "Not given. Whoever hands the model on states here under which licences and consents the data of the sites were "
    "used.\n"
)
POINTS = {
    "spheres": "Each is a point: the network marks a sphere around it, and the point is the centre of mass of the "
    "sphere's largest component.",
    "heat maps": "Each is a point: its channel is highest there.",
}
NO_RUN = "Not given: the model was exported without the record of its run (`--run`)."


def model_card(source: Exportable, *, facts: RunFacts | None, licences: str | None, use: str) -> str:
    """The card as Markdown. ``use`` says how the files beside it are used."""
    facts = facts.about(source.labels.values()) if facts else None
    parts = [
        f"# {source.origin.study}: {', '.join(source.labels.values())} in {MODALITIES[source.data.modality]}",
        f"**{NOTICE}** Not a medical device; nothing here has been validated for clinical use.",
        "## What it marks\n\n" + _labels(source),
        "## What goes in\n\n" + _inputs(source),
        "## How it was trained\n\n" + _training(source, facts),
        "## What was measured\n\n" + _measured(facts),
        "## Limits\n\n" + _limits(source, facts),
        f"## Data licences\n\n{(licences or NO_LICENCES).strip()}",
        f"## How to use it\n\n{use.strip()}",
    ]
    return "\n\n".join(parts) + "\n"


def preparation(source: Exportable) -> list[str]:
    """What happens to a volume before the network sees it, in order, in words."""
    data = source.data
    steps = ["turned towards right, anterior, superior" if data.spatial_dims == 3 else "slices last, turned in-plane"]
    spacing = [f"{'as scanned' if step is None else f'{step:g} mm'}" for step in data.spacing]
    if any(step is not None for step in data.spacing):
        steps.append(f"resampled to {' x '.join(spacing)}, linearly")
    if data.longest_edge is not None:
        steps.append(f"scaled in-plane so that the longer side has {data.longest_edge} voxels")
    fixed = FIXED.get(data.intensity)
    if fixed is not None:
        steps.append(
            f"clipped to {fixed.low:g}..{fixed.high:g} HU, less {fixed.mean:g}, divided by {fixed.deviation:g}"
        )
    elif data.modality == "ct":
        steps.append(f"{data.window[0]:g}..{data.window[1]:g} HU mapped to 0..1")
    elif data.intensity == "capped":
        steps.append("values above the 96th percentile cut, then z-score over the volume")
    else:
        steps.append("z-score over what is not air, clipped to -5..5")
    return steps


def _labels(source: Exportable) -> str:
    what = "structure" if source.marks == "structures" else "point"
    rows = [f"| number | {what} |", "|---|---|", "| 0 | background |"]
    table = "\n".join([*rows, *(f"| {number} | {name} |" for number, name in source.labels.items())])
    return "\n\n".join([table, *([POINTS[source.marks]] if source.marks in POINTS else [])])


def _inputs(source: Exportable) -> str:
    size = " x ".join(map(str, source.shape))
    how = (
        f"the middle of a scan, {size} voxels, in one pass"
        if source.whole
        else f"patches of {size} voxels that overlap by {source.overlap:g}, blended with Gaussian weights"
    )
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(preparation(source), start=1))
    return (
        f"Channels: {', '.join(source.channels)}. A volume is prepared so:\n\n{steps}\n\n"
        f"The network is given {how}. It answers with logits (batch, {source.classes}, ...), float32, of which "
        f"{source.activation} makes probabilities."
    )


def _training(source: Exportable, facts: RunFacts | None) -> str:
    origin, anew = source.origin, source.trained_in == (NEW_LAYER,)
    rows = {
        "system": origin.system,
        "study": origin.study,
        "model": _model(source),
        "experiment (SHA-256)": origin.experiment,
        "tensors (SHA-256)": source.digest,
        "parameters": f"{source.parameters:,}",
        "data role": source.data.role,
        "sites that trained its last layer" if anew else "sites that trained": _sites(source, facts),
        "run": f"started {facts.started}, {'finished' if facts.finished else 'not finished'}" if facts else NOT_GIVEN,
        "trained with": f"fedmedseg {facts.software}" if facts and facts.software else NOT_GIVEN,
        "exported with": f"fedmedseg {fedmedseg.__version__}",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _model(source: Exportable) -> str:
    origin = source.origin
    new_layer, pretrained = source.trained_in == (NEW_LAYER,), _pretrains(origin.system)
    said = on_card(origin.model, pretrained=pretrained, new_layer=new_layer)
    return f"{said}; {source.before}" if source.before else said


def _pretrains(system: str) -> bool:
    """Whether labels come after a pretraining, and all sites may have learned from them together."""
    return PRETRAINING in read_settings(find_job(system), [])[1].stages


def _sites(source: Exportable, facts: RunFacts | None) -> str:
    if source.taken_over:
        return NOT_GIVEN
    if source.origin.model == "scratch" and not (facts and facts.together):
        return "1" if facts or not _pretrains(source.origin.system) else NOT_GIVEN
    # a model that the run only took over was trained elsewhere
    return str(facts.training_sites) if facts and facts.training_sites else NOT_GIVEN


def _measured(facts: RunFacts | None) -> str:
    if facts is None:
        return NO_RUN
    if not facts.tested:
        return "Not given: no site told a figure of a model of this name on what it marks."
    parts = [
        "Means over a site's own test patients, then over the sites of each row; a site tests the model of this name "
        f"that it has itself. A range is told of {FEWEST} sites and more."
    ]
    parts += [_structures(facts.measured)] if facts.measured else []
    parts += [_points(facts.points)] if facts.points else []
    parts += [_calcium(facts.calcium)] if facts.calcium else []
    return "\n\n".join(parts)


def _structures(measured: Sequence[Measured]) -> str:
    rows = [
        f"| {one.structure} | {one.sites} | {one.dice:.3f} | {_range(one, 3)} | "
        f"{'-' if one.hd95 is None else f'{one.hd95:.1f}'} |"
        for one in measured
    ]
    return "\n".join(
        ["| structure | sites | Dice | lowest to highest site | HD95, mm |", "|---|---|---|---|---|", *rows]
    )


def _points(measured: Sequence[MeasuredPoint]) -> str:
    rows = [
        f"| {one.point} | {one.sites} | {_or(one.median, 'none')} | {_range(one, 1)} | {_or(one.mean, 'none')} | "
        f"{'withheld' if one.missed is None else f'{one.missed} of {one.points}'} |"
        for one in measured
    ]
    return "\n".join(
        [
            "Distances of points: the median counts a point that was not found as infinitely far (none: so many were "
            "missed at a site that it is infinite there); the mean is over those found.",
            "",
            "| point | sites | median, mm | lowest to highest site | mean, mm | missed |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _calcium(one: MeasuredCalcium) -> str:
    return "\n".join(
        [
            "| calcium, mean absolute error | sites | volume, mm3 | Agatston score |",
            "|---|---|---|---|",
            f"| per scan | {one.sites} | {_or(one.volume, '-')} | {_or(one.agatston, '-')} |",
        ]
    )


def _or(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.1f}"


def _range(one: Measured | MeasuredPoint, places: int) -> str:
    """Of fewer than three sites the ends of the range would be a hospital's own figures, in a card that travels."""
    if one.sites < FEWEST or one.lowest is None or one.highest is None:
        return "-"
    return f"{one.lowest:.{places}f} to {one.highest:.{places}f}"


def _limits(source: Exportable, facts: RunFacts | None) -> str:
    marks = ", ".join(source.labels.values())
    lines = [
        f"Only {MODALITIES[source.data.modality]} of the kind the sites hold (role `{source.data.role}`); on anything "
        "else the answer is arbitrary and looks like any other.",
        f"Only {marks}: everything else is background, pathology too."
        if source.marks == "structures"
        else f"Only the points {marks}; nothing else of a scan is looked for.",
        "Scanners, protocols and patients that no training site has may fare worse than the worst site above."
        if facts and facts.tested
        else "How it fares on scanners, protocols and patients of other places was not measured.",
        "Probabilities are not calibrated.",
    ]
    return "\n".join(f"- {line}" for line in lines)
