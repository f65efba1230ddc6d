"""The console of the ``fedmedseg`` command and the one way in which its commands fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fedmedseg.core.errors import FedMedSegError

if TYPE_CHECKING:
    from fedmedseg.core.findings import Finding

EXIT_CODE = 2
"""What a command that refused its input returns to the shell."""
LEVELS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}
"""Levels of findings, and their colours."""
MOST_CASES = 10
"""Cases shown of one finding; JSON has all."""
MOST_TEXT = 400
"""Characters shown of one cell; JSON has all."""

console = Console()
errors = Console(stderr=True)


def fail(error: FedMedSegError | str) -> NoReturn:
    """Say in red on stderr what was wrong and how to mend it, and end with code 2."""
    errors.print(f"[bold red]Error:[/] [red]{escape(str(error))}[/]", highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_CODE)


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Errors a user can act on become ``fail``; any other error keeps its traceback, for it is ours to mend."""
    try:
        yield
    except FedMedSegError as error:
        fail(error)


def progress_bar() -> Progress:
    """A progress display that is silent where nobody watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def show_findings(title: str, findings: Sequence[Finding], *, names: bool = False) -> None:
    """A table of what checks found.

    Args:
        title: what was checked.
        findings: a row each.
        names: show names of files and patients instead of their salted keys.
    """
    table = Table("check", "", "found", "mend", title=escape(title), box=box.SIMPLE_HEAD)
    for one in findings:
        status = f"[{LEVELS[one.level.name]}]{one.level.name}[/]"
        cases = one.names if names else one.cases
        more = f", and {len(cases) - MOST_CASES} more" if len(cases) > MOST_CASES else ""
        told = f"\n{', '.join(cases[:MOST_CASES])}{more}" if cases else ""
        table.add_row(one.check, status, escape(_short(one.found) + told), escape(_short(one.mend)))
    console.print(table)


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ... (all of it with --json)"
