"""The `fedmedseg` command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import fedmedseg
from fedmedseg.cli.approval import approval
from fedmedseg.cli.audit import audit
from fedmedseg.cli.compare import compare
from fedmedseg.cli.console import console, example
from fedmedseg.cli.data import data_app
from fedmedseg.cli.encoder import encoder_app
from fedmedseg.cli.export import export
from fedmedseg.cli.federation import federation
from fedmedseg.cli.foundation import foundation_app
from fedmedseg.cli.fuse import fuse_app
from fedmedseg.cli.init import init
from fedmedseg.cli.job import job
from fedmedseg.cli.monitor import monitor
from fedmedseg.cli.predict import predict
from fedmedseg.cli.preflight import preflight
from fedmedseg.cli.report import report
from fedmedseg.cli.resume import resume
from fedmedseg.cli.simulate import simulate
from fedmedseg.cli.site_policy import site_policy

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
COMMANDS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "init": (init, ["fedmedseg init heart --system fedata --sites hospital-1,hospital-2,hospital-3"]),
    "simulate": (
        simulate,
        [
            "fedmedseg simulate fedata -w runs/trial",
            "fedmedseg simulate fedata --preset sunnybrook --sites runs/sunnybrook/sites -w runs/fedata-sunnybrook",
        ],
    ),
    "compare": (
        compare,
        [
            "fedmedseg compare phantoms_small",
            "fedmedseg compare sunnybrook --sites runs/sunnybrook/sites --minutes 110",
        ],
    ),
    "job": (
        job,
        ["fedmedseg job --list", "fedmedseg job fedata --preset fed_mae --min-clients 3 --out runs/fedata-job"],
    ),
    "federation": (federation, ["fedmedseg federation fedata --sites 3 --out runs/federation"]),
    "monitor": (
        monitor,
        [
            "fedmedseg monitor 3f1c8a52-7d0e-4a1b-9c55-0d6f2b8e4a10 --startup-kit kits/lead@example.org",
            "fedmedseg monitor 3f1c8a52-7d0e-4a1b-9c55-0d6f2b8e4a10 --startup-kit kits/lead@example.org --once",
        ],
    ),
    "resume": (
        resume,
        ["fedmedseg resume 3f1c8a52-7d0e-4a1b-9c55-0d6f2b8e4a10 --startup-kit kits/lead@example.org"],
    ),
    "report": (
        report,
        [
            "fedmedseg report runs/trial/server/simulate_job/report",
            "fedmedseg report results/report --previous earlier/report --out compared",
        ],
    ),
    "predict": (
        predict,
        [
            "fedmedseg predict models/shared.safetensors scans/ predictions/",
            "fedmedseg predict models/shared.safetensors scan.nii.gz scan_labels.nii.gz --flips",
            "fedmedseg predict personal.safetensors frames/ predictions/ --phases phases.csv",
        ],
    ),
    "export": (
        export,
        [
            "fedmedseg export models/shared.safetensors --to monai-bundle --out bundle",
            "fedmedseg export personal.safetensors --to onnx --out onnx --run report/",
        ],
    ),
    "preflight": (preflight, ["fedmedseg preflight kits/hospital-1 --experiment fedata"]),
    "site-policy": (site_policy, ["fedmedseg site-policy --check kits/hospital-1"]),
    "audit": (audit, ["fedmedseg audit kits/hospital-1 --verify"]),
    "approval": (
        approval,
        ["fedmedseg approval kits/hospital-1", "fedmedseg approval kits/hospital-1 --approve 1f2e3d4c"],
    ),
}
"""Commands by name, each with the calls that its help shows."""
for _name, (_call, _lines) in COMMANDS.items():
    app.command(_name, epilog=example(*_lines))(_call)
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
