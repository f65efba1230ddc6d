"""What a site remembers between tasks: on its own disk, keyed by study, experiment and site, never sent.

In the simulator's default mode every task runs in a fresh process, and in a hospital a process may be
killed at any time. Nothing that lives in memory is relied upon.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import time
from pathlib import Path
from typing import IO, Any

from fedmedseg.core import checkpoint
from fedmedseg.core.atomic import previous, write_atomic
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason

logger = logging.getLogger(__name__)

FORMAT = 1
OWNER = "run.json"
ORPHAN_SECONDS = 60.0
"""FLARE's orphaned job process was seen to live for about ten; a machine under load needs more."""


class SiteState:
    """Named checkpoint trees of one site (or the server) in one experiment.

    ``run`` is the token of one submission, drawn by the server. State that another run left is set aside,
    not read; the newest set-aside state is kept under ``earlier/``. A server that resumes a study hands out
    the earlier run's token again (``earlier_run``), so every site finds its state.
    """

    def __init__(self, root: Path, *, study: str, experiment: str, site: str, run: str) -> None:
        self.folder = _folder(root, study, experiment, site)
        self.run = run
        self._claim(run)

    def save(self, name: str, tree: Any) -> None:
        """Save one tree atomically under ``name``.

        Raises:
            FedMedSegError: another run took the folder over (reason STALE); its state is left alone.
        """
        self._require_own()
        checkpoint.save(self._file(name), {"format": FORMAT, "tree": tree})

    def load(self, name: str) -> Any | None:
        """The tree last saved under ``name``, or None.

        Raises:
            CheckpointError: damaged beyond the kept generation.
            FedMedSegError: another run took the folder over, or another version of the package wrote it (reason STALE).
        """
        self._require_own()
        content = checkpoint.load(self._file(name))
        if content is None:
            return None
        if content["format"] != FORMAT:
            raise FedMedSegError(
                "state",
                got=f"format {content['format']}",
                expected=f"format {FORMAT}, of this version of the package",
                remedy="continue with the version that wrote it, or start the study anew",
                reason=Reason.STALE,
            )
        return content["tree"]

    def remove(self, name: str) -> None:
        """Forget ``name`` and its kept generation."""
        self._require_own()
        file = self._file(name)
        file.unlink(missing_ok=True)
        previous(file).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _require_own(self) -> None:
        """A process that outlived its run (an orphan of a killed server, say) must not mix its state into another's."""
        if _owner(self.folder) != self.run:
            raise FedMedSegError(
                "state",
                got="the state of another run",
                expected="that of this run",
                remedy="run one job of a study at a time, and let this one end",
                reason=Reason.STALE,
            )

    def _claim(self, run: str) -> None:
        known = _owner(self.folder)
        if known == run:
            return
        if self.folder.exists():
            earlier = self.folder.parent / "earlier" / self.folder.name
            if earlier.exists():
                shutil.rmtree(earlier)
            earlier.parent.mkdir(parents=True, exist_ok=True)
            self.folder.rename(earlier)
            logger.info("state of an earlier run was set aside")
        owner = {"run": run, "since": int(time.time())}
        write_atomic(self.folder / OWNER, json.dumps(owner).encode())


def earlier_run(root: Path, *, study: str, experiment: str, site: str) -> str | None:
    """The token of the run that left state here, or None."""
    return _owner(_folder(root, study, experiment, site))


def require_earlier(root: Path, *, study: str, experiment: str, site: str, asked: str = "--resume") -> None:
    """Refuse to continue where this very experiment left no state; ``asked`` is what asked for it.

    Raises:
        ConfigurationError: naming what there is of this study, and how to mend it.
    """
    if earlier_run(root, study=study, experiment=experiment, site=site) is not None:
        return
    found = sorted(file.parents[1].name for file in (root / study).glob(f"*/{site}/{OWNER}"))
    others = sorted(file.parents[2].name for file in root.glob(f"*/*/{site}/{OWNER}"))
    none = f"no earlier run of {study}" + (f", but of {', '.join(dict.fromkeys(others))}" if others else "")
    several = f"earlier runs of {study} with other settings alone ({', '.join(found)})"
    raise ConfigurationError(
        asked,
        got=several if found else none,
        expected=f"an earlier run of these very settings ({experiment[:16]})",
        remedy=f"give the settings and the workspace of the run to continue, or drop {asked} to start anew, which "
        "replaces the report of the run before",
    )


def hold_alone(root: Path, *, study: str, experiment: str, site: str) -> IO[str]:
    """Keep other processes from this state for as long as the file returned stays open, which the kernel ends with us.

    The job of a killed server lives on for some seconds and may still write a round that the resumed job does anew: it
    is waited for.

    Args:
        root: as for ``SiteState``.
        study: as for ``SiteState``.
        experiment: as for ``SiteState``.
        site: as for ``SiteState``.

    Raises:
        ConfigurationError: another job of this very study still runs.
    """
    folder = _folder(root, study, experiment, site)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f"{folder.name}.lock").open("w", encoding="ascii")
    end = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < end:
                time.sleep(0.2)
                continue
            lock.close()
            raise ConfigurationError(
                "study",
                got=f"{study}, of which another job with these settings is running",
                expected="one job of a study at a time",
                remedy="wait for it to end or abort it",
            ) from None
        return lock


def _folder(root: Path, study: str, experiment: str, site: str) -> Path:
    return root / study / experiment[:16] / site


def _owner(folder: Path) -> str | None:
    try:
        run = json.loads((folder / OWNER).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run if isinstance(run, str) else None
