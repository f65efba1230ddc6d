"""Tables of a comparison: every figure by hand, in its place, and who was given what the others were not."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.comparison.conftest import patients

from fedmedseg.comparison.cells import trials_of
from fedmedseg.comparison.needs import needs
from fedmedseg.comparison.study import Comparison
from fedmedseg.comparison.tables import COLUMNS, contrasts, csv_text, grouped, markdown_text
from fedmedseg.core.errors import DataError

Read = Callable[[dict[str, Any]], Comparison]
Left = Callable[..., list[dict[str, Any]]]

FEDAVG = {"east": patients(0.8, 0.6), "west": patients(0.5, None)}
LOCAL = {"east": patients(0.6, 0.6), "west": patients(0.2, 0.4)}
BOTH = {("fedavg", "100pc", 1): FEDAVG, ("local", "100pc", 1): LOCAL}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(text: str, first: str, number: int = 0) -> dict[str, str]:
    """The row of a table that begins with ``first``, by its header; of several such rows number ``number``."""
    lines = text.splitlines()
    found = [place for place, line in enumerate(lines) if line.startswith(f"| {first} |")][number]
    head = max(place for place, line in enumerate(lines[:found]) if line.startswith("|---")) - 1
    return dict(zip(cells(lines[head]), cells(lines[found]), strict=True))


def test_means_are_over_patients_then_sites_and_the_worst_site_is_told(
    content: dict[str, Any], read: Read, left: Left
) -> None:
    results = left(content, BOTH)
    comparison = read(content)
    text = markdown_text(comparison, grouped(comparison, results), missing=1)
    assert text.startswith("# small\n\n1 cells are missing.\n\n## all labels\n")
    first, second = row(text, "FedAvg"), row(text, "local")
    # east (0.8 + 0.6) / 2, west 0.5 of the one who counts, their mean 0.6; HD95 twenty times that
    assert (first["east"], first["west"], first["worst site"]) == ("0.700", "0.500", "0.500")
    # east between 0.6 and 0.8, west 0.5 unless only the other patient was drawn
    assert first["mean Dice"] == "0.600 (0.550 to 0.800)"
    assert first["HD95 (mm)"].startswith("12.0 (")
    assert first["worst HD95"] == "14.0"
    assert (second["east"], second["west"], second["mean Dice"][:5], second["SD of seeds"]) == (
        "0.600", "0.300", "0.450", "-",
    )  # fmt: skip
    assert (first["MB down a site"], first["MB up a site"], second["MB up a site"]) == ("2.00", "1.00", "0.00")
    assert [first[name] for name in ("seconds a site", "peak MB of all sites' process", "steps a site")] == [
        "3.0", "500", "2",
    ]  # fmt: skip
    assert first["parameters"] == "1,234"
    assert (first["seeds"], first["needs"], first["tuned"]) == ("1", "-", "-")


def test_every_site_and_structure_has_its_figures(content: dict[str, Any], read: Read, left: Left) -> None:
    results = left(content, BOTH)
    comparison = read(content)
    groups = grouped(comparison, results)
    text = markdown_text(comparison, groups)
    west = row(text, "FedAvg", 2)
    assert (west["site"], west["patients"], west["heart: Dice"], west["heart: HD95 (mm)"]) == (
        "west", "2", "0.500", "10.0",
    )  # fmt: skip
    assert west["volumes not predicted"] == "0"
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison, groups))))
    assert tuple(rows[0]) == COLUMNS
    assert [(one["method"], one["site"], one["dice"], one["hd95_mm"], one["patients"]) for one in rows] == [
        ("fedavg", "east", "0.7", "14.0", "2"), ("fedavg", "west", "0.5", "10.0", "1"),
        ("local", "east", "0.6", "12.0", "2"), ("local", "west", "0.3", "6.0", "2"),
    ]  # fmt: skip
    assert {(one["mb_down"], one["method"]) for one in rows} == {("2.0", "fedavg"), ("0.0", "local")}


def test_pairs_are_patients_that_count_under_both_and_holm_counts_the_whole_study(
    content: dict[str, Any], read: Read, left: Left
) -> None:
    content["labelled"] = {"fractions": [0.5, 1.0]}
    central = {"east": patients(0.9, 0.9), "west": patients(0.9, 0.9)}
    found = {
        **BOTH,
        ("central", "100pc", 1): central,
        ("local", "50pc", 1): LOCAL,
        ("central", "50pc", 1): central,
    }
    results = left(content, found)
    comparison = read(content)
    every = contrasts(comparison, grouped(comparison, results))
    assert [(one.figure, one.labelled, one.method) for one in every] == [
        (figure, labelled, method)
        for figure in ("dice", "hd95")
        for labelled, method in (("50pc", "central"), ("100pc", "fedavg"), ("100pc", "central"))
    ]
    first = every[1]
    # 0.8 - 0.6, 0.6 - 0.6, 0.5 - 0.2; the last does not count
    assert (first.paired.n, round(first.paired.difference, 5)) == (3, 0.16667)
    assert [one.paired.n for one in every[:3]] == [4, 3, 4]
    # central's two p are equal: 0.125 three times; FedAvg's comes last
    assert every[0].paired.p == every[2].paired.p == pytest.approx(0.125)
    assert every[0].corrected == every[2].corrected == pytest.approx(0.375)
    assert every[1].corrected == pytest.approx(max(0.375, every[1].paired.p))
    text = markdown_text(comparison, grouped(comparison, results))
    told = row(text, "central", 7)
    assert (told["p (Holm)"], told["patients"], told["seeds"]) == ("0.38", "4", "1")
    assert "Less local, patient by patient:" in text


def test_seeds_are_averaged_and_only_those_that_both_have_are_compared(
    content: dict[str, Any], read: Read, left: Left
) -> None:
    content["seeds"] = [1, 2]
    more = {"east": patients(0.6, 0.6), "west": patients(0.1, None)}
    results = left(content, {**BOTH, ("fedavg", "100pc", 2): more})
    comparison = read(content)
    groups = grouped(comparison, results)
    runs = groups["100pc"][0]
    assert runs.means("dice") == pytest.approx([0.6, 0.35])
    assert runs.mean("dice") == pytest.approx(0.475)
    assert runs.worst("dice") == pytest.approx(0.3)
    assert runs.worst("hd95") == pytest.approx((14 + 12) / 2)
    told = row(markdown_text(comparison, groups), "FedAvg")
    assert (told["SD of seeds"], told["seeds"]) == ("0.177", "2")
    (first, _) = contrasts(comparison, groups)
    assert (first.seeds, round(first.paired.difference, 5)) == (1, 0.16667)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_sha256": "other"}, r"local 100pc seed 1: got a result on the data other.*without --table"),
        # as many, and others
        (
            {"tested": {"east": ["east0", "east1"], "west": ["west0", "west7"]}},
            r"local 100pc seed 1: got 2 tested patients at west, 1 of them those of fedavg 100pc seed 1. .*remove the",
        ),
        ({"tested": {"east": ["east0", "east1"], "west": ["west1", "west0"]}}, r"2 of them .*, in another order"),
        ({"tested": {"east": ["east0", "east1"], "west": ["west0"]}}, r"got 1 tested patients at west"),
        ({"tested": {"east": ["east0", "east1"]}}, r"got 0 tested patients at west"),
        # figures of fewer than were tested
        ({"patients": {**LOCAL, "west": patients(0.2)}}, r"got 2 tested patients at west, 2 of them"),
    ],
)
def test_results_of_other_data_or_patients_are_not_put_side_by_side(
    content: dict[str, Any], read: Read, left: Left, change: dict[str, Any], words: str
) -> None:
    """Patients are paired by their place in the list, which must be the same patient's."""
    first, second = left(content, BOTH)
    comparison = read(content)
    assert len(grouped(comparison, [first, second])["100pc"]) == 2
    with pytest.raises(DataError, match=words):
        grouped(comparison, [first, second | change])


