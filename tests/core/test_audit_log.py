"""The refusal that is read from FLARE's log; the test of the wording notices when the installed FLARE drifts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvflare.fuel.f3.cellnet.identity import CellIdentityResolver
from nvflare.fuel.f3.sfm import conn_manager

from fedmedseg.core import audit_log
from fedmedseg.core.audit import Trail, read
from fedmedseg.core.audit_log import FalseNames, listen


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    trail = Trail(tmp_path, participant="server")
    logger = logging.getLogger(audit_log.LOGGER)
    before = list(logger.handlers)
    listen(trail)
    yield trail
    logger.handlers = before


def refuse(claimed: str, certificate: str) -> None:
    """What FLARE does with a connection that claims another name than its certificate's."""
    with pytest.raises(ValueError, match="claimed endpoint") as error:
        CellIdentityResolver().require_match(claimed, certificate, "connection CN00002")
    conn_manager.log.error(f"Error processing frame: ValueError: {error.value}")


def test_who_connects_under_another_name_is_written_once(trail: Trail) -> None:
    refuse("site-3", "site-1")
    refuse("site-3", "site-1")
    refuse("site-3", "site-2")
    assert [(one["who"], one["action"], one["outcome"], one["reason"]) for one in read(trail.folder)] == [
        ("site-3", "connect", "refused", "it holds the certificate of site-1"),
        ("site-3", "connect", "refused", "it holds the certificate of site-2"),
    ]


def test_after_a_while_it_is_written_again(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    (handler,) = (one for one in logging.getLogger(audit_log.LOGGER).handlers if isinstance(one, FalseNames))
    monkeypatch.setattr(handler.refusals, "again", 0.0)
    refuse("site-3", "site-1")
    refuse("site-3", "site-1")
    assert len(read(trail.folder)) == 2


def test_other_lines_are_not_its_business(trail: Trail) -> None:
    conn_manager.log.error("Error processing frame: RuntimeError: stopped")
    assert not (trail.folder / "trail.jsonl").exists()
