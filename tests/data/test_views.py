"""A site's view of a study that several data sets take part in."""

from __future__ import annotations

from typing import Any

import pytest

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.views import data_sets, phantom_view, planned_sites, site_view

CINE = {1: "cavity", 2: "wall", 3: "right"}
LATE = {1: "cavity", 2: "wall", 3: "scar", 4: "no-reflow"}


def study(*alternatives: dict[str, Any], **data: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "system": "none",
            "study": "test",
            "data": {
                "role": "cmr", "modality": "mr", "spatial_dims": 3, "labels": CINE, "crop": [32, 32, 8],
                "alternatives": list(alternatives), **data,
            },
            "network": {"name": "relocalization", "width": 8},
            "segmentation": {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
            "stages": {},
        }
    )  # fmt: skip


LGE = {"role": "lge", "labels": LATE}


def test_a_study_of_one_data_set_is_its_own_view() -> None:
    experiment = study()
    assert site_view(experiment, ["cmr", "other"]) is experiment


def test_the_role_that_a_site_offers_decides_which_labels_are_meant() -> None:
    experiment = study(LGE)
    assert site_view(experiment, ["cmr"]).data.labels == CINE
    late = site_view(experiment, ["lge", "other"])
    assert (late.data.role, late.data.labels, late.data.classes) == ("lge", LATE, 5)
    assert late.data.crop == experiment.data.crop, "what an alternative does not give is as in data"
    assert late.data.alternatives == ()


def test_a_view_keeps_the_digest_of_the_whole_study() -> None:
    experiment = study(LGE)
    views = [site_view(experiment, [role]) for role in ("cmr", "lge")]
    assert {view.digest for view in views} == {experiment.digest}
    assert experiment.digest != study().digest
    assert site_view(views[1], ["lge"]).digest == experiment.digest


def test_modality_and_window_of_an_alternative_count() -> None:
    view = site_view(study({**LGE, "modality": "ct", "window": [0.0, 100.0]}), ["lge"])
    assert (view.data.modality, view.data.window) == ("ct", (0.0, 100.0))


def test_a_site_that_offers_both_must_say_which() -> None:
    experiment = study(LGE)
    with pytest.raises(ConfigurationError) as caught:
        site_view(experiment, ["cmr", "lge"])
    assert "cmr, lge" in str(caught.value)
    assert "prefers" in caught.value.remedy
    assert site_view(experiment, ["cmr", "lge"], preferred="lge").data.role == "lge"
    with pytest.raises(ConfigurationError):
        site_view(experiment, ["cmr", "lge"], preferred="abdominal_ct")
    # what is preferred but not needed is no obstacle
    assert site_view(experiment, ["cmr"], preferred="lge").data.role == "cmr"


def test_a_site_that_offers_none_is_told_all_roles() -> None:
    with pytest.raises(ConfigurationError) as caught:
        site_view(study(LGE), ["cmrr"])
    assert "'cmr' or 'lge'" in str(caught.value)
    assert "rename 'cmrr'" in caught.value.remedy


def test_two_data_sets_of_one_role_are_refused() -> None:
    with pytest.raises(ValueError, match="each role once"):
        study({**LGE, "role": "cmr"})


def test_phantom_sites_come_data_set_by_data_set_and_then_begin_anew() -> None:
    cine = {"family": "cine_mr", "sites": 2}
    late = {**LGE, "phantom": {"family": "late_enhancement_mr", "sites": 1}}
    experiment = study(late, phantom=cine)
    assert planned_sites(experiment) == 3
    roles = [phantom_view(experiment, index).data.role for index in range(5)]
    assert roles == ["cmr", "cmr", "lge", "cmr", "cmr"]
    assert phantom_view(experiment, 2).data.phantom.family == "late_enhancement_mr"
    assert phantom_view(experiment, 2).digest == experiment.digest


def test_an_alternative_without_phantoms_has_none() -> None:
    experiment = study(LGE, phantom={"family": "cine_mr", "sites": 2})
    assert [one.phantom is not None for one in data_sets(experiment.data)] == [True, False]
    assert {phantom_view(experiment, index).data.role for index in range(3)} == {"cmr"}
    assert planned_sites(study()) == 2


def test_every_structure_is_named_once() -> None:
    assert study(LGE).data.structures == ("cavity", "wall", "right", "scar", "no-reflow")
    assert study(LGE).data.roles == ("cmr", "lge")
