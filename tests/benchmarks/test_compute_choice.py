"""The way of computing that is chosen, timed anew at the smallest size; options of a GPU; the compiled network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import compute_choice
import masked_step
import pytest
import torch

from fedmedseg.core.compute import PLAIN, ComputeChoice

TINY = {"tiny": ({"name": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "heads": 1}, (16, 16), 1)}


class Counted:
    """A step that takes no time; the first fails where no compiler is there."""

    def __init__(self, failing: bool = False) -> None:
        self.failing, self.steps, self.ways = failing, 0, list[ComputeChoice]()

    def use(self, choice: ComputeChoice) -> None:
        self.ways.append(choice)

    def check(self) -> Mapping[str, torch.Tensor]:
        return {}

    def step(self) -> None:
        if self.failing:
            raise RuntimeError("no compiler")
        self.steps += 1


def test_every_way_is_set_against_plain_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compute_choice, "NETWORKS", TINY)
    monkeypatch.setattr(compute_choice, "copy_rate", lambda: 10.0)
    out = tmp_path / "found.json"
    compute_choice.main(["--seconds", "0.01", "--out", str(out)])
    found = json.loads(out.read_text())
    assert list(found["cases"]) == ["tiny, supervised", "tiny, inference"]
    for one in found["cases"].values():
        assert one["over_plain"][str(PLAIN)] == 1.0
        assert one["chosen"] in one["over_plain"]
        assert one["chosen_s"] == one["median_s"][one["chosen"]]
        assert "compiled_s" not in one
    assert "cpu" in found["device"]
    assert "of the best" in capsys.readouterr().out


def test_the_compiled_network_takes_turns_with_the_chosen_way() -> None:
    plain, made = Counted(), Counted()
    found = compute_choice.compiled(plain, made, PLAIN, 0.0)
    # one step to compile, which is told apart
    assert (plain.steps, made.steps) == (compute_choice.LEAST_TURNS, compute_choice.LEAST_TURNS + 1)
    assert plain.ways == made.ways == [PLAIN]
    assert set(found) == {"seconds_to_compile", "compiled_s", "compiled_over_chosen"}
    assert compute_choice.compiled(plain, Counted(failing=True), PLAIN, 0.0) == {"not_compiled": "RuntimeError"}


@pytest.mark.parametrize("script", [compute_choice, masked_step])
def test_a_gpu_that_is_not_there_is_told(script: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU that torch can use"):
        script.main(["--device", "cuda", "--out", str(tmp_path / "none.json")])  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_students_are_timed_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(masked_step.Probe, "measure", lambda probe: probe.times.append(1.0))
    monkeypatch.setattr(masked_step, "SIZES", {"cpu": {6: 1}})
    out = tmp_path / "found.json"
    masked_step.main(["--width", "64", "--repeats", "1", "--whole-repeats", "1", "--edges", "6", "--out", str(out)])
    one = json.loads(out.read_text())["216 tokens"]
    # the ratio is of what was timed, told to a hundredth; the seconds are told to a tenth of a millisecond
    whole, dropped, rounded = one["student replace_s"], one["student drop_s"], 0.00005
    least, most = (whole - rounded) / (dropped + rounded), (whole + rounded) / (dropped - rounded)
    assert least - 0.005 <= one["student_ratio"] <= most + 0.005
    assert one["reached"] == (one["student_ratio"] >= one["goal"] == 2.2)
    assert "(goal 2.2)" in capsys.readouterr().out
