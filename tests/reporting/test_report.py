"""The report holds what the record holds, needs nothing else, and trusts nothing in it."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import records
from html_page import Page

from fedmedseg.reporting.against import reduced
from fedmedseg.reporting.figures import draw_dice, draw_hd95, figures
from fedmedseg.reporting.in_words import in_words
from fedmedseg.reporting.report import HTMLReporter, render, write_report
from fedmedseg.reporting.summary import plain_text_summary

EVERY_FIGURE = {"dice", "hd95", "curves", "teacher", "participation", "weights", "attention", "seconds", "bytes"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(records.finished(), tmp_path_factory.mktemp("report"))


def page(record: dict[str, Any], folder: Path) -> Page:
    return Page(write_report(record, folder).read_text(encoding="utf-8"))


def said(record: dict[str, Any]) -> str:
    """The page's words, of a page without figures: they take long to draw."""
    return Page(render(record, {})).text


def test_a_finished_run_has_every_section_and_its_numbers(written: Path) -> None:
    shown = Page(written.read_text(encoding="utf-8"))
    assert "cardiac-study finished" in shown.text
    assert "3 sites, 8 rounds" in shown.text
    assert "personal 0.740 mean Dice; worst site site-3: 0.720" in shown.text
    assert "site-1 4 cases left ventricle 0.860 (best) 1.4 mm 0.820 1.8 mm 0.780 2.2 mm 0.060 *2 9.4 mm" in shown.text
    assert "mean over sites 0.740 0.700 0.660 0.013 standard deviation between sites ± 0.020" in shown.text
    # by hand: 0.86 - 0.82 at every structure and site
    assert "site-1 +0.040 0.760 \N{MINUS SIGN} 0.720 +0.080" in shown.text
    assert "sites where the first is ahead 3 of 3 3 of 3 3 of 3" in shown.text
    assert "pretraining 2 site-3 not accepted NOT_FINITE: encoder.norm" in shown.text
    assert "lost their spread at site-2, pretraining round 6" in shown.text
    # by hand: 6 pretraining rounds at 3 MiB down and 2 MiB up, fine-tuning 3 MiB down
    assert "site-1 8 of 8 10 21.0 MiB 12.0 MiB 37 s 8.0 s" in shown.text
    assert "site-3 7 of 8 10 21.0 MiB 10.0 MiB 33 s 8.0 s" in shown.text
    assert "pretraining 2 2 of 3 9.0 MiB 4.0 MiB 4.0 s 1.0 s 0.2 s 6.0 s" in shown.text, "every round in numbers"
    for fact in ("seconds aggregating 2.00", "torch of the server 2.13.0", "cd" * 32, "2026-01-02 03:04 UTC", "seed 1"):
        assert fact in shown.text
    assert "sites site-1, site-2, site-3 stages, with their rounds pretraining (6), fine tuning (1)" in shown.text


def test_the_spread_over_patients_is_shown_where_sites_tell_it() -> None:
    record = records.finished()
    metrics = record["rounds"][-1]["sites"]["site-1"]["metrics"]
    metrics |= {"spread/dice/personal/myocardium": 0.0421, "spread/hd95/personal/myocardium": 0.66}
    text = said(record)
    assert "myocardium 0.760 (best) ± 0.042 2.4 ± 0.7 mm 0.720 2.8 mm" in text
    assert "standard deviation over the site's patients" in text
    assert "standard deviation over the site's patients" not in said(records.finished())


def test_figures_draw_a_spread_as_a_line_over_its_bar() -> None:
    metrics = {"dice/personal/liver": 0.9, "hd95/personal/liver": 3.0}
    spread = {"spread/dice/personal/liver": 0.2, "spread/hd95/personal/liver": 1.0}
    for draw, ends in ((draw_dice, (0.7, 1.0)), (draw_hd95, (2.0, 4.0))):
        for told, lines in ((metrics, []), (metrics | spread, [ends])):
            record = {"rounds": [records.one_round("evaluation", 0, 1, {"a": records.answer(metrics=told)})]}
            figure = draw(record)
            assert figure is not None
            drawn = [line.get_segments()[0][:, 1] for line in figure.axes[0].collections]
            assert [tuple(line) for line in drawn] == [pytest.approx(one) for one in lines]


def test_no_two_models_of_a_study_are_drawn_alike() -> None:
    figure = draw_dice(records.cardiac_ct())
    assert figure is not None
    panel = figure.axes[0]
    assert len({bars.patches[0].get_facecolor() for bars in panel.containers}) == 3


