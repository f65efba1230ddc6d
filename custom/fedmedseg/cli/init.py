"""`fedmedseg init`: what a study starts with: its job, a site file for each hospital, the federation's project file."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape
from rich.prompt import Prompt

from fedmedseg.cli.completion import job_names
from fedmedseg.cli.console import console, friendly_errors, next_step, tell, workspace_beside
from fedmedseg.cli.simulate import TAKEN
from fedmedseg.cli.study import Changes, Presets, Study, read_study
from fedmedseg.core.config import systems
from fedmedseg.core.errors import ConfigurationError, choose, why
from fedmedseg.core.jobs import check_quorum, find_job, presets_of, write_job
from fedmedseg.core.schema import parse, read_yaml

if TYPE_CHECKING:
    from fedmedseg.data.site import SiteFile

JOB, SITES, PROJECT = "job", "sites", "project.yml"
"""What is written, in the study's folder."""
SERVER = "server.example.org"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
MOST_LETTERS = 63
SITE = re.compile(rf"[A-Za-z][A-Za-z0-9-]{{0,{MOST_LETTERS - 1}}}")
NONE = "none"
"""The answer that stands for no preset, and for no data."""
Answer = TypeVar("Answer")
_TAKEN = TAKEN | {"network"}
"""And the name of the organisation that runs server and network."""


