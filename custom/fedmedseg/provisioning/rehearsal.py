"""A federation on this machine for a person: kits, phantom hospitals, processes, one job, and a clean end."""

from __future__ import annotations

import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedmedseg.core import admin
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.ckks import tenseal
from fedmedseg.core.config import Experiment
from fedmedseg.core.encryption_keys import KEY_FILE
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.core.kit import is_kit, open_kit
from fedmedseg.core.progress import Follower
from fedmedseg.core.simulation import terminate_as_exit
from fedmedseg.data.site import SITE_FILE, phantom_index, write_phantoms
from fedmedseg.data.views import data_sets, phantom_view
from fedmedseg.provisioning.check import check_kit
from fedmedseg.provisioning.loopback import (
    SERVER,
    LoopbackFederation,
    bundle_project,
    free_port,
    loopback_project,
    provision,
)

KITS, DATA, HOME, RESULTS = "kits", "data", "home", "results"
"""Folders of a rehearsal: startup kits, phantom hospitals, the processes' home folder, what jobs left."""
START_SECONDS = 120.0
"""How long one participant may take to come up, on a machine that has other work."""
END_SECONDS = 30.0
"""How long the processes get to end by themselves once they were told to."""
_HEAD = """\
# The site file of a phantom hospital: its patients are drawn, so no count of them is withheld.
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job that has ended: its status, as FLARE writes it, and the run folder the server handed out."""

    status: str
    folder: Path


def kits_in(out: Path, *, sites: Sequence[str], encryption: bool = False) -> Path:
    """The kits of an earlier call in ``out``, or new ones; with ``encryption`` they hold keys for encrypted replies.

    Raises:
        ConfigurationError: the kits there are of other sites, are not as safe as they were made, have no keys where
            they are needed, or are in use.
    """
    found = sorted((out / KITS).glob("*/prod_*"))
    if not found:
        if encryption:
            # before the folder is made: without it the command could not be given again
            tenseal()
        project = loopback_project(bundle_project(), sites=sites, port=free_port(), encryption=encryption)
        return provision(project, out / KITS)
    kits = found[-1]
    _require_sites(kits, sites)
    _require_safe(kits, sites)
    if encryption and not (kits / SERVER / "startup" / KEY_FILE).is_file():
        raise ConfigurationError(
            "federation.encryption",
            got="ckks, and kits in --out that were made without keys",
            expected="kits with keys",
            remedy="choose another --out, where kits are made with them",
        )
    _require_idle(kits, sites)
    return kits


def _require_sites(kits: Path, sites: Sequence[str]) -> None:
    have = {folder.name for folder in kits.iterdir() if is_kit(folder) and open_kit(folder).role == "client"}
    if have != set(sites):
        raise ConfigurationError(
            "--sites",
            got=len(sites),
            expected=f"{len(have)}, for which the kits in --out were made",
            remedy="ask for as many, or choose another --out",
        )


def _require_safe(kits: Path, sites: Sequence[str]) -> None:
    for name in (SERVER, *sites):
        for finding in check_kit(kits / name):
            if finding.level is Level.FAIL:
                raise ConfigurationError(
                    f"kit of {name}: {finding.check}",
                    got=finding.found,
                    expected="a kit as it was made",
                    remedy=f"{finding.mend}, or choose another --out",
                )


def _require_idle(kits: Path, sites: Sequence[str]) -> None:
    federation = LoopbackFederation(kits)
    left = sorted(one.pid for name in (SERVER, *sites) for one in federation.running(name))
    if left:
        raise ConfigurationError(
            "--out",
            got=f"processes of an earlier call that still run there: {', '.join(map(str, left))}",
            expected="kits that nobody uses",
            remedy="end them (kill, with these numbers), or choose another --out",
        )
    port = open_kit(kits / SERVER).port
    with socket.socket() as probe:
        # as a server does: connections of an earlier run that are only being forgotten do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            raise ConfigurationError(
                "port",
                got=f"{port}, which another program uses",
                expected="the port for which the kits in --out were made",
                remedy="end that program, or choose another --out",
            ) from None


