"""`fedmedseg preflight`: can this site take part, and what must be mended first?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fedmedseg.cli.console import LEVELS, Code, console, errors, friendly_errors, show_findings
from fedmedseg.core.errors import ConfigurationError


def preflight(
    target: Annotated[Path, typer.Argument(metavar="KIT_OR_SITE_FILE", help="A startup kit, or a site file (YAML).")],
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", help="A study (experiment.yaml or a job) to check against; else what needs none."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON on standard output.")] = False,
    data: Annotated[bool, typer.Option("--data/--no-data", help="Read every volume of every list, or none.")] = True,
    names: Annotated[
        bool, typer.Option("--names", help="Show names of files and patients; at the site's own terminal only.")
    ] = False,
) -> None:
    """Check machine, packages, GPU, memory, disk, clock, certificates, network, policy and data of a site.

    Cases appear as the salted keys of the site's logs. Ends with code 0 where all is well, 1 with warnings, 2 where
    something must be mended first.
    """
    with friendly_errors():
        if names and (as_json or not sys.stdout.isatty()):
            raise ConfigurationError(
                "--names",
                got="JSON" if as_json else "output that goes to a file or another program",
                expected="a terminal, so that names of patients are seen and not kept",
                remedy="leave --names out; cases are then told apart by salted keys",
            )
        # torch and what reads volumes is loaded only here: the command line stays quick
        from fedmedseg.core.findings import worst
        from fedmedseg.preflight.run import find_experiment, preflight

        study = find_experiment(experiment) if experiment is not None else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
            tasks: dict[str, TaskID] = {}

            def tick(role: str, done: int, of: int) -> None:
                if role not in tasks:
                    tasks[role] = bar.add_task(f"reading {role}")
                bar.update(tasks[role], completed=done, total=of)

            findings = preflight(target, experiment=study, with_data=data, tick=tick)
    level = worst(findings)
    if as_json:
        typer.echo(json.dumps({"result": level.name, "findings": [one.plain() for one in findings]}, indent=2))
    else:
        show_findings(str(target), findings, names=names)
        if study is None:
            console.print("memory and sizes on disk were not estimated: add --experiment", highlight=False)
        if not data:
            console.print("no volume was read: leave --no-data out once before the study begins", highlight=False)
        counted = {name: sum(one.level.name == name for one in findings) for name in LEVELS}
        console.print(", ".join(f"{n} {name}" for name, n in counted.items()), highlight=False)
    raise typer.Exit(Code(level))
