"""A run's record as its people find it: in a file, a report's folder, or the folder of the job's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import ConfigurationError, why
from fedmedseg.core.kept_results import RECORD_FILE

REPORT_RECORD = "report.json"
RECORDS = (RECORD_FILE, REPORT_RECORD)
"""The server's record, which grows with every round, and that of a report alone."""


def read_record(path: Path, *, option: str) -> dict[str, Any]:
    """The record at ``path``; ``option`` is what named it.

    Raises:
        ConfigurationError: no such file, or none that a run wrote.
    """
    places = [path / folder / name for folder in ("", "report") for name in RECORDS] if path.is_dir() else [path]
    file = next((one for one in places if one.is_file()), None)
    expected = f"a run's report folder, or a {' or '.join(RECORDS)}"
    remedy = "it is in the folder report of the job's results"
    if file is None:
        raise ConfigurationError(option, got=f"no record at {path}", expected=expected, remedy=remedy)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(option, got=f"{file} ({why(error)})", expected=expected, remedy=remedy) from None
    except (ValueError, RecursionError):
        raise ConfigurationError(option, got=f"{file}, which is no JSON", expected=expected, remedy=remedy) from None
    rounds = content.get("rounds") if isinstance(content, dict) else None
    if not isinstance(rounds, list) or not all(isinstance(one, dict) for one in rounds):
        raise ConfigurationError(option, got=f"{file}, which holds no rounds", expected=expected, remedy=remedy)
    return content
