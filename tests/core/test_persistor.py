"""The server's shared model: where it starts, what a new job resumes, and what a full disk costs."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from safetensors import SafetensorError

from fedmedseg.core import checkpoint, persistor, state
from fedmedseg.core.atomic import previous
from fedmedseg.core.checkpoint import CheckpointError, content_sha256
from fedmedseg.core.config import parse_experiment
from fedmedseg.core.encoder_file import ENCODER_FILE, save_encoder
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.persistor import SharedModelPersistor

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def opened(experiment_file: Path, context: Callable[..., FLContext], settings: dict[str, Any]) -> Callable[..., Any]:
    """opened(resume=True, **sections): a new process's persistor and the tensors it starts from."""

    def make(**changes: Any) -> tuple[SharedModelPersistor, Tensors]:
        experiment_file.write_text(yaml.safe_dump({**settings, **changes}))
        persistor = SharedModelPersistor(experiment_file=str(experiment_file))
        return persistor, persistor.load_model(context("server"))[ModelLearnableKey.WEIGHTS]

    return make


def finish(persistor: SharedModelPersistor, number: int, value: float, context: Callable[..., FLContext]) -> Tensors:
    tensors = {"a": torch.full((2,), value), "b": torch.full((2, 2), value)}
    persistor.save_model(make_model_learnable(tensors, {}), context("server"))
    persistor.finish_round("training", number, {"round": number})
    return tensors


def test_a_study_starts_from_the_plans_tensors_at_round_0(opened: Callable[..., Any], shared: Tensors) -> None:
    persistor, tensors = opened()
    assert content_sha256(tensors) == content_sha256(shared)
    assert persistor.rounds_done == {}
    assert len(persistor.run) == 32


def test_every_run_has_a_token_of_its_own(opened: Callable[..., Any]) -> None:
    assert opened()[0].run != opened()[0].run


def test_a_resumed_study_continues_with_the_same_bytes_rounds_and_token(
    opened: Callable[..., Any], context: Callable[..., FLContext]
) -> None:
    """Fault row 24."""
    first, _ = opened()
    finish(first, 0, 0.1, context)
    last = finish(first, 1, 0.2, context)
    resumed, tensors = opened(resume=True)
    assert content_sha256(tensors) == content_sha256(last)
    assert resumed.rounds_done == {"training": 2}
    assert resumed.history == [{"round": 0}, {"round": 1}]
    assert resumed.run == first.run


