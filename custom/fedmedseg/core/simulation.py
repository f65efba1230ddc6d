"""Runs `nvflare simulator` as a process of its own, follows its progress, and judges it by its record."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.errors import ConfigurationError, why
from fedmedseg.core.homes import homes_beside
from fedmedseg.core.kept_results import RECORD_FILE
from fedmedseg.core.kit import is_kit
from fedmedseg.core.progress import PROGRESS_FILE, Follower

JOB_ID = "simulate_job"
KEPT = ("local", "startup")
"""Folders of a workspace that FLARE keeps when it empties it."""
MADE = ("server", "startup")
"""Folders that every run of the simulator makes in its workspace."""
POLL_SECONDS = 0.5
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Simulation:
    """One call of the simulator."""

    job: Path
    workspace: Path
    sites: tuple[str, ...]
    threads: int
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def record_file(self) -> Path:
        """Where the server writes the run's record."""
        return self.workspace / "server" / JOB_ID / "report" / RECORD_FILE

    def command(self) -> list[str]:
        """The simulator's command line."""
        default = tuple(f"site-{index + 1}" for index in range(len(self.sites)))
        names = ["-n", str(len(self.sites))] if self.sites == default else ["-c", ",".join(self.sites)]
        # FLARE's own command, from this interpreter whatever PATH says, with site names that cannot be swapped
        call = [sys.executable, "-m", "fedmedseg.core.flare_simulator", "simulator"]
        call += [str(self.job), "-w", str(self.workspace)]
        return [*call, *names, "-t", str(self.threads)]


def prepare_workspace(workspace: Path, resources: dict[str, Any]) -> None:
    """Put the site policy into a simulator workspace.

    Raises:
        ConfigurationError: the folder cannot be written, or FLARE would empty it of files that no run wrote.
    """
    if any(character.isspace() for character in str(workspace)):
        raise ConfigurationError(
            "workspace",
            got=repr(str(workspace)),
            expected="a path without spaces: FLARE's simulator splits its commands at them",
            remedy="choose another with -w",
        )
    _require_own(workspace)
    try:
        for folder in (workspace, homes_beside(workspace)):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        content = json.dumps(resources, indent=2).encode() + b"\n"
        write_atomic(workspace / "local" / "resources.json", content)
    except OSError as error:
        raise ConfigurationError(
            "workspace",
            got=f"{workspace} ({why(error)})",
            expected="a folder that can be written, and one of the same name with .fedmedseg beside it",
            remedy="choose another with -w",
        ) from None


def _require_own(workspace: Path) -> None:
    """Refuse a folder that holds anything but what an earlier run of the simulator left: FLARE empties it.

    Raises:
        ConfigurationError: a startup kit, files of somebody's own, or a folder that cannot be looked into.
    """
    try:
        kit = is_kit(workspace)
        if not kit and (not workspace.is_dir() or _is_workspace(workspace)):
            return
        lost = sorted(path.name for path in workspace.iterdir() if path.name not in KEPT)
    except OSError as error:
        raise ConfigurationError(
            "workspace",
            got=f"{workspace} ({why(error)})",
            expected="a folder that can be read",
            remedy="choose another with -w",
        ) from None
    if lost or kit:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ConfigurationError(
            "workspace",
            got=f"{workspace}, a startup kit" if kit else f"{workspace}, which holds {lost[0]}{more}",
            expected="a new or empty folder, or the workspace of an earlier run: FLARE empties it at its start",
            remedy="choose another with -w" + ("" if kit else ", or empty this one yourself"),
        )


def _is_workspace(folder: Path) -> bool:
    """Whether the simulator has run in ``folder``: its job lies there, or the site policy beside FLARE's folders."""
    if any(folder.glob(f"*/{JOB_ID}")):
        return True
    return (folder / "local" / "resources.json").is_file() and any((folder / one).is_dir() for one in MADE)


@contextmanager
def claimed(workspace: Path, *, home: Path | None = None, option: str = "-w") -> Iterator[None]:
    """Hold a prepared workspace for one run; the kernel lets go of it whatever ends the process.

    Args:
        workspace: what is held.
        home: where the lock lies; unset: beside the workspace, which the simulator empties.
        option: the option that chooses the workspace, for the error.

    Raises:
        ConfigurationError: another run holds it.
    """
    home = home or homes_beside(workspace)
    with open(home / ".lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                "workspace",
                got=f"{workspace}, where another run is under way",
                expected="a workspace of its own for each run",
                remedy=f"wait for it to end, or choose another with {option}",
            ) from None
        yield


def run(
    simulation: Simulation,
    on_progress: Callable[[dict[str, Any]], None],
    on_poll: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Run to the end and return the run's record, or None where the server never wrote one.

    ``on_progress`` sees what sites tell; ``on_poll`` is called about twice a second, whether they tell anything or not.

    The simulator gets a process group of its own, which is stopped as a whole when this call is interrupted:
    a signal to the parent alone would leave its workers behind.
    """
    simulation.log.parent.mkdir(parents=True, exist_ok=True)
    simulation.record_file.unlink(missing_ok=True)
    _forget_progress(simulation.workspace)
    process = None
    with terminate_as_exit():
        try:
            with open(simulation.log, "wb") as log:
                process = subprocess.Popen(
                    simulation.command(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    # glibc's arenas, one for nearly every thread that FLARE starts, hold on to memory round after
                    # round; the start scripts of its kits set the same
                    env={"MALLOC_ARENA_MAX": "4", **os.environ, **simulation.environment},
                    start_new_session=True,
                )
            follower = Follower(simulation.workspace, run=JOB_ID)
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                for event in follower.events():
                    on_progress(event)
                on_poll()
            for event in follower.events():
                on_progress(event)
        finally:
            if process is not None:
                stop_group(process)
    return read_record(simulation.record_file)


@contextmanager
def terminate_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack meanwhile, so that the processes that were started are stopped."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process group: ask first, then insist."""
    for how, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        except PermissionError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.1)
    process.wait()


def read_record(file: Path) -> dict[str, Any] | None:
    """A run's record, or None where there is none that can be read."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _forget_progress(workspace: Path) -> None:
    for file in workspace.glob(f"*/{JOB_ID}/{PROGRESS_FILE}"):
        file.unlink()