def test_what_a_site_withheld_is_called_so_and_never_a_zero() -> None:
    """Counts below a site's threshold come as nothing; a reply on too few cases tells no figure at all."""
    record = records.finished()
    tested = record["rounds"][-1]["sites"]
    del tested["site-2"]["metrics"]["cases"]
    tested["site-3"] |= {"metrics": {}}
    for one in record["rounds"]:
        one["sites"]["site-3"]["examples"] = None
    text = said(record)
    assert "site-2 number of cases withheld" in text
    assert "site-3: took the test and told no figure" in text
    assert "site-3 7 of 8 withheld" in text
    assert "0 cases" not in text
    assert "withheld where they are small" not in text
    del tested["site-1"]["metrics"]["failures/personal/myocardium"]
    assert "site-1: numbers of such volumes are withheld where they are small" in said(record)


@pytest.mark.parametrize(
    ("silent", "words"),
    [
        (("site-1", "site-2", "site-3"), "all 3 sites were tested, and each withheld its figures."),
        (("site-1", "site-2"), "2 of 3 sites were tested, and each withheld its figures."),
        (("site-1",), "site-1 was tested, and withheld its figures."),
    ],
)
def test_where_every_tested_site_withheld_its_figures_page_and_summary_say_why_and_what_to_do(
    silent: tuple[str, ...], words: str
) -> None:
    record = records.finished()
    for site, answer in record["rounds"][-1]["sites"].items():
        answer |= {"metrics": {}, "examples": None} | ({} if site in silent else {"accepted": False})
    text, summary = said(record), " ".join(plain_text_summary(record).split())
    for place in (text, summary):
        assert f"No test score came here: {words}" in place
        assert "Fewer test patients stand behind them than the site's privacy.min_count" in place
        assert "list at least min_count test patients" in place
        assert "o evaluation was recorded" not in place
    assert "took the test and told no figure" not in text
    assert max(map(len, plain_text_summary(record).splitlines())) <= 96


def test_of_some_sites_that_withheld_their_figures_the_summary_gives_the_names() -> None:
    record = records.finished()
    assert "withheld" not in plain_text_summary(record)
    record["rounds"][-1]["sites"]["site-3"]["metrics"] = {}
    assert "tested, and figures withheld by the site: site-3" in plain_text_summary(record)
    assert "No test score came here" not in plain_text_summary(record)


def without(record: dict[str, Any], *models: str) -> dict[str, Any]:
    """``record`` of a study that did not test these models."""
    for answer in record["rounds"][-1]["sites"].values():
        answer["metrics"] = {
            name: value for name, value in answer["metrics"].items() if not set(models) & set(name.split("/"))
        }
    return record


@pytest.mark.parametrize(
    ("left_out", "title"),
    [
        ((), "Personal against shared and local, shared against local model"),
        (("shared",), "Personal against local model"),
        (("scratch",), "Personal against shared model"),
    ],
)
def test_the_heading_names_the_models_that_are_compared(left_out: tuple[str, ...], title: str) -> None:
    text = said(without(records.finished(), *left_out))
    assert f"{title} Mean Dice of one model less that of the other" in text


def test_alarms_name_what_happened_and_their_absence_is_said() -> None:
    record = records.finished()
    assert "No alarm" not in said(record)
    for number, one in enumerate(record["rounds"][:6]):
        one["unchanged"] = max(0, number - 1)
        for answer in one["sites"].values():
            answer["metrics"]["collapse_alarm"] = 0.0
    assert "No progress: the shared model did not change in pretraining rounds 3-6" in said(record)
    for one in record["rounds"]:
        one["unchanged"] = 0
    assert "No alarm: no collapse, no standstill" in said(record)
    assert "No alarm" not in said(record | {"ended": False}), "nobody knows how it went on"
    pair = records.finished(("site-1", "site-2"), rounds=1)
    pair["rounds"][0]["sites"]["site-2"]["metrics"]["collapse_alarm"] = 0.0
    assert "No alarm: no collapse, no standstill. Whether an update is unlike the others shows from" in said(pair)
    for answer in record["rounds"][-1]["sites"].values():
        answer["metrics"] |= {"dice/personal/myocardium": 0.0}
    assert "Beside the truth everywhere: personal model, myocardium, at site-1, site-2, site-3" in said(record)
    assert "Worse than it should be: floor MISSED: the personal models reach a mean Dice of 0.493" in said(record)