def test_the_results_model_is_renewed_once_a_minute_and_when_the_run_ends(
    opened: Callable[..., Any], context: Callable[..., FLContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy of a large model costs seconds of a round; the checkpoint is written after every one."""
    now = 1000.0
    monkeypatch.setattr(persistor.time, "monotonic", lambda: now)
    running, _ = opened()

    def exported() -> str:
        (file,) = tmp_path.rglob(f"models/{persistor.SHARED_FILE}")
        return content_sha256(checkpoint.load_file(file)["tensors"])

    first = finish(running, 0, 0.1, context)
    assert exported() == content_sha256(first)
    now += 59.0
    finish(running, 1, 0.2, context)
    assert exported() == content_sha256(first)
    now += 1.0
    third = finish(running, 2, 0.3, context)
    assert exported() == content_sha256(third)
    last = finish(running, 3, 0.4, context)
    assert exported() == content_sha256(third)
    running.handle_event(EventType.END_RUN, context("server"))
    assert exported() == content_sha256(last)


def test_a_copy_that_finds_no_room_is_tried_again_and_is_of_the_last_round_that_was_saved(
    opened: Callable[..., Any],
    context: Callable[..., FLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Fault row 27: the round is saved, and a full disk for its copy alone stops nobody."""
    running, _ = opened()
    real = checkpoint.save

    def full(path: Path, tree: Any) -> None:
        if "models" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tree)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        saved = finish(running, 0, 0.1, context)
        running.handle_event(EventType.END_RUN, context("server"))
    assert caplog.text.count("the model could not be put among the results (disk full)") == 2
    assert not list(tmp_path.rglob(f"models/{persistor.SHARED_FILE}"))
    # a round that could not be saved any more is in no copy either
    running.save_model(make_model_learnable({"a": torch.ones(2), "b": torch.ones(2, 2)}, {}), context("server"))
    running.handle_event(EventType.END_RUN, context("server"))
    (file,) = tmp_path.rglob(f"models/{persistor.SHARED_FILE}")
    assert content_sha256(checkpoint.load_file(file)["tensors"]) == content_sha256(saved)


def submitted_by(name: str, tmp_path: Path) -> None:
    (tmp_path / "kit" / "job").mkdir(parents=True, exist_ok=True)
    (tmp_path / "kit" / "job" / "meta.json").write_text(json.dumps({"submitter_name": name, "submitter_org": "one"}))


def test_nobody_continues_or_replaces_what_another_has_submitted(
    opened: Callable[..., Any], context: Callable[..., FLContext], shared: Tensors, tmp_path: Path
) -> None:
    """The settings of a study are no secret, its model is."""
    submitted_by("anna", tmp_path)
    first, _ = opened()
    reached = finish(first, 0, 0.1, context)
    submitted_by("bert", tmp_path)
    with pytest.raises(ConfigurationError, match="resume: got no earlier run"):
        opened(resume=True)
    for _ in range(2):
        other, tensors = opened()
        assert content_sha256(tensors) == content_sha256(shared)
        finish(other, 0, 0.7, context)
    submitted_by("anna", tmp_path)
    resumed, tensors = opened(resume=True)
    assert content_sha256(tensors) == content_sha256(reached)
    assert resumed.run == first.run


def test_it_is_said_that_there_is_nothing_to_resume(opened: Callable[..., Any]) -> None:
    """Starting anew without a word would replace what somebody meant to continue."""
    with pytest.raises(ConfigurationError, match=r"drop resume to start anew"):
        opened(resume=True)


def test_a_run_that_does_not_ask_to_resume_starts_anew(
    opened: Callable[..., Any], context: Callable[..., FLContext], shared: Tensors
) -> None:
    first, _ = opened()
    finish(first, 0, 0.1, context)
    second, tensors = opened()
    assert content_sha256(tensors) == content_sha256(shared)
    assert second.rounds_done == {}
    third, tensors = opened(resume=True)
    assert content_sha256(tensors) == content_sha256(shared), "the run before, which finished no round, is what resumes"
    assert third.run == second.run


@pytest.mark.parametrize("change", [{"seed": 8}, {"study": "another"}, {"toy": {"rate": 0.1}}])
def test_other_settings_do_not_resume_each_other(
    opened: Callable[..., Any], context: Callable[..., FLContext], change: dict[str, Any]
) -> None:
    first, _ = opened()
    finish(first, 0, 0.1, context)
    with pytest.raises(ConfigurationError, match="resume"):
        opened(resume=True, **change)


def test_opening_twice_keeps_the_run(opened: Callable[..., Any], context: Callable[..., FLContext]) -> None:
    """Each stage's workflow loads the model again."""
    persistor, _ = opened()
    run = persistor.run
    last = finish(persistor, 0, 0.3, context)
    again = persistor.load_model(context("server"))[ModelLearnableKey.WEIGHTS]
    assert content_sha256(again) == content_sha256(last)
    assert persistor.run == run


def test_the_shared_model_lies_in_the_run_folder_for_whoever_wants_it(
    opened: Callable[..., Any], context: Callable[..., FLContext], tmp_path: Path
) -> None:
    persistor, _ = opened()
    last = finish(persistor, 0, 0.1, context)
    saved = checkpoint.load(tmp_path / "kit" / "job" / "models" / "shared.safetensors")
    assert saved is not None
    assert (saved["system"], saved["study"], saved["experiment"]) == ("toy", "toy-study", persistor.experiment.digest)
    assert content_sha256(saved["tensors"]) == content_sha256(last)
    # whoever has the file alone can build the study's networks
    assert parse_experiment(saved["settings"]).digest == persistor.experiment.digest


def state_file(persistor: SharedModelPersistor) -> Path:
    assert persistor._state is not None
    return persistor._state.folder / "shared.safetensors"


def test_a_damaged_checkpoint_gives_way_to_the_round_before(
    opened: Callable[..., Any], context: Callable[..., FLContext]
) -> None:
    """Fault row 26."""
    first, _ = opened()
    before = finish(first, 0, 0.1, context)
    finish(first, 1, 0.2, context)
    file = state_file(first)
    file.write_bytes(file.read_bytes()[:-1])
    resumed, tensors = opened(resume=True)
    assert content_sha256(tensors) == content_sha256(before)
    assert resumed.rounds_done == {"training": 1}
    for generation in (file, previous(file)):
        generation.write_bytes(b"")
    with pytest.raises(CheckpointError, match="remove the file"):
        opened(resume=True)


def test_a_checkpoint_of_other_tensors_is_refused(
    opened: Callable[..., Any], context: Callable[..., FLContext]
) -> None:
    """Fault row 43: a checkpoint put there by somebody else."""
    first, _ = opened()
    finish(first, 0, 0.1, context)
    assert first._state is not None
    first._state.save("shared", {"tensors": {"a": torch.zeros(2)}, "rounds_done": {}, "history": []})
    with pytest.raises(FedMedSegError, match="tensors from this server's checkpoint"):
        opened(resume=True)


def test_a_full_disk_is_raised_and_leaves_the_round_before_whole(
    opened: Callable[..., Any], context: Callable[..., FLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault row 27."""
    first, _ = opened()
    before = finish(first, 0, 0.1, context)

    def full(tensors: object, path: Path, metadata: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            finish(first, 1, 0.2, context)
    resumed, tensors = opened(resume=True)
    assert content_sha256(tensors) == content_sha256(before)
    assert resumed.rounds_done == {"training": 1}


def test_a_wrong_experiment_stops_the_server_in_the_constructor(experiment_file: Path) -> None:
    experiment_file.write_text("system: nowhere\n")
    with pytest.raises(ConfigurationError, match="system"):
        SharedModelPersistor(experiment_file=str(experiment_file))


def test_tensors_of_single_sites_are_resumed_with_the_shared_ones_of_the_same_round(
    opened: Callable[..., Any], context: Callable[..., FLContext]
) -> None:
    first, _ = opened()
    assert first.personal == {}
    for number in (0, 1):
        first.personal = {"site-1": {"a": torch.full((2,), 10.0 + number)}, "site-2": {"b": torch.ones(2, 2)}}
        finish(first, number, 0.1 * (1 + number), context)
    resumed, tensors = opened(resume=True)
    assert sorted(resumed.personal) == ["site-1", "site-2"]
    assert resumed.personal["site-1"]["a"].tolist() == [11.0, 11.0]
    assert tensors["a"].tolist() == pytest.approx([0.2, 0.2])
    state_file(first).write_bytes(b"")
    resumed, tensors = opened(resume=True)
    assert resumed.personal["site-1"]["a"].tolist() == [10.0, 10.0], "one file: they fall back together"
    assert tensors["a"].tolist() == pytest.approx([0.1, 0.1])
    assert opened()[0].personal == {}, "a run that does not resume starts without"


def test_tensors_of_single_sites_never_enter_the_run_folder(
    opened: Callable[..., Any], context: Callable[..., FLContext], tmp_path: Path
) -> None:
    """Whoever may download a job's results would else hold every site's model."""
    persistor, _ = opened()
    marker = torch.tensor([1234.5, 6789.25])
    persistor.personal = {"site-1": {"a": marker}}
    finish(persistor, 0, 0.1, context)
    pattern = marker.numpy().tobytes()
    assert pattern in state_file(persistor).read_bytes()
    files = [file for file in (tmp_path / "kit" / "job").rglob("*") if file.is_file()]
    assert len(files) > 1
    assert not [file for file in files if pattern in file.read_bytes()]


@pytest.mark.parametrize("wrong", [{"a": torch.zeros(3)}, {"c": torch.zeros(2)}])
def test_a_checkpoint_with_foreign_tensors_of_a_site_is_refused(
    opened: Callable[..., Any], context: Callable[..., FLContext], wrong: Tensors
) -> None:
    """Fault row 43."""
    first, _ = opened()
    first.personal = {"site-1": wrong}
    finish(first, 0, 0.1, context)
    with pytest.raises(FedMedSegError, match="tensors from this server's checkpoint"):
        opened(resume=True)


def test_a_study_that_names_an_encoder_starts_from_it(
    opened: Callable[..., Any], experiment_file: Path, context: Callable[..., FLContext], shared: Tensors
) -> None:
    digest = save_encoder(experiment_file.parent / ENCODER_FILE, {"b": torch.ones(2, 2)}, source_sha256="")
    network = {"name": "unetr", "pretrained": digest}
    first, tensors = opened(network=network)
    assert content_sha256(tensors) == content_sha256({"a": shared["a"], "b": torch.ones(2, 2)})
    last = finish(first, 0, 0.1, context)
    _, resumed = opened(network=network, resume=True)
    assert content_sha256(resumed) == content_sha256(last), "a resumed study continues, it does not start over"


def test_a_missing_or_changed_encoder_stops_the_server_in_the_constructor(
    opened: Callable[..., Any], experiment_file: Path
) -> None:
    network = {"name": "unetr", "pretrained": content_sha256({"b": torch.ones(2, 2)})}
    with pytest.raises(ConfigurationError, match=r"network.pretrained: got no file"):
        opened(network=network)
    save_encoder(experiment_file.parent / ENCODER_FILE, {"b": torch.zeros(2, 2)}, source_sha256="")
    with pytest.raises(ConfigurationError, match=r"named in experiment\.yaml"):
        opened(network=network)


def test_in_a_federation_one_process_alone_has_a_study(
    experiment_file: Path, context: Callable[..., FLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistor, "hold_alone", state.hold_alone)
    monkeypatch.setattr(state, "ORPHAN_SECONDS", 0.0)
    first, second = (SharedModelPersistor(experiment_file=str(experiment_file)) for _ in range(2))
    first.load_model(context("server"))
    with pytest.raises(ConfigurationError, match="another job with these settings"):
        second.load_model(context("server"))
    # the simulator's wrapper holds its whole workspace already, and the bare command empties it
    SharedModelPersistor(experiment_file=str(experiment_file)).load_model(context("server", simulated=True))
