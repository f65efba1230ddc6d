"""The stages of small federations: who takes part, what is sent, what is learned from, and what each switch changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from html_page import Page
from small_cardiac_ct import ANYTHING

from fedmedseg.cardiac_ct.foundation import load_foundation
from fedmedseg.cardiac_ct.learner import OWN
from fedmedseg.cardiac_ct.pseudo_labels import load_labels
from fedmedseg.core import training
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.data import site as site_module

Federate = Callable[..., InProcessFederation]


def part(federation: InProcessFederation, prefix: str) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in federation.shared.items() if name.startswith(prefix)}


def test_the_whole_study_runs_and_every_stage_changes_what_it_is_for_and_nothing_else(federate: Federate) -> None:
    """Two sites of which one owns points of the root and calcium, the other the septum and coronaries."""
    federation = federate(cardiac_ct={"gate": ANYTHING, "transfer": {"steps": 1, "cnn": "hps"}})
    figures: dict[str, Any] = {}
    prefixes = ("teacher.hps.", "teacher.ms.", "teacher.calc.", "student.trunk.", "student.heads.", "transfer.")
    changed: dict[str, list[str]] = {}
    for stage in federation.contracts:
        before = {prefix: content_sha256(part(federation, prefix)) for prefix in prefixes}
        figures[stage] = federation.run_stage(stage)[-1]
        changed[stage] = [p for p in prefixes if content_sha256(part(federation, p)) != before[p]]
    assert changed == {
        "teacher_hps": ["teacher.hps."],
        "teacher_ms": ["teacher.ms."],
        "teacher_calc": ["teacher.calc."],
        "pseudo_labelling": [],
        "distillation": ["student.trunk.", "student.heads."],
        "head_tuning": ["student.heads."],
        "transfer": ["transfer."],
        "evaluation": [],
    }
    assert {stage: sorted(found) for stage, found in figures.items()} == {
        "teacher_hps": ["site-1"],
        "teacher_ms": ["site-2"],
        "teacher_calc": ["site-1"],
        "pseudo_labelling": ["site-1", "site-2"],
        "distillation": ["site-1", "site-2"],
        "head_tuning": ["site-1", "site-2"],
        "transfer": ["site-2"],
        "evaluation": ["site-1", "site-2"],
    }
    assert federation.declined["teacher_ms"] == {"site-1": "NO_CASES: section training"}
    _check_pseudo_labels(federation, figures["pseudo_labelling"])
    _check_evaluation(federation, figures["evaluation"])


def _check_pseudo_labels(federation: InProcessFederation, figures: dict[str, dict[str, float]]) -> None:
    """Every scan is labelled where nobody has, and what is kept lies on the site's own disk."""
    for site, asked in (("site-1", {"hps": 1, "ms": 2, "calc": 1}), ("site-2", {"hps": 2, "ms": 1, "calc": 2})):
        assert figures[site]["scans"] == 2.0
        judged = {task: figures[site][f"kept/{task}"] + figures[site][f"refused/{task}"] for task in asked}
        assert judged == asked
        state = federation.state(site, "pseudo_labelling")
        found = sorted(state.folder.glob("pseudo_label_*.safetensors"))
        assert len(found) == 2
        labels = [load_labels(state, file.stem.removeprefix("pseudo_label_")) for file in found]
        assert all(one is not None for one in labels)
        kept = [task for one in labels if one is not None for task in one.kept]
        assert {task: kept.count(task) for task in asked} == {task: figures[site][f"kept/{task}"] for task in asked}


def _check_evaluation(federation: InProcessFederation, figures: dict[str, dict[str, float]]) -> None:
    """All seven points, the calcification and the coronaries of the test case, under the CNNs and the student."""
    for site in ("site-1", "site-2"):
        found = figures[site]
        for model in ("cnn", "student"):
            assert found[f"points/{model}/all points"] == 7.0
            assert {f"failures/{model}/{name}" for name in ("calcification", "coronaries")} <= set(found)
            assert f"calcium/volume_error/{model}" in found
        learner = federation.learner(site, "evaluation")
        content = json.loads((learner.folder / "test_scores.json").read_text())  # type: ignore[attr-defined]
        assert [len(content["models"][model]) for model in ("cnn", "student")] == [1, 1]
        assert [file.name for file in learner.folder.glob("*.png")] == ["overlay_best.png"]  # type: ignore[attr-defined]
        page = (learner.folder / "site_report.html").read_text()  # type: ignore[attr-defined]
        assert f"This page may not leave {site}." in page
        assert page.count("data:image/png;base64,") == 1
        (test,) = json.loads(learner.site.datasets["cardiac_ct"].read_text())["test"]  # type: ignore[attr-defined]
        assert page.count(f">{test['image']}</th>") >= 2, "the case under both models"
        for column in ("points invented", "calcification", "coronaries", "Agatston score"):
            assert page.count(f'<th scope="col">{column}</th>') == 2
        assert " mm</td>" in page or "not found" in page
        held = load_foundation(learner.folder / "student.safetensors")  # type: ignore[attr-defined]
        ours = part(federation, "student.") | part(federation, "transfer.student.")
        assert content_sha256(held.tensors) == content_sha256(ours)


