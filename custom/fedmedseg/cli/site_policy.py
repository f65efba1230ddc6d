"""`fedmedseg site-policy`: is a startup kit still as safe as it was made?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedmedseg.cli.console import Code, friendly_errors, show_findings


def site_policy(
    check: Annotated[Path, typer.Option("--check", help="Folder of a startup kit.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="The federation's rootCA.pem, from another source than the kit.")
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option("--wheel", help="The package's wheel, to compare with the one the kit names.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON on standard output.")] = False,
) -> None:
    """Prove that a startup kit still is as safe as it was made: identity, classes, rights, privacy, stores.

    Ends with code 0 where all is well, 1 with warnings, 2 where something is weaker.
    """
    with friendly_errors():
        # FLARE is loaded only here: the command line stays quick
        from fedmedseg.core.findings import worst
        from fedmedseg.provisioning.check import check_kit

        findings = check_kit(check, trusted_root=root, wheel=wheel)
    level = worst(findings)
    if as_json:
        report = {"kit": str(check), "result": level.name, "findings": [one.plain() for one in findings]}
        typer.echo(json.dumps(report, indent=2))
    else:
        show_findings(str(check), findings)
    raise typer.Exit(Code(level))
