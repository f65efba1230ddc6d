"""What a site publishes and what becomes of it: one model per site, never averaged, only with the site's own word."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.recall import recall
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.network import private_tensors
from fedmedseg.segviz.organs import own_study
from fedmedseg.segviz.plan import initial_shared, stages
from fedmedseg.segviz.publication import ORGANS, blank, laid_out, published_models, save_published, taken_out

ONCE = {"stages": {"publication": {"rounds": 1}}}


@pytest.mark.parametrize("organs", [(1,), (3,), (1, 3), (1, 2, 3)])
def test_a_head_comes_out_as_it_was_laid_in(study: Callable[..., Experiment], organs: tuple[int, ...]) -> None:
    experiment = study(**ONCE)
    model = initial_network(own_study(experiment, organs))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor))
    places = blank(initial_network(experiment), experiment)
    laid = laid_out(private_tensors(model, experiment), organs, places)
    assert laid.keys() == places.keys()
    assert all(laid[name].shape == places[name].shape for name in places)
    found, private = taken_out(laid, model.state_dict())
    assert found == organs
    assert private
    assert all(torch.equal(private[name], model.state_dict()[name]) for name in private)
    assert {name for name in private if name.startswith("model.2")}
    assert {name for name in private if name.endswith("running_var")}


def test_nothing_of_it_is_declared_unless_the_study_asks(study: Callable[..., Experiment]) -> None:
    assert not [name for name in initial_shared(study()) if name.startswith("published.")]
    experiment = study(**ONCE)
    shared, contracts = initial_shared(experiment), stages(experiment)
    assert contracts["publication"].returned.of(shared).keys() == blank(initial_network(experiment), experiment).keys()
    for stage in ("training", "head_tuning", "evaluation"):
        assert not [name for name in contracts[stage].sent.of(shared) if name.startswith("published.")]
    assert not [name for name in contracts["training"].returned.of(shared) if name.startswith("published.")]


def ready(federation: InProcessFederation, *, publish: tuple[str, ...]) -> InProcessFederation:
    for site in federation.sites:
        learner = federation.learner(site, "training")
        learner.site = dataclasses.replace(learner.site, publish=site in publish)
    federation.run_stage("training")
    return federation


@pytest.mark.parametrize("agreeing", [("site-1",), ()])
def test_a_site_whose_people_did_not_agree_publishes_nothing(
    federate: Callable[..., InProcessFederation], agreeing: tuple[str, ...]
) -> None:
    """Not even where nobody agrees: the study then ends as any other."""
    federation = ready(federate(**ONCE), publish=agreeing)
    before = content_sha256(federation.shared)
    with pytest.raises(FedMedSegError, match="publish: false in the site file") as caught:
        federation.learner("site-2", "publication").run(
            federation._task("site-2", "publication", 0, 1, "ba5e"), federation.shared
        )
    assert caught.value.reason == Reason.DENIED
    (figures,) = federation.run_stage("publication")
    assert tuple(figures) == agreeing
    assert set(federation.declined["publication"]) == {"site-1", "site-2"} - set(agreeing)
    assert content_sha256(federation.shared) == before


def test_published_models_are_the_sites_own_on_the_shared_trunk(
    federate: Callable[..., InProcessFederation], study: Callable[..., Experiment], tmp_path
) -> None:
    federation = ready(federate(marks={"site-1": [(3,), (1,)], "site-2": [(2,)]}, **ONCE), publish=("site-1", "site-2"))
    before = content_sha256(federation.shared)
    kept = {}
    make = federation._aggregator

    def keeping(stage: str):
        kept[stage] = make(stage)
        return kept[stage]

    federation._aggregator = keeping
    federation.run_stage("publication")
    assert content_sha256(federation.shared) == before, "nothing is averaged into the shared model"
    published = kept["publication"].published
    for site, tensors in published.items():
        save_published(tmp_path / "m" / "published" / f"{site}.safetensors", tensors, experiment=federation.experiment)
    tree = {"experiment": federation.experiment.digest, "tensors": federation.shared}
    checkpoint.save(tmp_path / "m" / "shared.safetensors", tree)
    models = published_models(tmp_path / "m", experiment=federation.experiment)
    assert {site: model.data.labels for site, model in models.items()} == {
        "site-1": {1: "disc", 2: "bar"},
        "site-2": {1: "square"},
    }
    for site, model in models.items():
        private = recall(federation.state(site, "training"), "personal", 99)["private"]
        state = model.model.state_dict()
        floating = {name for name, tensor in private.items() if tensor.is_floating_point()}
        assert all(torch.equal(state[name], private[name]) for name in floating)
        assert all(torch.equal(state[name], federation.shared[name]) for name in state.keys() - private.keys())
    assert published["site-1"][ORGANS].tolist() == [1.0, 1.0, 0.0, 1.0]
    # a file that says what study it is of needs nobody who knows it
    settings = federation.experiment.model_dump(mode="json", exclude={"resume"})
    checkpoint.save(tmp_path / "m" / "shared.safetensors", {**tree, "settings": settings, "run": "r1"})
    again = published_models(tmp_path / "m", experiment=study(seed=99))
    assert {site: (model.run, model.experiment) for site, model in again.items()} == dict.fromkeys(
        models, ("r1", federation.experiment.digest)
    )


def test_models_of_another_study_or_none_are_refused(study: Callable[..., Experiment], tmp_path) -> None:
    experiment = study(**ONCE)
    with pytest.raises(ConfigurationError, match=r"--models: got no shared.safetensors in .*published"):
        published_models(tmp_path, experiment=experiment)
    checkpoint.save(tmp_path / "w" / "server" / "simulate_job" / "models" / "shared.safetensors", {})
    with pytest.raises(ConfigurationError, match=r"Remedy: name .*/w/server/simulate_job/models"):
        published_models(tmp_path / "w", experiment=experiment)
    checkpoint.save(tmp_path / "shared.safetensors", {"experiment": "f" * 64, "tensors": {}})
    with pytest.raises(ConfigurationError, match=r"of experiment ffff"):
        published_models(tmp_path, experiment=experiment)
    checkpoint.save(tmp_path / "shared.safetensors", {"experiment": experiment.digest, "tensors": {}})
    with pytest.raises(ConfigurationError, match=r"published: got no file"):
        published_models(tmp_path, experiment=experiment)
