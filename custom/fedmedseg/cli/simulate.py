"""`fedmedseg simulate`: a study in FLARE's simulator, with the site policy in place, progress and a verdict."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import yaml

from fedmedseg.cli.console import Code, console, friendly_errors
from fedmedseg.cli.display import Display
from fedmedseg.cli.study import Changes, EncoderFile, JobName, Mlflow, Presets, StartFile, Study, read_study
from fedmedseg.core.allowed_classes import OPTIONAL_AT_SERVER, simulator_resources
from fedmedseg.core.bounds import MOST_SITES
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.jobs import check_quorum, write_job
from fedmedseg.core.schema import parse, read_yaml
from fedmedseg.core.tracking import require_mlflow, wants_mlflow
from fedmedseg.data.views import data_sets, planned_sites, site_view

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
TAKEN = frozenset({"server", "local", "startup", "sites"})
"""Names of folders, which no site can have."""


def simulate(
    job: JobName,
    workspace: Annotated[Path, typer.Option("-w", "--workspace", help="Simulator workspace; emptied by FLARE.")] = Path(
        "simulator_workspace"
    ),
    number: Annotated[int | None, typer.Option("-n", "--sites-number", help="Number of sites, site-1, ...")] = None,
    clients: Annotated[str | None, typer.Option("-c", "--clients", help="Names of the sites, comma-separated.")] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Sites that run at once.")] = None,
    sites: Annotated[
        Path | None, typer.Option("--sites", help="Folder of site files (<site>.yaml): real data instead of phantoms.")
    ] = None,
    preset: Presets = None,
    changes: Changes = None,
    encoder: EncoderFile = None,
    start: StartFile = None,
    mlflow: Mlflow = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the earlier run of this study.")] = False,
) -> None:
    """Run a study in FLARE's simulator and say how it went."""
    with friendly_errors():
        study = read_study(job, preset, changes, encoder, start).tracked(mlflow)
        if resume:
            study = study.over({"resume": True})
        experiment = study.experiment
        if experiment.federation.encryption != "none":
            # torch is loaded only where it must be: the command line stays quick
            from fedmedseg.core.sealing import refuse_simulation

            refuse_simulation(experiment)
        names = _site_names(number, clients, sites, experiment)
        if sites is None:
            study = _shared_out(study, len(names))
            experiment = study.experiment
        at_once = _threads(threads, len(names))
        check_quorum(experiment, len(names))
        # torch is imported only once there is something to run
        from fedmedseg.core.homes import SERVER, homes_beside
        from fedmedseg.core.state import earlier_run, require_earlier

        workspace = workspace.resolve()
        state = homes_beside(workspace) / SERVER / "state"
        key = {"study": experiment.study, "experiment": experiment.digest, "site": SERVER}
        if resume:
            # FLARE empties the workspace at its start: a run that cannot be continued must not cost the one before
            require_earlier(state, **key)
        try:
            _run(study, workspace, names, at_once, sites)
        except (KeyboardInterrupt, SystemExit):
            again = "the same call with --resume continues the study"
            if earlier_run(state, **key) is None:
                again = "before the server had kept anything; the same call starts it again"
            console.print(f"interrupted; {again}", highlight=False)
            raise


def _shared_out(study: Study, number: int) -> Study:
    """The study for so many sites: where phantom sites share out what is marked, each one's part follows from that."""
    phantom = study.experiment.data.phantom
    if phantom is None or phantom.annotation != "shared_out" or phantom.sites == number:
        return study
    return study.over({"data": {"phantom": {"sites": number}}})


