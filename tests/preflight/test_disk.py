"""What a study writes at a site, estimated before it begins and measured while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmedseg.core.config import systems
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job
from fedmedseg.core.state import SiteState
from fedmedseg.data.views import site_view
from fedmedseg.preflight.memory import needs
from fedmedseg.preflight.site import SiteSettings, needs_of_disk, read_site
from fedmedseg.segmentation.overlay import overlay_png

SEGVIZ = (
    "network.channels=[8, 16, 32]",
    "data.spacing=[8, 8, 8]",
    "data.crop=[16, 16, 16]",
    "segmentation.steps=4",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
    "stages.training.rounds=2",
    "data.phantom={family: abdominal_ct, annotation: shared_out, sites: 1, unlabeled: 0, training: 1, validation: 1, "
    "test: 1, size: [32, 32, 24]}",
)
CINE = "{family: cine_mr, sites: 1, unlabeled: 1, training: 1, validation: 1, test: 1, size: [48, 48, 4]}"
FEDCRLD = (
    "stages.relocalization.rounds=2",
    "fedcrld.local_steps=2",
    "segmentation.steps=2",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
    "data.crop=[48, 48, 4]",
    "data.alternatives=[]",
    f"data.phantom={CINE}",
)
FEDATA = (
    "stages.pretraining.rounds=2",
    "fedata.local_steps=2",
    "segmentation.steps=2",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
    f"data.phantom={CINE}",
)
FCL = (
    "stages.pretraining.rounds=2",
    "fcl.local_steps=2",
    "segmentation.steps=2",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
    "data.crop=[32, 32]",
    f"data.phantom={CINE}",
)
FCLOPT = tuple(change.replace("fcl.", "fclopt.") for change in FCL)
FEDAVG = (
    "stages.training.rounds=2",
    "stages.fine_tuning.rounds=0",
    "fedavg.starts=[personal]",
    "segmentation.steps=4",
    "segmentation.batch=1",
    "segmentation.test_untrained=false",
    "data.crop=[32, 32]",
    f"data.phantom={CINE}",
)
STUDIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fedavg": ("fedavg", FEDAVG),
    "fedavg, with a network of its own": ("fedavg", (*FEDAVG, "fedavg.strategy=ditto")),
    "fedavg, with control variates and what was not sent": (
        "fedavg",
        (*FEDAVG, "fedavg.strategy=scaffold", "fedavg.sgd={learning_rate: 0.05}", "federation.transport=topk"),
    ),
    "segviz": ("segviz", SEGVIZ),
    "segviz, without the local baseline, with tuned heads": (
        "segviz",
        (*SEGVIZ, "segviz.local_baseline=false", "segviz.head_steps=2", "stages.head_tuning.rounds=1"),
    ),
    "fedcrld": ("fedcrld", FEDCRLD),
    "fedcrld, without a bank": (
        "fedcrld",
        (*FEDCRLD, "fedcrld.loss={distillation_weight: 0.0, history_weight: 0.0}"),
    ),
    "fcl": ("fcl", FCL),
    "fclopt": ("fclopt", FCLOPT),
    "fclopt, with targets and mixing of its own": (
        "fclopt",
        (*FCLOPT, "fclopt.mode=keep_local", "fclopt.distance=null", "fclopt.client_mix=fedema"),
    ),
    "fedata": ("fedata", FEDATA),
    "fedata, fine-tuned together": (
        "fedata",
        (
            *FEDATA,
            "segmentation.fine_tuning=federated",
            "stages.fine_tuning.rounds=2",
            "fedata.starts=[shared, scratch]",
        ),
    ),
}


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def site(tmp_path: Path) -> SiteSettings:
    """A site whose folders are apart."""
    (tmp_path / "site.yaml").write_text("datasets: {any: {list: a.json}}\nstate_dir: s\ncache_dir: c\nmodels_dir: m\n")
    return read_site(tmp_path / "site.yaml")


@pytest.mark.parametrize("system", systems())
def test_every_systems_shipped_study_has_an_estimate(site: SiteSettings, system: str) -> None:
    _, experiment = read_settings(find_job(system), [])
    planned = needs_of_disk(site, experiment=experiment, wanted=needs(experiment), cached=0)
    assert planned[site.state]["state"] > 0 < planned[site.models]["models"]


@pytest.mark.parametrize(
    "name", [name if name in ("segviz", "fedcrld") else pytest.param(name, marks=pytest.mark.slow) for name in STUDIES]
)
def test_a_sites_state_and_models_stay_below_the_estimate_and_near_it(
    site: SiteSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The most that ever lay there, every step saved; a network of which tests are quick is small, so a tenth more."""
    system, changes = STUDIES[name]
    job = find_job(system)
    settings, experiment = read_settings(
        job, [setting(change) for change in (*changes, "compute.checkpoint_seconds=0.0", "federation.quorum=1")]
    )
    most = 0
    save: Callable[..., None] = SiteState.save

    def measured(state: SiteState, *given: Any) -> None:
        nonlocal most
        save(state, *given)
        most = max(most, size(state.folder))

    monkeypatch.setattr(SiteState, "save", measured)
    federation = InProcessFederation(
        job=write_job(job, settings, tmp_path / "job"), workspace=tmp_path / "w", sites=["site-1"], run="one"
    )
    for stage in federation.contracts:
        federation.run_stage(stage)
    view = site_view(experiment, [experiment.data.role])
    planned = needs_of_disk(site, experiment=view, wanted=needs(view), cached=7)
    assert planned[site.cache] == {"cache": 7}
    estimate = planned[site.state]["state"]
    assert 0.6 * estimate < most < 1.1 * estimate, (most / estimate, estimate)
    folder = tmp_path / "w.fedmedseg" / "site-1" / "models"
    models = sum(file.stat().st_size for file in folder.rglob("*.safetensors*"))
    assert 0 < models < 1.1 * planned[site.models]["models"]
    # an untrained network's outlines are as crooked as any can be
    assert size(folder) - models < planned[site.models]["page"] / 3, "one case was tested, so there is one picture"


