"""A study's file: what lies over what, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.comparison.labels import Level
from fedmedseg.comparison.study import Comparison, find_comparison, nested
from fedmedseg.core.config import parse_experiment
from fedmedseg.core.errors import ConfigurationError

Read = Callable[[dict[str, Any]], Comparison]
ALL = Level("fraction", 1.0)


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``content`` with the setting at ``a.b.c`` set."""
    *folders, last = path.split(".")
    section = content
    for name in folders:
        section = section.setdefault(name, {})
    section[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("seedz", [1], ["study.yaml: seedz", "write 'seeds'"]),
        ("methods.fedavg.setting", {}, ["methods.fedavg.setting", "write 'settings'"]),
        ("seeds", [1, 1], ["study.yaml: seeds", "got [1, 1]", "each seed once"]),
        ("seeds", [], ["study.yaml: seeds"]),
        ("study", "A study", ["study.yaml: study", "lower-case letters"]),
        ("methods", {}, ["study.yaml: methods"]),
        ("against", "locl", ["study.yaml: against", "write 'local'"]),
        ("data.sites", "somewhere", ["data.phantom", "both sites and phantom"]),
        ("data.dirichlet", {"alpha": 0, "sites": 2}, ["data.dirichlet.alpha"]),
        ("labelled", {"fractions": [0.5], "patients": [1]}, ["labelled.patients", "both fractions and patients"]),
        ("labelled", {"fractions": [0.5, 0.5]}, ["labelled.fractions", "each value once"]),
        ("participation", 0.0, ["study.yaml: participation"]),
        ("settings.fedavg", {"mu": 1.0}, ["settings.fedavg", "a system's own section"]),
        ("settings.seed", 3, ["settings.seed", "remove seed"]),
        ("methods.local.settings", {"study": "x"}, ["methods.local.settings.study", "remove study"]),
        ("methods.fedavg.trials", {"fedavg.weights": ["cases"]}, ["fedavg 1 trials, local 0 trials", "as many trials"]),
        ("tuning", {"seed": 1}, ["study.yaml: tuning", "with trials alone"]),
        ("methods.local.system", "fedavgg", ["methods.local: job", "write 'fedavg'"]),
        ("methods.fedavg.presets", ["fedbm"], ["methods.fedavg: preset", "write 'fedbn'"]),
        ("settings.segmentation.batchs", 3, ["methods.fedavg", "segmentation.batchs", "write 'batch'"]),
        ("methods.fedavg.settings.fedavg.starts", ["personal", "continued"],
         ["methods.fedavg", "stages.fine_tuning.rounds"]),
        ("methods.fedavg.model", "shared", ["methods.fedavg.model", "got shared", "one of personal"]),
        ("methods.local.settings.data.labels", {1: "heart"}, ["methods.fedavg", "data.labels"]),
        ("methods.local.settings.data.role", "lge", ["methods.fedavg", "data.role", "got cmr"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_its_place_and_its_mend(
    content: dict[str, Any], read: Read, path: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(changed(content, path, value))
    assert [word for word in words if word not in str(caught.value)] == []


def test_participation_that_no_method_reads_and_a_count_as_quorum_are_refused(
    content: dict[str, Any], read: Read
) -> None:
    content["participation"] = 0.5
    read(content)
    content["settings"]["federation"] = {"quorum": 2}
    with pytest.raises(ConfigurationError, match=r"methods.fedavg: federation.quorum: got 2"):
        read(content)
    del content["settings"]["federation"], content["methods"]["fedavg"]
    with pytest.raises(ConfigurationError, match=r"participation: got 0.5.*with a federated method alone"):
        read(content)


def test_a_system_that_is_tested_otherwise_is_refused(content: dict[str, Any], read: Read) -> None:
    content["settings"], content["methods"] = {}, {"cardiac": {"system": "cardiac_ct", "model": "student"}}
    del content["against"]
    with pytest.raises(ConfigurationError, match=r"methods.cardiac.system: got cardiac_ct.*Dice and HD95"):
        read(content)


def test_the_studys_settings_lie_over_presets_and_the_methods_over_those(
    content: dict[str, Any], read: Read, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("segmentation: {batch: 7, overlap: 0.5}\nfedavg: {weights: equal}\n")
    content["methods"]["fedavg"]["presets"] = ["mine.yaml"]
    content["settings"]["segmentation"]["batch"] = 3
    first = parse_experiment(read(content).settings("fedavg", seed=4, level=ALL))
    assert (first.segmentation.batch, first.segmentation.overlap, first.wing.weights) == (3, 0.5, "equal")
    assert (first.seed, first.study, first.segmentation.test_untrained) == (4, "compare-small", False)
    content["methods"]["fedavg"]["settings"] |= {"segmentation": {"batch": 5}}
    second = parse_experiment(
        read(content).settings("fedavg", seed=4, level=ALL, chosen={"segmentation.overlap": 0.25})
    )
    assert (second.segmentation.batch, second.segmentation.overlap) == (5, 0.25)


@pytest.mark.parametrize(
    ("labelled", "names", "titles", "data"),
    [
        ({}, ["100pc"], ["all labels"], [(1.0, None)]),
        ({"fractions": [0.125, 1.0]}, ["12.5pc", "100pc"], ["12.5 % of the labels", "all labels"],
         [(0.125, None), (1.0, None)]),
        ({"patients": [1, 2]}, ["1patients", "2patients"],
         ["at most 1 labelled patient a site", "at most 2 labelled patients a site"], [(1.0, 1), (1.0, 2)]),
    ],
)  # fmt: skip
def test_an_amount_of_labels_is_a_setting_of_the_run(
    content: dict[str, Any],
    read: Read,
    labelled: dict[str, Any],
    names: list[str],
    titles: list[str],
    data: list[tuple[float, int | None]],
) -> None:
    comparison = read(content | {"labelled": labelled})
    levels = comparison.section.labelled.levels
    found = [parse_experiment(comparison.settings("fedavg", seed=1, level=level)).data for level in levels]
    assert [level.name for level in levels] == names
    assert [level.title for level in levels] == titles
    assert [(one.labelled_fraction, one.labelled_patients) for one in found] == data


def test_trials_are_every_combination_and_tuning_says_where(content: dict[str, Any], read: Read) -> None:
    grid = {"segmentation.optimizer.learning_rate": [0.1, 0.2], "segmentation.batch": [2, 4]}
    for method in content["methods"].values():
        method["trials"] = grid
    content |= {"seeds": [1, 2], "labelled": {"patients": [1, 2]}}
    section = read(content).section
    rates = [tuple(one.values()) for one in section.methods["local"].grid]
    assert rates == [(0.1, 2), (0.1, 4), (0.2, 2), (0.2, 4)]
    assert section.tuned_on == (1, Level("patients", 2))
    assert read(content | {"tuning": {"seed": 2, "labelled": 1}}).section.tuned_on == (2, Level("patients", 1))
    for tuning, words in (({"seed": 3}, "tuning.seed: got 3"), ({"labelled": 7}, "tuning.labelled: got 7")):
        with pytest.raises(ConfigurationError, match=words):
            read(content | {"tuning": tuning})
    # a combination that cannot work is found before any runs
    grid["segmentation.batch"][1] = 0
    with pytest.raises(ConfigurationError, match=r"methods.fedavg.*segmentation.batch"):
        read(content)


def test_a_study_is_found_by_its_file_or_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.touch()
    assert find_comparison(str(file)) == file
    assert find_comparison("phantoms_small").name == "phantoms_small.yaml"
    with pytest.raises(ConfigurationError, match="write 'phantoms_small'"):
        find_comparison("phantom_small")


def test_a_dotted_name_is_nested() -> None:
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}
