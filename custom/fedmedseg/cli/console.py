"""The console of the ``fedmedseg`` command and the one way in which its commands fail."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fedmedseg.cli.rows import Rows, show
from fedmedseg.core.errors import FedMedSegError
from fedmedseg.core.progress import SECONDS_BETWEEN_LINES

if TYPE_CHECKING:
    from fedmedseg.core.findings import Finding


class Code(IntEnum):
    """What a command returns to the shell, as docs/commands.md says; the levels of findings are the first three."""

    DONE = 0
    LOOK = 1
    """Done, with something to look at."""
    MEND = 2
    """Nothing was done, or something must be mended."""
    INTERRUPTED = 130
    """What a shell says of a program that Ctrl-C has ended."""


LEVELS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}
"""Levels of findings, and their colours."""
MOST_CASES = 10
"""Cases shown of one finding; JSON has all."""
MOST_TEXT = 400
"""Characters shown of one cell; JSON has all."""

NARROW = 72
"""Columns below which things stand below one another."""

console = Console()
errors = Console(stderr=True)


def tell(error: FedMedSegError | str) -> None:
    """Say in red on stderr what was wrong and how to mend it."""
    errors.print(f"[bold red]Error:[/] [red]{escape(str(error))}[/]", highlight=False, soft_wrap=True)


def fail(error: FedMedSegError | str) -> NoReturn:
    """Say what was wrong, and end with code 2."""
    tell(error)
    raise typer.Exit(Code.MEND)


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Errors a user can act on become ``fail``; any other error keeps its traceback, for it is ours to mend."""
    try:
        yield
    except FedMedSegError as error:
        fail(error)


class Steps:
    """How far something long is: bars on a terminal; elsewhere lines on stderr, one at each beginning and each end and
    at most every five seconds in between."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._last_line = 0.0

    def __enter__(self) -> Steps:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def add_task(self, description: str, *, total: int | None = None) -> TaskID:
        """A bar of its own. ``total``: how many steps it has, where that is known already."""
        return self._bars.add_task(description, total=total)

    def update(self, task: TaskID, *, completed: int, total: int | None = None) -> None:
        """So many steps of a task are done."""
        self._bars.update(task, completed=completed, total=total)
        (found,) = (one for one in self._bars.tasks if one.id == task)
        of = None if found.total is None else int(found.total)
        if completed in (1, of) or time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self.say(f"{found.description}: {completed}" + ("" if of is None else f" of {of}"))

    def say(self, text: str) -> None:
        """A line at once where there is no terminal: what comes next has no steps to count yet."""
        if not console.is_terminal:
            self._last_line = time.monotonic()
            errors.print(text, highlight=False, soft_wrap=True, markup=False)


def example(*lines: str) -> str:
    """The end of a command's help: calls as they are typed, which tests read and, where that takes seconds, run."""
    # click wraps a paragraph unless a line with this mark stands before it
    return "\b\n" + "\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *(f"  {line}" for line in lines)])


def progress_bar() -> Steps:
    """The display of one long piece of work."""
    return Steps()


def next_step(*words: object) -> None:
    """Tell the command to type next, quoted so that a shell takes it as it is printed."""
    line = shlex.join(str(word) for word in words)
    console.print(f"next: {line}", highlight=False, soft_wrap=True, markup=False)


def workspace_beside(out: Path, name: str) -> Path:
    """A workspace for ``next_step``: beside ``out``, or elsewhere where that path has a space, which FLARE refuses."""
    places = (out.parent / name, Path("runs") / "-".join(name.split()))
    plain = (place for place in places if not any(map(str.isspace, str(place.resolve()))))
    return next(plain, Path.home() / "fedmedseg-runs" / places[-1].name)


def show_findings(title: str, findings: Sequence[Finding], *, names: bool = False) -> None:
    """A table of what checks found.

    Args:
        title: what was checked.
        findings: a row each.
        names: show names of files and patients instead of their salted keys.
    """
    table = Rows("check", "", "found", "mend", title=escape(title))
    for one in findings:
        status = f"[{LEVELS[one.level.name]}]{one.level.name}[/]"
        cases = one.names if names else one.cases
        more = f", and {len(cases) - MOST_CASES} more" if len(cases) > MOST_CASES else ""
        told = f"\n{', '.join(cases[:MOST_CASES])}{more}" if cases else ""
        table.add_row(one.check, status, escape(_short(one.found) + told), escape(_short(one.mend)))
    show(console, table)


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ... (all of it with --json)"
