"""Job folders: where they are found, and copies with other settings."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

import fedmedseg
from fedmedseg.core.config import Experiment, parse_experiment, system_module
from fedmedseg.core.errors import ConfigurationError, choose
from fedmedseg.core.schema import read_yaml

CONFIG = Path("app") / "config"
EXPERIMENT = CONFIG / "experiment.yaml"
META = "meta.json"
_OUTWARDS = re.compile(r"(?<!!)\[(?P<words>[^\]]+)\]\((?P<up>\.\./(?:\.\./)?)(?P<place>[^.)][^)]*)\)")
"""A link of a page to what lies outside its job."""
IN_PROJECT = {"../": "jobs/", "../../": ""}
"""Where such a link's folder lies in the project."""


def bundle_roots() -> list[Path]:
    """Where jobs and presets may lie: the current folder, the source tree, the installed package."""
    package = Path(fedmedseg.__file__).resolve().parent
    return [Path.cwd(), package.parents[1], package / "bundle"]


def known_jobs() -> dict[str, Path]:
    """Job folders by name; a bundle's own before the package's."""
    known: dict[str, Path] = {}
    for root in reversed(bundle_roots()):
        known.update({meta.parent.name: meta.parent for meta in sorted(root.glob("jobs/*/meta.json"))})
    return dict(sorted(known.items()))


def find_job(name: str, *, what: str = "job") -> Path:
    """The folder of a job given by name or by path. ``what`` is what an error calls it.

    Raises:
        ConfigurationError: no such job.
    """
    if (Path(name) / "meta.json").is_file():
        return Path(name).resolve()
    known = known_jobs()
    if name not in known:
        raise ConfigurationError(
            what,
            got=repr(name),
            expected=f"a job folder, or one of {', '.join(known) or '(no jobs found)'}",
            remedy=choose(name, known),
        )
    return known[name].resolve()


def find_preset(system: str, name: str) -> Path:
    """The file of a preset given by name or by path.

    Raises:
        ConfigurationError: no such preset.
    """
    return find_shipped("preset", name, presets_of(system))


def find_shipped(what: str, name: str, known: Mapping[str, Path]) -> Path:
    """A file given by path, or by its name among those ``known``. ``what`` is what an error calls it.

    Raises:
        ConfigurationError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    if name not in known:
        raise ConfigurationError(
            what,
            got=repr(name),
            expected=f"a file, or one of {', '.join(sorted(known)) or '(none)'}",
            remedy=choose(name, sorted(known)),
        )
    return known[name]


def presets_of(system: str) -> dict[str, Path]:
    """The system's presets by name."""
    return shipped(f"presets/{system}")


def shipped(folder: str) -> dict[str, Path]:
    """The YAML files of ``app_configs/<folder>`` by name; a bundle's own before the package's."""
    known: dict[str, Path] = {}
    for root in reversed(bundle_roots()):
        known.update({file.stem: file for file in sorted(root.glob(f"app_configs/{folder}/*.yaml"))})
    return dict(sorted(known.items()))


def presets_for_role(system: str, role: str) -> list[str]:
    """Names of the system's presets that are meant for data of ``role``."""
    found = set()
    for root in bundle_roots():
        for file in root.glob(f"app_configs/presets/{system}/*.yaml"):
            data = read_yaml(file).get("data")
            if isinstance(data, dict) and data.get("role") == role and data.get("phantom", "unset") is None:
                found.add(file.stem)
    return sorted(found)


