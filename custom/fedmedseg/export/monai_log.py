"""MONAI's checks without their log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("monai.bundle.scripts", "monai.apps")
"""MONAI gives each a handler of its own on stdout, at INFO."""


@contextmanager
def quiet_monai() -> Iterator[None]:
    """Only what is wrong is told: the rest is paths of temporary folders, among lines that a person reads.

    To be entered after MONAI's modules were imported, which set their levels then.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No hash value provided", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
