"""The record of a run: one JSON file per round and one for the whole, from which the report is written."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.widgets.widget import Widget

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import why
from fedmedseg.core.kept_results import RECORD_FILE, keep_results
from fedmedseg.core.place import place_of
from fedmedseg.core.sealing import GUARDS_OFF
from fedmedseg.core.server_events import FigureTeller
from fedmedseg.core.versions import installed_versions

logger = logging.getLogger("fedmedseg.run")


class Reporter(Protocol):
    """Turns a run record into something people read."""

    def write(self, record: Mapping[str, Any], folder: Path) -> Path:
        """Write the report into ``folder`` and return the file to open."""
        ...

    def summary(self, record: Mapping[str, Any]) -> str:
        """A few lines for the end of a log."""
        ...


class RunRecord(Widget):
    """Collects the rounds of all stages and, when the run ends for whatever reason, writes record and report.

    Args:
        reporter: a ``Reporter``; named in the job's server configuration.
    """

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter
        self._record: dict[str, Any] = {}
        self._reason: str | None = None
        self._began = time.monotonic()
        self._earlier = 0.0
        self._written = False
        self._teller = FigureTeller()

    def begin(
        self,
        experiment: Experiment,
        *,
        sites: list[str],
        stages: int,
        history: list[dict[str, Any]],
        run: str,
        started: str,
        shared_sha256: str | None = None,
    ) -> None:
        """Start the record; later stages of the same run add their sites only.

        Of a run that is continued ``started`` is when it first began, and the rounds in ``history`` count with the time
        they took.
        """
        if self._record:
            self._record["sites"] = sorted({*self._record["sites"], *sites})
            return
        self._began = time.monotonic()
        self._earlier = sum(one.get("wall_seconds") or 0.0 for one in history)
        self._record = {
            "study": experiment.study,
            "system": experiment.system,
            "run": run,
            "seed": experiment.seed,
            "experiment_sha256": experiment.digest,
            "shared_sha256": shared_sha256,
            "versions": installed_versions(),
            "hardware": f"{platform.processor() or platform.machine()}, {platform.system()}",
            "started": started,
            "continued": datetime.now(UTC).isoformat(timespec="seconds") if history else None,
            "seconds": 0.0,
            "outcome": "stopped",
            "ended": False,
            "reason": self._reason,
            "settings": experiment.model_dump(mode="json", exclude={"resume"}),
            "labels": {str(number): name for number, name in experiment.data.labels.items()},
            "structures": list(experiment.data.structures),
            "sites": sorted(sites),
            "encryption": encryption_of(experiment),
            "stages_left": stages,
            "models": [],
            "rounds": list(history),
        }

    def add_round(self, record: dict[str, Any], folder: Path) -> None:
        """Add one round and write it, with the whole so far, to ``folder``; TensorBoard is told its figures."""
        self._record["rounds"].append(record)
        if record.get("shared_sha256"):
            self._record["shared_sha256"] = record["shared_sha256"]
        for one in self._record["rounds"]:
            # a resumed run writes those of the runs before it too
            file = folder / "rounds" / f"{one['stage']}-{one['round']:04d}.json"
            if one is record or not file.exists():
                _write_json(file, one)
        self._write(folder)
        self._teller.add(record)

    def rounds(self) -> list[dict[str, Any]]:
        """Records of the rounds so far, those of the runs that this one continues included."""
        return list(self._record.get("rounds", ()))

    def end_stage(self) -> None:
        """One stage ran all its rounds; after the last, the run counts as finished."""
        self._record["stages_left"] -= 1
        if self._record["stages_left"] == 0:
            self._record["outcome"] = "finished"

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Note why a run was stopped; write everything at its end."""
        if event_type == EventType.START_RUN:
            self._teller.start(fl_ctx.get_engine())
        elif event_type == EventType.ABOUT_TO_END_RUN:
            if not self._teller.finish():
                logger.warning("not all figures reached TensorBoard or MLflow in time; the record holds them all")
        elif event_type == EventType.FATAL_SYSTEM_ERROR:
            # the first reason is the cause; what follows from it may be told later
            self._reason = self._reason or str(fl_ctx.get_prop(FLContextKey.EVENT_DATA, ""))
            if self._record:
                self._record["reason"] = self._reason
        elif event_type == EventType.END_RUN and self._record and not self._written:
            self._written = True
            folder = place_of(fl_ctx).run / "report"
            self._record["ended"] = True
            self._record["models"] = _files_in(folder.parent / "models")
            self._write(folder)
            report = self.reporter.write(self._record, folder)
            for line in self.reporter.summary(self._record).splitlines():
                logger.info("%s", line)
            logger.info("report: %s", report)
            if self._record["models"]:
                logger.info("shared model: %s", folder.parent / "models")
            if (place := place_of(fl_ctx)).simulated:
                try:
                    kept = keep_results(
                        place.run, place.home, study=self._record["study"], started=self._record["started"]
                    )
                    logger.info("after the next run too: %s", kept)
                except OSError as error:
                    logger.error("the next run empties this workspace, and nothing could be kept: %s", why(error))

    def _write(self, folder: Path) -> None:
        self._record["seconds"] = round(self._earlier + time.monotonic() - self._began, 3)
        _write_json(folder / RECORD_FILE, self._record)


def encryption_of(experiment: Experiment) -> dict[str, Any] | None:
    """The scheme that replies are encrypted with, and what the server cannot check then; None where they are plain."""
    scheme = experiment.federation.encryption
    return None if scheme == "none" else {"scheme": scheme, "guards_off": list(GUARDS_OFF)}


def _files_in(folder: Path) -> list[dict[str, Any]]:
    """The models of a run, published heads too, as the report names them: by their place in the run folder, never the
    machine's.
    """
    found = sorted(file for file in folder.rglob("*.safetensors") if file.is_file())
    return [{"file": file.relative_to(folder.parent).as_posix(), "bytes": file.stat().st_size} for file in found]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=1, sort_keys=True).encode())
