"""`fedmedseg compare`: methods on equal terms, cell by cell, with one table and figures at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedmedseg.cli.completion import study_names
from fedmedseg.cli.console import Code, console, friendly_errors
from fedmedseg.core.progress import SECONDS_BETWEEN_LINES, clock

if TYPE_CHECKING:
    from fedmedseg.comparison.cells import Cell
    from fedmedseg.comparison.sites import Sites
    from fedmedseg.comparison.study import Comparison
    from fedmedseg.comparison.workers import Event

MOST_WORKERS = 64


def compare(
    study: Annotated[
        str,
        typer.Argument(
            help="A study's file, or the name of one that comes with the package.", autocompletion=study_names
        ),
    ],
    sites: Annotated[
        Path | None, typer.Option("--sites", help="Folder of site files (<site>.yaml) in place of the study's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Results, tables and figures; default: runs/compare/<study>.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Prepared volumes and running cells; default: <output>/work.")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="Only this one; may be repeated.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Only this one; may be repeated.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Cells at once; default: one a core.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Begin no cell after so many minutes.")] = 110.0,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; write the table of what there is.")] = False,
) -> None:
    """Run what is missing of a comparison, then write results.csv, results.md and figures.

    A finished cell is kept: the same call continues where the last one stopped, and runs again what was changed.
    Exit code 1: cells that were asked for failed or were not begun in time.
    """
    with friendly_errors():
        from fedmedseg.core.errors import ConfigurationError

        if workers is not None and not 1 <= workers <= MOST_WORKERS:
            raise ConfigurationError("--workers", got=workers, expected=f"1 to {MOST_WORKERS}")
        if minutes <= 0:
            raise ConfigurationError("--minutes", got=minutes, expected="a number above 0")
        # torch is imported only once there is something to run
        from fedmedseg.comparison.cells import known_methods
        from fedmedseg.comparison.study import find_comparison, read_comparison

        comparison = read_comparison(find_comparison(study))
        chosen = known_methods(comparison, methods)
        unknown = [seed for seed in seeds or () if seed not in comparison.section.seeds]
        if unknown:
            known = ", ".join(map(str, comparison.section.seeds))
            raise ConfigurationError("--seed", got=unknown[0], expected=f"of the study's: {known}")
        out = (output or Path("runs") / "compare" / comparison.section.study).resolve()
        failed = left = 0
        data_sha256: str | None = None
        if not table:
            data_sha256, failed, left = _run(
                comparison,
                out,
                work=(work or out / "work").resolve(),
                sites=sites,
                methods=chosen,
                seeds=seeds,
                workers=workers or os.cpu_count() or 1,
                minutes=minutes,
            )
        _write(comparison, out, data_sha256)
        if failed:
            console.print(f"[red]{failed} cells failed[/red]; the same call tries them again", highlight=False)
        if left:
            console.print(f"[yellow]{left} cells are left[/yellow]; the same call goes on with them", highlight=False)
        if failed or left:
            raise typer.Exit(Code.LOOK)


def _run(
    comparison: Comparison,
    out: Path,
    *,
    work: Path,
    sites: Path | None,
    methods: list[str] | None,
    seeds: list[int] | None,
    workers: int,
    minutes: float,
) -> tuple[str, int, int]:
    """Trials first, then the cells whose settings they settle; the data's digest, how many of all these failed, and how
    many of them that were asked for are neither there nor failed.
    """
    from fedmedseg.comparison.cells import cells_of, is_current, trials_of, wanted
    from fedmedseg.comparison.sites import prepare_sites

    role = comparison.experiment(comparison.section.reference).data.role
    prepared = prepare_sites(comparison, role=role, work=work, sites=sites)
    data_sha256 = prepared.sha256
    ends = time.monotonic() + 60 * minutes
    failed = 0
    kinds = (
        lambda: trials_of(comparison, out, methods=methods),
        lambda: cells_of(comparison, out, methods=methods, seeds=seeds, data_sha256=data_sha256),
    )
    for cells in kinds:
        every = cells()
        missing = [cell for cell in every if not is_current(cell, data_sha256)]
        if not every:
            continue
        what = "trials" if every[0].trial is not None else "cells"
        console.print(f"{len(missing)} of {len(every)} {what} are missing", highlight=False)
        left = (ends - time.monotonic()) / 60
        if missing and left > 0:
            failed += _work(missing, prepared, work, workers=workers, minutes=left)
    asked = len(kinds[0]()) + wanted(comparison, methods=methods, seeds=seeds)
    there = sum(is_current(cell, data_sha256) for cells in kinds for cell in cells())
    return data_sha256, failed, asked - there - failed


def _work(cells: Sequence[Cell], sites: Sites, work: Path, *, workers: int, minutes: float) -> int:
    from fedmedseg.comparison.run import Job, run_cell
    from fedmedseg.comparison.workers import work_on

    jobs = [Job(cell, sites.files, sites.sha256, sites.salt, work) for cell in cells]
    failed = 0
    try:
        with CellDisplay({job.cell.name: job.cell.weight(len(sites.files)) for job in jobs}, workers) as display:
            for event in work_on(run_cell, jobs, workers=workers, minutes=minutes):
                failed += event.kind == "failed"
                display.show(event)
    except KeyboardInterrupt:
        console.print("interrupted; finished cells are kept, and the same call continues", highlight=False)
        raise
    return failed


def _write(comparison: Comparison, out: Path, data_sha256: str | None) -> None:
    from fedmedseg.comparison.cells import cells_of, read_results, wanted
    from fedmedseg.comparison.figures import figure_files
    from fedmedseg.comparison.tables import csv_text, grouped, markdown_text
    from fedmedseg.core.atomic import write_atomic

    results = read_results(cells_of(comparison, out, data_sha256=data_sha256), data_sha256)
    groups = grouped(comparison, results)
    missing = wanted(comparison) - len(results)
    write_atomic(out / "results.csv", csv_text(comparison, groups).encode())
    text = markdown_text(comparison, groups, missing=missing)
    write_atomic(out / "results.md", text.encode())
    for name, content in figure_files(comparison, groups).items():
        write_atomic(out / name, content)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written: {out / 'results.csv'}, results.md and figures", highlight=False, soft_wrap=True)


class CellDisplay:
    """A bar over all cells on a terminal; a line for every cell that begins or ends, and its time left, anywhere else.

    Args:
        weights: cell -> its share of the work, in steps.
        workers: cells at once.
    """

    def __init__(self, weights: dict[str, float], workers: int) -> None:
        self._weights, self._workers = weights, workers
        self._done: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._began = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=sum(weights.values()), left="")

    def __enter__(self) -> CellDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def left(self) -> float | None:
        """Seconds left at the pace of the cells that ended, None before one did."""
        # a failed one says nothing of the pace
        weight = sum(self._weights[name] for name, seconds in self._done.items() if seconds)
        if not weight:
            return None
        pace = sum(self._done.values()) / weight
        busy = time.monotonic()
        waiting = sum(pace * one for name, one in self._weights.items() if name not in self._done | self._running)
        for name, began in self._running.items():
            waiting += max(0.0, pace * self._weights[name] - (busy - began))
        return waiting / min(self._workers, max(1, len(self._weights) - len(self._done)))

    def show(self, event: Event) -> None:
        """Take what became of a cell into account."""
        now = time.monotonic()
        if event.kind == "begun":
            self._running[event.piece.cell.name] = now
        elif event.kind in ("done", "failed"):
            name = event.piece.cell.name
            self._running.pop(name)
            self._done[name] = event.seconds if event.kind == "done" else 0.0
            if event.kind == "failed":
                console.print(f"[red]{name} failed:[/red]", highlight=False)
                console.print(event.problem.strip(), highlight=False, markup=False, soft_wrap=True)
        seconds = self.left()
        left = "time left not known yet" if seconds is None else f"{clock(seconds)} left"
        names = ", ".join(self._running) or "-"
        self._bar.update(
            self._task, completed=sum(self._weights[name] for name in self._done), description=names, left=left
        )
        due = event.kind == "done" or now - self._last_line >= 12 * SECONDS_BETWEEN_LINES
        if not console.is_terminal and due:
            self._last_line = now
            head = f"{clock(now - self._began)}  {len(self._done)} of {len(self._weights)} cells done"
            ended = f", {event.piece.cell.name} in {event.seconds:.0f} s" if event.kind == "done" else ""
            console.print(f"{head}{ended}; running: {names} ({left})", highlight=False, soft_wrap=True)