def test_a_study_without_results_says_so(content: dict[str, Any], read: Read) -> None:
    comparison = read(content)
    assert grouped(comparison, []) == {}
    assert markdown_text(comparison, {}, missing=3) == "# small\n\n3 cells are missing.\n\nNo finished cell.\n"
    assert csv_text(comparison, {}).splitlines() == [",".join(COLUMNS)]


def test_needs_are_what_differs_outside_a_systems_own_section(content: dict[str, Any], read: Read, left: Left) -> None:
    content["methods"]["fedavg"]["settings"] = {
        **content["methods"]["fedavg"]["settings"],
        "segmentation": {"batch": 3},
        "network": {"name": "basic_unet", "features": [8, 8, 8, 8, 8]},
    }
    results = left(content, BOTH)
    comparison = read(content)
    own, other = comparison.experiment("fedavg"), comparison.experiment("local")
    assert needs(own, other) == {"network.name": "basic_unet", "segmentation.batch": 3}
    assert needs(other, other) == {}
    text = markdown_text(comparison, grouped(comparison, results))
    assert row(text, "FedAvg")["needs"] == "network.name basic_unet, segmentation.batch 3"


def test_what_trials_chose_is_told_of_how_many_a_systems_own_rate_too(
    content: dict[str, Any], read: Read, left: Left, tmp_path: Path
) -> None:
    grid = {"segmentation.optimizer.learning_rate": [0.1, 0.2], "fedavg.mu": [0.01]}
    for name, method in content["methods"].items():
        method["trials"] = grid if name == "fedavg" else {"segmentation.optimizer.learning_rate": [0.1, 0.2]}
    content["methods"]["fedavg"]["presets"] = ["fedprox"]
    comparison = read(content)
    for number, trial in enumerate(trials_of(comparison, tmp_path / "out", methods=["fedavg"])):
        trial.write({"data_sha256": "d", "validation": number})
    groups = grouped(comparison, left(content, {("fedavg", "100pc", 1): FEDAVG}))
    text = markdown_text(comparison, groups)
    what = "fedavg.mu 0.01, segmentation.optimizer.learning_rate 0.2 (of 2 trials)"
    assert row(text, "FedAvg")["tuned"] == what
    (first, *_) = csv.DictReader(io.StringIO(csv_text(comparison, groups)))
    assert first["tuned"] == what


def test_what_a_trial_chose_is_told(content: dict[str, Any], read: Read) -> None:
    comparison = read(content)
    chosen = comparison.experiment("fedavg", chosen={"segmentation.optimizer.learning_rate": 0.25})
    assert needs(chosen, comparison.experiment("local")) == {"segmentation.optimizer.learning_rate": 0.25}
