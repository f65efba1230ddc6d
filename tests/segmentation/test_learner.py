"""Fine-tuning and test of one site on phantoms, with the study's real network, data and files."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch
from html_page import Page

from fedmedseg.core import checkpoint
from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.fedata.plan import initial_shared, stages
from fedmedseg.segmentation import local as module
from fedmedseg.segmentation.learner import SegmentationLearner
from fedmedseg.segmentation.starts import initial_network


@pytest.fixture
def experiment(make_experiment):
    return make_experiment(segmentation={"steps": 2, "validate_every": 2})


@pytest.fixture
def make_learner(site):
    torch.set_num_threads(1)
    return lambda experiment: SegmentationLearner(experiment=experiment, site=site)


def pretrain(task, experiment):
    """What the pretraining stage leaves at the site."""
    personal = {name: tensor + 0.01 for name, tensor in initial_shared(experiment).items()}
    task.state.save("personal", {"tensors": personal})
    return personal


def drop_section(site, section):
    file = site.datasets["cmr"]
    content = json.loads(file.read_text())
    del content[section]
    file.write_text(json.dumps(content))


def test_fine_tuning_and_evaluation_leave_models_scores_picture_and_declared_metrics(
    experiment, site, make_learner, make_task, caplog
):
    caplog.set_level(logging.INFO)
    task = make_task("fine_tuning", experiment=experiment)
    pretrain(task, experiment)
    reply = make_learner(experiment).run(task, initial_shared(experiment))
    assert (reply.examples, reply.steps, dict(reply.tensors)) == (3, 6, {})
    starts = ("personal", "shared", "scratch")
    assert set(reply.metrics) == {f"{kind}/{start}" for kind in ("loss", "validation_dice") for start in starts} | {
        "set_aside"
    }
    stages(experiment)["fine_tuning"].check_metrics(reply.metrics)
    assert "3 labelled volumes of 2 patients" in caplog.text
    # finished trainings are not kept four times over
    assert not list(task.state.folder.glob("running_*"))

    # evaluation runs in a process of its own
    evaluation = make_task("evaluation", experiment=experiment, base="nothing")
    reply = make_learner(experiment).run(evaluation, {})
    stages(experiment)["evaluation"].check_metrics(reply.metrics)
    models = (*starts, "untrained")
    assert {f"failures/{model}/disc" for model in models} <= set(reply.metrics)
    assert reply.metrics["cases"] == reply.examples == 3
    folder = site.models / "small"
    assert sorted(file.name for file in folder.iterdir()) == [
        "overlay_best.png",
        "overlay_median.png",
        "overlay_worst.png",
        "personal.safetensors",
        "scratch.safetensors",
        "shared.safetensors",
        "site_report.html",
        "test_scores.json",
    ]
    page = (folder / "site_report.html").read_text()
    assert "This page may not leave site-1." in page
    assert page.count("data:image/png;base64,") == 3
    assert all(page.count(f"Planted{name}.nii.gz") >= len(models) for name in ("Dee_ED", "Dee_ES", "Eve_ED"))
    scores = json.loads((folder / "test_scores.json").read_text())
    assert [len(scores["models"][model]["volumes"]) for model in models] == [3] * 4
    assert [len(scores["models"][model]["patients"]) for model in models] == [2] * 4
    summary = scores["models"]["personal"]["summary"][0]
    assert summary["dice"] == pytest.approx(reply.metrics["dice/personal/disc"])
    for marker in ("PlantedAda", "PlantedBea", "PlantedCyd", "PlantedDee", "PlantedEve", ".nii.gz"):
        assert marker not in caplog.text
        assert marker not in repr(reply)
        assert marker not in (folder / "test_scores.json").read_text()
        assert marker.encode() not in (folder / "personal.safetensors").read_bytes()


def test_a_site_that_wants_no_page_gets_none_and_loses_that_of_an_earlier_test(experiment, site, make_task):
    torch.set_num_threads(1)
    study = experiment.model_copy(update={"fedata": experiment.fedata.model_copy(update={"starts": ("scratch",)})})
    SegmentationLearner(experiment=study, site=site).run(make_task("fine_tuning", experiment=study), {})
    told = {}
    for wanted in (True, False):
        learner = SegmentationLearner(experiment=study, site=dataclasses.replace(site, report=wanted))
        told[wanted] = learner.run(make_task("evaluation", experiment=study), {}).metrics
        written = {file.name for file in (site.models / "small").iterdir() if file.suffix in (".html", ".png")}
        assert bool(written) is wanted
    assert told[True] == told[False]
    assert (site.models / "small" / "test_scores.json").is_file()


def test_starts_begin_with_one_decoder_and_their_own_encoder(experiment, make_learner, make_task, monkeypatch):
    begun = {}

    def stop_at_once(objective, *, name, **_):
        begun[name.removeprefix("fine_tuning_")] = (
            {key: tensor.clone() for key, tensor in objective.model.state_dict().items()},
            objective.pretrained,
        )
        return {"loss": 1.0}

    monkeypatch.setattr(module, "run_steps", stop_at_once)
    task = make_task("fine_tuning", experiment=experiment)
    personal, shared = pretrain(task, experiment), initial_shared(experiment)
    make_learner(experiment).run(task, shared)
    initial = initial_network(experiment).state_dict()
    for start, source in (("personal", personal), ("shared", shared), ("scratch", initial)):
        weights, pretrained = begun[start]
        assert bool(pretrained) is (start != "scratch")
        for name, tensor in weights.items():
            expected = source[name] if name in pretrained else initial[name]
            assert torch.equal(tensor, expected), (start, name)


def test_a_site_that_joined_late_starts_personal_from_shared_and_says_so(experiment, make_learner, make_task, caplog):
    caplog.set_level(logging.INFO)
    study = experiment.model_copy(update={"fedata": experiment.fedata.model_copy(update={"starts": ("personal",)})})
    reply = make_learner(study).run(make_task("fine_tuning", experiment=study), initial_shared(study))
    assert reply.metrics["personal_missing"] == 1.0
    stages(experiment)["fine_tuning"].check_metrics(reply.metrics)
    assert caplog.text.count("uses the shared encoder") == 1


def test_a_site_without_memory_is_refused_where_the_system_trains_no_shared_encoder(
    make_experiment, make_learner, make_task, monkeypatch
):
    """server_aggregation none: the shared encoder is the untrained one, and is not sent to fine-tuning."""
    trained = []
    monkeypatch.setattr(module, "run_steps", lambda *_, **options: trained.append(options["name"]) or {"loss": 1.0})
    study = make_experiment(fedata={"server_aggregation": "none", "starts": ["personal"]})
    sent = stages(study)["fine_tuning"].sent_in(0).of(initial_shared(study))
    assert sent == {}
    task = make_task("fine_tuning", experiment=study)
    with pytest.raises(FedMedSegError, match="Remedy: see why the pretraining stage failed") as caught:
        make_learner(study).run(task, sent)
    assert caught.value.public == "MISSING_TENSORS: personal encoder"
    assert trained == []
    pretrain(task, study)
    reply = make_learner(study).run(task, sent)
    assert set(reply.metrics) == {"loss/personal", "set_aside"}


@pytest.mark.parametrize("wanted", [True, False])
def test_the_untrained_network_is_tested_where_the_study_wants_it(
    make_experiment, make_learner, make_task, monkeypatch, wanted
):
    scratch = {"fedata": {"starts": ["scratch"]}, "stages": {"pretraining": {"rounds": 0}}}
    study = make_experiment(segmentation={"test_untrained": wanted}, **scratch)
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    make_learner(study).run(make_task("fine_tuning", experiment=study), {})
    reply = make_learner(study).run(make_task("evaluation", experiment=study), {})
    tested = {name.split("/")[1] for name in reply.metrics if name.startswith("failures/")}
    assert tested == ({"scratch", "untrained"} if wanted else {"scratch"})


def test_a_finished_start_is_not_trained_again(experiment, make_learner, make_task, monkeypatch):
    task = make_task("fine_tuning", experiment=experiment)
    pretrain(task, experiment)
    shared = initial_shared(experiment)
    trained = []

    def counting(objective, *, name, **options):
        trained.append(name)
        if len(trained) == 3:
            raise Aborted
        return {"loss": 1.0}

    monkeypatch.setattr(module, "run_steps", counting)
    with pytest.raises(Aborted):
        make_learner(experiment).run(task, shared)
    reply = make_learner(experiment).run(make_task("fine_tuning", experiment=experiment), shared)
    assert trained == ["fine_tuning_personal", "fine_tuning_shared", "fine_tuning_scratch", "fine_tuning_scratch"]
    assert set(reply.metrics) == {"loss/personal", "loss/shared", "loss/scratch", "set_aside"}
    # another base is another task
    make_learner(experiment).run(make_task("fine_tuning", experiment=experiment, base="other"), shared)
    assert len(trained) == 7


def fine_tuned(experiment, make_learner, make_task, monkeypatch):
    """A finished fine-tuning without its training."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
        task = make_task("fine_tuning", experiment=experiment)
        pretrain(task, experiment)
        make_learner(experiment).run(task, initial_shared(experiment))


