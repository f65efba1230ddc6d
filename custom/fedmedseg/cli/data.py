"""`fedmedseg data`: import public data sets, check a site's data, write phantoms."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedmedseg.cli.console import Code, console, example, friendly_errors, next_step, progress_bar, workspace_beside
from fedmedseg.cli.rows import Rows, show
from fedmedseg.core.config import systems
from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import find_job, presets_for_role, read_settings
from fedmedseg.core.schema import parse
from fedmedseg.data.views import data_sets

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

ROLES = {
    "cine_mr": "cmr",
    "late_enhancement_mr": "lge",
    "abdominal_ct": "abdominal_ct",
    "cardiac_ct": "cardiac_ct",
}
"""Family of phantoms -> the role their data lists serve."""
DEFAULT_SITES = 4


@data_app.command(
    "import",
    epilog=example(
        "fedmedseg data import decathlon downloads/hippocampus --out runs/hippocampus --sites 4 --by volume"
    ),
)
def import_set(
    importer: Annotated[
        str,
        typer.Argument(
            help="sunnybrook, decathlon, acdc, mnms, emidec, kits19, btcv, imagecas, totalsegmentator or ct_dicom."
        ),
    ],
    source: Annotated[Path, typer.Argument(help="The unpacked data set.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the sites.")],
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--sites", help="A number of sites, or site=group,group; may be repeated. Default: the set's groups."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", help="With a number of sites: random, or volume so that image sizes differ by site.")
    ] = "random",
    split: Annotated[
        str, typer.Option("--split", help="Shares of training,validation,test[,unlabeled] patients.")
    ] = "0.6,0.2,0.2",
    seed: Annotated[int, typer.Option("--seed", help="Seed of sites and split.")] = 1,
    role: Annotated[
        str | None, typer.Option("--role", help="Role the data lists serve. Default: the set's own.")
    ] = None,
    myocardium: Annotated[
        bool, typer.Option("--myocardium", help="sunnybrook with contours: label 2 between inner and outer contour.")
    ] = False,
    channel: Annotated[
        int | None, typer.Option("--channel", help="decathlon: which channel of multi-channel images, from 0.")
    ] = None,
    label_map: Annotated[
        str | None,
        typer.Option(
            "--label-map",
            help="decathlon, kits19, btcv, imagecas: the study's label numbers, old=new; 1=1,2=1 merges a tumour into "
            "its organ.",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="ct_dicom: folder with <case>.nii.gz in the study's label numbers.")
    ] = None,
    hearts: Annotated[
        Path | None,
        typer.Option(
            "--hearts",
            help="imagecas, ct_dicom: folder with what TotalSegmentator (-ta heartchambers_highres) made of each case.",
        ),
    ] = None,
    landmarks: Annotated[
        Path | None, typer.Option("--landmarks", help="imagecas, ct_dicom: folder with <case>.json, points in mm.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Hard-link image files instead of copying them.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier import wrote to --out.")] = False,
) -> None:
    """Split a public data set by patient into sites that `fedmedseg simulate --sites` reads."""
    # what reads and writes volumes is imported only when it is needed: the command line stays quick
    from fedmedseg.data.importers import create
    from fedmedseg.data.importers.assignment import (
        assign_by_group,
        assign_by_number,
        parse_sites,
        parse_split,
        patients_of,
    )
    from fedmedseg.data.importers.base import writing as to_write
    from fedmedseg.data.importers.sites import require_free, write_sites

    with friendly_errors():
        wanted, shares = parse_sites(sites or []), parse_split(split)
        _apart(source, out)
        # before a large set is read
        with to_write(out):
            require_free(out, force=force)
        with progress_bar() as bar:
            reader = create(
                importer,
                myocardium=myocardium,
                channel=channel,
                label_map=label_map,
                labels=labels,
                hearts=hearts,
                landmarks=landmarks,
            )
            bar.say(f"reading {reader.name}: {source}")
            task = bar.add_task("reading")
            collection = reader.read(source, tick=lambda done, of: bar.update(task, completed=done, total=of))
            if isinstance(wanted, int) or (wanted is None and not collection.groups):
                # of labelled patients a site needs one for each section
                each = sum(share > 0 for share in shares[:3]) if any(one.annotated for one in collection.cases) else 1
                most = max(1, len(patients_of(collection.cases)) // each)
                number = min(DEFAULT_SITES, most) if wanted is None else wanted
                plan = assign_by_number(collection, number, by=by, seed=seed)
            elif by != "random":
                raise ConfigurationError("--by", got=by, expected="a number of sites with it", remedy="add --sites N")
            else:
                plan = assign_by_group(collection, wanted)
            writing = {site: bar.add_task(site, total=len(cases)) for site, cases in plan.items()}
            chosen = role or collection.role or reader.role or reader.name
            summaries = write_sites(
                plan,
                out=out,
                role=chosen,
                name=reader.name,
                labels=collection.labels,
                shares=shares,
                seed=seed,
                link=link,
                force=force,
                tick=lambda site, done, of: bar.update(writing[site], completed=done, total=of),
            )
    table = Rows("site", title=escape(f"{reader.name}: {out}"))
    table.add_column("patients", justify="right")
    for section in ("train", "val", "test", "unlabeled"):
        # a patient may have several volumes: the numbers of a row need not add up to the first
        table.add_column(f"{section}\nvolumes", justify="right")
    table.add_column("label voxels")
    for one in summaries:
        voxels = (f"{collection.labels.get(label, f'label {label}')} {n}" for label, n in one.voxels.items())
        counts = (str(number) for number in one.volumes.values())
        table.add_row(one.site, str(one.patients), *counts, "\n".join(voxels) or "none")
    show(console, table)
    for reason, number in collection.skipped.items():
        console.print(f"[yellow]left out:[/yellow] {number} x {reason}", highlight=False)
    withheld = sum(one.withheld for one in summaries)
    if withheld:
        console.print(f"withheld: {withheld} unlabelled volumes of validation and test patients", highlight=False)
    known = {system: presets_for_role(system, chosen) for system in systems()}
    fitting = {system: presets[0] for system, presets in known.items() if presets}
    for system, preset in fitting.items():
        folder = workspace_beside(out, f"{system}-{out.resolve().name}")
        next_step("fedmedseg", "simulate", system, "--preset", preset, "--sites", out / "sites", "-w", folder)
    if not fitting:
        # a site's list names what was found there, which may be less than elsewhere
        labels_of = [] if collection.labels else ["--labels", max([1, *(n for one in summaries for n in one.voxels)])]
        next_step("fedmedseg", "data", "check", out / "sites" / f"{summaries[0].site}.yaml", *labels_of)
        console.print(
            f"no preset is made for the role {chosen!r}: copy one from app_configs/presets, enter this set's role, "
            "labels, spacing and crop, and name it to `fedmedseg simulate --preset`",
            highlight=False,
            soft_wrap=True,
        )


@data_app.command(epilog=example("fedmedseg data check runs/hippocampus/sites/site-1.yaml"))
def check(
    path: Annotated[Path, typer.Argument(help="A data list (JSON) or a site file (YAML).")],
    job: Annotated[
        str | None, typer.Option("--job", help="Check against this job's data section. Default: the list's own labels.")
    ] = None,
    labels: Annotated[
        int | None, typer.Option("--labels", help="Number of structures, where the list does not name them.")
    ] = None,
) -> None:
    """Say which cases of a site would be used and which set aside, and why.

    File names appear on this screen, nowhere else. Ends with code 1 when a case would be set aside.
    """
    from fedmedseg.data.survey import lists_in, survey

    with friendly_errors(), progress_bar() as bar:
        found = []
        for role, list_, budget_mb in lists_in(path, job=job):
            task = bar.add_task(f"checking {role}")
            found += survey(
                list_,
                role=role,
                job=job,
                labels=labels,
                budget_mb=budget_mb,
                tick=lambda done, of, task=task: bar.update(task, completed=done, total=of),  # type: ignore[misc]
            )
    table = Rows("role", "section", title=escape(str(path)))
    for column in ("patients", "volumes\nadmitted", "volumes\nset aside"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(one.role, one.section, str(one.patients), str(one.admitted), str(len(one.set_aside)))
    show(console, table)
    bad = [(one, file, reason) for one in found for file, reason in one.set_aside.items()]
    if bad:
        faults = Rows("file", "reason", "role", "section", title="set aside")
        for one, file, reason in bad:
            faults.add_row(escape(file), escape(reason), one.role, one.section)
        show(console, faults)
        raise typer.Exit(Code.LOOK)


@data_app.command(epilog=example("fedmedseg data folds runs/hippocampus/sites --out runs/folds --folds 3"))
def folds(
    sites: Annotated[Path, typer.Argument(help="Folder of site files (<site>.yaml), as an import writes it.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the folds.")],
    number: Annotated[int, typer.Option("--folds", help="Number of folds.")] = 3,
    validation: Annotated[
        float, typer.Option("--validation", help="Share of the patients not tested that choices are made on.")
    ] = 0.25,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the folds.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier call wrote to --out.")] = False,
) -> None:
    """Deal each site's labelled patients out into folds, so that every patient is tested once; no image is copied."""
    from fedmedseg.data.folds import write_folds
    from fedmedseg.data.importers.base import writing

    with friendly_errors(), writing(out):
        written = write_folds(sites, out=out, folds=number, validation=validation, seed=seed, force=force)
    for folder in written:
        console.print(str(folder), highlight=False, soft_wrap=True)


