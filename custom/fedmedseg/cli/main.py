"""The `fedmedseg` command."""

from __future__ import annotations

from typing import Annotated

import typer

import fedmedseg
from fedmedseg.cli.approval import approval
from fedmedseg.cli.audit import audit
from fedmedseg.cli.compare import compare
from fedmedseg.cli.console import console
from fedmedseg.cli.data import data_app
from fedmedseg.cli.encoder import encoder_app
from fedmedseg.cli.federation import federation
from fedmedseg.cli.foundation import foundation_app
from fedmedseg.cli.fuse import fuse_app
from fedmedseg.cli.job import job
from fedmedseg.cli.preflight import preflight
from fedmedseg.cli.resume import resume
from fedmedseg.cli.simulate import simulate
from fedmedseg.cli.site_policy import site_policy

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(simulate)
app.command()(compare)
app.command()(job)
app.command()(federation)
app.command()(resume)
app.command()(preflight)
app.command("site-policy")(site_policy)
app.command()(audit)
app.command()(approval)
app.add_typer(data_app, name="data", help="Import, check and generate data.")
app.add_typer(encoder_app, name="encoder", help="Pretrained encoders from other people's weight files.")
app.add_typer(foundation_app, name="foundation", help="Networks of a cardiac CT run that others start from.")
app.add_typer(fuse_app, name="fuse", help="Models of sites that mark different organs, used as one.")


def _version(wanted: bool) -> None:
    if wanted:
        console.print(fedmedseg.__version__, highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federated medical image segmentation on NVIDIA FLARE."""


def main() -> None:
    """Entry point of the console script."""
    app()