def test_a_killed_evaluation_continues_with_the_models_already_scored(experiment, make_learner, make_task, monkeypatch):
    fine_tuned(experiment, make_learner, make_task, monkeypatch)
    answers = iter([False] * 4 + [True])
    with pytest.raises(Aborted):
        make_learner(experiment).run(make_task("evaluation", experiment=experiment, aborted=lambda: next(answers)), {})
    heard = []
    task = make_task("evaluation", experiment=experiment)
    monkeypatch.setattr(task.progress, "update", lambda work, step, steps: heard.append((work, step, steps)))
    reply = make_learner(experiment).run(task, {})
    assert [work for work, step, _ in heard if step == 1] == ["testing shared", "testing scratch", "testing untrained"]
    assert heard[:3] == [("testing shared", step, 3) for step in (1, 2, 3)]
    assert "dice/personal/disc" in reply.metrics


def test_a_model_of_an_earlier_run_is_not_scored_as_this_runs(experiment, make_learner, make_task, monkeypatch):
    fine_tuned(experiment, make_learner, make_task, monkeypatch)
    with pytest.raises(FedMedSegError) as caught:
        make_learner(experiment).run(make_task("evaluation", experiment=experiment, run="run2"), {})
    assert caught.value.reason == Reason.MISSING_TENSORS


