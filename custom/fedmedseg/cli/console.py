"""The console of the ``fedmedseg`` command and the one way in which its commands fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from fedmedseg.core.errors import FedMedSegError

EXIT_CODE = 2
"""What a command that refused its input returns to the shell."""

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
