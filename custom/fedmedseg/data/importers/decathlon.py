"""Importer of Medical Segmentation Decathlon tasks, and of any folder with ``images/`` and ``labels/``.

Layout of a task as its archive unpacks (Antonelli et al., The Medical Segmentation Decathlon, Nature
Communications 2022; data described in arXiv:1902.09063): ``dataset.json`` with ``name``, ``labels``,
``modality``, ``training`` (image and label per case) and ``test`` (images alone), beside ``imagesTr``,
``labelsTr`` and ``imagesTs``. Images of the tasks with several MR sequences have a fourth axis.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import ConfigurationError, DataError, Reason, called, why
from fedmedseg.data.importers.base import (
    Collection,
    Content,
    FilePair,
    SourceCase,
    Tick,
    folder_exists,
    listing,
    slug,
    suffix_of,
    volumes_in,
)
from fedmedseg.data.importers.relabel import Relabelled, parse_label_map, target_names


@dataclass(frozen=True, kw_only=True)
class DecathlonImporter:
    """Reads a task folder. Each image is a patient of its own, as in the Decathlon.

    ``channel`` (0-based) picks one MR sequence of a task whose images have several. ``label_map`` (``1=4,2=4``) gives
    the labels the numbers of a study, of which the cases then mark these alone; ``1=1,2=1`` merges the tumours of liver
    (Task03) or pancreas (Task07) into the organ.
    """

    channel: int | None = None
    label_map: str | None = None
    name: str = "decathlon"
    role: str | None = None

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """See ``Importer.read``."""
        folder_exists(source)
        if (source / "dataset.json").is_file():
            return self._task(source, tick)
        if (source / "images").is_dir():
            return self._plain(source, tick)
        raise ConfigurationError(
            "decathlon",
            got=listing(source),
            expected="dataset.json with imagesTr/ and labelsTr/, or images/ with labels/",
            remedy="point at the task's own folder, such as Task04_Hippocampus",
        )

    def _task(self, source: Path, tick: Tick) -> Collection:
        content = _json(source / "dataset.json")
        self._check_channels(content)
        pairs: list[tuple[Path, Path | None]] = []
        for entry in _entries(content, "training"):
            if not isinstance(entry, Mapping) or not {"image", "label"} <= set(entry):
                raise ConfigurationError("dataset.json: training", got="an entry", expected="an image and a label each")
            pairs.append((_inside(source, entry["image"]), _inside(source, entry["label"])))
        for entry in _entries(content, "test"):
            image = entry["image"] if isinstance(entry, Mapping) and "image" in entry else entry
            pairs.append((_inside(source, image), None))
        return self._collect(source, pairs, labels=_labels(content), title=str(content.get("name", "")), tick=tick)

    def _plain(self, source: Path, tick: Tick) -> Collection:
        labels = volumes_in(source / "labels") if (source / "labels").is_dir() else {}
        images = volumes_in(source / "images")
        orphans = sorted(set(labels) - set(images))
        if orphans:
            raise ConfigurationError(
                "decathlon: labels/", got=f"{len(orphans)} file(s) without an image", expected="one name for both"
            )
        pairs = [(path, labels.get(stem)) for stem, path in images.items()]
        return self._collect(source, pairs, labels={}, title=source.resolve().name, tick=tick)

    def _collect(
        self,
        source: Path,
        pairs: list[tuple[Path, Path | None]],
        *,
        labels: Mapping[int, str],
        title: str,
        tick: Tick,
    ) -> Collection:
        cases, seen = [], set()
        table = None if self.label_map is None else parse_label_map(self.label_map)
        marked = None if table is None else tuple(sorted(set(table.values())))
        for done, (image, label) in enumerate(pairs, start=1):
            suffix = suffix_of(image)
            missing = [path.parent.name for path in (image, label) if path is not None and not path.is_file()]
            if suffix is None or missing:
                where = " and ".join(missing) or "dataset.json"
                raise ConfigurationError(
                    "decathlon",
                    got=f"a case whose file is not in {where}",
                    expected="every listed .nii.gz file",
                    remedy="unpack the archive again",
                )
            stem = image.name.removesuffix(suffix)
            if stem in seen:
                raise ConfigurationError("decathlon", got="one file name twice", expected="each image once")
            seen.add(stem)
            content: Content = FilePair(image=image, label=label, channel=self.channel)
            if table is not None:
                content = Relabelled(content=content, table=table)
            cases.append(SourceCase(name=stem, patient=stem, content=content, suffix=suffix, annotated_labels=marked))
            tick(done, len(pairs))
        if not cases:
            raise DataError("decathlon", got="no image", expected="at least one", reason=Reason.NO_CASES)
        named = labels if table is None else target_names(table, labels)
        return Collection(cases=cases, labels=named, role=role_from(title))

    def _check_channels(self, content: Mapping[str, Any]) -> None:
        modality = content.get("modality", {})
        number = len(modality) if isinstance(modality, Mapping) else 1
        if number > 1 and self.channel is None:
            names = ", ".join(f"{key} = {text}" for key, text in modality.items())
            raise ConfigurationError(
                "--channel", got="none", expected=f"one of {names}", remedy="a study reads one channel; name it"
            )
        if self.channel is not None and number <= 1:
            raise ConfigurationError("--channel", got=self.channel, expected="none: the images have one channel")
        if self.channel is not None and not 0 <= self.channel < number:
            raise ConfigurationError("--channel", got=self.channel, expected=f"0 to {number - 1}")


def role_from(title: str) -> str:
    """``Task04_Hippocampus`` or ``Hippocampus`` -> ``hippocampus``, a role that experiment.yaml can name."""
    role = slug(re.sub(r"^task\d+[_ -]*", "", title, flags=re.IGNORECASE), joint="_")
    return role if role[:1].isalpha() else f"set_{role}".rstrip("_")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(path.name, got=f"{path} ({why(error)})", expected="a JSON file") from None
    if not isinstance(content, Mapping) or "training" not in content:
        raise ConfigurationError(path.name, got="no key 'training'", expected="a Decathlon dataset.json")
    return content


def _entries(content: Mapping[str, Any], key: str) -> list[Any]:
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise ConfigurationError(f"dataset.json: {key}", got=called(entries), expected="a list")
    return entries


def _labels(content: Mapping[str, Any]) -> dict[int, str]:
    raw = content.get("labels", {})
    try:
        return {int(value): slug(str(text), joint="_") for value, text in raw.items() if int(value) != 0}
    except (AttributeError, ValueError):
        raise ConfigurationError(
            "dataset.json: labels", got=repr(raw)[:80], expected='{"0": "background", "1": name, ...}'
        ) from None


def _inside(source: Path, text: object) -> Path:
    """A listed file; a list that points out of its own folder is refused."""
    # by name, not by resolving: a data set may itself consist of links
    path = Path(os.path.normpath(source / str(text)))
    if not path.is_relative_to(os.path.normpath(source)):
        raise ConfigurationError("dataset.json", got="a path outside the task", expected="paths below its folder")
    return path