def test_a_model_file_changed_since_is_refused(experiment, site, make_learner, make_task, monkeypatch):
    fine_tuned(experiment, make_learner, make_task, monkeypatch)
    path = site.models / "small" / "personal.safetensors"
    tree = checkpoint.load(path)
    name = next(name for name, tensor in tree["tensors"].items() if tensor.is_floating_point())
    tree["tensors"][name] += 1
    checkpoint.save(path, tree)
    with pytest.raises(ConfigurationError, match="changed since"):
        make_learner(experiment).run(make_task("evaluation", experiment=experiment), {})


def test_the_labelled_fraction_counts_patients_rounded_up(
    make_experiment, make_learner, make_task, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    scratch = {"fedata": {"starts": ["scratch"]}, "stages": {"pretraining": {"rounds": 0}}}
    study = make_experiment(data={"labelled_fraction": 0.3}, **scratch)
    reply = make_learner(study).run(make_task("fine_tuning", experiment=study), {})
    assert reply.examples in (1, 2)  # PlantedBea's one volume or PlantedAda's two
    assert "of 1 patients" in caplog.text


def test_without_validation_cases_training_goes_on_and_the_log_says_so(
    experiment, site, make_learner, make_task, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    drop_section(site, "validation")
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    study = experiment.model_copy(update={"fedata": experiment.fedata.model_copy(update={"starts": ("scratch",)})})
    reply = make_learner(study).run(make_task("fine_tuning", experiment=study), {})
    assert set(reply.metrics) == {"loss/scratch", "set_aside"}
    assert "no volume: the last weights are kept" in caplog.text


def test_a_site_without_labelled_cases_takes_no_part_in_either_stage(experiment, site, make_learner, make_task):
    drop_section(site, "training")
    for stage in ("fine_tuning", "evaluation"):
        with pytest.raises(DataError) as caught:
            make_learner(experiment).run(make_task(stage, experiment=experiment), initial_shared(experiment))
        assert caught.value.reason == Reason.NO_CASES


def test_a_site_whose_test_cases_were_all_set_aside_finds_them_on_its_page(
    experiment, site, make_learner, make_task, monkeypatch, caplog
):
    """In place of the page and pictures of an earlier test; nothing of it is told."""
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    study = experiment.model_copy(update={"fedata": experiment.fedata.model_copy(update={"starts": ("scratch",)})})
    make_learner(study).run(make_task("fine_tuning", experiment=study), {})
    folder = site.models / "small"
    for name in ("site_report.html", "overlay_best.png"):
        (folder / name).write_bytes(b"of an earlier test")
    for name in ("PlantedDee_ED", "PlantedDee_ES", "PlantedEve_ED"):
        (site.datasets["cmr"].parent / f"{name}.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        make_learner(study).run(make_task("evaluation", experiment=study), {})
    assert caught.value.reason == Reason.NO_CASES
    page = Page((folder / "site_report.html").read_text()).text
    assert "This page may not leave site-1." in page
    assert "No test section test: got 0 usable of 3 listed cases" in page
    assert all(f"Planted{name}.nii.gz test " in page for name in ("Dee_ED", "Dee_ES", "Eve_ED"))
    assert not list(folder.glob("*.png"))
    assert "Planted" not in caplog.text + caught.value.public
    site = dataclasses.replace(site, report=False)
    with pytest.raises(DataError):
        SegmentationLearner(experiment=study, site=site).run(make_task("evaluation", experiment=study), {})
    assert not (folder / "site_report.html").exists()


def test_a_site_without_a_labelled_test_case_has_a_page_that_says_so(
    experiment, site, make_learner, make_task, monkeypatch, caplog
):
    monkeypatch.setattr(module, "run_steps", lambda *_, **__: {"loss": 1.0})
    study = experiment.model_copy(update={"fedata": experiment.fedata.model_copy(update={"starts": ("scratch",)})})
    make_learner(study).run(make_task("fine_tuning", experiment=study), {})
    file = site.datasets["cmr"]
    content = json.loads(file.read_text())
    for entry in content["test"]:
        del entry["label"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError):
        make_learner(study).run(make_task("evaluation", experiment=study), {})
    page = site.models / "small" / "site_report.html"
    assert "got 3 volumes without a label" in Page(page.read_text()).text
    page.unlink()
    page.mkdir()
    with pytest.raises(DataError):
        make_learner(study).run(make_task("evaluation", experiment=study), {})
    assert "page was not written" in caplog.text, "the site declines all the same"


def test_what_the_learner_cannot_do_is_refused(experiment, make_learner, make_task):
    with pytest.raises(ConfigurationError, match="stage"):
        make_learner(experiment).run(make_task("pretraining", experiment=experiment), {})
    with pytest.raises(FedMedSegError) as caught:
        make_learner(experiment).run(make_task("fine_tuning", experiment=experiment), {})
    assert caught.value.reason == Reason.MISSING_TENSORS
