"""`fedmedseg monitor`: where a job of a running federation is, by FLARE's own admin API."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedmedseg.cli.console import NARROW, Code, console, friendly_errors
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.live import AT_WORK
from fedmedseg.core.progress import clock

SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_UNANSWERED = 15.0
"""A server process that is still loading its job logs an error for every question: until then it is asked less."""
SECONDS_GONE, SECONDS_BETWEEN_TRIES = 15.0, 1.0
"""A server that answers nothing for so long is taken for gone: on a busy machine it misses single questions."""
MOST_METRICS, MOST_NAMED = 6, 8
FEW = "figures are told from three sites on"
STILL = "at work, or waiting for its own people's approval: a site does not tell which"


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown of a job at one moment."""

    job: str
    status: str
    study: Mapping[str, Any] | None = None
    """What the study tells of itself (``core.live.status``); None before its first round and after its last."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """Site -> when the server last heard of it, by the server's clock."""
    needed: int | None = None
    """Sites that must be connected before the server starts the job; None once it was scheduled."""
    tried: str = ""
    """What the server's last try to schedule it came to, in FLARE's words."""

    @property
    def unscheduled(self) -> list[str]:
        """Of a job that the server has not started: who is there, who must be, and why it waits. A line each."""
        if self.needed is None:
            return []
        here = f"{len(self.seen)} of at least {self.needed} site{'s' if self.needed > 1 else ''} connected"
        if len(self.seen) < self.needed:
            return [f"{here}: the job starts once the others are"]
        said = [f"{here}: the server has not scheduled it yet"]
        return [*said, f"its last try: {self.tried}" if self.tried else "another job may run, or it was only just sent"]

    @property
    def unanswered(self) -> list[str]:
        """Sites that were asked in this round and have sent nothing."""
        return sorted(name for name, state in (self.study or {}).get("sites", {}).items() if state == AT_WORK)

    @property
    def sites(self) -> list[tuple[str, str, str]]:
        """Name, state and last sign of life of every site that is connected or was asked."""
        states = dict(self.study["sites"]) if self.study else {}
        now = float(self.study["time"]) if self.study else None
        names = sorted({*states, *self.seen})
        return [(name, str(states.get(name, "connected")), _ago(self.seen.get(name), now)) for name in names]

    @property
    def metrics(self) -> list[tuple[str, float]]:
        """The figures of the last round that had any, the first few."""
        return self._every_metric[:MOST_METRICS]

    @property
    def left_out(self) -> int:
        """How many more figures there are."""
        return len(self._every_metric[MOST_METRICS:])

    @property
    def too_few(self) -> bool:
        """Whether figures came and none is told because fewer sites than ``core.live.FEWEST`` sent it."""
        return bool((self.study or {}).get("too_few"))

    @property
    def _every_metric(self) -> list[tuple[str, float]]:
        return sorted((self.study or {}).get("metrics", {}).items())


