"""The report holds what the record holds, needs nothing else, and trusts nothing in it."""

from __future__ import annotations

import base64
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import records

from fedmedseg.reporting.figures import figures
from fedmedseg.reporting.report import HTMLReporter, write_report
from fedmedseg.reporting.tables import plain_text_summary

EVERY_FIGURE = {"dice", "hd95", "loss", "teacher", "participation", "weights", "attention", "seconds", "bytes"}


class Page(HTMLParser):
    """Text, attributes and balance of a page."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(records.finished(), tmp_path_factory.mktemp("report"))


def page(record: dict[str, Any], folder: Path) -> Page:
    return Page(write_report(record, folder).read_text(encoding="utf-8"))


def test_a_finished_run_has_every_section_and_its_numbers(written: Path) -> None:
    shown = Page(written.read_text(encoding="utf-8"))
    assert "cardiac-study finished" in shown.text
    assert "personal 0.740 mean Dice; worst site site-3: 0.720" in shown.text
    assert "site-1 4 cases left ventricle 0.860 1.4 mm 0.820 1.8 mm 0.780 2.2 mm 0.060 *2 9.4 mm" in shown.text
    assert "mean over sites 0.740 0.700 0.660 0.013" in shown.text
    assert "pretraining 2 site-3 not accepted NOT_FINITE: encoder.norm" in shown.text
    assert "lost their spread at site-2, pretraining round 6" in shown.text
    # by hand: 6 pretraining rounds at 3 MiB down and 2 MiB up, fine-tuning 3 MiB down
    assert "site-1 8 of 8 10 21.0 MiB 12.0 MiB 37 s 8.0 s" in shown.text
    assert "site-3 7 of 8 10 21.0 MiB 10.0 MiB 33 s 8.0 s" in shown.text
    for fact in ("seconds aggregating 2.00", "torch 2.13.0", "cd" * 32, "2026-01-02"):
        assert fact in shown.text


def test_the_page_needs_nothing_from_outside(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    shown = Page(html)
    assert [tag for tag, _ in shown.tags if tag in ("script", "link", "iframe", "object")] == []
    sources = [attributes["src"] or "" for tag, attributes in shown.tags if tag == "img"]
    assert len(sources) == len(EVERY_FIGURE)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert re.findall(r"(?:href|url\(|@import)", html) == []
    for source in sources:
        ElementTree.fromstring(base64.b64decode(source.split(",")[1]))


def test_figures_lie_beside_the_page_and_the_record_is_kept_whole(written: Path) -> None:
    assert {path.stem for path in (written.parent / "figures").iterdir()} == EVERY_FIGURE
    assert json.loads((written.parent / "report.json").read_text()) == records.finished()


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (figures(records.stopped()) for _ in range(2))
    assert first == second


def test_a_stopped_run_is_reported_with_its_reason_and_without_scores(tmp_path: Path) -> None:
    shown = page(records.stopped(), tmp_path)
    assert "cardiac-study stopped" in shown.text
    assert "Why it ended: pretraining round 1: 1 of 3 needed replies were accepted" in shown.text
    assert "No evaluation was recorded: the run ended before that stage" in shown.text
    assert "mean Dice" not in shown.text


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"study": None, "sites": [], "rounds": [], "labels": None, "versions": None},
        {"sites": ["a"], "rounds": [{"stage": "pretraining", "round": 0}]},
        {"sites": ["a"], "rounds": [{"stage": "evaluation", "round": 0, "sites": {"a": {"accepted": True}}}]},
        {"rounds": [{"sites": {"a": {"accepted": False, "train_seconds": None, "metrics": None, "weight": "x"}}}]},
        {
            "sites": ["a"],
            "rounds": [{"notes": {"attention": {"l": None, "m": 3}}, "sites": {"a": {"metrics": {"loss": None}}}}],
        },
    ],
)
def test_a_record_that_stops_anywhere_still_gives_a_page(record: dict[str, Any], tmp_path: Path) -> None:
    assert "To repeat this run" in page(record, tmp_path).text
    plain_text_summary(record)


def test_nothing_in_the_record_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=y> {{ 7*7 }} $x^2$"
    record = records.finished((evil, "site-2"), rounds=2)
    record["rounds"][-1]["sites"][evil]["metrics"] = {f"dice/{evil}/{evil}": 0.5}
    record |= {
        "study": evil,
        "reason": evil,
        "system": evil,
        "hardware": evil,
        "versions": {evil: evil},
        "started": evil,
    }
    record["rounds"][1]["sites"]["site-2"]["reason"] = evil
    record["labels"] = {"1": evil}
    shown = page(record, tmp_path)
    assert [tag for tag, _ in shown.tags if tag == "script"] == []
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in shown.tags if tag == "img")
    assert "49" not in shown.text
    assert "<script>alert(1)</script>" in shown.text
    for path in (tmp_path / "figures").iterdir():
        assert "<script" not in path.read_text(encoding="utf-8")
        ElementTree.parse(path)


def test_numbers_that_are_not_finite_stay_out_of_the_json(tmp_path: Path) -> None:
    write_report({"rounds": [{"sites": {"a": {"metrics": {"loss": math.nan, "gap": [math.inf, 1.5]}}}}]}, tmp_path)
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["rounds"][0]["sites"]["a"]["metrics"] == {"loss": None, "gap": [None, 1.5]}


def test_the_reporter_of_a_job_writes_the_page_and_the_summary(tmp_path: Path) -> None:
    record: dict[str, Any] = {"study": "a", "outcome": "stopped"}
    assert HTMLReporter().write(record, tmp_path) == tmp_path / "report.html"
    assert HTMLReporter().summary(record) == plain_text_summary(record)


def test_personal_models_shares_are_drawn_like_attention() -> None:
    record = records.finished()
    for one in record["rounds"]:
        noted = one.get("notes", {})
        if "attention" in noted:
            sites = sorted(next(iter(noted["attention"].values())))
            noted["pair_attention"] = {site: {other: 1 / len(sites) for other in sites} for site in sites}
            del noted["attention"]
    drawn = figures(record)
    assert "attention" in drawn
    assert all(site in drawn["attention"] for site in sites)


def test_the_legend_explains_the_columns_there_are_and_says_when_fine_tuning_was_federated(tmp_path: Path) -> None:
    record = records.finished()
    text = page(record, tmp_path / "local").text
    assert "personal starts from the site's own pretrained encoder" in text.lower()
    assert "federated: each trained column" not in text
    for one in record["rounds"]:
        if one["stage"] == "evaluation":
            for answer in one["sites"].values():
                answer["metrics"] = {
                    name: value for name, value in answer["metrics"].items() if "/personal/" not in name
                } | {"best_round/shared": 2.0}
    text = page(record, tmp_path / "together").text
    assert "federated: each trained column" in text
    assert "own pretrained encoder" not in text


def test_encrypted_replies_are_reported_with_the_guards_that_were_off(tmp_path: Path, written: Path) -> None:
    record = {
        **records.finished(),
        "encryption": {"scheme": "ckks", "guards_off": ["norm of the differences", "progress"]},
    }
    text = page(record, tmp_path).text
    assert "Replies were encrypted (ckks)." in text
    assert "norm of the differences; progress." in text
    assert "encrypted (ckks): 2 guards" in plain_text_summary(record)
    assert "encrypted" not in Page(written.read_text(encoding="utf-8")).text
    assert "encrypted" not in plain_text_summary(records.finished())
    assert "encrypted" not in plain_text_summary({**record, "rounds": []}), "nothing was sent yet"


def test_columns_of_a_federated_training_are_not_called_fine_tuning() -> None:
    from fedmedseg.reporting.report import _legend

    metrics = {"dice/personal/liver": 0.5, "best_round/personal": 2.0}
    record = {"rounds": [{"stage": "training"}, {"stage": "evaluation", "sites": {"a": {"metrics": metrics}}}]}
    said = _legend(record, ["personal", "scratch"])
    assert "trained in the federation" in said
    assert "without the other sites" in said
    assert "validated best there" in said
    assert "pretrain" not in said
