"""`fedmedseg foundation`: the networks of a cardiac CT run as a file, and a new task learned on it in one command."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedmedseg.cli.console import console, example, friendly_errors
from fedmedseg.cli.new_file import require_new_file
from fedmedseg.cli.rows import Rows, show
from fedmedseg.core.data_settings import MOST_LABELS
from fedmedseg.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

foundation_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

SYSTEM = "cardiac_ct"
Out = Annotated[Path, typer.Option("--out", help="The file to write (.safetensors).")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file that is at --out.")]


@foundation_app.command(
    epilog=example(
        "fedmedseg foundation export models/shared.safetensors --experiment experiment.yaml --out student.safetensors"
    )
)
def export(
    shared: Annotated[Path, typer.Argument(metavar="FILE", help="A run's shared model, models/shared.safetensors.")],
    experiment: Annotated[str, typer.Option("--experiment", help="The run's experiment.yaml, or its job folder.")],
    out: Out,
    what: Annotated[
        Literal["student", "cnn", "all"], typer.Option("--what", help="Which of its networks the file holds.")
    ] = "student",
    force: Force = False,
) -> None:
    """Write the networks of a run, with the settings that build and feed them, for others to start from."""
    from fedmedseg.cardiac_ct.foundation import load_foundation, save_foundation
    from fedmedseg.core.checkpoint import CheckpointError, load_file
    from fedmedseg.preflight.run import find_experiment

    with friendly_errors():
        require_new_file(out, force=force, ending=".safetensors")
        study = find_experiment(experiment)
        if study.system != SYSTEM:
            raise ConfigurationError("--experiment", got=f"a study of {study.system}", expected=f"one of {SYSTEM}")
        try:
            tree = load_file(shared)
        except CheckpointError as error:
            raise ConfigurationError("FILE", got=f"{error.got}", expected="a run's shared model") from None
        digest = tree.get("experiment") if isinstance(tree, dict) else None
        if digest != study.digest:
            raise ConfigurationError(
                "FILE",
                got=f"a model of experiment {str(digest)[:16]}",
                expected=f"one of the given study, {study.digest[:16]}",
                remedy="name the experiment.yaml of the run that wrote it",
            )
        save_foundation(out, tree["tensors"], experiment=study, what=what, run=str(tree.get("run", "")))
        held = load_foundation(out)
    size = sum(tensor.numel() for tensor in held.tensors.values())
    console.print(f"written: {out} ({size:,} parameters; SHA-256 {held.digest})", highlight=False, soft_wrap=True)


@foundation_app.command(
    epilog=example(
        "fedmedseg foundation tune student.safetensors --list datalist.json --task heart --out heart.safetensors"
    )
)
def tune(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Networks that `foundation export` or a site wrote.")],
    datalist: Annotated[Path, typer.Option("--list", help="The data list whose training cases annotate the task.")],
    out: Out,
    task: Annotated[
        Literal["coronaries", "heart", "calc", "hps", "ms"], typer.Option("--task", help="What is to be learned.")
    ] = "coronaries",
    backbone: Annotated[
        Literal["student", "cnn"], typer.Option("--backbone", help="Which frozen network the layer is put on.")
    ] = "student",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")] = 200,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of AdamW.")] = 1.0e-2,
    patients: Annotated[
        int | None, typer.Option("--patients", min=1, help="At most so many labelled patients. Default: all.")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--label",
            min=1,
            max=MOST_LABELS,
            help="The number of calc, or coronaries, in the label maps. Default: as the list's labels say, or 1.",
        ),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where the networks run.")] = "cpu",
    force: Force = False,
) -> None:
    """Learn a new task with a new last layer on a frozen network, test it on the list's test cases, write both.

    The list's volumes go through the preparation that the network was trained with; label maps may hold other numbers
    beside the task's. Nothing leaves this machine.
    """
    from fedmedseg.cardiac_ct.foundation import load_foundation, number_in, tuning_study
    from fedmedseg.cardiac_ct.tuning import record_beside
    from fedmedseg.cardiac_ct.tuning import tune as learn
    from fedmedseg.data.tasks import TASKS
    from fedmedseg.segmentation.prediction import require_device

    with friendly_errors():
        require_new_file(out, force=force, ending=".safetensors")
        require_new_file(record_beside(out), force=force)
        if not datalist.is_file():
            raise ConfigurationError("--list", got=f"no file at {datalist}", expected="a data list (JSON)")
        require_device(device)
        foundation = load_foundation(file)
        study = tuning_study(
            foundation,
            task=task,
            backbone=backbone,
            steps=steps,
            learning_rate=learning_rate,
            patients=patients,
            number=number or number_in(datalist, task),
        )
        with tempfile.TemporaryDirectory() as folder:
            record = learn(foundation, study, datalist, folder=Path(folder), out=out, device=device)
    kept = record_beside(out)
    console.print(f"written: {out}; its record, for `fedmedseg export --run`: {kept}", highlight=False, soft_wrap=True)
    rows = _rows(record)
    if not rows:
        console.print("not tested: the list has no test case that annotates the task", highlight=False)
        return
    frozen = "student" if backbone == "student" else f"CNN of {study.wing.transfer.cnn}"
    what = f"{task} by a new last layer on the {frozen}, on the test cases of {datalist.name}:"
    console.print(what, highlight=False, soft_wrap=True)
    pointed = TASKS[task].kind == "points"
    table = Rows("what", "mm: median (quartiles)" if pointed else "test")
    for name, value in rows:
        table.add_row(name, value)
    show(console, table)


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a record of one site and one model, as a report would tell them."""
    from fedmedseg.reporting.tables import calcium_of, decimal, dice_table, points_of

    masks = [(one.structure, f"Dice {decimal(one.dice)}, HD95 {decimal(one.hd95, 1)} mm") for one in dice_table(record)]
    points = [(one.point, one.told) for one in points_of(record)]
    calcium = [
        (
            "calcium, mean absolute error",
            f"volume {decimal(one.volume, 1)} mm\N{SUPERSCRIPT THREE}, Agatston score {decimal(one.agatston, 1)}",
        )
        for one in calcium_of(record)
    ]
    return masks + points + calcium
