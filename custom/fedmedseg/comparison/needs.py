"""Where a method was given something else than the one it is compared with, outside its system's own section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmedseg.core.config import Experiment

NOT_TOLD = {"system", "study", "seed", "resume", "stages"}
"""A study's own keys, and stages, whose names differ from system to system: steps have a column of their own."""


def needs(experiment: Experiment, reference: Experiment) -> dict[str, Any]:
    """Setting -> value, where it differs from the reference's. A network of another kind is one difference."""
    own, other = _told(experiment), _told(reference)
    if own["network"]["name"] != other["network"]["name"]:
        own["network"], other["network"] = {"name": own["network"]["name"]}, {"name": other["network"]["name"]}
    mine, theirs = _flat(own), _flat(other)
    return {name: value for name, value in mine.items() if name not in theirs or theirs[name] != value}


def _told(experiment: Experiment) -> dict[str, Any]:
    content = experiment.model_dump(mode="json", exclude=NOT_TOLD | {experiment.system})
    # sites have data lists of their own, phantoms too
    content["data"].pop("phantom", None)
    return content


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