def test_three_noisy_pictures_beside_and_in_the_page_stay_below_what_is_planned(site: SiteSettings) -> None:
    _, experiment = read_settings(find_job("fedavg"), [])
    planned = needs_of_disk(site, experiment=experiment, wanted=[], cached=0)[site.models]["page"]
    rng = np.random.default_rng(1)
    image = np.linspace(0.0, 1.0, 512)[:, None] + rng.normal(0.0, 0.1, (512, 512))
    truth = (rng.random((512, 512)) > 0.98).astype(np.uint8)
    picture = len(overlay_png(image, truth, {"personal": truth}, spacing=(1.0, 1.0)))
    assert 2 * 2**20 < 3 * picture * (1 + 4 / 3) < planned


def test_a_site_without_a_page_keeps_no_room_for_one(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("datasets: {any: {list: a.json}}\nreport: false\n")
    _, experiment = read_settings(find_job("fedavg"), [])
    without = read_site(tmp_path / "site.yaml")
    assert needs_of_disk(without, experiment=experiment, wanted=[], cached=0)[without.models]["page"] == 0


def test_what_is_remembered_of_every_scan_is_part_of_the_state(site: SiteSettings) -> None:
    """Cardiac CT: a bit per voxel of a mask; softened, the 6, 3 and 2 classes of its tasks in two bytes each."""

    def state(voxels: int, **distillation: Any) -> int:
        changes = {"cardiac_ct": {"distillation": distillation}}
        _, experiment = read_settings(find_job("cardiac_ct"), [changes])
        return needs_of_disk(site, experiment=experiment, wanted=[], cached=0, voxels=voxels)[site.state]["state"]

    assert state(0) == 0
    assert state(800) == 100
    assert state(800, targets="soft") == 100 + 2 * 11 * 800


def test_without_a_study_nothing_is_known_of_its_size(site: SiteSettings) -> None:
    planned = needs_of_disk(site, experiment=None, wanted=[], cached=0)
    assert {folder: sum(sizes.values()) for folder, sizes in planned.items()} == {
        site.cache: 0,
        site.state: 0,
        site.models: 0,
    }
