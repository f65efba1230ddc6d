"""`fedmedseg predict`: a trained model on images of one's own, in their space, with volumes, scores and landmarks."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedmedseg.cli.console import Code, console, friendly_errors
from fedmedseg.cli.rows import Rows, show
from fedmedseg.core.bounds import VOLUME_BUDGET_MB
from fedmedseg.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedmedseg.data.images import Found, Source
    from fedmedseg.data.phases import Phases
    from fedmedseg.reporting.structure_volumes import Ventricle
    from fedmedseg.segmentation.predicting import Batch
    from fedmedseg.segmentation.prediction import Predictor

SHOWN = 12
"""Images whose volumes are shown; the tables on the disk have all."""


Place = Annotated[
    Path, typer.Argument(metavar="IMAGE_OR_FOLDER", help="A NIfTI file, or a folder of such and DICOM series.")
]
Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder to write into; of one image also a file, .nii.gz or .nii.")
]
Device = Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where the networks run.")]
Flips = Annotated[
    bool, typer.Option("--flips", help="Answer with the mean over mirror images (4 passes in 2D, 8 in 3D).")
]
Budget = Annotated[int, typer.Option("--volume-budget-mb", min=1, help="MiB one volume may occupy.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Keep answers that the same model gave to the same images in an earlier call; do the rest."
    ),
]
_FILE = re.compile(r"\.[A-Za-z]{2,5}")
"""Endings that files have, and folders seldom."""
CAVITY = "left ventricle"


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file: a site's own, or a run's shared one.")],
    place: Place,
    out: Out,
    device: Device = "cpu",
    flips: Flips = False,
    phases: Annotated[
        Path | None,
        typer.Option("--phases", help="CSV with the columns patient, ed, es: whose images are which, for function."),
    ] = None,
    ed: Annotated[str | None, typer.Option("--ed", help="Of one patient: the end-diastolic image.")] = None,
    es: Annotated[str | None, typer.Option("--es", help="Of one patient: the end-systolic image.")] = None,
    cavity: Annotated[
        str | None,
        typer.Option(
            "--cavity", help=f"The structure whose two volumes give the ejection fraction. Default: {CAVITY}."
        ),
    ] = None,
    heart: Annotated[
        Path | None,
        typer.Option("--heart", help="Cardiac CT: label map of the heart's structures, or a folder of them by name."),
    ] = None,
    network: Annotated[
        Literal["student", "cnn"] | None,
        typer.Option("--network", help="Cardiac CT: which of the file's networks. Default: the transformer."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Of a shared model with several networks: which, by its start."),
    ] = None,
    budget_mb: Budget = VOLUME_BUDGET_MB,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    resume: Resume = False,
) -> None:
    """Write label maps of images in their own space, with volumes in ml, landmarks in mm and calcium scores.

    Images that cannot be used are told at the end; the rest is done, and the command then ends with code 1, or with 2
    where none was left to do.
    Research, not for diagnosis.
    """
    with friendly_errors():
        found = images_to_read(place, out)
        from fedmedseg.cli.model_file import open_predictor
        from fedmedseg.segmentation.predicting import require_cavity

        predictor = open_predictor(model, device=device, flips=flips, network=network, start=start)
        require_one_map(predictor, found, out)
        pairs = _phases(phases, ed, es, [one.name for one in found.sources])
        if pairs:
            require_cavity(predictor, cavity or CAVITY)
        elif cavity is not None:
            raise ConfigurationError(
                "--cavity",
                got=repr(cavity),
                expected="images that are told to be ED and ES",
                remedy="name them with --phases, or with --ed and --es",
            )
        hearts = _hearts(heart, found.sources, place, predictor)
        read = [model, place, *hearts.values(), *([phases] if phases else [])]
    write_answers(
        predictor, found, out,
        read=read, flips=flips, budget_mb=budget_mb, force=force, resume=resume, hearts=hearts, pairs=pairs,
        cavity=cavity or CAVITY,
    )  # fmt: skip


def images_to_read(place: Path, out: Path) -> Found:
    """The images at ``place``, unless the answers would lie among them.

    Raises:
        ConfigurationError: they would, or there is no image.
    """
    from fedmedseg.data.images import images_at
    from fedmedseg.segmentation.predicted_files import require_outside

    require_outside(out, place)
    return images_at(place)


def write_answers(
    predictor: Predictor,
    found: Found,
    out: Path,
    *,
    read: Sequence[Path],
    flips: bool,
    budget_mb: int,
    force: bool,
    resume: bool,
    hearts: Mapping[str, Path] | None = None,
    pairs: Sequence[Phases] = (),
    cavity: str = "",
) -> NoReturn:
    """Predict the images, write maps, figures and tables, and say what became of each; ends with the command's code.

    Args:
        predictor: the model.
        found: the images.
        out: the folder, or the one map, that is written.
        read: files and folders beside the images that must not be written over.
        flips: whether the predictor answers with the mean over mirror images.
        budget_mb: MiB one volume may occupy.
        force: replace files that are there.
        resume: take over what an earlier call left.
        hearts: name of the image -> label map of the heart's structures.
        pairs: whose images are which, for function.
        cavity: the structure whose two volumes give it.
    """
    from fedmedseg.segmentation.predicted_files import (
        TABLES,
        outputs_for,
        remove,
        require_apart,
        require_new,
        require_writable,
        write_tables,
    )
    from fedmedseg.segmentation.predicting import predict_all, ventricles

    hearts = hearts or {}
    with friendly_errors():
        if force and resume:
            raise ConfigurationError(
                "--force, --resume",
                got="both",
                expected="one of the two",
                remedy="leave out --force to keep what was done, or --resume to do it anew",
            )
        single = _is_file(out)
        outputs = {one.name: outputs_for(one.name, predictor, out) for one in found.sources}
        tables = [] if single else [out / name for name in TABLES]
        written = [path for one in outputs.values() for path in one.every] + tables
        images = [one.file for one in found.sources if one.file is not None]
        require_apart(written, [*read, *images])
        require_new(written, force=force, resume=resume)
        require_writable(out)
        remove(tables)
        with _Display(len(found.sources)) as display:
            try:
                batch = predict_all(
                    predictor,
                    found.sources,
                    outputs,
                    flips=flips,
                    budget_mb=budget_mb,
                    hearts=hearts,
                    resume=resume,
                    on_image=display.show,
                )
            except KeyboardInterrupt:
                # tables over all images come last: there are none of so few, and none of an earlier call any more
                told = (
                    f"interrupted: {display.done} of {len(found.sources)} images are done; --resume goes on from there"
                )
                console.print(told, highlight=False, soft_wrap=True)
                raise typer.Exit(Code.INTERRUPTED) from None
        function = ventricles(pairs, batch, cavity=cavity)
        if not single:
            write_tables(out, batch.done, function, batch.failed)
    _tell(batch, function, out, predictor, hearts, passed_over=len(found.passed_over))
    if not batch.done:
        raise typer.Exit(Code.MEND)
    raise typer.Exit(Code.LOOK if batch.failed else Code.DONE)


class _Display:
    """A bar with the time left on a terminal; a line at most every five seconds, and at the end, anywhere else."""

    def __init__(self, total: int) -> None:
        self._began = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("predicting", total=total)
        self.done = 0
        """Images."""

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, done: int, of: int, name: str) -> None:
        """``done`` of ``of`` images are done, ``name`` the last."""
        from fedmedseg.core.progress import SECONDS_BETWEEN_LINES, clock

        self.done = done
        self._bar.update(self._task, completed=done, description=escape(name))
        now = time.monotonic()
        if console.is_terminal or (done < of and now - self._last_line < SECONDS_BETWEEN_LINES):
            return
        self._last_line = now
        left = (now - self._began) / done * (of - done)
        console.print(f"{done}/{of} images, {clock(left)} left", highlight=False, soft_wrap=True)


def _is_file(out: Path) -> bool:
    return out.name.endswith((".nii.gz", ".nii")) and not out.is_dir()


def require_one_map(predictor: Predictor, found: Found, out: Path) -> None:
    """Refuse to write into one file what is more than one map.

    Raises:
        ConfigurationError: it is.
    """
    sources = found.sources
    if not _is_file(out) and not out.exists() and _FILE.fullmatch(out.suffix):
        raise ConfigurationError(
            "OUT",
            got=f"{out}, which looks like a file",
            expected="a folder, or of one image a file that ends with .nii.gz or .nii",
            remedy=f"take another ending; a folder of this name must be there already (mkdir {out})",
        )
    if not _is_file(out) or (len(sources) == 1 and tuple(predictor.names) == ("",) and not predictor.points):
        return
    got = f"a file, for {len(sources)} images" if len(sources) != 1 else "a file, for a model that writes several"
    raise ConfigurationError("OUT", got=got, expected="a folder", remedy="leave .nii.gz away")


def _phases(table: Path | None, ed: str | None, es: str | None, names: list[str]) -> list[Phases]:
    from fedmedseg.data.phases import Phases, checked, read_phases

    if table is not None and (ed or es):
        raise ConfigurationError("--phases", got="a table, and --ed or --es", expected="one of the two")
    if table is not None:
        return read_phases(table, names)
    if (ed is None) != (es is None):
        raise ConfigurationError("--ed, --es", got="one of them", expected="both frames of one patient, or neither")
    if ed is None or es is None:
        return []
    return [checked(Phases("1", ed, es), names, source="--ed, --es")]


def _hearts(heart: Path | None, sources: list[Source], place: Path, predictor: Predictor) -> dict[str, Path]:
    if heart is None:
        return {}
    if not predictor.conditions:
        raise ConfigurationError(
            "--heart", got=str(heart), expected="nothing: this model sees the image alone", remedy="leave it out"
        )
    if place.is_file():
        if not heart.is_file():
            raise ConfigurationError("--heart", got=f"no file at {heart}", expected="a label map (NIfTI)")
        return {sources[0].name: heart}
    if not heart.is_dir():
        raise ConfigurationError(
            "--heart", got=f"no folder at {heart}", expected="a folder of maps named as the images"
        )
    maps = {one.name: _maps_of(one.name, heart) for one in sources}
    return {name: paths[0] for name, paths in maps.items() if paths}


def _maps_of(name: str, folder: Path) -> list[Path]:
    """The map in ``folder`` that is named as an image, if there is one.

    Raises:
        ConfigurationError: there are two, of which nobody said which is meant.
    """
    from fedmedseg.data.importers.base import VOLUME_SUFFIXES

    there = [path for ending in VOLUME_SUFFIXES if (path := folder / f"{name}{ending}").is_file()]
    if len(there) > 1:
        raise ConfigurationError(
            "--heart",
            got=" and ".join(path.name for path in there),
            expected=f"one map for the image {name}",
            remedy="take one of them out of the folder",
        )
    return there


def _tell(
    batch: Batch,
    function: dict[str, Ventricle],
    out: Path,
    predictor: Predictor,
    hearts: Mapping[str, Path],
    *,
    passed_over: int,
) -> None:
    from fedmedseg.reporting.tables import counted
    from fedmedseg.segmentation.predicted_files import FAILED

    said = f"written: {out} ({counted(len(batch.done), 'image')})"
    if not batch.done:
        said = "nothing was written" if _is_file(out) else f"nothing was written but the reasons: {out / FAILED}"
    if batch.kept or batch.anew:
        said += f"; {batch.kept} kept of an earlier call"
    if batch.anew:
        said += f", {batch.anew} done anew, since the earlier answer was to another question or not whole"
    if passed_over:
        files = "1 file that is no image was" if passed_over == 1 else f"{passed_over} files that are no images were"
        said += f"; {files} passed over"
    console.print(said, highlight=False, soft_wrap=True)
    bare = [one.name for one in batch.done if one.name not in hearts] if predictor.conditions else []
    if bare:
        console.print(
            f"[yellow]{counted(len(bare), 'image')} without the heart's structures that this model expects "
            "(--heart)[/]",
            highlight=False,
            soft_wrap=True,
        )
    if 0 < len(batch.done) <= SHOWN:
        table = Rows("image", "structure")
        table.add_column("found", justify="right")
        table.add_column("doubt")
        for one in batch.done:
            for name, volume in one.volumes.items():
                table.add_row(escape(one.name), escape(name), f"{volume.ml:.2f} ml", escape(volume.doubt or ""))
            for name, place in one.points.items():
                at = "not found" if place is None else "({:.1f}, {:.1f}, {:.1f}) mm of the world".format(*place)
                table.add_row(escape(one.name), escape(name), at)
            if one.calcium is not None:
                table.add_row(escape(one.name), "Agatston score", f"{one.calcium.agatston:.1f}")
        show(console, table)
    if function:
        _tell_function(function)
    if batch.failed:
        faults = Rows("image", "reason", title="not done")
        for name, reason in batch.failed.items():
            faults.add_row(escape(name), escape(reason))
        show(console, faults)


def _tell_function(function: dict[str, Ventricle]) -> None:
    table = Rows("patient")
    for column in ("end-diastole, ml", "end-systole, ml", "ejection fraction, %"):
        table.add_column(column, justify="right")
    table.add_column("doubt")
    for name, heart in function.items():
        share = "-" if heart.diastolic_ml <= 0 else f"{heart.ejection_fraction:.1f}"
        table.add_row(
            escape(name), f"{heart.diastolic_ml:.1f}", f"{heart.systolic_ml:.1f}", share, escape(heart.doubt or "")
        )
    show(console, table)
