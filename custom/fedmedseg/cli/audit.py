"""`fedmedseg audit`: what a participant refused and allowed, and whether its trail is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fedmedseg.cli.console import Code, console, friendly_errors
from fedmedseg.cli.rows import Rows, show
from fedmedseg.core.audit import FOLDER, read
from fedmedseg.core.audit import verify as verify_trail

COLOURS = {"allowed": "green", "refused": "bold red", "declined": "yellow", "failed": "yellow"}


def audit(
    kit: Annotated[Path, typer.Argument(help="Folder of a startup kit that has been started.")],
    verify: Annotated[bool, typer.Option("--verify", help="Follow the chain of all lines; code 2 if broken.")] = False,
    known: Annotated[
        str | None, typer.Option("--known", help="With --verify: a digest noted earlier that must still be there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    last: Annotated[int, typer.Option("--last", min=1, help="How many lines to show, from the end.")] = 20,
) -> None:
    """Show a kit's audit trail: every refusal, and what was allowed that has consequences.

    Each line names the digest of the one before. Note the last digest outside this machine now and then: nothing
    else shows that the trail's end was cut.
    """
    with friendly_errors():
        entries = read(kit / FOLDER, last=last)
        found = verify_trail(kit / FOLDER, known=known) if verify or known is not None else None
    if as_json:
        report = {"entries": entries, "verification": None if found is None else found.__dict__}
        typer.echo(json.dumps(report, indent=2))
    else:
        show = _table if console.is_terminal else _lines
        show(entries)
        if found is not None:
            console.print(f"lines {found.first} to {found.last}; digest of the last: {found.digest}", highlight=False)
            for problem in found.problems:
                console.print(f"[bold red]broken:[/] {escape(problem)}", highlight=False)
            if found.let_go:
                console.print(f"lines up to {found.let_go} were let go: the trail's size is bounded", highlight=False)
    raise typer.Exit(Code.MEND if found is not None and found.problems else Code.DONE)


def _table(entries: Sequence[Mapping[str, Any]]) -> None:
    """For a person: nothing is cut, however narrow the terminal."""
    table = Rows("line", "time (UTC)", "who", "action", "", "job", "reason")
    for one in entries:
        outcome = f"[{COLOURS.get(one['outcome'], 'red')}]{escape(one['outcome'])}[/]"
        words = (escape(str(one[key])) for key in ("who", "action"))
        job, reason = escape(one["job"][:8]), escape(one["reason"])
        table.add_row(str(one["number"]), escape(one["time"][:19]), *words, outcome, job, reason)
    show(console, table)


def _lines(entries: Sequence[Mapping[str, Any]]) -> None:
    """For a file or another program: a line each, whole."""
    for one in entries:
        words = [
            str(one["number"]),
            one["time"][:19],
            *(one[key] for key in ("who", "action", "outcome", "job", "reason")),
        ]
        console.print("  ".join(word or "-" for word in words), highlight=False, markup=False, soft_wrap=True)
