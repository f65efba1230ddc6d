"""Importers of public data sets, by name. A further set adds a module with an ``Importer`` and one line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fedmedseg.core.errors import ConfigurationError, choose
from fedmedseg.data.importers.acdc import ACDCImporter
from fedmedseg.data.importers.base import Collection, Content, FilePair, Importer, SourceCase
from fedmedseg.data.importers.btcv import BTCVImporter
from fedmedseg.data.importers.ct_dicom import CTDicomImporter
from fedmedseg.data.importers.decathlon import DecathlonImporter
from fedmedseg.data.importers.emidec import EMIDECImporter
from fedmedseg.data.importers.imagecas import ImageCASImporter
from fedmedseg.data.importers.kits19 import KiTS19Importer
from fedmedseg.data.importers.mnms import MnMsImporter
from fedmedseg.data.importers.sunnybrook import SunnybrookImporter
from fedmedseg.data.importers.totalsegmentator import TotalSegmentatorImporter

IMPORTERS: dict[str, Callable[..., Importer]] = {
    "acdc": ACDCImporter,
    "btcv": BTCVImporter,
    "ct_dicom": CTDicomImporter,
    "decathlon": DecathlonImporter,
    "emidec": EMIDECImporter,
    "imagecas": ImageCASImporter,
    "kits19": KiTS19Importer,
    "mnms": MnMsImporter,
    "sunnybrook": SunnybrookImporter,
    "totalsegmentator": TotalSegmentatorImporter,
}


def create(name: str, **options: Any) -> Importer:
    """The importer called ``name``; options that are None or False were not given.

    Raises:
        ConfigurationError: an unknown name, or an option that this importer does not have.
    """
    if name not in IMPORTERS:
        raise ConfigurationError(
            "importer",
            got=repr(name),
            expected=f"one of {', '.join(sorted(IMPORTERS))}",
            remedy=choose(name, sorted(IMPORTERS)),
        )
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    known = inspect.signature(IMPORTERS[name]).parameters
    for key in given:
        if key not in known:
            option = f"--{key.replace('_', '-')}"
            raise ConfigurationError(option, got=f"importer {name!r}", expected="an importer that has this option")
    return IMPORTERS[name](**given)


__all__ = ["IMPORTERS", "Collection", "Content", "FilePair", "Importer", "SourceCase", "create"]
