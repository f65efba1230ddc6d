"""The attack's parts on features and images whose outcome is known, and the whole of it at its smallest."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "feature_inversion.py"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def inversion(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("feature_inversion", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "feature_inversion", module)
    spec.loader.exec_module(module)
    return module


def images(count: int = 40, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright bars whose place is told by the two numbers of a feature of length 1."""
    angle = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * torch.pi / 2
    vectors = torch.stack([angle.cos(), angle.sin()], 1)
    place = (angle / (torch.pi / 2) * 31).long()
    made = torch.zeros(count, 1, 32, 32)
    for row, column in enumerate(place):
        made[row, 0, max(0, column - 2) : column + 3] = 1.0
    return vectors, made


def test_an_encoding_that_can_be_inverted_is_inverted_and_noise_spoils_it(inversion: ModuleType) -> None:
    vectors, made = images(100)
    decoder = inversion.train_decoder(vectors, made, sigma=0.0, steps=150, seed=1)
    clean, true = images(30, seed=2)
    with torch.no_grad():
        good = inversion.quality(decoder(clean), true)
        spoilt = inversion.quality(decoder(inversion.Form("noise", sigma=1.0).apply(clean)), true)
    mean = inversion.quality(made.mean(0).expand_as(true), true)
    assert good["correlation"] > 0.8 > mean["correlation"]
    assert good["psnr"] > mean["psnr"]
    assert good["correlation"] > spoilt["correlation"] + 0.2


def test_a_picture_of_itself_is_perfect_and_its_negative_is_not(inversion: ModuleType) -> None:
    _, true = images(5)
    perfect = inversion.quality(true, true)
    assert perfect["correlation"] == pytest.approx(1.0)
    assert perfect["ssim"] == pytest.approx(1.0)
    assert perfect["psnr"] > 100
    assert inversion.quality(1 - true, true)["correlation"] == pytest.approx(-1.0)


def test_recognition_counts_rows_that_are_nearest_to_themselves(inversion: ModuleType) -> None:
    gallery = torch.eye(4)
    assert inversion.recognised(gallery, gallery) == 1.0
    assert inversion.recognised(gallery[[1, 0, 2, 3]], gallery) == 0.5
    # by correlation for images: brighter and with another contrast is the same image
    true = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    assert inversion.recognised(3 * true + 7, true) == 1.0


@pytest.mark.parametrize(("name", "least", "most"), [("fp32", 0, 1e-6), ("fp16", 1e-6, 1e-3), ("int8", 1e-4, 2e-2)])
def test_forms_change_features_as_their_transport_does(
    inversion: ModuleType, name: str, least: float, most: float
) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(20, 64, generator=torch.Generator().manual_seed(3)), dim=1)
    form = next(form for form in inversion.FORMS if form.name == name)
    distance = float((form.apply(vectors) - vectors).norm(dim=1).max())
    assert least <= distance <= most


def test_the_baseline_is_the_attackers_mean_of_the_same_part(inversion: ModuleType) -> None:
    own = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    found = inversion.of_part(own, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 3]))
    assert found[:, 0, 0, 0].tolist() == [2.5, 0.5, 1.5]


@pytest.mark.slow
def test_the_whole_attack_ends_with_figures_a_picture_and_a_table(inversion: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "inversion.json"
    options = ["--rounds", "1", "--steps", "3", "--copies", "2", "--out", str(out)]
    for change in (
        "fcl.local_steps=1",
        "fcl.volumes_per_step=2",
        "fcl.warmup_rounds=0",
        "data.phantom={family: cine_mr, unlabeled: 2, training: 1, validation: 1, test: 1}",
    ):
        options += ["--set", change]
    result = inversion.main(options)
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert list(result["forms"]) == [form.name for form in inversion.FORMS]
    assert result["chance"] == pytest.approx(1 / result["victim_slices"])
    assert out.with_suffix(".png").stat().st_size > 1000
    assert len(inversion.table(result).splitlines()) == 3 + len(inversion.FORMS)
