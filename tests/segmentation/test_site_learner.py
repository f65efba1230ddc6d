"""What every learner tells of its site, and that a way of computing is asked for once."""

from types import SimpleNamespace
from typing import Any

import pytest

from fedmedseg.core.compute import SHIPPED
from fedmedseg.segmentation import site_learner
from fedmedseg.segmentation.site_learner import PretrainingLearner


def test_a_learner_tells_where_its_state_lies_and_whether_people_are_asked(tmp_path) -> None:
    for approval, asked in (("none", False), ("each_job", True)):
        site: Any = SimpleNamespace(state_root=tmp_path, approval=approval)
        made = PretrainingLearner(experiment=SimpleNamespace(), site=site)  # type: ignore[arg-type]
        assert (made.state_root, made.needs_approval) == (tmp_path, asked)


def test_a_way_of_computing_is_chosen_once_per_process(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def choose(experiment: Any, **words: Any) -> Any:
        asked.append(words)
        return SHIPPED

    monkeypatch.setattr(site_learner, "choose", choose)
    experiment: Any = SimpleNamespace(data=SimpleNamespace(crop=(32, 16)))
    site: Any = SimpleNamespace(cache=tmp_path, device="cpu")
    made = PretrainingLearner(experiment=experiment, site=site)
    task: Any = SimpleNamespace(aborted=lambda: False)
    assert made.way(task, crops=6, trial=lambda: 1 / 0) is made.way(task, crops=6, trial=lambda: 1 / 0) is SHIPPED  # type: ignore[arg-type]
    (words,) = asked
    assert (words["shape"], words["work"], words["cache"]) == ((6, 1, 32, 16), "pretext", tmp_path)