def _run(
    study: Study,
    workspace: Path,
    names: tuple[str, ...],
    threads: int,
    sites: Path | None,
) -> None:
    folder, experiment = study.folder, study.experiment
    console.print(f"{experiment.study}: preparing {workspace}", highlight=False, soft_wrap=True)
    # FLARE is imported only once there is something to run
    from fedmedseg.core import kept_results, simulation
    from fedmedseg.core.homes import homes_beside
    from fedmedseg.reporting.summary import plain_text_summary

    home = homes_beside(workspace)
    tracks = study.mlflow is not None or wants_mlflow(folder)
    if tracks:
        require_mlflow(option="--mlflow" if study.mlflow is not None else f"{folder.name}: config_fed_server.json")
    made = [place for place in (workspace, home) if not os.path.lexists(place)]
    simulation.prepare_workspace(workspace, simulator_resources(added=OPTIONAL_AT_SERVER if tracks else ()))
    with simulation.claimed(workspace):
        with _removed_if_refused(made):
            placed = _site_files_of(sites, names)
            _check_site_files(sites or workspace / "local" / "sites", names, experiment, left=sites is None)
            if study.layers or study.mlflow is not None:
                out = home / "jobs" / folder.name
                folder = write_job(folder, study.settings, out, finish=study.place_files)
            else:
                study.check_files(folder)
            _place_site_files(placed, workspace)
        call = simulation.Simulation(
            job=folder, workspace=workspace, sites=names, threads=threads, log=home / "simulator.log"
        )
        console.print(
            f"{experiment.study}: {len(names)} sites, {threads} at once; log: {call.log}",
            highlight=False,
            soft_wrap=True,
        )
        with Display(experiment, len(names), threads) as display:
            record = simulation.run(call, display.show, display.wait)
    if record is None:
        raise ConfigurationError(
            "simulator",
            got="an end before the first round",
            expected="a run with a record",
            remedy=f"see the last lines of {call.log}",
        )
    console.print(plain_text_summary(record, console.width), highlight=False, soft_wrap=True)
    models, of_sites = call.record_file.parents[1] / "models", Path("models") / experiment.study
    console.print(f"report: {call.record_file.parent / 'report.html'}", highlight=False, soft_wrap=True)
    # a run that was stopped early has none
    if models.is_dir():
        console.print(f"shared model: {models}", highlight=False, soft_wrap=True)
    if any((home / name / of_sites).is_dir() for name in names):
        console.print(f"site models: {home / '<site>' / of_sites}", highlight=False, soft_wrap=True)
    if strangers := _of_earlier_runs(home, experiment.study, names):
        console.print(
            f"there, too, of an earlier run and not of this one: {', '.join(strangers)}",
            highlight=False,
            soft_wrap=True,
        )
    kept = home / "server" / kept_results.FOLDER / experiment.study
    if kept.is_dir():
        what = "report and shared model" if models.is_dir() else "report"
        console.print(f"{what}, after the next run too: {kept}", highlight=False, soft_wrap=True)
    if record["outcome"] != "finished":
        console.print(f"[red]stopped:[/red] {record['reason'] or f'see {call.log}'}", highlight=False, soft_wrap=True)
        raise typer.Exit(Code.LOOK)


@contextmanager
def _removed_if_refused(folders: Sequence[Path]) -> Iterator[None]:
    """Remove what a call made for itself when it is refused; it is the caller's to hold the workspace."""
    try:
        yield
    except FedMedSegError:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _of_earlier_runs(home: Path, study: str, names: tuple[str, ...]) -> list[str]:
    """Sites that an earlier run of the study left models of and that this one, of ``names``, does not have."""
    return sorted(
        folder.parents[1].name for folder in home.glob(f"*/models/{study}") if folder.parents[1].name not in names
    )


def _checked(names: tuple[str, ...], source: str) -> tuple[str, ...]:
    """Names become folders, and FLARE reads a dot as the way to a relay."""
    for name in names:
        if not _NAME.fullmatch(name) or name.lower() in TAKEN:
            raise ConfigurationError(
                source,
                got=repr(name),
                expected=f"a site name of letters, digits, dashes and underscores, none of {', '.join(sorted(TAKEN))}",
            )
    return names


def _site_names(number: int | None, clients: str | None, sites: Path | None, experiment: Experiment) -> tuple[str, ...]:
    if number is not None and clients:
        raise ConfigurationError("-n and -c", got="both", expected="one of them")
    if clients:
        names = tuple(name.strip() for name in clients.split(",") if name.strip())
        if len(set(names)) != len(names) or not names:
            raise ConfigurationError("-c", got=clients, expected="different site names, comma-separated")
        return _checked(names, "-c")
    if number is not None:
        if not 1 <= number <= MOST_SITES:
            raise ConfigurationError("-n", got=number, expected=f"at least 1 site, at most {MOST_SITES}")
        return tuple(f"site-{index + 1}" for index in range(number))
    if sites is not None:
        found = tuple(sorted(file.stem for file in sites.glob("*.yaml")))
        if not found:
            raise ConfigurationError(
                "--sites",
                got=f"no .yaml file in {sites}" if sites.is_dir() else f"no folder at {sites}",
                expected="a folder of <site>.yaml files",
                remedy=f"try {sites / 'sites'}" if list(sites.glob("sites/*.yaml")) else "",
            )
        return _checked(found, "--sites")
    return tuple(f"site-{index + 1}" for index in range(planned_sites(experiment)))