def merged(settings: Any, changes: Any) -> Any:
    """``settings`` with the sections of ``changes`` laid over it; null removes a key, other values replace."""
    if not isinstance(settings, Mapping) or not isinstance(changes, Mapping):
        return changes
    # a section that names another kind of thing (network.name, say) replaces the old one whole
    if "name" in changes and changes["name"] != settings.get("name", changes["name"]):
        return dict(changes)
    result = dict(settings)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def setting(text: str) -> dict[str, Any]:
    """``a.b=value`` as nested sections; the value is read as YAML.

    Raises:
        ConfigurationError: not of that form.
    """
    key, sign, value = text.partition("=")
    if not sign or not key or not all(key.split(".")):
        raise ConfigurationError(
            "--set", got=repr(text), expected="section.key=value, as in stages.pretraining.rounds=2"
        )
    try:
        content: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        # ValueError: what looks like a date or a number and is none
        raise ConfigurationError("--set", got=repr(text), expected="a YAML value after the equals sign") from None
    for part in reversed(key.split(".")):
        content = {int(part) if part.isdigit() else part: content}
    return dict(content)


def read_settings(job: Path, changes: list[Mapping[str, Any]]) -> tuple[dict[str, Any], Experiment]:
    """The job's settings with ``changes`` laid over, and the study they describe.

    A preset of labels replaces the job's label map rather than adding to it.

    Raises:
        ConfigurationError: names the wrong setting.
    """
    content = read_yaml(job / EXPERIMENT)
    for change in changes:
        if isinstance(change, Mapping) and isinstance(change.get("data"), Mapping) and "labels" in change["data"]:
            content = merged(content, {"data": {"labels": None}})
        content = merged(content, change)
    return content, parse_experiment(content)


def main_stage(experiment: Experiment) -> str:
    """The stage whose rounds make up a study: the first in its system's plan that is not left out."""
    stages = system_module(experiment.system, "plan").stages(experiment)
    return next(stage for stage in stages if experiment.stages[stage].rounds > 0)


def check_quorum(experiment: Experiment, sites: int, *, what: str = "the number of sites") -> None:
    """Refuse a quorum that ``sites`` sites can never reach.

    ``all`` and a fraction follow the sites that take part; only a count can be too many.

    Raises:
        ConfigurationError: naming both numbers.
    """
    needed = experiment.federation.needed(sites)
    if needed > sites:
        raise ConfigurationError(
            "federation.quorum", got=needed, expected=f"at most {sites}, {what}", remedy="lower it or add sites"
        )
    robust = experiment.federation.robust
    if sites < robust.least:
        raise ConfigurationError(
            "federation.robust",
            got=f"{sites}, {what}",
            expected=f"at least {robust.least} sites for {robust.named}",
            remedy="add sites, lower federation.robust.faulty, or remove robust",
        )


def write_job(
    job: Path,
    settings: Mapping[str, Any],
    out: Path,
    *,
    header: str = "",
    meta: Mapping[str, Any] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Copy ``job`` to ``out`` with ``settings`` as its experiment.yaml; what was at ``out`` goes once all is written.

    ``header`` becomes a comment at its top, ``meta`` replaces entries of meta.json, and ``finish`` is called with the
    copy before it takes its name.
    """
    copy = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        shutil.copytree(job, copy)
        # every line for itself: a line break in a setting must not end the comment
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        content = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        (copy / EXPERIMENT).write_text(comment + content, encoding="utf-8")
        if meta:
            entries = {**json.loads((copy / META).read_text(encoding="utf-8")), **meta}
            (copy / META).write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        readme = copy / "README.md"
        if readme.is_file():
            text = readme.read_text(encoding="utf-8", errors="surrogateescape")
            readme.write_text(_alone(text), encoding="utf-8", errors="surrogateescape")
        if finish is not None:
            finish(copy)
        if out.exists():
            shutil.rmtree(out)
        copy.rename(out)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return out


def _alone(readme: str) -> str:
    """A job's page as it reads away from the project: what it links to in there is named instead."""
    return _OUTWARDS.sub(lambda link: f"{link['words']} ({IN_PROJECT[link['up']]}{link['place']} of fedmedseg)", readme)


def is_job(folder: Path) -> bool:
    """Whether ``folder`` is a job's, and so may be replaced by another."""
    return (folder / META).is_file() and (folder / EXPERIMENT).is_file()
