"""What stays at a hospital: the site file, read into the one object that says where things lie."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedmedseg.core.bounds import VOLUME_BUDGET_MB
from fedmedseg.core.config import Experiment
from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.errors import ConfigurationError, Reason, nearest
from fedmedseg.core.homes import homes_beside
from fedmedseg.core.schema import Strict, parse, read_yaml
from fedmedseg.data.leaving import PrivacySection
from fedmedseg.data.views import phantom_view, site_view

if TYPE_CHECKING:
    from fedmedseg.core.place import Place

logger = logging.getLogger(__name__)

SITE_FILE = "fedmedseg.yaml"
Approval = Literal["none", "each_job"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Site:
    """Where one site keeps and finds things. Nothing of it travels."""

    name: str
    state_root: Path
    cache: Path
    models: Path
    device: str
    """``cpu`` or ``cuda``."""
    datasets: Mapping[str, Path]
    """Role -> data list."""
    salt: str
    """Secret of this site: turns case names into keys that are safe to log."""
    simulated: bool
    min_cases: int = 1
    """Fewer usable cases in a training section and the site declines."""
    volume_budget_mb: int = VOLUME_BUDGET_MB
    """MiB one volume may occupy as float32, before and after resampling."""
    privacy: PrivacySection | None = None
    """What may leave this site; None where the site file does not say, and then nothing passes the filters."""
    approval: Approval = "none"
    prefers: str | None = None
    """Role with which it takes part where a study would take several of its data sets."""
    report: bool = True
    """Whether the site writes a page of its own after the test (``reporting.site_page``); it never travels."""
    publish: bool = False
    """Whether studies that ask for it get the parts of its models that are otherwise its own."""

    @property
    def least_told(self) -> int:
        """Figures that stand on fewer patients than this stay here; 0 where no site file says so (the simulator)."""
        return 0 if self.privacy is None else self.privacy.min_count

    def data_list(self, role: str) -> Path:
        """The data list of ``role``.

        Raises:
            ConfigurationError: this site does not offer that role.
        """
        if role not in self.datasets:
            guess = nearest(role, self.datasets)
            raise ConfigurationError(
                f"datasets.{role}",
                got=f"the roles {', '.join(sorted(self.datasets)) or '(none)'} in the site file",
                expected=f"role {role!r}, which the experiment asks for (data.role)",
                remedy=f"add datasets.{role}.list to the site file" + (f", or rename {guess!r}" if guess else ""),
            )
        return self.datasets[role]


class DatasetEntry(Strict):
    """One data set this site offers."""

    list: Path
    """Data list in the Decathlon/MONAI JSON form."""


class SiteFile(Strict):
    """The hospital's own file. Relative paths start at its folder."""

    datasets: dict[str, DatasetEntry] = Field(min_length=1)
    state_dir: Path | None = None
    cache_dir: Path | None = None
    models_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    min_cases: int = Field(1, ge=1)
    volume_budget_mb: int = Field(VOLUME_BUDGET_MB, ge=1)
    salt: Annotated[str, Field(min_length=8)] | None = None
    privacy: PrivacySection | None = None
    approval: Approval = "none"
    """``each_job``: a local person must agree to every job before its first task (``core.approval``)."""
    prefers: str | None = None
    """The role to take part with where a study accepts several that this site offers (``data.views``)."""
    report: bool = True
    """``false``: no page with pictures and scores of single cases is written after the test."""
    publish: bool = False
    """``true``: a study that asks for it gets the parts of this site's models that are otherwise its own."""


def site_and_view(experiment: Experiment, place: Place) -> tuple[Site, Experiment]:
    """The site of this process, and the study as it sees it (``data.views``).

    Raises:
        ConfigurationError: see ``open_site`` and ``site_view``.
    """
    site = open_site(
        experiment, name=place.name, local=place.local, workspace=place.workspace, simulated=place.simulated
    )
    return site, site_view(experiment, site.datasets, preferred=site.prefers)


