"""What a person sees who has no terminal: lines on stderr, early and few; and the command to type next."""

from __future__ import annotations

import shlex
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from fedmedseg.cli import console, display
from fedmedseg.cli.console import next_step, progress_bar, workspace_beside
from fedmedseg.cli.display import Display
from fedmedseg.core.jobs import find_job, read_settings


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    monkeypatch.setattr(display, "time", made)
    return made


def test_without_a_terminal_steps_are_told_on_stderr_at_both_ends_and_every_five_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar() as bar:
        bar.say("reading a set")
        task = bar.add_task("reading")
        for done in range(1, 101):
            clock.now += 0.5
            bar.update(task, completed=done, total=100)
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert lines[:2] == ["reading a set", "reading: 1 of 100"]
    assert lines[2:4] == ["reading: 11 of 100", "reading: 21 of 100"]
    assert lines[-1] == "reading: 100 of 100"
    assert len(lines) == 12


def events(stage: str, round: int, steps: int) -> list[dict[str, object]]:
    return [
        {
            "time": 0.0, "site": "site-1", "stage": stage, "round": round, "rounds": 3, "work": stage, "step": step,
            "steps": steps, "loss": 0.5, "left": None,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip


@pytest.fixture
def lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """A run without a terminal: a minute in which no site tells anything, three rounds, two minutes of silence."""
    _, experiment = read_settings(find_job("fedata"), [])
    with Display(experiment, sites=2, threads=1) as shown:
        for _ in range(120):
            clock.now += 0.5
            shown.wait()
        for round in range(3):
            for event in events("pretraining", round, 20):
                clock.now += 0.3
                shown.show(event)
        for _ in range(240):
            clock.now += 0.5
            shown.wait()
    return capsys.readouterr().out.splitlines()


def test_a_run_without_a_terminal_gives_a_sign_of_life_from_its_first_second(lines: list[str]) -> None:
    assert lines[0].startswith("0:00  starting")
    silent = [line for line in lines if "no site has told" in line]
    assert [line.split()[0] for line in silent] == ["0:10", "0:30"], "ten seconds, then twice as long"


def test_every_round_is_told_at_once_and_no_step_more_than_every_five_seconds(lines: list[str]) -> None:
    told = [line.split("pretraining ")[1].split(" loss")[0] for line in lines if "step" in line]
    first: dict[str, int] = {}
    for one in told:
        round, step = one.removesuffix("/20").split(" step ")
        first.setdefault(round, int(step))
    # a round that begins less than a second after a line of the one before waits for the rest of that second
    assert list(first) == ["round 1/3", "round 2/3", "round 3/3"]
    assert first["round 1/3"] == 1
    assert max(first.values()) <= 4, "of 0.3 s each"
    assert len(told) <= 7, "sixty steps of 0.3 s in three rounds"


def test_silence_in_a_run_is_told_ever_more_seldom(lines: list[str]) -> None:
    assert sum("nothing new to tell" in line for line in lines) == 3


def test_rounds_of_a_moment_do_not_get_a_line_each(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _, experiment = read_settings(find_job("fedata"), [])
    with Display(experiment, sites=1, threads=1) as shown:
        for round in range(100):
            clock.now += 0.1
            shown.show(events("pretraining", round, 1)[0])
    assert len(capsys.readouterr().out.splitlines()) <= 12


def test_a_run_that_goes_on_is_never_shown_as_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _, experiment = read_settings(find_job("fedata"), [])
    with Display(experiment, sites=1, threads=1) as shown:
        for stage, section in experiment.stages.items():
            for round in range(section.rounds):
                for event in events(stage, round, 500)[-2:]:
                    clock.now += 0.1
                    shown.show(event | {"time": clock.now})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("(99%, nearly done)"), last


@pytest.mark.parametrize("width", [40, 100])
def test_nothing_of_a_run_is_cut_off_in_a_narrow_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    terminal = Console(file=StringIO(), force_terminal=True, width=width, legacy_windows=False)
    monkeypatch.setattr(display, "console", terminal)
    _, experiment = read_settings(find_job("fedata"), [])
    event = events("pretraining", 0, 20)[4] | {"site": "university-hospital-north"}
    with Display(experiment, sites=2, threads=1) as shown:
        clock.now += 1.0
        shown.show(event)
        shown._bar.refresh()
        said = " ".join(Text.from_ansi(terminal.file.getvalue()).plain.split())
    assert "\N{HORIZONTAL ELLIPSIS}" not in said
    for words in ("university-hospital-north", "pretraining", "round 1/3 step", "5/20 loss 0.5000", "%"):
        assert words in said
    assert "left" in said


def test_the_next_command_is_printed_as_a_shell_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    next_step("fedmedseg", "data", "check", Path("a folder") / "[bold]x.yaml")
    line = capsys.readouterr().out
    assert line == "next: fedmedseg data check 'a folder/[bold]x.yaml'\n"
    assert shlex.split(line)[-1] == "a folder/[bold]x.yaml"


def test_a_workspace_to_name_next_has_no_space_in_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert workspace_beside(tmp_path / "out", "fedata-out") == tmp_path / "fedata-out"
    assert workspace_beside(tmp_path / "my data" / "out", "fedata-out") == Path("runs") / "fedata-out"
    assert workspace_beside(tmp_path / "my out", "fedata-my out") == Path("runs") / "fedata-my-out"
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path / "my data")
    assert workspace_beside(Path("out"), "fedata-out") == tmp_path / "fedmedseg-runs" / "fedata-out"