def test_no_collapse_is_claimed_only_where_somebody_watched_for_it() -> None:
    record = records.finished()
    for one in record["rounds"]:
        for answer in one["sites"].values():
            answer["metrics"].pop("collapse_alarm", None)
    quiet = "No alarm: no standstill, no update unlike the others. Collapse is not watched in this system or by these"
    assert quiet in said(record)
    sealed = said({**record, "encryption": {"scheme": "ckks", "guards_off": []}})
    assert "No alarm. Collapse is not watched in this system or by these sites. Standstill and updates" in sealed
    record["rounds"][0]["sites"]["site-1"]["metrics"]["collapse_alarm"] = 0.0
    assert "No alarm: no collapse, no standstill, no update unlike the others. " in said(record)
    assert "not watched" not in said(record)


def test_refusals_alike_are_one_line_and_those_made_good_are_told() -> None:
    record = records.finished()
    bad = record["rounds"][1]["sites"]["site-3"]
    for number in (2, 4):
        record["rounds"][number]["sites"]["site-3"] = dict(bad)
    record["rounds"][0]["refusals"] = [{"site": "site-1", "reason": "SCHEMA: a replay"}]
    record["rounds"][1]["refusals"] = [{"site": "site-3", "reason": bad["reason"]}]
    text = said(record)
    assert "pretraining 2-3, 5 site-3 not accepted NOT_FINITE: encoder.norm" in text
    assert "pretraining 1 site-1 refused at first, then accepted SCHEMA: a replay" in text
    assert text.count("NOT_FINITE") == 1


def test_where_the_models_are_and_the_settings_are_told() -> None:
    record = records.finished()
    assert "The server kept no shared model" in said(record)
    record["models"] = [{"file": "models/shared.safetensors", "bytes": 3 * 2**20}]
    record["settings"] = {"study": "cardiac-study", "data": {"role": "cmr"}}
    text = said(record)
    assert "beside that of this report: models/shared.safetensors (3.0 MiB)." in text
    assert "study: cardiac-study data: role: cmr" in text


def test_a_run_is_compared_with_the_one_before() -> None:
    now, before = records.finished(), records.finished(("site-1", "site-2", "old"))
    before |= {"seed": 2, "started": "2025-12-30T10:00:00+00:00", "versions": {"python": "3.11.9", "torch": "2.12.0"}}
    for answer in before["rounds"][-1]["sites"].values():
        answer["metrics"]["dice/personal/myocardium"] -= 0.3
    text = said({**now, "previous": json.loads(json.dumps(reduced(before)))})
    assert "cardiac-study, started 2025-12-30 10:00 UTC." in text
    assert "seed 1, then 2; only now: site-3; only then: old; torch of the server 2.13.0, then 2.12.0" in text
    # by hand: a third of 0.3, at the two sites of both runs
    assert "site-1 +0.100 0.760 \N{MINUS SIGN} 0.660 0.000" in text
    assert "sites that are better than before 2 of 2 0 of 2 0 of 2" in text
    assert "Against the previous run" not in said(now)


