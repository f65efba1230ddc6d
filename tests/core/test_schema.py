"""Settings that are wrong are told by field, what came, what was expected, and the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import Misfit, Strict, each_once, parse, read_yaml, worded


class Swin(Strict):
    name: Literal["swin"]
    window: int = Field(7, gt=0)


class Vit(Strict):
    name: Literal["vit"]
    heads: int = 12

    @model_validator(mode="after")
    def _even(self) -> Vit:
        if self.heads % 2:
            raise Misfit("heads", got=self.heads, expected="an even number")
        return self


class Item(Strict):
    path: str
    share: float = Field(1.0, gt=0, le=1)
    kind: Literal["plain", "round"] = "plain"
    dims: Literal[2, 3] = 3


class Study(Strict):
    network: Annotated[Swin | Vit, Field(discriminator="name")]
    rounds: int = Field(1, gt=0)
    quorum: Literal["all"] | Annotated[int, Field(gt=0, strict=True)] = "all"
    items: dict[str, Item] = Field(default_factory=dict)
    lists: list[Item] = Field(default_factory=list)
    title: Annotated[str, worded("[a-z]+", "letters alone")] = "study"
    share: float | None = None
    pair: tuple[float, float] = (0.0, 1.0)

    @model_validator(mode="after")
    def _rises(self) -> Study:
        if self.pair[0] > self.pair[1]:
            raise Misfit("pair", got=list(self.pair), expected="a low and a high number", remedy="swap them")
        return self


def told(content: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(Study, content, source="experiment.yaml")
    return str(caught.value)


def test_valid_settings_are_read_and_then_never_change() -> None:
    study = parse(Study, {"network": {"name": "vit"}, "quorum": 2}, source="x")
    assert (study.network.name, study.quorum) == ("vit", 2)
    with pytest.raises(ValidationError):
        study.rounds = 3  # type: ignore[misc]


@pytest.mark.parametrize(("content", "got"), [(None, "nothing"), ([], "a list"), ("text", "text"), (3, "a number")])
def test_settings_are_a_mapping(content: Any, got: str) -> None:
    assert told(content) == f"experiment.yaml: got {got}. Expected a mapping of settings."


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"round": 3}, ["experiment.yaml: round:", "an unknown key 'round'", "write 'rounds'"]),
        (
            {"zzz": 3},
            ["an unknown key 'zzz'", "Expected one of items, lists, network, pair, quorum, rounds, share, title"],
        ),
        ({"rounds": 0}, ["experiment.yaml: rounds:", "got 0", "greater than 0"]),
        ({"rounds": "many"}, ["experiment.yaml: rounds:", "got 'many'", "Expected a whole number."]),
        ({"network": {"name": "swin", "windows": 7}}, ["experiment.yaml: network.windows:", "write 'window'"]),
        (
            {"network": {"name": "vit", "window": 7}},
            ["experiment.yaml: network.window:", "one of heads, name.", "remove or replace it"],
        ),
        ({"network": {"name": "vit", "vit": 7}}, ["experiment.yaml: network.vit: got an unknown key 'vit'"]),
        ({"network": {"name": "swin", "window": 0}}, ["experiment.yaml: network.window:", "got 0", "greater than 0"]),
        ({"network": {"name": "swim"}}, ["network.name", "an unknown name 'swim'", "one of swin, vit", "write 'swin'"]),
        ({"network": {}}, ["experiment.yaml: network"]),
        ({"quorum": True}, ["experiment.yaml: quorum:", "got True", "all"]),
        ({"quorum": -1}, ["experiment.yaml: quorum:", "got -1", "greater than 0"]),
        ({"items": {"a": {"path": "p", "shares": 1}}}, ["items.a.shares", "write 'share'"]),
        ({"items": {"a": {}}}, ["items.a.path:", "field required"]),
        (
            {"lists": [{"path": "p", "kind": "rond"}]},
            ["lists.0.kind: got 'rond'. Expected 'plain' or 'round'. Remedy: write 'round'."],
        ),
        ({"lists": [{"path": "p", "kind": 7}]}, ["lists.0.kind: got 7.", "Remedy: write one of these."]),
        ({"lists": [{"path": "p", "dims": 4}]}, ["lists.0.dims: got 4. Expected 2 or 3. Remedy: write one of these."]),
        ({"quorum": "alll"}, ["quorum: got 'alll'. Expected 'all'; or a whole number."]),
        ({"lists": [{"path": "p"}, {"path": "p", "share": 2}]}, ["lists.1.share:", "got 2"]),
        ({"rounds": 0, "zzz": 1}, ["rounds:", "1 more after this one"]),
        ({"network": {"name": "vit", "heads": 5}}, ["experiment.yaml: network.heads: got 5. Expected an even number."]),
        ({"title": "a/b"}, ["experiment.yaml: title: got 'a/b'. Expected letters alone."]),
        ({"title": "ab\n"}, ["title: got 'ab\\n'. Expected letters alone."]),
        ({"share": float("inf")}, ["experiment.yaml: share: got inf. Expected a finite number."]),
        ({"share": float("nan")}, ["experiment.yaml: share: got nan. Expected a finite number."]),
        ({"pair": [0.5, float("nan")]}, ["experiment.yaml: pair.1: got nan. Expected a finite number."]),
        ({"items": {"a": {"path": "p", "share": float("nan")}}}, ["items.a.share: got nan. Expected a finite number."]),
        ({"pair": [2.0, 1.0]}, ["experiment.yaml: pair: got [2.0, 1.0]. Expected a low", "Remedy: swap them."]),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(change: dict[str, Any], parts: list[str]) -> None:
    message = told({"network": {"name": "vit"}, **change})
    for part in parts:
        assert part in message


def test_yaml_is_read_without_building_objects(tmp_path: Path) -> None:
    """Fault row 37: a tag that names a Python callable is an error, not a call."""
    file = tmp_path / "experiment.yaml"
    file.write_text("a: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(ConfigurationError, match="valid YAML"):
        read_yaml(file)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2", r"a YAML error in line 1, column 9"),
        (b"a: 1\nb: {", "a YAML error in line 2"),
        (b"day: 2024-13-45", "month must be in 1..12.*quote text"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "experiment.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_yaml(file)
    assert caught.value.public == "CONFIGURATION: experiment.yaml", "the folder stays at the site"


def test_a_yaml_file_comes_back_as_it_reads(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("labels: {1: Übung}\nempty:\n", encoding="utf-8")
    assert read_yaml(file) == {"labels": {1: "Übung"}, "empty": None}


def test_a_misspelt_key_is_told_and_not_the_one_that_is_missing_for_it() -> None:
    with pytest.raises(ConfigurationError, match=r"an unknown key 'pth'.*write 'path'"):
        parse(Item, {"pth": "a"}, source="item")


def test_a_choice_of_several_names_each_once() -> None:
    assert each_once(("b", "a"), ["a", "b"], what="letter", remedy="") == ("b", "a")
    for wrong in ((), ("a", "a")):
        with pytest.raises(Misfit, match="at least one of a, b, and each letter once"):
            each_once(wrong, ["a", "b"], what="letter", remedy="")


def test_a_key_twice_is_refused_where_it_stands_and_what_is_merged_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text("segmentation:\n  steps: 5\n  batch: 2\n  steps: 6\n")
    with pytest.raises(
        ConfigurationError, match=r"got the key steps twice in line 4, column 3\. Expected each key once"
    ):
        read_yaml(file)
    file.write_text("base: &base {steps: 5, batch: 2}\nown: {<<: *base, steps: 6}\n")
    assert read_yaml(file)["own"] == {"steps": 6, "batch": 2}


def test_keys_are_the_same_where_python_takes_them_for_one(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("yes: 1\ntrue: 2\n")
    with pytest.raises(ConfigurationError, match="the key true twice in line 2"):
        read_yaml(file)
    file.write_text("1: a\n'1': b\n")
    assert read_yaml(file) == {1: "a", "1": "b"}


def test_what_is_nested_too_deeply_is_told_and_an_anchor_around_itself_ends(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("[" * 5000)
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        read_yaml(file)
    file.write_text("&a [*a]\n")
    read_yaml(file)
