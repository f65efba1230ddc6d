"""Model files: they come back as they went, refuse what does not fit, and stand on their own for inference."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.segmentation.inference import predict
from fedmedseg.segmentation.models import load_for_inference, load_model, save_model
from fedmedseg.segmentation.starts import initial_network


@pytest.fixture
def saved(tmp_path, make_experiment):
    experiment = make_experiment()
    model = initial_network(experiment)
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    path = tmp_path / "personal.safetensors"
    save_model(path, model.state_dict(), experiment=experiment, start="personal")
    return path, experiment, model


def rewrite(path, **changes):
    tree = checkpoint.load(path) | changes
    checkpoint.save(path, tree)


def test_a_model_comes_back_exactly(saved):
    path, experiment, model = saved
    other = initial_network(experiment)
    load_model(path, other, experiment=experiment, start="personal")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_model_file_alone_is_enough_for_inference(saved):
    path, experiment, model = saved
    loaded = load_for_inference(path)
    assert not loaded.model.training
    assert loaded.data.labels == {1: "disc"}
    assert (loaded.data.crop, loaded.data.modality, loaded.data.spacing) == ((64, 32), "mr", (None, None, None))
    assert (loaded.study, loaded.system, loaded.start, loaded.experiment) == (
        "small",
        "fedata",
        "personal",
        experiment.digest,
    )
    image = torch.randn(1, 64, 32, 1, generator=torch.Generator().manual_seed(0))
    expected = predict(model, image, experiment.data, 0.25, "cpu")
    torch.testing.assert_close(predict(loaded.model, image, loaded.data, loaded.overlap, "cpu"), expected)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": {"labels": {1: "ventricle"}}}, "labels"),
        ({"data": {"crop": [64, 64]}}, "crop"),
        ({"data": {"spacing": [1.0, 1.0, None]}}, "spacing"),
        ({"network": {"window": 7}}, "network"),
        ({"study": "other"}, "study"),
        ({"segmentation": {"steps": 7}}, "experiment"),
    ],
)
def test_a_model_of_another_experiment_is_refused_by_the_field_that_differs(saved, make_experiment, changes, field):
    path, _, model = saved
    with pytest.raises(ConfigurationError) as caught:
        load_model(path, model, experiment=make_experiment(**changes), start="personal")
    assert caught.value.field == f"personal.safetensors: {field}"
    assert caught.value.remedy


def test_a_model_of_another_start_is_refused(saved):
    path, experiment, model = saved
    with pytest.raises(ConfigurationError, match="start"):
        load_model(path, model, experiment=experiment, start="scratch")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors, name: tensors.pop(name), Reason.MISSING_TENSORS),
        (lambda tensors, name: tensors.update(more=torch.zeros(1)), Reason.UNKNOWN_TENSORS),
        (lambda tensors, name: tensors.update({name: tensors[name][:1]}), Reason.TENSOR_SHAPE),
        (lambda tensors, name: tensors.update({name: tensors[name].double()}), Reason.TENSOR_TYPE),
        (lambda tensors, name: tensors.update({name: tensors[name] * torch.nan}), Reason.NOT_FINITE),
    ],
)
def test_tensors_that_do_not_suit_the_network_are_refused_and_nothing_is_loaded(saved, change, reason):
    path, experiment, _ = saved
    tensors = checkpoint.load(path)["tensors"]
    change(tensors, next(iter(tensors)))
    rewrite(path, tensors=tensors)
    model = initial_network(experiment)
    before = checkpoint.content_sha256(model.state_dict())
    with pytest.raises(FedMedSegError) as caught:
        load_model(path, model, experiment=experiment, start="personal")
    assert caught.value.reason == reason
    assert checkpoint.content_sha256(model.state_dict()) == before
    with pytest.raises(FedMedSegError):
        load_for_inference(path)


def test_a_missing_file_and_another_format_are_told_apart(saved, tmp_path):
    path, experiment, model = saved
    with pytest.raises(ConfigurationError, match="no file"):
        load_model(tmp_path / "nowhere.safetensors", model, experiment=experiment, start="personal")
    rewrite(path, format=99)
    with pytest.raises(ConfigurationError, match="format"):
        load_for_inference(path)


@pytest.mark.parametrize(
    "change", [{"network": {"name": "os.system"}}, {"crop": [10, 10]}, {"labels": {2: "two"}}, {"overlap": 7.0}]
)
def test_settings_in_a_file_are_validated_as_an_experiments_are(saved, change):
    path, _, _ = saved
    rewrite(path, **change)
    with pytest.raises(ConfigurationError, match=r"personal\.safetensors"):
        load_for_inference(path)


def test_a_file_without_a_setting_is_refused(saved):
    path, _, _ = saved
    tree = checkpoint.load(path)
    del tree["window"]
    checkpoint.save(path, tree)
    with pytest.raises(ConfigurationError, match="window"):
        load_for_inference(path)
