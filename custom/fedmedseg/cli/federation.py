"""`fedmedseg federation`: a secure federation of phantom hospitals on this machine, from kits to report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedmedseg.cli.console import Code, console, friendly_errors
from fedmedseg.cli.display import Display
from fedmedseg.cli.study import Changes, EncoderFile, JobName, Presets, Study, read_study
from fedmedseg.core.errors import ConfigurationError, why
from fedmedseg.core.jobs import check_quorum, write_job

OWN = (".lock", "kits")
"""What every call leaves in its folder, however early it ended."""
MOST = 20
"""Each site is two processes of about 1 GB."""


def federation(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for kits, volumes and results; used again if it is there.")
    ],
    job: JobName = "fedata",
    sites: Annotated[int, typer.Option("--sites", help="Number of hospitals, site-1, ...")] = 3,
    preset: Presets = None,
    changes: Changes = None,
    encoder: EncoderFile = None,
) -> None:
    """Run a study in a real federation on this machine: server, hospitals and administrator with mutual TLS.

    Ends with code 0 where the study finished, 1 where it was stopped, 130 where Ctrl-C ended it.
    """
    with friendly_errors():
        if not 1 <= sites <= MOST:
            raise ConfigurationError("--sites", got=sites, expected=f"at least 1 site, at most {MOST}")
        study = read_study(job, preset, changes, encoder)
        check_quorum(study.experiment, sites)
        try:
            record = _run(study, _folder(out), tuple(f"site-{index + 1}" for index in range(sites)))
        except KeyboardInterrupt:
            _say("interrupted; no process is left. The same call uses kits and volumes again, and starts at round 1")
            raise typer.Exit(Code.INTERRUPTED) from None
    if record["outcome"] != "finished":
        console.print(f"[red]stopped:[/red] {record['reason']}", highlight=False, soft_wrap=True)
        raise typer.Exit(Code.LOOK)


def _run(study: Study, out: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    # FLARE is imported only once there is something to run
    from fedmedseg.core import simulation
    from fedmedseg.core.kept_results import RECORD_FILE
    from fedmedseg.provisioning import rehearsal
    from fedmedseg.reporting.summary import plain_text_summary

    experiment = study.experiment
    with simulation.claimed(out, home=out, option="--out"):
        kits = rehearsal.kits_in(out, sites=names, encryption=experiment.federation.encryption != "none")
        _say(f"kits: {kits}")
        rehearsal.place_phantoms(
            kits, out, sites=names, experiment=experiment, on_site=lambda site: _say(f"{site}: volumes written")
        )
        meta = {"name": experiment.study, "min_clients": len(names)}
        folder = out / "jobs" / study.folder.name
        folder.parent.mkdir(exist_ok=True)
        write_job(study.folder, study.settings, folder, meta=meta, finish=study.place_files)
        _say(f"{experiment.study}: {len(names)} sites; logs: {kits}/<participant>.log")
        with Display(experiment, len(names), threads=len(names)) as display:
            try:
                ended = rehearsal.run_job(
                    kits, folder, sites=names, out=out, tell=_say, show=display.show, on_poll=display.wait
                )
            except TimeoutError as error:
                raise ConfigurationError("federation", got=str(error), expected="a participant that starts") from None
    report = ended.folder / "report"
    record = simulation.read_record(report / RECORD_FILE)
    if record is None:
        raise ConfigurationError(
            "federation",
            got=f"{ended.status} before the first round",
            expected="a run with a record",
            remedy=f"see {kits}/*.log",
        )
    console.print(plain_text_summary(record, console.width), highlight=False, soft_wrap=True)
    _say(f"report: {report / 'report.html'}")
    # a run that was stopped early has none
    if (ended.folder / "models").is_dir():
        _say(f"shared model: {ended.folder / 'models'}")
    if any(kits.glob(f"*/fedmedseg/models/{experiment.study}")):
        _say(f"site models: {kits}/<site>/fedmedseg/models/{experiment.study}")
    return record


def _folder(out: Path) -> Path:
    """``out`` as a folder that can be written, without a space in its path, and holds nothing of somebody's own.

    Raises:
        ConfigurationError: it is not.
    """
    out = out.resolve()
    if any(character.isspace() for character in str(out)):
        raise ConfigurationError(
            "--out", got=repr(str(out)), expected="a path without spaces: FLARE's start scripts split at them"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise ConfigurationError("--out", got=f"{out} ({why(error)})", expected="a folder") from None
    if there and not set(OWN) & set(there):
        # the job folder that lies there is replaced, and kits are looked for
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ConfigurationError(
            "--out",
            got=f"{out}, which holds {there[0]}{more}",
            expected="a new or empty folder, or that of an earlier call",
            remedy="choose another",
        )
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigurationError("--out", got=f"{out}, which cannot be written", expected="a folder of your own")
    return out


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