def test_a_reader_of_the_screen_finds_its_way(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    shown = Page(html)
    assert ("html", {"lang": "en"}) in shown.tags
    levels = [int(tag[1]) for tag, _ in shown.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    tables = [part.split("</table>")[0] for part in html.split("<table>")[1:]]
    assert tables
    for table in tables:
        assert table.strip().startswith("<caption>")
        assert 'scope="col"' in table
        assert 'scope="row"' in table
    assert all("scope" in attributes for tag, attributes in shown.tags if tag == "th")
    told = [attributes["alt"] or "" for tag, attributes in shown.tags if tag == "img"]
    assert all(len(text) > 20 for text in told)
    assert any("pretraining: loss: site-1 from 0.9 to 0.15" in text for text in told), "a curve in words"
    # what scrolls by itself can be reached and scrolled without a mouse
    boxes = [attributes for _, attributes in shown.tags if attributes.get("class") == "scroll"]
    assert all(box.get("tabindex") == "0" and box.get("aria-label") for box in boxes)


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


def test_the_same_record_gives_the_same_bytes() -> None:
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
    assert "What ran" in page(record, tmp_path).text
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


def test_a_run_that_goes_on_is_not_said_to_have_stopped() -> None:
    text = said(records.stopped() | {"reason": None, "ended": False})
    assert "cardiac-study no end recorded" in text
    assert "No evaluation was recorded so far." in text
    assert "the report names them once the run has ended" in text
    text = said(records.stopped() | {"ended": True})
    assert "cardiac-study stopped" in text
    assert "No evaluation was recorded: the run ended before that stage." in text
    assert "The server kept no shared model of this run." in text


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


def test_the_legend_explains_the_columns_there_are_and_says_when_fine_tuning_was_federated() -> None:
    record = records.finished()
    text = said(record)
    assert "personal starts from the site's own pretrained encoder" in text.lower()
    assert "federated: each trained column" not in text
    for one in record["rounds"]:
        if one["stage"] == "evaluation":
            for answer in one["sites"].values():
                answer["metrics"] = {
                    name: value for name, value in answer["metrics"].items() if "/personal/" not in name
                } | {"best_round/shared": 2.0}
    text = said(record)
    assert "federated: each trained column" in text
    assert "own pretrained encoder" not in text


def test_a_model_that_fewer_sites_tested_has_their_number_beside_its_mean() -> None:
    record = records.finished()
    metrics = record["rounds"][-1]["sites"]["site-1"]["metrics"]
    for name in [name for name in metrics if "/personal/" in name]:
        del metrics[name]
    text = said(record)
    assert "(2 sites)" in text.split("mean over sites")[1].split("standard deviation")[0]
    assert "(2 sites)" not in said(records.finished())


def test_one_case_is_no_plural() -> None:
    record = records.finished()
    for answer in record["rounds"][-1]["sites"].values():
        answer["metrics"]["cases"] = 1.0
    text = said(record)
    assert "site-1 1 case " in text
    assert "Segmentation on the sites' test patients" in text


def test_encrypted_replies_are_reported_with_the_guards_that_were_off() -> None:
    record = {
        **records.finished(),
        "encryption": {"scheme": "ckks", "guards_off": ["norm of the differences", "progress"]},
    }
    text = said(record)
    assert "Replies were encrypted (ckks)." in text
    for one in record["rounds"]:
        for answer in one["sites"].values():
            answer["metrics"]["collapse_alarm"] = 0.0
    text = said(record)
    assert "No alarm: no collapse. Standstill and updates unlike the others do not show" in text
    assert "no standstill" not in text
    assert "norm of the differences; progress." in text
    assert "encrypted (ckks): 2 guards" in plain_text_summary(record)
    assert "encrypted" not in said(records.finished())
    assert "encrypted" not in plain_text_summary(records.finished())
    assert "encrypted" not in plain_text_summary({**record, "rounds": []}), "nothing was sent yet"


def test_the_cardiac_ct_record_holds_what_the_other_one_does_not() -> None:
    """What the browser's tests open, wherever there is a browser."""
    earlier = records.cardiac_ct() | {"started": "2025-12-30T10:00:00+00:00"}
    text = said({**records.cardiac_ct(), "previous": reduced(earlier)})
    for words in (
        "Landmarks Distance to the true point", "site-1 RCC 2.0 (1.5-none) mean 3.2 mm, missed: withheld",
        "site-1: numbers of points missed are withheld", "site-1: numbers of such volumes are withheld",
        "number of cases withheld", "Found nowhere: transformer model, all points, at site-3",
        "Heads left as they were: septum, distillation rounds 2-3.", "Results on the sites' test patients Segmentation",
        "CNN is the network of the one task; transformer is distilled from the tasks' networks; untrained has seen no",
        "calcification 0.600 (best) ±",
        "Mean absolute error of calcium", "Updates unlike the others", "Parts may not correspond", "No progress",
        "Replies were encrypted (ckks)", "Median point distance in mm of one model", "Mean HD95 in mm of this run",
    ):  # fmt: skip
        assert words in text
    assert "distillation: validation Dice, transformer" in in_words(records.cardiac_ct())["curves"]


def test_a_study_of_one_site_has_no_worst_one_and_a_distance_that_was_not_measured_no_unit() -> None:
    record = records.finished(("a",))
    tested = record["rounds"][-1]["sites"]["a"]["metrics"]
    for name in [name for name in tested if name.startswith("hd95/")]:
        del tested[name]
    text = Page(render(record, {})).text
    assert "mean Dice;" not in text
    assert "worst site" not in text
    assert "- mm" not in text
    several = Page(render(records.finished(), {})).text
    assert "mean Dice; worst site site-3" in several
    assert "1.4 mm" in several
