"""Two runs with one seed: what counts as one model, and what a different figure is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import determinism
import goals
import pytest


def record(digest: str, dice: float) -> dict[str, Any]:
    answer = {"metrics": {"dice/shared/disc": dice}}
    return {"shared_sha256": digest, "rounds": [{"sites": {}}, {"sites": {"site-1": answer, "site-2": answer}}]}


@pytest.mark.parametrize(
    ("second", "models", "different"),
    [(record("a", 0.5), 1.0, []), (record("b", 0.6), 2.0, ["site-1/dice/shared/disc", "site-2/dice/shared/disc"])],
)
def test_models_and_figures_of_two_runs_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: dict[str, Any], models: float, different: list[str]
) -> None:
    asked: list[tuple[str, int, list[str]]] = []

    def run(job: str, threads: int, changes: list[str], folder: Path) -> dict[str, Any]:
        asked.append((job, threads, changes))
        return record("a", 0.5) if threads == 3 else second

    monkeypatch.setattr(determinism, "run", run)
    out = tmp_path / "found.json"
    determinism.main(["--jobs", "fedavg", "--set", "seed=2", "--out", str(out)])
    assert asked == [("fedavg", 3, ["seed=2"]), ("fedavg", 1, ["seed=2"])]
    (figure,) = goals.determinism(out)
    assert (figure.value, figure.verdict) == (models, "reached" if models == 1 else "missed")
    assert json.loads(out.read_text())["jobs"]["fedavg"]["different"] == different


def test_a_run_that_does_not_finish_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)fedavg did not finish.*no_such_key"):
        determinism.run("fedavg", 1, ["segmentation.no_such_key=1"], tmp_path / "w")
