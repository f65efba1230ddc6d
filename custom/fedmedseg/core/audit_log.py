"""The one refusal that FLARE 2.9.0 tells its log alone: a connection under another name than its certificate's.

`fuel/f3/cellnet/identity.py`, ``require_match``, raises, and `fuel/f3/sfm/conn_manager.py` catches and logs it: no
event, no reply. So the log is read. What is looked for is FLARE's wording; a test calls FLARE's own function and
notices when it changes.
"""

from __future__ import annotations

import logging
import re

from fedmedseg.core.audit import Trail
from fedmedseg.core.audit_refusals import Refusals

LOGGER = "nvflare.fuel.f3.sfm.conn_manager"
_FALSE_NAME = re.compile(r"authenticated as '([^']*)' but claimed endpoint '([^']*)'")


class FalseNames(logging.Handler):
    """Writes who connected under whose name."""

    def __init__(self, trail: Trail) -> None:
        super().__init__(logging.ERROR)
        self.refusals = Refusals(trail)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line where the record tells of a false name."""
        found = _FALSE_NAME.search(record.getMessage())
        if found is None:
            return
        certificate, claimed = found.groups()
        self.refusals.note(action="connect", who=claimed, reason=f"it holds the certificate of {certificate}")


def listen(trail: Trail) -> None:
    """Write from now on what this process refuses."""
    logging.getLogger(LOGGER).addHandler(FalseNames(trail))
