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


def refuse_unread(section: BaseModel, where: str, readers: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse every setting of ``section`` that was changed although nothing reads it.

    ``where`` is the section's name in messages. ``readers`` says per field whether anything reads it here, and what
    would. A value equal to its default counts as not given: settings are laid over one another, and a study written
    out in full must be readable again.

    Raises:
        ConfigurationError: naming the first such field, what came, what reads it and how to mend it.
    """
    for name, (read, reader) in readers.items():
        value = getattr(section, name)
        if read or value == type(section).model_fields[name].get_default(call_default_factory=True):
            continue
        raise ConfigurationError(
            f"{where}.{name}",
            got=value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value,
            expected=f"nothing here: it is read with {reader} alone",
            remedy=f"remove {name}, or use {reader}",
        )


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
    location = _keys_only(model, list(first["loc"]))
    same = [problem for problem in problems if _keys_only(model, list(problem["loc"])) == location]
    more = f" ({len(problems) - len(same)} more after this one)" if len(problems) > len(same) else ""
    field = f"{source}: {'.'.join(map(str, location))}" if location else source
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return _unlisted(field, location[-1], known, "key", more)
    if first["type"] == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in first["ctx"]["expected_tags"].split(",")]
        return _unlisted(
            f"{field}.{first['ctx']['discriminator'].strip(chr(39))}", first["ctx"]["tag"], tags, "name", more
        )
    expected = "; or ".join(dict.fromkeys(_plain(problem["msg"]) for problem in same))
    # a whole section says nothing: the message of a check over several fields names them itself
    got = None if first["type"] == "missing" or isinstance(first["input"], dict) else repr(first["input"])[:120]
    return ConfigurationError(field, got=got, expected=expected + more)


def _unlisted(field: str, name: object, known: list[str], kind: str, more: str) -> ConfigurationError:
    guess = nearest(str(name), known)
    remedy = f"write {guess!r}" if guess else f"remove or replace it; valid here: {', '.join(sorted(known))}"
    return ConfigurationError(
        field, got=f"an unknown {kind} {name!r}", expected=f"one of {', '.join(sorted(known))}", remedy=remedy + more
    )


def _plain(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return text[:1].lower() + text[1:]


def _keys_only(model: type[BaseModel], location: list[Any]) -> list[Any]:
    """The location without the tags that pydantic adds for the alternatives of a union."""
    kept: list[Any] = []
    candidates: list[Any] = [model]
    for part in location:
        sections = [candidate for candidate in candidates if _is_model(candidate)]
        containers = [candidate for candidate in candidates if typing.get_origin(candidate) in (dict, list, tuple)]
        is_key = any(part in section.model_fields for section in sections)
        is_last = part is location[-1]
        if is_key or containers or (sections and is_last):
            kept.append(part)
            candidates = _below(candidates, part)
    return kept


def _known_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    """The valid keys of the section at ``location``."""
    candidates: list[Any] = [model]
    for part in location:
        candidates = _below(candidates, part)
    return sorted({key for candidate in candidates if _is_model(candidate) for key in candidate.model_fields})


def _below(candidates: list[Any], part: Any) -> list[Any]:
    """The types that may stand under ``part``, following models, lists, mappings and unions."""
    following: list[Any] = []
    for candidate in candidates:
        if _is_model(candidate):
            if part in candidate.model_fields:
                following += _alternatives(candidate.model_fields[part].annotation)
        elif typing.get_origin(candidate) is dict:
            following += _alternatives(typing.get_args(candidate)[1])
        elif typing.get_origin(candidate) in (list, tuple):
            following += _alternatives(typing.get_args(candidate)[0])
    return following


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _alternatives(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for part in typing.get_args(annotation) for inner in _alternatives(part)]
    return [annotation]