def _threads(threads: int | None, sites: int) -> int:
    if threads is None:
        # a site that waits for a turn costs a new process per task: up to two sites share a core
        return sites if sites <= 2 * (os.cpu_count() or 1) else (os.cpu_count() or 1)
    if not 1 <= threads <= sites:
        raise ConfigurationError("-t", got=threads, expected=f"1 to {sites}, the number of sites")
    return threads


def _site_files_of(sites: Path | None, names: tuple[str, ...]) -> dict[str, str]:
    """What is written where every simulated site looks, by its name: paths no longer depend on the folder."""
    from fedmedseg.data.site import SiteFile

    found: dict[str, str] = {}
    for name in names if sites is not None else ():
        assert sites is not None
        source = sites / f"{name}.yaml"
        if not source.is_file():
            known = ", ".join(sorted(file.stem for file in sites.glob("*.yaml")))
            raise ConfigurationError(
                "--sites",
                got=f"no site file for {name}",
                expected=f"one per site; there are {known or 'none'}",
                remedy="leave -n and -c out to take all that are there, or name those to take with -c",
            )
        settings = parse(SiteFile, read_yaml(source), source=source.name)
        content = settings.model_dump(mode="json", exclude_none=True)
        for data_set in content["datasets"].values():
            data_set["list"] = str((source.parent / data_set["list"]).resolve())
        for key in ("state_dir", "cache_dir", "models_dir"):
            if key in content:
                content[key] = str((source.parent / content[key]).resolve())
        found[name] = yaml.safe_dump(content, sort_keys=False)
    return found


def _place_site_files(found: dict[str, str], workspace: Path) -> None:
    """Write what ``_site_files_of`` gave, once nothing is left that could refuse the call."""
    target = workspace / "local" / "sites"
    for name, text in found.items():
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{name}.yaml").write_text(text, encoding="utf-8")


def _check_site_files(folder: Path, names: tuple[str, ...], experiment: Experiment, *, left: bool) -> None:
    """Read every site's file in ``folder`` and its data list now: a mistake costs seconds here, and later the run.

    ``left``: nobody named a folder of site files, so that those in the workspace are an earlier call's.
    """
    from fedmedseg.data.datalist import read_datalist
    from fedmedseg.data.site import SiteFile

    files = {name: folder / f"{name}.yaml" for name in names}
    with_file = [name for name, file in files.items() if file.is_file()]
    for name in with_file:
        settings = parse(SiteFile, read_yaml(files[name]), source=f"{name}.yaml")
        if not set(experiment.data.roles) & set(settings.datasets):
            raise ConfigurationError(
                f"{name}.yaml: datasets",
                got=", ".join(sorted(settings.datasets)),
                expected=f"the role {' or '.join(map(repr, experiment.data.roles))}, which the experiment asks for "
                "(data.role)",
            )
        role = site_view(experiment, settings.datasets, preferred=settings.prefers).data.role
        read_datalist(files[name].parent / settings.datasets[role].list, salt=name)
    without = [name for name in names if name not in with_file]
    if without and all(one.phantom is None for one in data_sets(experiment.data)):
        raise ConfigurationError(
            "site files",
            got=f"none for {', '.join(without)}",
            expected="a site file per site, or data.phantom in the experiment",
            remedy="name the folder of site files with --sites",
        )
    if with_file:
        # also those that lie in the workspace from an earlier call: nobody should mistake real data for phantoms
        earlier = f", of an earlier call, in {folder}: name --sites for others" if left else ""
        console.print(f"site files: {', '.join(with_file)}{earlier}", highlight=False, soft_wrap=True)
    if without:
        console.print(f"phantoms: {', '.join(without)}", highlight=False)
