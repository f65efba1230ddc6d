"""`fedmedseg report`: a run's report once more from its record, and against the run before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmedseg.cli.console import console, friendly_errors
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
) -> None:
    """Write the page of a run that has ended, or that still runs, from its record alone."""
    with friendly_errors():
        # matplotlib is loaded only once there is something to draw
        from fedmedseg.reporting.report import read_record, write_report
        from fedmedseg.reporting.tables import plain_text_summary

        whole = read_record(record, option="RECORD")
        earlier = None if previous is None else read_record(previous, option="--previous")
        folder = out or (record if record.is_dir() else record.parent)
        try:
            page = write_report(whole, folder, previous=earlier)
        except OSError as error:
            raise ConfigurationError(
                "--out",
                got=f"{folder} ({type(error).__name__})",
                expected="a folder that can be written",
                remedy="choose another",
            ) from None
    console.print(plain_text_summary(whole), highlight=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