def monitor(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, or its first characters.")],
    startup_kit: Annotated[
        Path, typer.Option("--startup-kit", help="Startup kit of an administrator who may look on.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    every: Annotated[
        float, typer.Option("--every", min=1.0, help="Seconds between two looks.")
    ] = SECONDS_BETWEEN_LOOKS,
) -> None:
    """Follow a running job: rounds, sites, when each was last heard of, the current figures, the time left.

    Figures are means over sites, of what the sites let out. Without a terminal: a line whenever something changes.
    Ends with code 0 where the job completed, or runs or waits and was looked at once; with 1 where it ended otherwise.
    """
    with friendly_errors():
        # FLARE is imported only once there is something to ask it
        from fedmedseg.core import admin

        with admin.session(startup_kit) as session:
            job = admin.whole_id(session, job)

            def look(state: _Asked) -> View:
                meta = admin.meta_of(session, job)
                status = admin.status_of(meta)
                state.ran = status == admin.RUNNING
                if admin.has_ended(status):
                    return View(job=job, status=status)
                told = None
                if state.ran and time.monotonic() - state.unanswered >= SECONDS_UNANSWERED:
                    told = admin.live_status(session, job)
                    state.unanswered = time.monotonic() if told is None else -SECONDS_UNANSWERED
                waits = status == admin.SUBMITTED
                return View(
                    job=job,
                    status=status,
                    study=told,
                    seen=admin.last_seen(session),
                    needed=admin.sites_to_start(meta) if waits else None,
                    tried=admin.why_not_started(meta) if waits else "",
                )

            def looks() -> Iterator[View]:
                state, heard = _Asked(), time.monotonic()
                while True:
                    try:
                        view = look(state)
                    except ConfigurationError as error:
                        if error.field != "server":
                            raise
                        if time.monotonic() - heard < SECONDS_GONE:
                            time.sleep(SECONDS_BETWEEN_TRIES)
                            continue
                        raise _gone(error, ran=state.ran) from None
                    heard = time.monotonic()
                    yield view
                    if once or admin.has_ended(view.status):
                        return
                    time.sleep(every)

            last = _show(looks(), once=once)
        if admin.has_ended(last.status) and last.status != admin.COMPLETED:
            raise typer.Exit(Code.LOOK)


@dataclass
class _Asked:
    """What earlier looks found."""

    unanswered: float = -SECONDS_UNANSWERED
    """When the running study was asked and said nothing."""
    ran: bool = False
    """Whether the job ran when the server last said so."""


def _gone(error: ConfigurationError, *, ran: bool) -> ConfigurationError:
    """A server that has answered nothing for long; of a job that ran, what its end may mean."""
    silent = f"{error.got} for {SECONDS_GONE:g} s"
    if not ran:
        return ConfigurationError("server", got=silent, expected=error.expected, remedy=error.remedy)
    return ConfigurationError(
        "server",
        got=f"{silent}; the job ran when it was last asked",
        expected="a server that runs",
        remedy="a federation of `fedmedseg federation` ends with its study: look there; else see the server's log",
    )


def _show(looks: Iterator[View], *, once: bool) -> View:
    """Show every look as it comes; returns the last."""
    view = next(looks)
    if once or not console.is_terminal:
        told, explained = "", once
        while True:
            if view.too_few and not explained:
                console.print(FEW, highlight=False, soft_wrap=True, markup=False)
                explained = True
            text = "\n".join(_narrowed(lines(view), console.width)) if once else line(view)
            if text != told:
                told = text
                console.print(text, highlight=False, soft_wrap=True, markup=False)
            following = next(looks, None)
            if following is None:
                return view
            view = following
    with Live(render(view, *console.size), console=console, auto_refresh=False) as shown:
        for view in looks:
            shown.update(render(view, *console.size), refresh=True)
    return view


def _narrowed(said: Iterable[str], width: int) -> Iterator[str]:
    """Lines of at most ``width`` where words allow it; what goes on stands further in."""
    for text in said:
        indent = text[: len(text) - len(text.lstrip())]
        yield from textwrap.wrap(
            text.strip(),
            width,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_on_hyphens=False,
            break_long_words=False,
        )


def render(view: View, width: int, height: int) -> RenderableType:
    """A table of sites under the study's own line; in a narrow terminal everything below one another.

    What is shown again and again is as high as the terminal: of more sites than fit, those that have not replied come
    first, and how many are left out is said.
    """
    about = about_study(view)
    taken = sum(max(1, -(-len(text) // width)) for text in about)
    if width < NARROW:
        shown, left = _fitting(view, (height - taken - 1) // 2)
        said = [part for site in shown for part in _told(*site)]
        return Text("\n".join([*about, *said, *([left] if left else [])]), overflow="fold")
    head = Text("\n".join(about))
    if not view.sites:
        return head
    # an empty line, the names of the columns, a rule; an empty line and what is left out
    shown, left = _fitting(view, height - taken - 6)
    table = Table("site", "state", "last seen", box=box.SIMPLE_HEAD)
    for name, state, ago in shown:
        table.add_row(Text(name), Text(state), ago)
    return Group(head, table, Text(left)) if left else Group(head, table)


def _fitting(view: View, room: int) -> tuple[list[tuple[str, str, str]], str]:
    """The sites that are shown where there is room for ``room`` (at least one is), and what is said of the others."""
    if len(view.sites) <= room:
        return view.sites, ""
    first = sorted(view.sites, key=lambda site: site[1] != AT_WORK)[: max(1, room)]
    states = [state for _, state, _ in view.sites]
    for _, state, _ in first:
        states.remove(state)
    others = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    return first, f"and {len(states)} more sites ({others}); all: --once"


def lines(view: View) -> list[str]:
    """All there is to say, short enough for a narrow terminal; what belongs to a site is indented."""
    return [*about_study(view), *(part for site in view.sites for part in _told(*site))]


def _told(name: str, state: str, ago: str) -> list[str]:
    return [f"  {name}: {state}", f"    seen {ago}"]


def about_study(view: View) -> list[str]:
    """What is said of job and study, above the sites; of many that have not replied the first are named."""
    said = [f"job {view.job[:8]}: {view.status}", *view.unscheduled]
    study = view.study
    if study is not None:
        said += [
            str(study["study"]),
            f"{study['stage']} round {study['round'] + 1}/{study['rounds']}",
            f"stage {list(study['stages']).index(study['stage']) + 1} of {len(study['stages'])}",
            f"in this round for {clock(study['seconds'])}",
            f"time left: {_left(study['left'])}",
        ]
        if view.unanswered:
            named = view.unanswered[:MOST_NAMED]
            more = len(view.unanswered) - len(named)
            said.append(f"no reply yet from {', '.join(named)}{f' and {more} more' if more else ''}")
            said.append(f"({STILL})")
        if view.metrics:
            of = study["metrics_of"]
            said.append(f"mean over sites ({of['stage']} {of['round'] + 1}):")
            said += [f"{name}: {value:.4f}" for name, value in view.metrics]
            if view.left_out:
                said.append(f"and {view.left_out} more, in TensorBoard")
        elif view.too_few:
            said.append(FEW)
    return said


def line(view: View) -> str:
    """One line for a log, the same as long as nothing has happened."""
    study = view.study
    if study is None:
        return "; ".join([f"job {view.job[:8]}: {view.status}", *view.unscheduled])
    states = [state for _, state, _ in view.sites]
    counted = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    figures = "".join(f", {name} {value:.4f}" for name, value in view.metrics)
    figures += f", and {view.left_out} more" if view.left_out else ""
    return f"{study['stage']} round {study['round'] + 1}/{study['rounds']}: {counted}{figures}"


def _left(seconds: float | None) -> str:
    return "not known before a round has ended" if seconds is None else f"about {clock(seconds)}"


def _ago(seen: float | None, now: float | None) -> str:
    if seen is None:
        return "not lately"
    return "lately" if now is None else f"{clock(max(0.0, now - seen))} ago"
