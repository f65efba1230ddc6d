"""`fedmedseg job`: a job folder for a federation, with settings that were checked before anybody submits it."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape

import fedmedseg
from fedmedseg.cli.console import console, friendly_errors, next_step, workspace_beside
from fedmedseg.cli.federation import MOST
from fedmedseg.cli.new_file import writing
from fedmedseg.cli.rows import Rows, show
from fedmedseg.cli.study import Changes, EncoderFile, JobName, Mlflow, Presets, StartFile, Study, read_study
from fedmedseg.core.bounds import MOST_SITES
from fedmedseg.core.config import systems
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import (
    EXPERIMENT,
    check_quorum,
    find_job,
    is_job,
    main_stage,
    presets_of,
    read_settings,
    write_job,
)
from fedmedseg.core.tracking import MLFLOW_RECEIVER

MOST_MEMORY = 1024
EVERY_SITE = "@default"
"""FLARE's word, in a job's meta file, for what it asks of sites that it does not name."""


def _list(wanted: bool) -> None:
    """Every job with its presets, each in its own first words."""
    if not wanted:
        return
    table = Rows("job", "preset", "what it is")
    for system, preset, words in _presets():
        table.add_row(system, preset, escape(words))
    show(console, table)
    raise typer.Exit


def _presets() -> Iterator[tuple[str, str, str]]:
    """Every job and, after it, each of its presets, with what it is."""
    for system in systems():
        yield system, "", "as it comes: small, on phantoms" if _is_drawn(system) else "as it comes"
        for name, file in presets_of(system).items():
            yield system, name, _about(file.read_text(encoding="utf-8"))


def _is_drawn(system: str) -> bool:
    return read_settings(find_job(system), [])[1].data.phantom is not None


def _about(text: str) -> str:
    """The first sentence of the comment that a preset begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    words = " ".join(line.removeprefix("#").strip() for line in lines)
    return re.split(r"(?<=[.])(?<!et al[.]) ", words, maxsplit=1)[0].rstrip(".")


def job(
    job: JobName,
    out: Annotated[Path, typer.Option("--out", help="The job folder to write.")],
    min_clients: Annotated[
        int, typer.Option("--min-clients", help="FLARE starts the job once so many sites are there.")
    ],
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds of the main training stage. Default: as the settings say.")
    ] = None,
    preset: Presets = None,
    changes: Changes = None,
    encoder: EncoderFile = None,
    start: StartFile = None,
    mlflow: Mlflow = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory",
            help="GiB of a GPU the job asks of every site, and waits for. Default: it asks for none, and each site "
            "computes with what its own file says, beside other jobs.",
        ),
    ] = None,
    without_phantoms: Annotated[
        bool, typer.Option("--without-phantoms", help="Leave out data.phantom, which serves the simulator alone.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the job folder that is at --out.")] = False,
    listed: Annotated[
        bool,
        typer.Option("--list", callback=_list, is_eager=True, help="Show jobs and their presets, and write nothing."),
    ] = False,
) -> None:
    """Write a job folder that can be submitted as it is, or tried in the simulator."""
    with friendly_errors():
        if not 1 <= min_clients <= MOST_SITES:
            raise ConfigurationError(
                "--min-clients", got=min_clients, expected=f"at least 1 site, at most {MOST_SITES}"
            )
        if rounds is not None and rounds < 1:
            raise ConfigurationError(
                "--rounds",
                got=rounds,
                expected="at least 1 round",
                remedy="leave a stage out with a preset or with --set stages.STAGE.rounds=0",
            )
        if gpu_memory is not None and not 0 < gpu_memory <= MOST_MEMORY:
            raise ConfigurationError(
                "--gpu-memory", got=gpu_memory, expected=f"GiB of one GPU, more than 0 and at most {MOST_MEMORY}"
            )
        with writing(out, expected="a folder that can be written"):
            _may_write(out, force)
        study = read_study(job, preset, changes, encoder, start).tracked(mlflow)
        _require_elsewhere(out, study.folder)
        if rounds is not None:
            study = study.over({"stages": {main_stage(study.experiment): {"rounds": rounds}}})
        if without_phantoms:
            study = study.over({"data": _without_phantoms(study)})
        check_quorum(
            study.experiment, min_clients, what="the sites that --min-clients waits for: the first round could not pass"
        )
        header = _header(
            study, preset, changes, rounds, min_clients, encoder, gpu_memory, without_phantoms, start=start
        )
        needs = {} if gpu_memory is None else {"num_of_gpus": 1, "mem_per_gpu_in_GiB": gpu_memory}
        with writing(out, expected="a folder that can be written"):
            write_job(
                study.folder,
                study.settings,
                out.resolve(),
                header=header,
                meta={
                    "name": study.experiment.study,
                    "min_clients": min_clients,
                    "resource_spec": {EVERY_SITE: needs} if needs else {},
                },
                finish=study.place_files,
            )
    _tell(study, out, min_clients, gpu_memory)


def _require_elsewhere(out: Path, source: Path) -> None:
    """Refuse to write over, into or around the job that is being copied."""
    target, source = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if target == source or target in source.parents or source in target.parents:
        raise ConfigurationError(
            "--out",
            got=f"{out}, which is, holds or lies in the job that is copied",
            expected="a folder of its own: the job it is made from stays as it is",
            remedy="choose another",
        )


