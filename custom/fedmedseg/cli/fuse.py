"""`fedmedseg fuse`: the models of sites that mark different organs as one, on images or a site that took no part."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from fedmedseg.cli.console import console, example, friendly_errors, progress_bar
from fedmedseg.cli.new_file import require_new_file, writing
from fedmedseg.cli.predict import (
    Budget,
    Device,
    Flips,
    Out,
    Place,
    Resume,
    images_to_read,
    require_one_map,
    write_answers,
)
from fedmedseg.cli.rows import Rows, show
from fedmedseg.core.bounds import VOLUME_BUDGET_MB
from fedmedseg.core.errors import ConfigurationError, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmedseg.core.config import Experiment
    from fedmedseg.reporting.metrics import CaseScore
    from fedmedseg.reporting.paired import Paired
    from fedmedseg.segmentation.models import InferenceModel

fuse_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

SYSTEM = "segviz"
Models = Annotated[
    list[Path],
    typer.Option(
        "--models", help="A site's model file, or a run's folder `models` with what sites published; may be repeated."
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        help="The study: its experiment.yaml, or a job by name or folder. Default: that of the run whose folder "
        "--models names, else the shipped one.",
    ),
]
Structures = Annotated[
    list[str] | None,
    typer.Option("--structure", help="A structure of the study that is wanted; may be repeated. Default: all."),
]
HowOption = Annotated[
    Literal["probability", "uncertainty"],
    typer.Option("--how", help="How several models of one organ are joined: by their mean, or by how sure each is."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that is at --out.")]


@fuse_app.command(
    epilog=example(
        "fedmedseg fuse predict scans/ predictions/ --models run/models",
        "fedmedseg fuse predict scan.nii.gz labels.nii.gz --models a.safetensors --models b.safetensors",
    )
)
def predict(
    place: Place,
    out: Out,
    models: Models,
    experiment: Study = None,
    structures: Structures = None,
    how: HowOption = "probability",
    device: Device = "cpu",
    flips: Flips = False,
    budget_mb: Budget = VOLUME_BUDGET_MB,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    resume: Resume = False,
) -> None:
    """Write label maps of images in their own space, each organ from the models that know it, with volumes in ml.

    Images that cannot be used are told at the end; the rest is done, and the command then ends with code 1, or with 2
    where none was left to do.
    Research, not for diagnosis.
    """
    with friendly_errors():
        found = images_to_read(place, out)
        from fedmedseg.segmentation.prediction import require_device
        from fedmedseg.segviz.prediction import FusedPredictor

        require_device(device)
        study = _study(experiment, models)
        predictor = FusedPredictor(
            experts=_experts(models, study),
            experiment=study,
            labels=_wanted(structures, study),
            how=how,
            device=device,
            flips=flips,
        )
        require_one_map(predictor, found, out)
    write_answers(
        predictor, found, out,
        read=[*_files(models), place], flips=flips, budget_mb=budget_mb, force=force, resume=resume,
    )  # fmt: skip


@fuse_app.command(epilog=example("fedmedseg fuse score datalist.json --models run/models --out scores.json"))
def score(
    datalist: Annotated[Path, typer.Argument(metavar="LIST", help="The data list of a site that took no part.")],
    models: Models,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="Other models (single organs, pooled) on the same patients; may be repeated."),
    ] = None,
    experiment: Study = None,
    structures: Structures = None,
    how: HowOption = "probability",
    device: Device = "cpu",
    budget_mb: Budget = VOLUME_BUDGET_MB,
    out: Annotated[
        Path | None, typer.Option("--out", help="A JSON file with the figures of each patient, who is not named.")
    ] = None,
    force: Force = False,
) -> None:
    """Dice and HD95 of fused models on every labelled volume of a list, in its own space; paired with --against.

    The list's label numbers are the study's. Nothing is trained and nothing is chosen on these volumes.
    """
    from fedmedseg.segviz.external import compare, evaluate, labelled_cases
    from fedmedseg.segviz.fusion import require_every_organ

    with friendly_errors(), progress_bar() as bar:
        if out is not None:
            require_new_file(out, force=force, ending=".json")
        study = _study(experiment, models)
        labels = _wanted(structures, study)
        sets = {"models": _experts(models, study)} | ({"against": _experts(against, study)} if against else {})
        # before the first volume is answered by the one set that could
        for experts in sets.values():
            require_every_organ([expert.data.labels.values() for expert in experts], labels)
        cases, aside = labelled_cases(datalist, data=study.data, budget_mb=budget_mb)
        found = {}
        for name, experts in sets.items():
            task = bar.add_task(
                f"volumes tested by {'the models' if name == 'models' else 'those of --against'}", total=len(cases)
            )
            found[name] = evaluate(
                experts,
                cases,
                labels=labels,
                among=study.data.labels,
                how=how,
                device=device,
                tick=lambda done, of, task=task: bar.update(task, completed=done, total=of),  # type: ignore[misc]
            )
        scores = {name: one.patients for name, one in found.items()}
        pairs = compare(scores["models"], scores["against"], list(labels.values())) if against else {}
        if out is not None:
            _write(out, scores, pairs, study)
    show(console, _table(scores, pairs, list(labels.values()), datalist))
    for reason, number in (aside | found["models"].set_aside).items():
        console.print(f"[yellow]set aside:[/yellow] {number} x {reason}", highlight=False)


def _study(name: str | None, models: Sequence[Path]) -> Experiment:
    """The study that gives the label map.

    Raises:
        ConfigurationError: none there, or of another system.
    """
    from fedmedseg.preflight.run import find_experiment

    study = find_experiment(name) if name is not None else _of_the_run(models)
    if study is None:
        study = find_experiment(SYSTEM)
        said = f"study: {study.study}, the shipped one, whose numbers the maps have; --experiment names another"
        console.print(said, highlight=False, soft_wrap=True)
    if study.system != SYSTEM:
        raise ConfigurationError(
            "--experiment" if name is not None else "--models",
            got=f"a study of {study.system}",
            expected=f"one of {SYSTEM}, whose sites' models are fused",
            remedy="of other systems each model knows all structures: use `fedmedseg predict`",
        )
    return study


def _of_the_run(models: Sequence[Path]) -> Experiment | None:
    """The study whose run left one of the folders ``models``, by the record beside it; None where there is none.

    Raises:
        ConfigurationError: a damaged record, or one of a version that kept no settings.
    """
    from fedmedseg.core.config import parse_experiment
    from fedmedseg.reporting.record_file import RECORDS, read_record

    for path in models:
        report = path.resolve().parent / "report"
        if path.is_dir() and any((report / name).is_file() for name in RECORDS):
            record = read_record(report, option="--models")
            if not isinstance(record.get("settings"), dict):
                raise ConfigurationError(
                    "--models",
                    got=f"a run whose record, in {report}, has no settings",
                    expected="one that says what its study was",
                    remedy="name the study's experiment.yaml with --experiment",
                )
            study = parse_experiment(record["settings"], source=f"{report.name}: settings")
            console.print(f"study: {study.study}, of the run in {report.parent}", highlight=False, soft_wrap=True)
            return study
    return None


def _wanted(structures: Sequence[str] | None, study: Experiment) -> dict[int, str]:
    """Number -> structure of those that are asked for.

    Raises:
        ConfigurationError: one that the study does not name.
    """
    labels = dict(study.data.labels)
    for name in structures or ():
        if name not in labels.values():
            raise ConfigurationError(
                "--structure",
                got=repr(name),
                expected=f"a structure of {study.study}: {', '.join(labels.values())}",
                remedy=choose(name, labels.values()),
            )
    return {number: name for number, name in labels.items() if not structures or name in structures}


def _experts(paths: list[Path], study: Experiment) -> list[InferenceModel]:
    from fedmedseg.segviz.external import experts_at

    return experts_at(paths, experiment=study)


def _files(models: list[Path]) -> list[Path]:
    """The files that ``--models`` means: those of a folder one by one."""
    return [file for path in models for file in (path.rglob("*.safetensors") if path.is_dir() else [path])]


def _table(scores: dict[str, list[CaseScore]], pairs: dict[str, Paired], structures: list[str], source: Path) -> Rows:
    from fedmedseg.reporting.metrics import mean_dice, summarise
    from fedmedseg.reporting.tables import counted

    patients = len(scores["models"])
    table = Rows("structure", title=escape(f"{source}: {counted(patients, 'patient')}"))
    for name in scores:
        for column in ("patients", "not found", "Dice", "HD95 (mm)"):
            table.add_column(f"{name}: {column}", justify="right")
    if pairs:
        table.add_column("difference of Dice (paired, Wilcoxon)")
    rows = {(row.model, row.structure): row for row in summarise(scores)}
    for structure in structures:
        cells = []
        for name in scores:
            row = rows.get((name, structure))
            figures = [str(row.n), str(row.failures), _figure(row.dice), _figure(row.hd95, 1)] if row else []
            cells += figures or ["0", "0", "-", "-"]
        table.add_row(structure, *cells, *_told(pairs, structure))
    means = [cell for name in scores for cell in (str(patients), "", _figure(mean_dice(scores[name])), "")]
    table.add_row("mean", *means, *_told(pairs, "mean"))
    return table


def _told(pairs: dict[str, Paired], name: str) -> list[str]:
    if not pairs:
        return []
    one = pairs[name]
    return [f"{one.difference:+.3f}, p {one.p:.2g} ({one.n} patients)" if one.n else "no patient"]


def _figure(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _write(out: Path, scores: dict[str, list[CaseScore]], pairs: dict[str, Paired], study: Experiment) -> None:
    from fedmedseg.core.atomic import write_atomic
    from fedmedseg.core.records import installed_versions

    content: dict[str, Any] = {
        "study": study.study,
        "experiment_sha256": study.digest,
        "patients": {name: [_plain(one) for one in found] for name, found in scores.items()},
        "paired": {
            name: {"n": one.n, "difference": _number(one.difference), "p": _number(one.p)}
            for name, one in pairs.items()
        },
        "versions": installed_versions(),
    }
    with writing(out):
        write_atomic(out, (json.dumps(content, indent=1) + "\n").encode())


def _plain(score: CaseScore) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {"dice": _number(one.dice), "hd95_mm": _number(one.hd95), "failures": one.failures}
        for name, one in score.structures.items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