def place_phantoms(
    kits: Path, out: Path, *, sites: Sequence[str], experiment: Experiment, on_site: Callable[[str], None]
) -> None:
    """Write each hospital's volumes, once for each setting, and its own file, which names them.

    Raises:
        ConfigurationError: the experiment describes no phantoms.
    """
    if not any(one.phantom for one in data_sets(experiment.data)):
        raise ConfigurationError(
            "data.phantom",
            got="none in this job",
            expected="phantoms, of which these hospitals are made",
            remedy="choose a job or preset with data.phantom; with real volumes use `fedmedseg simulate --sites`",
        )
    for site in sites:
        data = phantom_view(experiment, phantom_index(site)).data
        assert data.phantom is not None, "phantom_view gives data sets that have phantoms"
        section = data.phantom
        if section.annotation == "shared_out":
            # what each hospital marks follows from how many there are
            section = section.model_copy(update={"sites": len(sites)})
        listed = write_phantoms(section, seed=experiment.seed, name=site, home=out / DATA / site)
        # phantoms have no patients to protect
        privacy = {"min_count": 0, "features": True}
        content = {"datasets": {data.role: {"list": str(listed)}}, "privacy": privacy}
        text = _HEAD + yaml.safe_dump(content, sort_keys=False)
        write_atomic(kits / site / "local" / SITE_FILE, text.encode())
        on_site(site)


def administrator(kits: Path) -> Path:
    """The kit of the network's administrator.

    Raises:
        ConfigurationError: the federation has none.
    """
    for one in bundle_project()["participants"]:
        if one.get("role") == "project_admin":
            return kits / str(one["name"])
    raise ConfigurationError("provisioning/project.yml", got="no project_admin", expected="one administrator")


def run_job(
    kits: Path,
    job: Path,
    *,
    sites: Sequence[str],
    out: Path,
    tell: Callable[[str], None],
    show: Callable[[dict[str, Any]], None],
    on_poll: Callable[[], None] = lambda: None,
) -> Ended:
    """Start everybody, run one job to its end, and end everybody.

    When it is interrupted (Ctrl-C, SIGTERM) the job is aborted and the participants are told to end; a second
    interruption spares that. In every case no process that was started here is left.

    Args:
        kits: folder with one kit for each participant.
        job: folder of the job.
        sites: the hospitals.
        out: where results and the processes' own home folder go.
        tell: hears in words how far things are.
        show: sees what sites tell of their progress (`core.progress`).
        on_poll: called about once a second, whether they tell anything or not.

    Raises:
        TimeoutError: a participant does not come up.
        ConfigurationError: the server cannot be reached, or answers no more.
    """
    with _processes(kits, out) as federation:
        federation.start_all(sites, timeout=START_SECONDS, on_ready=lambda name: tell(f"{_called(name)}: started"))
        with admin.session(administrator(federation.kits), patience=START_SECONDS) as session:
            job_id = ""
            try:
                job_id = admin.submit(session, job)
                tell(f"job {job_id}: submitted")
                kit = shlex.quote(str(administrator(federation.kits)))
                tell(f"from another terminal: fedmedseg monitor {job_id} --startup-kit {kit}")
                follower = Follower(federation.kits, run=job_id)

                def look(_: Mapping[str, Any]) -> None:
                    for event in follower.events():
                        show(event)
                    on_poll()

                meta = admin.wait(session, job_id, on_poll=look)
                tell(f"job {job_id}: {admin.status_of(meta)}")
                ended = Ended(status=admin.status_of(meta), folder=admin.download(session, job_id, out / RESULTS))
            except BaseException as error:
                # not in a finally clause: a second interruption has to leave from here at once
                if isinstance(error, KeyboardInterrupt | SystemExit) and job_id:
                    tell("interrupted: the job is aborted, the processes end; interrupt again to end them at once")
                    admin.abort(session, job_id)
                _end(federation, session)
                raise
            _end(federation, session)
            return ended


@contextmanager
def _processes(kits: Path, out: Path) -> Iterator[LoopbackFederation]:
    """A federation none of whose processes is left at the end, however it ends."""
    (out / HOME).mkdir(parents=True, exist_ok=True)
    # FLARE writes into the home folder
    federation = LoopbackFederation(kits, environment={"HOME": str(out / HOME)})
    with terminate_as_exit():
        try:
            yield federation
        finally:
            with _undisturbed():
                federation.stop()


def _end(federation: LoopbackFederation, session: admin.Session) -> None:
    """Tell everybody to end, and give them the time to."""
    admin.shut_down(session)
    federation.wait_for_end(timeout=END_SECONDS)


def _called(name: str) -> str:
    return "server" if name == SERVER else name


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing interrupts what happens meanwhile: ending processes takes seconds, and has an end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
