"""A site's own TensorBoard events: the figures of its rounds as they are, in its own run folder.

The server writes what the site's filters let pass (FLARE's ``TBAnalyticsReceiver``), under the same names: a folder for
each site, and in it ``<stage>/<figure>`` by round. What is written here was not filtered and is sent to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from nvflare.app_opt.tracking.tb.tb_event_writer import TensorBoardEventWriter

from fedmedseg.core.rounds import disk_problem

logger = logging.getLogger(__name__)

FOLDER = "tb_events"
"""In a run folder, at the server as FLARE calls it."""


def tag_of(stage: str, figure: str) -> str:
    """Under which name a figure stands, at site and server."""
    return f"{stage}/{figure}"


class OwnEvents:
    """Writes to ``<run>/tb_events/<site>``; the file is made with the first figure.

    A disk that is full costs the events, never the round: they are said to be missing, and no more are tried.
    """

    def __init__(self, *, run: Path, site: str) -> None:
        self.folder = run / FOLDER / site
        self._writer: TensorBoardEventWriter | None = None
        self._lost = False

    def write(self, metrics: Mapping[str, float], *, stage: str, step: int) -> None:
        """Add one round's figures; they are on the disk when this returns."""
        if self._lost or not metrics:
            return
        try:
            if self._writer is None:
                self._writer = TensorBoardEventWriter(log_dir=str(self.folder))
            for figure, value in sorted(metrics.items()):
                self._writer.add_scalar(tag_of(stage, figure), float(value), step)
            self._writer.flush()
        except OSError as error:
            self._lost = True
            logger.warning("this site's own TensorBoard events end here: %s", disk_problem(error))

    def close(self) -> None:
        """Let the file go."""
        if self._writer is not None and not self._lost:
            self._writer.close()
        self._writer = None
