"""MONAI's checks of a bundle say only what is wrong, and its loggers are left as they were."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.apps.utils import logger as apps
from monai.bundle.scripts import logger as scripts

from fedmedseg.export.files import export
from fedmedseg.export.monai_log import LOGGERS, quiet_monai
from fedmedseg.export.network import exportable
from fedmedseg.segmentation.models import load_for_inference


class Kept(logging.Handler):
    """Every line that a logger lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_bundle_is_checked_without_a_word_where_nothing_is_wrong(
    model_file: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("jsonschema", reason="MONAI's verify_metadata needs it: pip install 'fedmedseg[export]'")
    assert [logger.name for logger in (scripts, apps)] == list(LOGGERS)
    kept = Kept()
    scripts.addHandler(kept)
    apps.addHandler(kept)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            export(exportable(load_for_inference(model_file())), tmp_path / "bundle", to="monai-bundle")
        assert kept.lines == []
        assert not [one for one in warned if "hash" in str(one.message)]
        scripts.info("as before")
        assert kept.lines == ["as before"]
    finally:
        scripts.removeHandler(kept)
        apps.removeHandler(kept)


def test_what_is_wrong_still_comes_through() -> None:
    kept = Kept()
    apps.addHandler(kept)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with quiet_monai():
                apps.info("unread")
                apps.error("a fault")
                for words in ("No hash value provided for x", "other"):
                    warnings.warn(words, UserWarning, stacklevel=1)
        assert kept.lines == ["a fault"]
        assert [str(one.message) for one in warned] == ["other"]
    finally:
        apps.removeHandler(kept)
