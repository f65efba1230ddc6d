"""Strict pydantic models and errors that name the field and the nearest valid key."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from fedmedseg.core.errors import ConfigurationError, called, choose, nearest, why

ChoiceT = TypeVar("ChoiceT", bound=str)
_CHOICE = re.compile(r"'([^']*)'|\b(\d+)\b")


class Strict(BaseModel):
    """A section in which an unknown key is an error, every number is finite and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=(), allow_inf_nan=False)


class Misfit(ValueError):
    """Raised by a section's own check: which of its settings does not fit, and how to mend it.

    ``field`` is seen from the section that checks (``crop``, or ``data.crop`` one level up); empty means the value
    that is being checked itself.
    """

    def __init__(self, field: str = "", *, got: object, expected: str, remedy: str = "") -> None:
        super().__init__(expected)
        self.field, self.got, self.expected, self.remedy = field, got, expected, remedy


def each_once(chosen: tuple[ChoiceT, ...], known: Sequence[str], *, what: str, remedy: str) -> tuple[ChoiceT, ...]:
    """``chosen``, where it names at least one of ``known`` and none twice; ``what`` is one of them in words.

    Raises:
        Misfit: it does not; ``remedy`` shows one that does.
    """
    if not chosen or len(set(chosen)) != len(chosen):
        expected = f"at least one of {', '.join(known)}, and each {what} once"
        raise Misfit(got=list(chosen), expected=expected, remedy=remedy)
    return chosen


def one_length(*, local_steps: int | None, local_epochs: int | None) -> None:
    """Refuse a round that has both lengths or none.

    Raises:
        Misfit: naming ``local_steps``.
    """
    if (local_steps is None) == (local_epochs is None):
        raise Misfit(
            "local_steps",
            got="both local_steps and local_epochs" if local_steps else "neither local_steps nor local_epochs",
            expected="one of the two, which say how long a site trains in a round",
            remedy="give local_steps a number, or give local_epochs one and set local_steps to null",
        )


def worded(pattern: str, words: str) -> AfterValidator:
    """Text that matches ``pattern`` as a whole; ``words`` say so to people, who should not have to read a pattern."""
    whole = re.compile(pattern)

    def check(text: str) -> str:
        if not whole.fullmatch(text):
            raise ValueError(words)
        return text

    return AfterValidator(check)


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse(model: type[ModelT], content: object, *, source: str) -> ModelT:
    """Validate ``content`` against ``model``.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and, for an unknown key,
            the nearest valid one.
    """
    if not isinstance(content, Mapping):
        raise ConfigurationError(source, got=called(content), expected="a mapping of settings")
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


_MERGE = "tag:yaml.org,2002:merge"


class _Twice(yaml.MarkedYAMLError):
    """A key that a mapping has twice: the second would silently count."""


def _require_each_key_once(text: str) -> None:
    """Raise :class:`_Twice` at the first key that a mapping has twice: the safe loader keeps the last, silently."""
    loader = yaml.SafeLoader(text)
    try:
        _visit(loader, loader.get_single_node())
    finally:
        loader.dispose()


def _visit(loader: yaml.SafeLoader, root: yaml.Node | None) -> None:
    visited: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        # an alias is the very node of its anchor, which may even be around it
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(reversed(node.value))
        elif isinstance(node, yaml.MappingNode):
            seen: set[Any] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                    continue
                # as Python takes it: yes and true are one key, 1 and "1" are two
                name = loader.construct_object(key)
                if name in seen:
                    raise _Twice(problem=f"the key {key.value} twice", problem_mark=key.start_mark)
                seen.add(name)
            waiting.extend(value for _, value in reversed(node.value))


def _place_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"