def _may_write(out: Path, force: bool) -> None:
    """Only a job folder is ever replaced, and only when that was asked for; a link is never followed."""
    if out.is_symlink():
        raise ConfigurationError(
            "--out",
            got=f"{out}, which is a symbolic link",
            expected="a new folder",
            remedy=f"name the folder itself: {os.path.realpath(out)}",
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not is_job(out):
        raise ConfigurationError(
            "--out", got=f"{out}, which is there and no job folder", expected="a new folder", remedy="choose another"
        )
    if not force:
        raise ConfigurationError(
            "--out", got=f"{out}, which is there", expected="a new folder", remedy="choose another, or add --force"
        )


def _header(
    study: Study,
    presets: Sequence[str] | None,
    changes: Sequence[str] | None,
    rounds: int | None,
    min_clients: int,
    encoder: Path | None,
    gpu_memory: float | None,
    without_phantoms: bool,
    *,
    start: Path | None,
) -> str:
    """How this folder was made. Files by their name alone: a path tells about somebody's machine."""
    words = ["fedmedseg", "job", study.folder.name]
    for name in presets or []:
        words += ["--preset", Path(name).name]
    for change in changes or []:
        words += ["--set", change]
    words += ["--rounds", str(rounds)] if rounds is not None else []
    words += ["--min-clients", str(min_clients)]
    words += ["--encoder", encoder.name] if encoder is not None else []
    words += ["--start", start.name] if start is not None else []
    words += ["--mlflow", study.mlflow] if study.mlflow is not None else []
    words += ["--gpu-memory", f"{gpu_memory:g}"] if gpu_memory is not None else []
    words += ["--without-phantoms"] if without_phantoms else []
    lines = [f"Written by fedmedseg {fedmedseg.__version__}:", f"  {shlex.join(words)}"]
    if study.experiment.data.phantom is not None:
        lines.append("data.phantom is read by the simulator alone; in a federation every site has a file of its own.")
    return "\n".join(lines)


def _without_phantoms(study: Study) -> dict[str, object]:
    """``data`` to lay over the study's, which takes away the phantoms of every data set."""
    others = study.settings["data"].get("alternatives", [])
    changes: dict[str, object] = {"phantom": None}
    if others:
        changes["alternatives"] = [{key: one[key] for key in one if key != "phantom"} for one in others]
    return changes


def _tell(study: Study, out: Path, min_clients: int, gpu_memory: float | None) -> None:
    """What was written, what it asks of the sites, and what to type next."""
    experiment = study.experiment
    table = Rows(title=escape(f"{experiment.study}: {out}"), show_header=False, box=box.SIMPLE)
    table.add_column()
    table.add_column()
    for name, value in _facts(study, min_clients).items():
        table.add_row(name, value)
    if gpu_memory is not None:
        table.add_row("asks of every site", f"a free GPU with {gpu_memory:g} GiB; the job waits for it")
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        table.add_row(str(file.relative_to(out)), f"{file.stat().st_size:,} bytes")
    show(console, table)
    data, job = experiment.data, shlex.quote(str(out))
    site_file = f"each site's own file names a data list for the role {' or '.join(map(repr, data.roles))}"
    drawn, plain = data.phantom is not None, experiment.federation.encryption == "none"
    workspace = workspace_beside(out, f"{out.resolve().name}-trial")
    if drawn:
        lines = [
            f"data: in a federation {site_file}; without it the site fails with that reason. data.phantom is read by "
            "the simulator alone, for sites without a file (--without-phantoms leaves it out)",
        ]
    else:
        lines = [f"data: {site_file}, in the simulator too"]
        trial = f"fedmedseg simulate {job} --sites FOLDER_OF_SITE_FILES -w {shlex.quote(str(workspace))}"
        lines += [f"try it:    {trial}"] if plain else []
    if plain:
        where = "" if drawn else ", and site files in its folder sites"
        lines.append(
            f"or:        nvflare simulator {job} -n {min_clients}   "
            f"(with simulator_workspace/local as in this project's folder{where})"
        )
    else:
        lines.append(
            "encrypted: server and sites need kits with keys (EncryptionBuilder in project.yml) and the extra he; the "
            "simulator has neither"
        )
    if study.mlflow is not None:
        lines.append(
            f"MLflow: the server needs the extra tracking, and {MLFLOW_RECEIVER} in class_allow_list of its "
            "local/resources.json, added by whoever runs it"
        )
    lines.append(f"submit it: nvflare job submit -j {job} --startup-kit KIT")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if drawn and plain:
        next_step("fedmedseg", "simulate", out, "-n", min_clients, "-w", workspace)
    elif drawn and min_clients <= MOST:
        next_step("fedmedseg", "federation", out, "--sites", min_clients, "--out", workspace)


def _facts(study: Study, min_clients: int) -> dict[str, str]:
    experiment = study.experiment
    quorum, data = experiment.federation.quorum, experiment.data
    meaning = {
        "all": "all: every connected site that takes part in a stage",
        "count": f"{quorum}: so many accepted replies a round",
        "share": f"{quorum}: this share of the sites that take part in a stage",
    }["all" if quorum == "all" else "count" if isinstance(quorum, int) else "share"]
    rounds = (f"{stage} {section.rounds}" for stage, section in experiment.stages.items())
    facts = {
        "settings": f"{EXPERIMENT} (SHA-256 of the study: {experiment.digest[:16]}...)",
        "system": experiment.system,
        "network": f"{experiment.network.name}, crops of {' x '.join(map(str, data.crop))}",
        "rounds": ", ".join(rounds),
        "sites to start with": f"{min_clients} (min_clients)",
        "replies a round needs": meaning,
    }
    if experiment.network.pretrained is not None:
        facts["starts from"] = f"the encoder {experiment.network.pretrained[:16]}..."
    if getattr(experiment.wing, "start", None) is not None:
        facts["goes on from"] = f"an earlier run's tensors {experiment.wing.start[:16]}..."
    if study.encoder is not None:
        facts["of which came"] = f"{len(study.encoder.tensors)} of {study.encoder.wanted} encoder tensors"
    return facts
