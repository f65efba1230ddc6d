"""`fedmedseg approval`: a local person's word on the jobs that ask for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fedmedseg.cli.console import console, friendly_errors
from fedmedseg.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fedmedseg.core.approval import Matter
    from fedmedseg.core.audit import Trail
    from fedmedseg.core.wishes import StageWish, Wish

COLOURS = {"waiting": "yellow", "approved": "green", "denied": "bold red"}


def approval(
    target: Annotated[
        Path, typer.Argument(metavar="KIT_OR_SITE_FILE", help="The site's startup kit, or its site file (YAML).")
    ],
    approve: Annotated[str | None, typer.Option("--approve", metavar="ID", help="Agree to this request.")] = None,
    deny: Annotated[str | None, typer.Option("--deny", metavar="ID", help="Refuse it; also after agreeing.")] = None,
    reason: Annotated[
        str,
        typer.Option("--reason", help="With --deny: a few words that the server is told, and logs. Name no patient."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Requests as JSON on standard output.")] = False,
) -> None:
    """List the jobs that ask this site's people, agree to one, or refuse one.

    A site asks where its site file says `approval: each_job`. What is decided holds for one submission and for its
    resumption by the same submitter; a refusal counts from the next task on.
    """
    with friendly_errors():
        from fedmedseg.core.approval import decide, matters
        from fedmedseg.data.site import SITE_FILE
        from fedmedseg.preflight.site import read_site, site_file_of

        if approve is not None and deny is not None:
            raise ConfigurationError("--approve, --deny", got="both", expected="one of them")
        if reason and deny is None:
            raise ConfigurationError("--reason", got="no --deny", expected="--deny ID with it")
        site = read_site(site_file_of(target, SITE_FILE) if target.is_dir() else target)
        trail = None if approve is None and deny is None else _trail_of(site.file)
        if approve is not None:
            found = [decide(site.state, approve, "approved")]
            _note(trail, found[0])
        elif deny is not None:
            found = [decide(site.state, deny, "denied", reason=reason)]
            _note(trail, found[0])
        else:
            found = matters(site.state)
        if as_json:
            typer.echo(json.dumps([_plain(matter) for matter in found], indent=2))
            return
        if site.settings.approval == "none":
            console.print("this site asks nobody: its site file does not say approval: each_job", highlight=False)
        if not found:
            console.print("no job has asked", highlight=False)
            return
        _show(found)


def _trail_of(site_file: Path) -> Trail | None:
    """The audit trail of the kit that the site file lies in; a site file by itself (the simulator's) has none.

    Raises:
        ConfigurationError: a kit whose startup file is damaged.
    """
    from fedmedseg.core.audit import FOLDER, Trail
    from fedmedseg.core.kit import is_kit, open_kit

    local = site_file.resolve().parent
    if local.name != "local" or not is_kit(local.parent):
        return None
    return Trail(local.parent / FOLDER, participant=open_kit(local.parent).name)


def _note(trail: Trail | None, matter: Matter) -> None:
    """Write who decided what; a trail that cannot be written is logged, and the decision stands."""
    from fedmedseg.core.audit import Outcome

    decision = matter.decision
    if trail is None or decision is None:
        return
    agreed = decision.verdict == "approved"
    trail.note(
        action="approve job" if agreed else "deny job",
        outcome=Outcome.ALLOWED if agreed else Outcome.REFUSED,
        who=decision.by,
        job=matter.request.job,
        reason=f"request {matter.request.wish.id}" + (f": {decision.reason}" if decision.reason else ""),
    )


def _plain(matter: Matter) -> dict[str, object]:
    request = matter.request
    return {
        "id": request.wish.id,
        "status": matter.status,
        "job": request.job,
        "asked": request.asked,
        "wish": request.wish.model_dump(mode="json"),
        "decision": None if matter.decision is None else matter.decision.model_dump(mode="json"),
    }


def _show(found: list[Matter]) -> None:
    """A block of lines for each request: in a narrow terminal a table would cut what people agree to."""
    for matter in found:
        request, decision = matter.request, matter.decision
        wish = request.wish
        console.print(f"[bold]request {escape(wish.id)}[/]  [{COLOURS[matter.status]}]{matter.status}[/]")
        facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        rows = [("study", f"{wish.study} ({wish.system})"), ("data", wish.data), ("settings", wish.experiment[:16])]
        rows += [("asked", request.asked), ("submitted by", _submitter(wish))]
        if decision is not None:
            why = f", {decision.reason}" if decision.reason else ""
            rows.append((matter.status, f"by {decision.by}, {decision.at}{why}"))
        rows += [("leaves, " + name, _leaving(stage)) for name, stage in wish.stages.items()]
        rows.append(("stays", "images, labels, file names and scores of single patients"))
        if matter.status == "waiting":
            rows.append(("next", f"--approve {wish.id}, or --deny {wish.id} --reason '...'"))
        for name, value in rows:
            facts.add_row(escape(name), escape(value))
        console.print(facts)
        console.print()


def _submitter(wish: Wish) -> str:
    scope = f"scope {wish.scope}" if wish.scope else "this site's default scope"
    if wish.submitter is None:
        return f"not told; {scope}"
    one = wish.submitter
    proof = "signed" if one.signed else "the server's word"
    return f"{one.name}, {one.org}, {one.role} ({proof}); {scope}"


def _leaving(stage: StageWish) -> str:
    figures = ", ".join(stage.figures) or "no figures"
    if stage.returns == "metrics":
        return f"{_times(stage.rounds)} {figures}"
    features = f", up to {stage.features} feature vectors of single slices" if stage.features else ""
    return f"{_times(stage.rounds)} {stage.tensors} tensors ({stage.nbytes / 2**20:.1f} MiB){features}, {figures}"


def _times(rounds: int) -> str:
    return "once" if rounds == 1 else f"{rounds} times"