def init(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study; the folder is called after it.")],
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            help="The method: a job by name (fedata). Asked for where it is missing.",
            autocompletion=job_names,
        ),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option("--sites", help="Names of the hospitals, comma-separated. Asked for without data."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="What `fedmedseg data import` or `phantoms` wrote: its sites and data lists."),
    ] = None,
    preset: Presets = None,
    changes: Changes = None,
    server: Annotated[
        str | None,
        typer.Option("--server", help=f"Address under which everybody reaches the server. Default: {SERVER}."),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option("--admin", help="E-mail address of the network's administrator. Default: admin@SERVER."),
    ] = None,
    lead: Annotated[
        str | None,
        typer.Option("--lead", help="E-mail address of the one who submits the study. Default: lead@SERVER."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: STUDY, here.")] = None,
) -> None:
    """Write what a study starts with: its job, a site file for each hospital, and the federation's project file.

    Asks for what no option says where there is a terminal, again where an answer cannot be, and for nothing where there
    is none. Nothing that is there is overwritten.
    """
    with friendly_errors():
        if not NAME.fullmatch(study):
            raise ConfigurationError(
                "STUDY",
                got=repr(study),
                expected="a name of letters a to z, digits, dashes and underscores",
                remedy=_plainer(study),
            )
        folder = out if out is not None else Path(study)
        _require_new(folder)
        asks = _may_ask()
        system = system or _ask(asks, "--system", "Which method", str, known=systems(), default="fedata")
        find_job(system, what="--system")
        if preset is None and asks:
            known = [NONE, *presets_of(system)]
            chosen = _ask(asks, "--preset", "Which settings (a preset)", str, known=known, default=NONE)
            preset = None if chosen == NONE else [chosen]
        made = read_study(system, preset, [*(changes or []), f"study={study}"], None)
        names, given = _settled(sites, data, made, asks)
        if given and made.experiment.data.phantom is not None:
            # what comes next must ask for the data that are there, and draw none
            made = read_study(system, preset, [*(changes or []), f"study={study}", "data.phantom=null"], None)
        server, people = _addresses(server, admin, lead, asks)
        copy = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            _write(copy, folder, made, names, given, server, people)
            os.replace(copy, folder)
        except OSError as error:
            raise ConfigurationError(
                "--out",
                got=f"{folder} ({why(error)})",
                expected="a folder that can be written",
                remedy="make room or rights there, or choose another with --out",
            ) from None
        finally:
            shutil.rmtree(copy, ignore_errors=True)
    _tell(folder, made, names, with_data=bool(given), lead=people[1])
    _warn(made, {name: site for name, site in given.items() if name in names})


def _plainer(name: str) -> str:
    """How to mend a name that cannot be one: the same without accents, with dashes for what is left out."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", letters).strip("-_")[:MOST_LETTERS]
    return f"write {plain!r}" if NAME.fullmatch(plain) else "choose another"


def _may_ask() -> bool:
    return sys.stdin.isatty() and console.is_terminal


def _require_new(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigurationError(
            "--out",
            got=f"{folder}, which is there",
            expected="a new or empty folder: nothing is overwritten",
            remedy="choose another with --out, or another name",
        )


def _ask(
    asks: bool,
    option: str,
    question: str,
    check: Callable[[str], Answer],
    *,
    known: Sequence[str] = (),
    default: str | None = None,
) -> Answer:
    """An answer at the terminal as ``check`` takes it; what it refuses is told, and asked for again.

    Raises:
        ConfigurationError: there is nobody to ask.
    """
    if not asks:
        raise ConfigurationError(
            option, got="nothing, and no terminal to ask at",
            expected=f"one of {', '.join(known)}" if known else "a value",
            remedy=f"add {option}",
        )  # fmt: skip
    while True:
        answer = Prompt.ask(question, console=console, choices=list(known) or None, default=default or "")
        try:
            return check(answer.strip())
        except ConfigurationError as error:
            tell(error)


def _settled(
    sites: str | None, data: Path | None, study: Study, asks: bool
) -> tuple[tuple[str, ...], dict[str, SiteFile]]:
    """Names of the hospitals and what of their data is there already, by options or by answers.

    Raises:
        ConfigurationError: see ``_sites``, or there is nobody to ask for names.
    """

    def imported(answer: str) -> tuple[tuple[str, ...], dict[str, SiteFile]] | None:
        return None if answer == NONE else _sites(sites, Path(answer).expanduser(), study)

    if data is None and asks:
        found = _ask(asks, "--data", "Folder that `fedmedseg data import` wrote", imported, default=NONE)
        if found is not None:
            return found
    if data is None and sites is None:
        names = "hospital-1,hospital-2,hospital-3"
        question = "Names of the hospitals, comma-separated"
        return _ask(asks, "--sites", question, lambda answer: _sites(answer, None, study), default=names)
    return _sites(sites, data, study)


def _sites(sites: str | None, data: Path | None, study: Study) -> tuple[tuple[str, ...], dict[str, SiteFile]]:
    """Names of the hospitals, and the site files of those whose data are there already.

    Raises:
        ConfigurationError: no names, names that cannot be folders or organisations, fewer than the study's quorum, no
            site files at ``data``, or without the study's data.
    """
    from fedmedseg.data.site import SiteFile

    given: dict[str, SiteFile] = {}
    if data is not None:
        files = sorted((data / SITES).glob("*.yaml"))
        if not files:
            raise ConfigurationError(
                "--data",
                got=f"no site file in {data / SITES}",
                expected="a folder that `fedmedseg data import` or `fedmedseg data phantoms` wrote",
            )
        for file in files:
            read = parse(SiteFile, read_yaml(file), source=file.name)
            lists = {
                role: one.model_copy(update={"list": (file.parent / one.list.expanduser()).resolve()})
                for role, one in read.datasets.items()
            }
            given[file.stem] = read.model_copy(update={"datasets": lists})
    names = tuple(name.strip() for name in sites.split(",")) if sites is not None else tuple(given)
    if len({name.lower() for name in names}) != len(names):
        raise ConfigurationError("--sites", got=sites, expected="different names")
    for name in names:
        _require_name(name, "--sites" if sites is not None else "--data", imported=name in given)
        if given and name not in given:
            raise ConfigurationError(
                "--sites", got=repr(name), expected=f"sites of --data: {', '.join(given)}", remedy=choose(name, given)
            )
    check_quorum(study.experiment, len(names))
    for name in names:
        _lists(study, name, given.get(name))
    return names, given


def _addresses(server: str | None, admin: str | None, lead: str | None, asks: bool) -> tuple[str, tuple[str, str]]:
    """The server's address and those of administrator and lead, by options, answers or, at its domain, by default.

    Raises:
        ConfigurationError: FLARE would refuse one of the three.
    """
    if server is None and asks:
        server = _ask(asks, "--server", "Address of the server", _host, default=SERVER)
    server = _host(server or SERVER)
    # FLARE is imported only once there is something to check
    from fedmedseg.core.flare_names import is_address

    given = {"--admin": admin, "--lead": lead}
    has_domain = is_address(f"admin@{server}")
    missing = [option for option, address in given.items() if not address]
    if missing and not has_domain and not asks:
        raise ConfigurationError(
            "--server",
            got=f"{server}, at which nobody has an e-mail address that FLARE takes",
            expected="a name with a domain, or addresses for administrator and lead",
            remedy=f"add {' and '.join(f'{option} NAME@hospital.example.org' for option in missing)}",
        )
    people = []
    for option, who in (("--admin", "the network's administrator"), ("--lead", "the one who submits the study")):
        usual = f"{option.removeprefix('--')}@{server}" if has_domain else None
        address = given[option]
        if not address and asks:
            check = partial(_address, option)
            address = _ask(asks, option, f"E-mail address of {who}", check, default=usual)
        people.append(_address(option, address or str(usual)))
    return server, (people[0], people[1])


def _host(server: str) -> str:
    """``server``, unless FLARE would refuse it.

    Raises:
        ConfigurationError: it would.
    """
    from fedmedseg.core.flare_names import is_host

    if not is_host(server):
        raise ConfigurationError(
            "--server", got=repr(server), expected="a host name or an IP address", remedy=f"write one, such as {SERVER}"
        )
    return server


def _address(option: str, address: str) -> str:
    """``address``, unless FLARE would refuse it.

    Raises:
        ConfigurationError: it would.
    """
    from fedmedseg.core.flare_names import is_address

    if not is_address(address):
        raise ConfigurationError(
            option,
            got=repr(address),
            expected="an e-mail address: FLARE knows people by theirs",
            remedy="write NAME@hospital.example.org",
        )
    return address


def _require_name(name: str, field: str, *, imported: bool) -> None:
    """Refuse a hospital's name that cannot be a folder, an organisation, or what FLARE starts the site with.

    Raises:
        ConfigurationError: saying which of these it is.
    """
    # FLARE is imported only once there are names
    from fedmedseg.core.flare_names import require_kept

    other, instead = f"site-{name}", "choose another name"
    if name and SITE.fullmatch(other):
        instead = f"write {other!r}"
        if imported:
            # nothing in a site file depends on its name
            instead = (
                f"rename {SITES}/{name}.yaml in --data, say to {other}.yaml: the name is the hospital's own choice"
            )
    if name.lower() in _TAKEN:
        expected = f"another name than {', '.join(sorted(_TAKEN))}, which mean something else"
    elif not re.fullmatch(r"[A-Za-z0-9-]*", name):
        expected = "a name of letters, digits and dashes alone"
    elif len(name) > MOST_LETTERS:
        expected = f"a name of at most {MOST_LETTERS} characters"
    elif not SITE.fullmatch(name):
        expected = "a name that begins with a letter"
    else:
        require_kept(name, field=field, remedy=instead)
        return
    raise ConfigurationError(field, got=repr(name), expected=expected, remedy=instead)


def _write(
    copy: Path,
    folder: Path,
    study: Study,
    names: tuple[str, ...],
    given: dict[str, SiteFile],
    server: str,
    people: tuple[str, str],
) -> None:
    """Write all of it to ``copy``, which is renamed to ``folder``.

    Raises:
        ConfigurationError: a site lacks the study's data, or FLARE refuses a name.
    """
    # FLARE is imported only once there is something to write
    from fedmedseg.provisioning.builder import site_template
    from fedmedseg.provisioning.loopback import bundle_project_file
    from fedmedseg.provisioning.starting import project_text, site_text

    template = site_template().read_text(encoding="utf-8")
    description = project_text(
        bundle_project_file().read_text(encoding="utf-8"),
        server=server,
        sites=names,
        admin=people[0],
        lead=people[1],
        lead_site=names[0],
        path=f"{folder}/{PROJECT}",
    )
    texts = {name: site_text(template, _lists(study, name, given.get(name))) for name in names}
    (copy / SITES).mkdir(parents=True)
    for name, text in texts.items():
        (copy / SITES / f"{name}.yaml").write_text(text, encoding="utf-8")
    (copy / PROJECT).write_text(description, encoding="utf-8")
    experiment = study.experiment
    write_job(
        study.folder,
        study.settings,
        (copy / JOB).resolve(),
        header=f"The study {experiment.study}. `fedmedseg job` makes of it the folder that is submitted.",
        meta={"name": experiment.study, "min_clients": len(names)},
        finish=study.place_files,
    )


def _lists(study: Study, name: str, given: SiteFile | None) -> dict[str, str]:
    """Role -> data list of one hospital, as its site file sees it: the ones there are, or where one is expected."""
    roles = study.experiment.data.roles
    if given is None:
        return {role: f"../data/{name}/{role}/datalist.json" for role in roles}
    found = {role: one.list for role, one in given.datasets.items() if role in roles}
    if not found:
        raise ConfigurationError(
            f"--data: {name}",
            got=f"the roles {', '.join(sorted(given.datasets))}",
            expected=f"the role {' or '.join(map(repr, roles))}, which the study asks for (data.role)",
            remedy="choose a --preset made for these data, or --set data.role=...",
        )
    return {role: str(path) for role, path in found.items()}


def _warn(study: Study, given: dict[str, SiteFile]) -> None:
    """What data that are there mark otherwise than the study says; sites of which the same is to be said, together."""
    from fedmedseg.preflight.data import label_names

    data = study.experiment.data
    sites: dict[tuple[str, str], list[str]] = {}
    for name, site in given.items():
        for role, one in site.datasets.items():
            for finding in label_names(one.list, role=role, data=data) if role == data.role else ():
                sites.setdefault((finding.found, finding.mend), []).append(name)
    for (found, mend), names in sites.items():
        said = f"[yellow]warning:[/] {escape(', '.join(names))}: {escape(found)}. Remedy: {escape(mend)}."
        console.print(said, highlight=False, soft_wrap=True)


def _tell(folder: Path, study: Study, names: tuple[str, ...], *, with_data: bool, lead: str) -> None:
    from fedmedseg.data.site import SITE_FILE

    for path, what in (
        (folder / JOB, f"the study {study.experiment.study} as a job; its settings: app/config/experiment.yaml"),
        (folder / SITES, "a site file for each hospital, to fill in: " + ", ".join(names)),
        (folder / PROJECT, f"the federation: server, hospitals, an administrator, and {lead} who submits"),
    ):
        console.print(f"{path}: {what}", highlight=False, soft_wrap=True, markup=False)
    workspace = workspace_beside(folder, f"{folder.resolve().name}-trial")
    trial: list[object] = ["fedmedseg", "simulate", folder / JOB, "-c", ",".join(names)]
    if with_data:
        next_step(*trial, "--sites", folder / SITES, "-w", workspace)
    elif study.experiment.data.phantom is not None:
        next_step(*trial, "-w", workspace)
    else:
        console.print(
            f"a trial needs the data lists that the files in {folder / SITES} name, or --data", highlight=False
        )
    submitted = folder.with_name(f"{folder.name}-job")
    next_step("fedmedseg", "job", folder / JOB, "--min-clients", len(names), "--out", submitted)
    next_step("nvflare", "provision", "-p", folder / PROJECT, "-w", folder / "kits")
    console.print(
        f"then, at each hospital: its file, filled in, goes into its kit: {folder / SITES / names[0]}.yaml becomes "
        f"KIT/local/{SITE_FILE} of {names[0]}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
