"""`fedmedseg report`: a run's report once more from its record, and against the run before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmedseg.cli.console import console, friendly_errors
from fedmedseg.cli.new_file import writing
from fedmedseg.core.errors import ConfigurationError


def report(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="A run's report folder, or the report.json or run.json in it.")
    ],
    previous: Annotated[
        Path | None, typer.Option("--previous", help="The same of an earlier run, which this one is compared with.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to write to. Default: RECORD's own, whose page is replaced."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page in an --out that holds files.")] = False,
) -> None:
    """Write the page of a run that has ended, or that still runs, from its record alone."""
    with friendly_errors():
        # matplotlib is loaded only once there is something to draw
        from fedmedseg.reporting.record_file import read_record
        from fedmedseg.reporting.report import write_report
        from fedmedseg.reporting.scores import previous_lines
        from fedmedseg.reporting.summary import plain_text_summary

        whole = read_record(record, option="RECORD")
        earlier = None if previous is None else read_record(previous, option="--previous")
        own = record if record.is_dir() else record.parent
        folder = out or own
        if not force and folder.resolve() != own.resolve() and folder.is_dir() and any(folder.iterdir()):
            raise ConfigurationError(
                "--out",
                got=f"{folder}, which holds files",
                expected="a new or empty folder, or RECORD's own",
                remedy="--force replaces the page in it",
            )
        with writing(folder, expected="a folder that can be written"):
            page = write_report(whole, folder, previous=earlier)
    console.print(plain_text_summary(whole, console.width), highlight=False, soft_wrap=True)
    if earlier is not None:
        for line in previous_lines(whole, earlier):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
