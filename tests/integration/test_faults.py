"""What a study does when sites misbehave: FLARE's simulator with executors that fail on demand."""

from __future__ import annotations

import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core.approval import decide, matters

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

QUORUM_OF_TWO = {"quorum": 2, "wait_after_quorum": 5, "timeout": 60}


def fault(kind: str, round: int | None = 0, site: str | None = "site-1") -> dict[str, Any]:
    """One thing that goes wrong; site None: everywhere, round None: always."""
    return {"kind": kind, "round": round, "site": site}


def reasons(run: Any) -> list[str]:
    """The codes of the replies that did not count, in order of rounds and sites."""
    return [
        site["reason"].partition(":")[0]
        for record in run.rounds()
        for _, site in sorted(record["sites"].items())
        if not site["accepted"]
    ]


def test_a_clean_run_finishes_and_leaves_records_scalars_and_the_shared_model(clean: Any) -> None:
    assert clean.outcome == "finished", clean.reason
    stages = [(record["stage"], record["round"]) for record in clean.record["rounds"]]
    assert stages == [*(("pretraining", number) for number in range(4)), ("fine_tuning", 0), ("evaluation", 0)]
    for stage, number in stages:
        record = json.loads((clean.folder / "report" / "rounds" / f"{stage}-{number:04d}.json").read_text())
        assert record["accepted"] == ["site-1", "site-2"]
        assert record["attempts"] == 1
    assert clean.shared == clean.record["shared_sha256"]
    bases = [record["shared_sha256"] for record in clean.rounds()]
    assert len(set(bases)) == 4, "every round must move the shared model"
    assert clean.rounds()[0]["sites"]["site-1"]["bytes_up"] == clean.rounds()[0]["sites"]["site-1"]["bytes_down"] > 0
    assert clean.rounds("evaluation")[0]["sites"]["site-1"]["bytes_down"] == 0, "evaluation sends nothing"
    assert scalars(clean.folder)["site-1"]["pretraining/loss"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert scalars(clean.folder)["site-2"]["evaluation/cases"] == [2.0]


def scalars(folder: Path) -> dict[str, dict[str, list[float]]]:
    """TensorBoard scalars by site and tag, in order of steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[str, list[float]]] = {}
    for site in sorted(path for path in (folder / "tb_events").iterdir() if path.is_dir()):
        events = EventAccumulator(str(site))
        events.Reload()
        tags = found.setdefault(site.name, {})
        for tag in events.Tags()["scalars"]:
            tags[tag] = [event.value for event in sorted(events.Scalars(tag), key=lambda event: event.step)]
    return found


def test_bad_replies_leave_the_shared_model_as_if_the_site_had_reported_an_error(start: Any, tmp_path: Path) -> None:
    """Fault rows 1, 3, 6, 8, 18, 34, 35 (one site) and 48: bit-identical whatever kind the rejected reply was."""
    kinds = ["nan", "shape", "extra key", "empty", "diverge", "numpy"]
    sites = ["site-1", "site-2", "site-3", "site-1", "site-2", "site-3"]
    bad = [fault(kind, number, site) for number, (kind, site) in enumerate(zip(kinds, sites, strict=True))]
    honest = [{**entry, "kind": "raise"} for entry in bad]
    changes = {"stages": {"pretraining": {"rounds": 7}}, "federation": QUORUM_OF_TWO}
    spoiled = start(tmp_path / "bad", sites=3, faults=bad, **changes)
    failed = start(tmp_path / "raise", sites=3, faults=honest, **changes)
    assert spoiled.outcome == failed.outcome == "finished", (spoiled.reason, failed.reason)
    assert reasons(spoiled) == [
        "NOT_FINITE",
        "TENSOR_SHAPE",
        "UNKNOWN_TENSORS",
        "EMPTY",
        "LOCAL_DIVERGED",
        "TENSOR_TYPE",
    ]
    assert reasons(failed) == ["INTERNAL"] * 6
    assert [r["shared_sha256"] for r in spoiled.rounds()] == [r["shared_sha256"] for r in failed.rounds()]
    assert [len(r["accepted"]) for r in spoiled.rounds()] == [2] * 6 + [3]
    assert spoiled.shared == failed.shared == spoiled.record["shared_sha256"]
    # row 44: what the exception quoted is in no log and no record
    for run in (spoiled, failed):
        for file in run.workspace.rglob("*"):
            if file.is_file() and file.suffix in {".txt", ".json", ".jsonl", ".log"}:
                text = file.read_text(errors="replace")
                assert "patient-of-site-1" not in text, file
                assert "/secret/path" not in text, file
        assert "patient-of-site-1" not in run.log


@pytest.mark.slow
def test_numpy_from_every_site_ends_the_job_in_round_0_with_the_reason(start: Any, tmp_path: Path) -> None:
    """Fault rows 35 and 9: no accepted reply, asked again once, stopped; the shared model stays the initial one."""
    run = start(tmp_path, faults=[fault("numpy", None, None)])
    assert run.outcome == "stopped"
    assert "0 of 2 needed replies" in run.reason
    assert run.reason.count("TENSOR_TYPE") == 2
    (record,) = run.rounds()
    assert (record["attempts"], record["accepted"], record["shared_sha256"]) == (2, [], None)


def test_a_stopped_study_resumes_where_it_stopped_and_ends_with_the_same_model(
    start: Any, clean: Any, tmp_path: Path
) -> None:
    """Fault rows 9 and 24: the last good model is kept byte for byte, and only a run that asks to resume reads it."""
    rounds = {"stages": {"pretraining": {"rounds": 4}}}
    stopped = start(tmp_path, faults=[fault("nan", 2, "site-2")], **rounds)
    assert stopped.outcome == "stopped"
    assert "site-2: NOT_FINITE" in stopped.reason
    assert [record["shared_sha256"] for record in stopped.rounds()][:2] == [
        record["shared_sha256"] for record in clean.rounds()
    ][:2]
    assert stopped.shared == clean.rounds()[1]["shared_sha256"]
    resumed = start(tmp_path, resume=True, **rounds)
    assert resumed.outcome == "finished", resumed.reason
    assert [record["round"] for record in resumed.rounds()] == [0, 1, 2, 3]
    # the very records of the stopped run, times included: these rounds were not done again
    assert resumed.rounds()[:2] == stopped.rounds()[:2]
    assert "resuming after {'pretraining': 2}" in (resumed.workspace / "server" / "log.txt").read_text(errors="replace")
    assert resumed.shared == clean.shared
    assert resumed.record["experiment_sha256"] == stopped.record["experiment_sha256"]
    asked = sorted(record["attempts"] for record in resumed.rounds())
    assert asked == [1, 1, 1, 1]


def test_a_site_that_dies_in_a_round_costs_the_round_no_more_than_its_patience(start: Any, tmp_path: Path) -> None:
    """Fault row 19."""
    run = start(
        tmp_path,
        sites=3,
        faults=[fault("die", 1, "site-2")],
        stages={"pretraining": {"rounds": 3, "timeout": 25}, "fine_tuning": {"timeout": 25}},
        federation={"quorum": 2, "wait_after_quorum": 8},
    )
    assert run.outcome == "finished", run.reason
    assert [record["accepted"] for record in run.rounds()] == [
        ["site-1", "site-2", "site-3"],
        ["site-1", "site-3"],
        ["site-1", "site-3"],
    ]
    assert run.rounds()[1]["sites"]["site-2"]["reason"] == "no reply in time"
    assert run.rounds()[1]["wall_seconds"] < 25 + 8


@pytest.mark.slow
def test_a_quorum_above_the_sites_stops_the_study_with_the_numbers(start: Any, tmp_path: Path) -> None:
    run = start(tmp_path, federation={"quorum": 3})
    assert run.outcome == "stopped"
    assert "federation.quorum: got 3" in run.reason
    assert "at most 2" in run.reason
    assert run.record["rounds"] == []


@pytest.mark.slow
def test_a_site_that_hangs_is_left_behind_and_the_others_go_on(start: Any, tmp_path: Path) -> None:
    """Fault row 20."""
    run = start(
        tmp_path,
        sites=3,
        faults=[fault("hang", 1, "site-3")],
        stages={"pretraining": {"rounds": 3, "timeout": 25}, "fine_tuning": {"timeout": 25}},
        federation={"quorum": 2, "wait_after_quorum": 3},
    )
    assert run.outcome == "finished", run.reason
    assert run.rounds()[1]["accepted"] == ["site-1", "site-2"]
    assert run.rounds()[1]["sites"]["site-3"]["reason"] == "no reply in time"
    assert run.rounds()[1]["wall_seconds"] < 25 + 3 + 5


@pytest.mark.slow
def test_too_few_living_sites_end_the_study_with_the_last_good_model(start: Any, tmp_path: Path) -> None:
    """Fault row 23."""
    run = start(
        tmp_path,
        sites=3,
        faults=[fault("die", 1, "site-1"), fault("die", 1, "site-2")],
        stages={"pretraining": {"rounds": 3, "timeout": 25}},
        federation={"quorum": 2, "wait_after_quorum": 3},
    )
    assert run.outcome == "stopped"
    assert "1 of 2 needed replies" in run.reason
    assert "site-1: no reply in time" in run.reason
    assert run.shared == run.rounds()[0]["shared_sha256"]
    assert run.rounds()[1]["wall_seconds"] < 25 + 30


@pytest.mark.slow
def test_one_failure_is_made_good_by_asking_again(start: Any, clean: Any, tmp_path: Path) -> None:
    """Fault row 9: the retry counts, and the model is that of a run without the failure."""
    run = start(tmp_path, faults=[fault("raise once", 1, "site-1")], stages={"pretraining": {"rounds": 4}})
    assert run.outcome == "finished", run.reason
    assert [record["attempts"] for record in run.rounds()] == [1, 2, 1, 1]
    assert run.shared == clean.shared


@pytest.mark.slow
def test_a_site_without_cases_takes_no_part_and_the_quorum_counts_the_others(start: Any, tmp_path: Path) -> None:
    """Fault row 33."""
    run = start(tmp_path, sites=3, faults=[fault("decline", 0, "site-2")], stages={"pretraining": {"rounds": 3}})
    assert run.outcome == "finished", run.reason
    assert [record["needed"] for record in run.rounds()] == [2, 2, 2]
    assert [sorted(record["sites"]) for record in run.rounds()][1:] == [["site-1", "site-3"]] * 2
    assert run.rounds()[0]["sites"]["site-2"]["declined"]
    assert run.rounds("fine_tuning")[0]["accepted"] == ["site-1", "site-2", "site-3"]


@pytest.mark.slow
def test_a_site_of_another_version_stops_a_study_that_wants_all_sites_and_is_named(start: Any, tmp_path: Path) -> None:
    run = start(tmp_path, faults=[fault("version", None, "site-2")])
    assert run.outcome == "stopped"
    assert "1 of 2 needed replies were accepted (site-2: VERSION: fedmedseg" in run.reason
    assert "(server 99.0)" in run.reason
    (record,) = run.rounds()
    assert (record["attempts"], record["accepted"]) == (1, ["site-1"])
    log = (run.workspace / "site-2" / "log.txt").read_text(errors="replace")
    assert "no part in pretraining: VERSION: fedmedseg" in log
    assert "remedy: install the wheel that the study's kits name" in log


@pytest.mark.slow
def test_a_quorum_goes_on_without_a_site_of_another_version(start: Any, tmp_path: Path) -> None:
    changes = {"stages": {"pretraining": {"rounds": 3}}, "federation": QUORUM_OF_TWO}
    run = start(tmp_path, sites=3, faults=[fault("version", None, "site-2")], **changes)
    assert run.outcome == "finished", run.reason
    assert [record["accepted"] for record in run.rounds()] == [["site-1", "site-3"]] * 3
    assert [record["sites"]["site-2"]["reason"].partition(":")[0] for record in run.rounds()] == ["VERSION"] * 3
    assert [len(record["refusals"]) for record in run.rounds()] == [1, 0, 0], "asked once"


def test_sites_whose_people_decide_wait_for_them_and_keep_to_what_they_say(
    start: Any, clean: Any, tmp_path: Path
) -> None:
    """One agrees and one does not: the study is that of the two others, to the same bytes."""
    verdicts: dict[str, Any] = {"site-2": "approved", "site-3": "denied"}
    states = {site: tmp_path / "workspace.fedmedseg" / site / "state" for site in verdicts}

    def person(site: str) -> None:
        end, asked = time.monotonic() + 120, []
        while time.monotonic() < end and not asked:
            asked = [matter.request.wish.id for matter in matters(states[site])]
            time.sleep(0.2)
        decide(states[site], asked[0], verdicts[site], reason="" if site == "site-2" else "no ethics vote")

    people = [threading.Thread(target=person, args=(site,)) for site in verdicts]
    for one in people:
        one.start()
    asked = [fault("ask", None, site) for site in verdicts]
    run = start(tmp_path, sites=3, faults=asked, stages={"pretraining": {"rounds": 4}})
    for one in people:
        one.join(timeout=10)
    assert run.outcome == "finished", run.reason
    assert {site: [matter.status for matter in matters(state)] for site, state in states.items()} == {
        "site-2": ["approved"],
        "site-3": ["denied"],
    }
    assert run.shared == clean.shared
    assert [record["accepted"] for record in run.rounds()] == [["site-1", "site-2"]] * 4
    site = run.rounds()[0]["sites"]["site-3"]
    assert (site["declined"], site["reason"]) == (True, "DENIED: by a person at this site: no ethics vote")
    for stage in ("fine_tuning", "evaluation"):
        assert run.rounds(stage)[0]["accepted"] == ["site-1", "site-2"]


@pytest.mark.slow
def test_sites_that_send_nothing_new_stop_the_study(start: Any, tmp_path: Path) -> None:
    """Fault row 36."""
    run = start(tmp_path, faults=[fault("unchanged", None, None)], stages={"pretraining": {"rounds": 6}})
    assert run.outcome == "stopped"
    assert "no progress" in run.reason
    assert len(run.rounds()) == 3


@pytest.mark.slow
def test_a_round_that_trains_nothing_takes_less_than_a_second(start: Any, tmp_path: Path) -> None:
    run = start(tmp_path, stages={"pretraining": {"rounds": 12}})
    assert run.outcome == "finished", run.reason
    assert run.rounds()[0]["sites"]["site-1"]["bytes_down"] > 500_000
    assert statistics.median(record["wall_seconds"] for record in run.rounds()[1:]) <= 0.8
