"""Commands as a person types them: split as a shell does it, and bound to the parameters of what they call."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import typer.main
from typer.testing import CliRunner

from fedmedseg.cli.main import app


def words_of(line: str) -> list[str]:
    """The words after `fedmedseg`."""
    first, *words = shlex.split(line)
    assert first == "fedmedseg", line
    return words


def bound(words: list[str]) -> Any:
    """The context that a call of these words would run in; nothing is run.

    Raises:
        typer.BadParameter, or another of click's usage errors: an unknown command or option, a missing argument, ...
    """
    command: Any = typer.main.get_command(app)
    name, context = "fedmedseg", None
    while hasattr(command, "commands"):
        # what a group leaves of its words begins with the name of its command
        context = command.make_context(name, list(words), parent=context)
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    return command.make_context(name, list(words), parent=context)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def next_lines(output: str) -> list[str]:
    """The commands that an output says to type next."""
    return [line.removeprefix("next: ") for line in output.splitlines() if line.startswith("next: ")]


def call(*words: object, **options: object) -> tuple[int, str]:
    """Exit code and everything said, lines as they are."""
    result = CliRunner().invoke(app, [str(word) for word in words], **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
