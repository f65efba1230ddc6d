"""Every command's help has an example that can be typed; exit codes are as documented; shells can complete."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typed import bound, call, commands, words_of

from fedmedseg.cli.console import Code
from fedmedseg.core.findings import Level

ROOT = Path(__file__).parents[2]
COMMANDS = {" ".join(path): command for path, command in commands()}
BIN = Path(sys.executable).parent


def examples(command: Any) -> list[str]:
    """The calls that a command's help shows."""
    return [one.strip() for one in (command.epilog or "").splitlines() if one.startswith("  ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example_that_can_be_typed(name: str) -> None:
    code, said = call(*name.split(), "--help", env={"COLUMNS": "200"})
    assert code == 0
    found = examples(COMMANDS[name])
    assert found, "an epilog with a call"
    assert COMMANDS[name].help, "a sentence on what it does"
    assert "Example" not in COMMANDS[name].help, "where no test reads it"
    for one in found:
        assert one.startswith(f"fedmedseg {name} ")
        assert f"  {one}\n" in said, "each in a line of its own, not wrapped"
        if "--list" not in shlex.split(one) or name != "job":
            assert bound(words_of(one)).command.name == name.split()[-1]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["job", "--list"], 0),
        (["simulate"], 2),
        (["simulate", "fedatta"], 2),
        (["simulate", "fedata", "--no-such-option"], 2),
        (["no-such-command"], 2),
        (["fuse", "predict", "x", "o.nii", "--models", "m", "--how", "guess"], 2),
        (["data", "check", "nowhere.json"], 2),
    ],
)
def test_an_exit_code_means_what_its_page_says(words: list[str], code: int) -> None:
    assert call(*words)[0] == code


def test_the_page_of_commands_documents_every_exit_code_of_the_command_line() -> None:
    section = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").split("## Exit codes")[1].split("\n## ")[0]
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == set(Code)
    assert set(Level) < set(Code)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "custom" / "fedmedseg" / "cli").glob("*.py")), ids=lambda file: file.stem
)
def test_every_exit_code_of_a_command_is_one_by_name(file: Path) -> None:
    """So that the page, which has them all, has those of every command."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in {
            "typer.Exit",
            "sys.exit",
            "SystemExit",
            "exit",
        }:
            continue
        (given,) = node.args
        for code in (given.body, given.orelse) if isinstance(given, ast.IfExp) else (given,):
            assert re.fullmatch(r"Code\.[A-Z]+|Code\(level\)", ast.unparse(code)), ast.unparse(node)


def completed(words: str, environment: dict[str, str]) -> list[str]:
    asked = {"_FEDMEDSEG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [str(BIN / "fedmedseg")], env={**environment, **asked}, text=True, capture_output=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_a_plain_bash_completes_commands_and_options(tmp_path: Path) -> None:
    """Without Debian's package bash-completion: the script needs nothing but bash's own `complete`."""
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    install = 'fedmedseg --install-completion && bash --norc -c "source ~/.bashrc && complete -p fedmedseg"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{install}; true"],
        env=environment, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "-F _fedmedseg_completion fedmedseg" in done.stdout, done.stdout + done.stderr
    assert completed("fedmedseg si", environment) == ["simulate", "site-policy"]
    assert "--min-clients" in completed("fedmedseg job --m", environment)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fedmedseg simulate fedc", ["fedcrld"]),
        ("fedmedseg job fedata --preset fed_", ["fed_mae", "fed_simmim"]),
        ("fedmedseg init heart --system fedata --preset fed_m", ["fed_mae"]),
        ("fedmedseg federation fcl --preset fed", ["fedsimclr"]),
        ("fedmedseg federation seg", ["segviz"]),
        ("fedmedseg init heart --system fclo", ["fclopt"]),
        ("fedmedseg compare phantoms_", ["phantoms_small"]),
    ],
)
def test_names_of_jobs_presets_and_studies_are_completed(words: str, offered: list[str]) -> None:
    assert completed(words, dict(os.environ)) == offered


def test_a_preset_of_another_job_is_not_offered() -> None:
    own = completed("fedmedseg simulate fedata --preset ", dict(os.environ))
    every = completed("fedmedseg simulate --preset ", dict(os.environ))
    assert "fed_mae" in own
    assert set(own) < set(every)
    assert completed("fedmedseg simulate fedatta --preset ", dict(os.environ)) == []
