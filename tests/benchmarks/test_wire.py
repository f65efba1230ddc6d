"""The measurement of the wire: the shares it prints are those of the replies, and below the goals."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "wire.py"


@pytest.fixture(scope="module")
def wire() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("wire", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_the_share_of_every_transport(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["unet"]
    assert 19 < found["megabytes"] < 20
    for transport, most in (("fp16", 0.51), ("int8", 0.26), ("topk", 0.02)):
        assert 0.5 * most < found[transport]["share"] <= most
        assert f"{transport}: {found[transport]['share']:.4f} of dense" in done.stdout
    for transport, most in (("fp16", 0.51), ("int8", 0.26)):
        assert 0.5 * most < found[transport]["share_down"] <= most


def test_dice_is_measured_under_every_form_kept_and_not_measured_again(
    wire: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def dice(form: str, seed: int, changes: Any) -> float:
        asked.append((form, seed))
        return 0.8 - (0.006 if form == "topk" else 0.004 if form == "int8" else 0.0) + seed / 100

    monkeypatch.setattr(wire, "dice_of", dice)
    content: dict[str, Any] = {"unet": {"megabytes": 19.3}}
    wire.measure_dice(content, [1, 2], ["segmentation.steps=2"], tmp_path / "found.json")
    assert len(asked) == 2 * len(wire.FORMS)
    said = capsys.readouterr().out
    assert "topk: mean Dice 0.8090, costs +0.0060 (goal 0.005: missed)" in said
    assert "int8: mean Dice 0.8110, costs +0.0040 (goal 0.005: reached)" in said
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept["unet"] == {"megabytes": 19.3}
    assert kept["dice"]["costs"]["fp16"] == 0.0
    asked.clear()
    wire.measure_dice(kept, [1, 2, 3], ["segmentation.steps=2"], tmp_path / "found.json")
    assert asked == [(form, 3) for form in wire.FORMS]
    asked.clear()
    wire.measure_dice(kept, [1], [], tmp_path / "found.json")
    assert len(asked) == len(wire.FORMS), "another study is another measurement"


def test_the_shipped_study_runs_at_its_smallest_and_a_transport_changes_its_dice(wire: ModuleType) -> None:
    tiny = (
        "stages.training.rounds=2", "segmentation.steps=8", "segmentation.batch=2", "segmentation.validate_every=4",
        "network.channels=[4, 8]", "network.res_units=1", "data.crop=[32, 32]",
        "data.phantom={family: cine_mr, sites: 2, unlabeled: 0, training: 1, validation: 1, test: 1, "
        "size: [48, 48, 4]}",
    )  # fmt: skip
    dense, thin = wire.dice_of("fp32", 1, tiny), wire.dice_of("int8 both", 1, tiny)
    assert 0.0 < dense < 1.0
    assert thin != dense
    assert abs(thin - dense) < 0.2