def read_yaml(path: Path) -> Any:
    """Read one YAML document with the safe loader.

    Raises:
        ConfigurationError: the file is missing, unreadable or not YAML.
    """
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """What is in a file.

    Raises:
        ConfigurationError: it is missing, unreadable or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            path.name, got=f"{path} ({why(error)})", expected="a YAML file", remedy="name another, or give it that form"
        ) from None


def parse_yaml(text: str, path: Path) -> Any:
    """One YAML document, read from ``path``, with the safe loader.

    Raises:
        ConfigurationError: it is no YAML.
    """
    try:
        _require_each_key_once(text)
        return yaml.safe_load(text)
    except _Twice as error:
        raise ConfigurationError(
            path.name, got=f"{error.problem} in {_place_of(error)}", expected="each key once", remedy="remove one"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(
            path.name,
            got=f"a YAML error in {_place_of(error)}",
            expected="valid YAML",
            remedy="look there and in the line above for brackets, quotes, tabs and indents",
        ) from None
    except RecursionError as error:
        raise ConfigurationError(path.name, got=f"{path} ({why(error)})", expected="settings of a few levels") from None
    except ValueError as error:
        # PyYAML turns what looks like a date or a number into one, and lets the failure through as it is
        raise ConfigurationError(path.name, got=str(error), expected="valid YAML", remedy="quote text") from None


def _explain(model: type[BaseModel], error: ValidationError, source: str) -> ConfigurationError:
    problems = error.errors(include_url=False)
    # a misspelt key is the cause of the missing one
    strays = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = strays[0] if strays and problems[0]["type"] == "missing" else problems[0]
    location, sections = _place(model, first["loc"])
    same = [problem for problem in problems if _place(model, problem["loc"])[0] == location]
    more = f" ({len(problems) - len(same)} more after this one)" if len(problems) > len(same) else ""
    field = f"{source}: {'.'.join(map(str, location))}" if location else source
    if first["type"] == "extra_forbidden":
        known = sorted({key for section in sections for key in section.model_fields})
        return _unlisted(field, location[-1], known, "key", more)
    if first["type"] == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in first["ctx"]["expected_tags"].split(",")]
        return _unlisted(
            f"{field}.{first['ctx']['discriminator'].strip(chr(39))}", first["ctx"]["tag"], tags, "name", more
        )
    choices = list(dict.fromkeys(name for problem in same for name in _choices(problem)))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Misfit):
        inner = f"{field}{'.' if location else ': '}{cause.field}" if cause.field else field
        return ConfigurationError(inner, got=cause.got, expected=cause.expected, remedy=cause.remedy + more)
    expected = "; or ".join(dict.fromkeys(_plain(problem["msg"]) for problem in same))
    # a whole section says nothing: the message of a check over several fields names them itself
    got = None if first["type"] == "missing" or isinstance(first["input"], dict) else repr(first["input"])[:120]
    # a union of words and numbers is told in whole by what was expected
    remedy = choose(first["input"], choices) if all(_choices(problem) for problem in same) else ""
    return ConfigurationError(field, got=got, expected=expected + more, remedy=remedy)


def _choices(problem: Mapping[str, Any]) -> list[str]:
    """The words that a problem says may stand there, as they are written: pydantic quotes them, the last after "or"."""
    if problem["type"] != "literal_error":
        return []
    return [text or number for text, number in _CHOICE.findall(problem["ctx"]["expected"])]


def _unlisted(field: str, name: object, known: list[str], kind: str, more: str) -> ConfigurationError:
    # a key need not be there at all, other than the name of a kind
    remedy = choose(name, sorted(known)) if kind == "name" or nearest(str(name), known) else "remove or replace it"
    return ConfigurationError(
        field, got=f"an unknown {kind} {name!r}", expected=f"one of {', '.join(sorted(known))}", remedy=remedy + more
    )


def _plain(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    # pydantic adds how it tried to read text as a number
    text = re.sub(r", unable to parse.*$", "", text).replace("a valid integer", "a whole number")
    text = text.replace("a valid number", "a number").replace("a valid boolean", "true or false")
    return text[:1].lower() + text[1:]


def _place(model: type[BaseModel], location: Sequence[Any]) -> tuple[list[Any], list[type[BaseModel]]]:
    """The location without the tags that pydantic adds for the alternatives of a union, and the sections around it.

    Those are the sections in which its last key stands, or should: of a union with tags, the one that was chosen.
    """
    kept: list[Any] = []
    candidates: list[Any] = [model]
    around: list[type[BaseModel]] = []
    for index, part in enumerate(location):
        sections = [candidate for candidate in candidates if _is_model(candidate)]
        chosen = [section for section in sections if _has_tag(section, part)]
        is_key = any(part in section.model_fields for section in sections)
        if len(sections) > 1 and chosen and not is_key:
            candidates = chosen
            continue
        containers = [candidate for candidate in candidates if typing.get_origin(candidate) in (dict, list, tuple)]
        if is_key or containers or (sections and index == len(location) - 1):
            kept.append(part)
            around = sections
            candidates = _below(candidates, part)
    return kept, around


def _has_tag(section: type[BaseModel], tag: object) -> bool:
    """Whether ``tag`` is how pydantic names ``section`` among the alternatives of a union."""
    literals = (field.annotation for field in section.model_fields.values())
    return tag == section.__name__ or any(
        tag in typing.get_args(literal) for literal in literals if typing.get_origin(literal) is Literal
    )


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