@data_app.command(epilog=example("fedmedseg data phantoms cine_mr --out runs/phantoms --sites 3"))
def phantoms(
    family: Annotated[str, typer.Argument(help="cine_mr, late_enhancement_mr, abdominal_ct or cardiac_ct.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the sites.")],
    sites: Annotated[int, typer.Option("--sites", min=1, help="Number of sites, each with a style of its own.")] = 2,
    training: Annotated[int, typer.Option("--training", min=0, help="Labelled patients a site.")] = 6,
    validation: Annotated[int, typer.Option("--validation", min=0)] = 2,
    test: Annotated[int, typer.Option("--test", min=0)] = 4,
    unlabeled: Annotated[int, typer.Option("--unlabeled", min=0)] = 12,
    size: Annotated[str | None, typer.Option("--size", help="Voxels as 96,96,10. Default: the style's own.")] = None,
    annotation: Annotated[
        str,
        typer.Option(
            "--annotation",
            help="What a site marks: style, shared_out, or published (cardiac_ct: as the published hospitals do).",
        ),
    ] = "style",
    unseen: Annotated[int | None, typer.Option("--unseen", min=1, help="Number of a site that is only tested.")] = None,
    heart: Annotated[bool, typer.Option("--heart", help="cardiac_ct: a map of the heart with every volume.")] = False,
    seed: Annotated[int, typer.Option("--seed")] = 1,
    role: Annotated[str | None, typer.Option("--role", help="Role the data lists serve. Default: by family.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier call wrote to --out.")] = False,
) -> None:
    """Write synthetic hospitals that `fedmedseg simulate --sites` reads."""
    from fedmedseg.data.importers.base import writing
    from fedmedseg.data.importers.sites import claim, require_role, write_manifest, write_site_file
    from fedmedseg.data.phantoms import write_site
    from fedmedseg.data.phantoms.annotators import share_of

    counts = {"training": training, "validation": validation, "test": test, "unlabeled": unlabeled}
    with friendly_errors(), writing(out):
        require_role(serves := role or ROLES.get(family, family))
        voxels = _size(size)
        asked = {"family": family, "sites": sites, "annotation": annotation, "unseen": unseen, "heart": heart}
        section = parse(PhantomSection, {**asked, **counts, "size": voxels}, source="phantoms")
        if unseen is not None and unseen > sites:
            raise ConfigurationError(
                "--unseen", got=unseen, expected=f"a number of one of the {sites} sites", remedy="or raise --sites"
            )
        claim(out, force=force)
        shares = [share_of(section, index) for index in range(sites)]
        names = [f"site-{index + 1}" for index in range(sites)]
        with progress_bar() as bar:
            task = bar.add_task("writing", total=sites)
            for index, (name, share) in enumerate(zip(names, shares, strict=True)):
                partial, final = out / f".{name}.partial", out / name
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    write_site(
                        family,
                        site_index=index,
                        out=partial,
                        seed=seed,
                        counts=share.counts,
                        size=voxels,
                        marks=share.marks,
                        heart=heart,
                    )
                    if final.exists():
                        shutil.rmtree(final)
                    os.replace(partial, final)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
                write_site_file(out, name, {serves: final / "datalist.json"})
                bar.update(task, completed=index + 1)
        write_manifest(out, {"data set": family, "role": serves, "seed": seed, "sites": names})
    from fedmedseg.reporting.tables import counted

    dealt = {part: sorted({one.counts[part] for one in shares}) for part in counts}
    per_site = ", ".join(
        f"{of[0]} {part}" if len(of) == 1 else f"{of[0]} to {of[-1]} {part}" for part, of in dealt.items()
    )
    told = f"{counted(sites, 'site')} of {family}, each {per_site} patients (one volume each): {out / 'sites'}"
    console.print(told, highlight=False, soft_wrap=True)
    fitting = [system for system in systems() if _is_drawn_for(system, family, serves)]
    # a run of patients that nothing is trained or tested on ends without a figure
    if fitting and dealt["training"][-1] and dealt["test"][-1]:
        folder = workspace_beside(out, f"{fitting[0]}-{out.resolve().name}")
        # maps that no network was told of would be read by none
        beside = ["--set", "cardiac_ct.conditioning=true"] if heart else []
        next_step("fedmedseg", "simulate", fitting[0], *beside, "--sites", out / "sites", "-w", folder)
    else:
        next_step("fedmedseg", "data", "check", out / "sites" / f"{names[0]}.yaml")


def _is_drawn_for(system: str, family: str, role: str) -> bool:
    """Whether the system's job, as it comes, is a study of such phantoms in this role."""
    found = data_sets(read_settings(find_job(system), [])[1].data)
    return any(one.role == role and one.phantom is not None and one.phantom.family == family for one in found)


def _apart(source: Path, out: Path) -> None:
    """Never write into the data set itself, nor over it."""
    inside, around = out.resolve().is_relative_to(source.resolve()), source.resolve().is_relative_to(out.resolve())
    if inside or around:
        raise ConfigurationError("--out", got=str(out), expected="a folder apart from the data set's own")


def _size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        x, y, z = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError("--size", got=repr(text), expected="three whole numbers, such as 96,96,10") from None
    return x, y, z