def open_site(experiment: Experiment, *, name: str, local: Path, workspace: Path, simulated: bool) -> Site:
    """This site as ``experiment`` sees it.

    In the simulator, whose sites share one ``local``, ``local/sites/<name>.yaml`` is looked up first, and a missing
    file means phantoms. A hospital has one file, ``local/fedmedseg.yaml``, which is the one its people check.

    Raises:
        ConfigurationError: no or a wrong site file, a role this site does not offer, a missing data list, a
            folder that cannot be written, or a device that is not there.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError("site name", got=repr(name), expected="letters, digits, dot, dash, underscore")
    home = homes_beside(workspace) / name
    own, shared = local / "sites" / f"{name}.yaml", local / SITE_FILE
    file = next((candidate for candidate in ((own, shared) if simulated else (shared,)) if candidate.is_file()), None)
    if file is not None:
        settings = parse(SiteFile, read_yaml(file), source=file.name)
    elif simulated:
        settings = None
    else:
        raise ConfigurationError(
            "site file",
            got="none",
            expected=f"{shared}",
            remedy="copy app_configs/sites/example.yaml there and enter this site's data lists",
        )
    base = home if simulated else local.parent / "fedmedseg"
    state, cache, models = site_folders(settings, file, base)
    if settings is not None and simulated and file == shared:
        # several simulated sites read this file: each needs folders of its own
        state, cache, models = (folder if folder.parent == home else folder / name for folder in (state, cache, models))
    for key, folder in (("state_dir", state), ("cache_dir", cache), ("models_dir", models)):
        _require_writable(key, folder)
    datasets = (
        _phantoms(experiment, name, home)
        if settings is None or file is None
        else {role: _under(file, entry.list) for role, entry in settings.datasets.items()}
    )
    site = Site(
        name=name,
        state_root=state,
        cache=cache,
        models=models,
        device=_device("auto" if settings is None else settings.device, experiment.compute.device),
        datasets=datasets,
        salt=(settings.salt if settings is not None else None) or _own_salt(state),
        simulated=simulated,
        min_cases=1 if settings is None else settings.min_cases,
        volume_budget_mb=VOLUME_BUDGET_MB if settings is None else settings.volume_budget_mb,
        privacy=None if settings is None else settings.privacy,
        approval="none" if settings is None else settings.approval,
        prefers=None if settings is None else settings.prefers,
        report=settings is None or settings.report,
        # phantoms have no patients to ask for
        publish=settings is None or settings.publish,
    )
    role = site_view(experiment, datasets, preferred=site.prefers).data.role
    listed = site.data_list(role)
    if not listed.is_file():
        raise ConfigurationError(
            f"datasets.{role}.list",
            got=f"no file at {listed}",
            expected="a data list (JSON)",
            remedy="correct the path, which starts at the site file's folder, or import the data first",
        )
    return site


def phantom_index(name: str) -> int:
    """Which phantom style a site gets, and which of several data sets: ``site-1`` 0, ``site-2`` 1, ...

    Other names have a number that never changes.
    """
    number = re.search(r"(\d+)$", name)
    if number:
        return max(0, int(number.group(1)) - 1)
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 1000


def site_folders(settings: SiteFile | None, file: Path | None, base: Path) -> tuple[Path, Path, Path]:
    """State, cache and models; those not given lie beside the first that is, else under ``base``."""
    given = (settings.state_dir, settings.cache_dir, settings.models_dir) if settings is not None else (None,) * 3
    placed = [None if path is None or file is None else _under(file, path) for path in given]
    beside = next((path.parent for path in placed if path is not None), base)
    state, cache, models = (
        path or beside / default for path, default in zip(placed, ("state", "cache", "models"), strict=True)
    )
    return state, cache, models


def _under(file: Path, path: Path) -> Path:
    return file.parent / path.expanduser()


def _require_writable(key: str, folder: Path) -> None:
    probe = folder / f".probe.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full and key == "cache_dir" and folder.is_dir():
            logger.warning("the disk of cache_dir is full; volumes are kept in memory")
            return
        raise ConfigurationError(
            key,
            got=f"{folder}: {os.strerror(error.errno or 0)}",
            expected="a folder this process can write",
            remedy="free space" if full else f"set {key} in the site file to a writable folder",
            reason=Reason.DISK,
        ) from None
    finally:
        probe.unlink(missing_ok=True) if folder.is_dir() else None


def _own_salt(state: Path) -> str:
    """The site's salt, made once. A hard link takes the name, so that two first starts agree on one salt."""
    file = state / "salt"
    if not file.exists():
        temporary = state / f".salt.{uuid.uuid4().hex}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(32))
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(temporary, file)
            except FileExistsError:
                logger.debug("another process made the salt first")
            except OSError:
                # a file system without hard links
                if not file.exists():
                    os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    salt = file.read_text(encoding="ascii").strip()
    if len(salt) < 8:
        raise ConfigurationError(
            "salt",
            got="a damaged salt file in state_dir",
            expected="64 hexadecimal digits",
            remedy="remove the file named salt from state_dir; a new one is made",
        )
    return salt


def _device(own: str, asked: str) -> str:
    """The site's word counts; ``auto`` leaves it to the experiment, then to what the machine has."""
    wish = own if own != "auto" else asked
    if wish == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wish == "cuda":
        raise ConfigurationError(
            "device" if own == "cuda" else "compute.device",
            got="cuda",
            expected="a device this machine has",
            remedy="set device: cpu in the site file, or mend the graphics driver",
        )
    return "cpu"


def _phantoms(experiment: Experiment, name: str, home: Path) -> dict[str, Path]:
    data = phantom_view(experiment, phantom_index(name)).data
    section = data.phantom
    if section is None:
        raise ConfigurationError(
            "site file",
            got="none, and the experiment has no data.phantom",
            expected=f"local/sites/{name}.yaml or data.phantom",
            remedy="write a site file, or add data.phantom to the experiment",
        )
    logger.info("no site file: this simulated site uses %s phantoms", section.family)
    return {data.role: write_phantoms(section, seed=experiment.seed, name=name, home=home)}


def write_phantoms(section: PhantomSection, *, seed: int, name: str, home: Path) -> Path:
    """The data list of this simulated site's phantoms, written once per setting under ``home/data``."""
    from fedmedseg.data.phantoms.style import LABELS

    # with the labels, so that volumes which another version marked otherwise are not taken for this one's
    marks = {str(number): label for number, label in LABELS[section.family].items()}
    content = json.dumps([section.model_dump(mode="json"), seed, phantom_index(name), marks], sort_keys=True)
    folder = home / "data" / hashlib.sha256(content.encode()).hexdigest()[:12]
    if not (folder / "datalist.json").is_file():
        from fedmedseg.data.phantoms import write_site
        from fedmedseg.data.phantoms.annotators import share_of

        share = share_of(section, phantom_index(name))
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            written = write_site(
                section.family,
                site_index=phantom_index(name),
                out=temporary,
                seed=seed,
                counts=share.counts,
                size=section.size,
                marks=share.marks,
                heart=section.heart,
            )
            relative = Path(written).relative_to(temporary)
            try:
                os.rename(temporary, folder)
            except OSError as error:
                # a process of the same site finished first
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder / relative
    return folder / "datalist.json"