def test_a_site_whose_test_cases_were_all_set_aside_finds_them_on_its_page(federate: Federate) -> None:
    federation = federate()
    learner: Any = federation.learner("site-1", "evaluation")
    listed = learner.site.datasets["cardiac_ct"]
    (case,) = json.loads(listed.read_text())["test"]
    (listed.parent / case["image"]).write_bytes(b"no image")
    learner.folder.mkdir(parents=True, exist_ok=True)
    (learner.folder / "overlay_best.png").write_bytes(b"of an earlier test")
    federation.run_stage("evaluation")
    assert federation.declined["evaluation"] == {"site-1": "NO_CASES: section test"}
    page = Page((learner.folder / "site_report.html").read_text()).text
    assert "No test section test: got 0 usable of 1 listed cases" in page
    assert f"{case['image']} test " in page
    assert not list(learner.folder.glob("*.png"))


def test_what_nobody_learned_is_sent_back_as_it_came(federate: Federate) -> None:
    """Real labels alone: a site of the septum leaves the other heads alone, and the mean is the owner's to the bit."""
    changes = {
        "cardiac_ct": {"distillation": {"pseudo_labels": False}, "gate": None, "head_steps": 0, "transfer": None},
        "stages": {
            **{f"teacher_{task}": {"rounds": 0} for task in ("hps", "ms", "calc")},
            "pseudo_labelling": {"rounds": 0},
            "distillation": {"rounds": 1},
            "head_tuning": {"rounds": 0},
            "transfer": {"rounds": 0},
        },
    }
    federation = federate(**changes)
    assert not part(federation, "teacher.")
    replies: dict[str, Any] = {}
    for site in federation.sites:
        learner = federation.learner(site, "distillation")
        run = learner.run

        def listening(task: Any, shared: Any, run: Any = run, site: str = site) -> Any:
            replies[site] = run(task, shared)
            return replies[site]

        learner.run = listening  # type: ignore[method-assign]
    before = part(federation, "student.heads.")
    federation.run_stage("distillation")
    for site, owned in (("site-1", {"hps", "calc"}), ("site-2", {"ms"})):
        moved = {n.split(".")[2] for n, t in before.items() if not torch.equal(replies[site].tensors[n], t)}
        assert moved <= owned
    assert federation.history[-1]["notes"]["heads"].keys() == {"hps", "ms", "calc"}


@pytest.mark.slow
def test_which_site_owns_which_task_permutes_the_results_and_nothing_else(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 10, of the whole study: both sites' data change places, and random numbers, which follow the sites'
    names, are the same here for all."""
    real_seed, real_index = training.derive_seed, site_module.phantom_index
    monkeypatch.setattr(training, "derive_seed", lambda seed, _site, *rest: real_seed(seed, *rest))
    found: dict[str, Any] = {}
    for name, place in (("as they are", real_index), ("exchanged", lambda name: 1 - real_index(name))):
        monkeypatch.setattr(site_module, "phantom_index", place)
        federation = federate(name=name, cardiac_ct={"gate": ANYTHING, "transfer": {"steps": 1, "cnn": "hps"}})
        rounds = {stage: federation.run_stage(stage)[-1] for stage in federation.contracts}
        for figures in rounds.values():
            for of_site in figures.values():
                del of_site["seconds"]
        found[name] = rounds, content_sha256(federation.shared)
    there = {"site-1": "site-2", "site-2": "site-1"}
    (here, shared), (exchanged, shared_too) = found.values()
    assert shared == shared_too
    assert here["teacher_hps"].keys() == {"site-1"}
    assert exchanged["teacher_hps"].keys() == {"site-2"}
    assert here == {stage: {there[name]: of for name, of in figures.items()} for stage, figures in exchanged.items()}


def test_a_study_that_shares_nothing_keeps_every_sites_own_networks(federate: Federate) -> None:
    changes = {
        "cardiac_ct": {"share": "nothing", "gate": None, "head_steps": 0, "transfer": None},
        "stages": {
            **{stage: {"rounds": 0} for stage in ("pseudo_labelling", "distillation", "head_tuning", "transfer")},
            "teacher_calc": {"rounds": 0},
        },
    }
    federation = federate(**changes)
    before = content_sha256(federation.shared)
    for stage in federation.contracts:
        federation.run_stage(stage)
    assert content_sha256(federation.shared) == before
    own = {site: federation.state(site, "evaluation").load(OWN)["tensors"] for site in federation.sites}
    assert {site: {name.split(".")[1] for name in tensors} for site, tensors in own.items()} == {
        "site-1": {"hps"},
        "site-2": {"ms"},
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["teacher_hps", "distillation"])
def test_a_task_that_was_killed_continues_to_the_same_bits(federate: Federate, stage: str) -> None:
    from dataclasses import replace

    from fedmedseg.core.training import Aborted

    changes = {
        "cardiac_ct": {"distillation": {"pseudo_labels": False}, "gate": None, "head_steps": 0, "transfer": None},
        "stages": {
            **{f"teacher_{task}": {"rounds": int(task == "hps")} for task in ("hps", "ms", "calc")},
            **{name: {"rounds": 0} for name in ("pseudo_labelling", "head_tuning", "transfer")},
            "distillation": {"rounds": 1},
        },
    }
    whole = federate(name="whole", **changes)
    whole.run_stage(stage)
    halted = federate(name="halted", **changes)
    learner = halted.learner("site-1", stage)
    run, asked = learner.run, []

    def interrupted(task: Any, shared: Any) -> Any:
        def aborted() -> bool:
            asked.append(1)
            return len(asked) > 1

        with pytest.raises(Aborted):
            run(replace(task, aborted=aborted), shared)
        return run(task, shared)

    learner.run = interrupted  # type: ignore[method-assign]
    halted.run_stage(stage)
    assert content_sha256(halted.shared) == content_sha256(whole.shared)
