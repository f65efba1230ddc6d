"""Strict pydantic models and errors that name the field and the nearest valid key."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fedmedseg.core.errors import ConfigurationError, nearest


class Strict(BaseModel):
    """A section in which an unknown key is an error and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse(model: type[ModelT], content: object, *, source: str) -> ModelT:
    """Validate ``content`` against ``model``.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and, for an unknown key,
            the nearest valid one.
    """
    if not isinstance(content, Mapping):
        raise ConfigurationError(source, got=type(content).__name__, expected="a mapping of settings")
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        raise _explain(model, error, source) from None


def read_yaml(path: Path) -> Any:
    """Read one YAML document with the safe loader.

    Raises:
        ConfigurationError: the file is missing, unreadable or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(path.name, got=type(error).__name__, expected=f"a readable file at {path}") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
        raise ConfigurationError(path.name, got=f"a YAML error in {where}", expected="valid YAML") from None


def _explain(model: type[BaseModel], error: ValidationError, source: str) -> ConfigurationError:
    problems = error.errors(include_url=False)
    first = problems[0]
    location = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    field = ".".join(str(part) for part in location) or source
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        guess = nearest(str(location[-1]), known)
        remedy = f"write {guess!r}" if guess else f"remove it; valid keys here are {', '.join(sorted(known))}"
        return ConfigurationError(
            f"{source}: {field}", got=f"an unknown key {location[-1]!r}", expected="a known key", remedy=remedy + more
        )
    got = None if first["type"] == "missing" else repr(first["input"])[:120]
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigurationError(f"{source}: {field}", got=got, expected=expected[:1].lower() + expected[1:] + more)


def _known_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    """The valid keys of the section at ``location``, following nested models, lists, mappings and unions."""
    candidates: list[Any] = [model]
    for part in location:
        following: list[Any] = []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                if isinstance(part, str) and part in candidate.model_fields:
                    following += _alternatives(candidate.model_fields[part].annotation)
                else:
                    # a union's tag stands in the location without being a key
                    following.append(candidate)
            elif typing.get_origin(candidate) is dict:
                following += _alternatives(typing.get_args(candidate)[1])
            elif typing.get_origin(candidate) in (list, tuple):
                following += _alternatives(typing.get_args(candidate)[0])
        candidates = following
    keys: list[str] = []
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            keys += list(candidate.model_fields)
    return keys


def _alternatives(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for part in typing.get_args(annotation) for inner in _alternatives(part)]
    return [annotation]
