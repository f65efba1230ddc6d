"""A site in its own little label map: what it marks, what its models see and what they are scored on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.data.datalist import Case
from fedmedseg.segviz.organs import OwnLabels, marked, organs_of, own_study, predicted, window_of, windowed

WINDOWS = {"disc": [-57, 164], "square": [-200, 200], "bar": [-87, 199]}
CT = {"modality": "ct", "window": [-175, 250]}


def case(marks: tuple[int, ...] | None) -> Case:
    return Case(image=Path("i"), label=Path("l"), patient="p", annotated_labels=marks, key="k")


class Volumes:
    """One volume per given marks, all with the same label map."""

    section = "training"

    def __init__(self, *marks: tuple[int, ...] | None) -> None:
        self.quarantined: dict[str, str] = {}
        self.cases = [case(mark) for mark in marks]
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.cases)

    def label(self, index: int) -> np.ndarray:
        self.asked.append(index)
        return np.array([[0, 1, 2, 3]], dtype=np.uint8)

    native_label = label

    def points(self, index: int) -> dict[int, np.ndarray]:
        return {value: np.full((1, 3), value) for value in (1, 2, 3)}


def test_a_site_marks_what_any_of_its_training_cases_marks() -> None:
    labels = {1: "a", 2: "b", 3: "c"}
    assert marked([case((3,)), case((1,)), case(())], labels) == (1, 3)
    assert marked([case((3,)), case(None)], labels) == (1, 2, 3)
    assert marked([], labels) == ()


def test_a_head_predicts_the_sites_organs_and_one_model_all(study: Callable[..., Experiment]) -> None:
    assert predicted(study(), (1, 3)) == (1, 3)
    assert predicted(study(segviz={"mode": "one_model"}), (1, 3)) == (1, 2, 3)


def test_own_organs_are_numbered_from_one_and_others_become_background() -> None:
    volumes = Volumes((3,), (1, 3), None)
    own = OwnLabels(volumes=volumes, organs=(1, 3))
    assert [one.annotated_labels for one in own.cases] == [(2,), (1, 2), None]
    assert own.label(0).tolist() == own.native_label(0).tolist() == [[0, 1, 0, 2]]
    assert {number: int(places[0, 0]) for number, places in own.points(1).items()} == {1: 1, 2: 3}


def test_a_case_without_a_mark_of_ours_is_left_out() -> None:
    volumes = Volumes((2,), (), (1,))
    own = OwnLabels(volumes=volumes, organs=(1,))
    assert len(own) == 1
    own.label(0)
    assert volumes.asked == [2]
    with pytest.raises(DataError) as told:
        OwnLabels(volumes=Volumes((2,)), organs=(1,))
    assert told.value.reason == Reason.NO_CASES


def test_a_sites_study_names_its_organs_alone_and_keeps_everything_else(study: Callable[..., Experiment]) -> None:
    whole = study()
    own = own_study(whole, (1, 3))
    assert own.data.labels == {1: "disc", 2: "bar"}
    assert own.data.classes == 3
    assert own.network == whole.network
    assert windowed(whole, (1, 3)).data.labels == whole.data.labels


def test_a_model_sees_the_union_of_its_organs_windows(study: Callable[..., Experiment]) -> None:
    with_windows = study(data=CT, segviz={"windows": WINDOWS})
    assert window_of(with_windows, (1,)) == (-57, 164)
    assert window_of(with_windows, (1, 3)) == (-87, 199)
    assert own_study(with_windows, (1, 3)).data.window == (-87, 199)
    assert window_of(study(data=CT), (1, 3)) == (-175, 250)


def test_a_data_list_says_what_its_site_marks(federate: Callable[..., InProcessFederation]) -> None:
    federation = federate(marks={"a": [(3,), (1,), ()], "b": [None], "c": [()]})
    organs = {site: federation.learner(site, "training").bench.organs for site in ("a", "b")}
    assert organs == {"a": (1, 3), "b": (1, 2, 3)}
    with pytest.raises(DataError) as told:
        organs_of(federation.learner("c", "training").site, federation.experiment)
    assert told.value.reason == Reason.NO_CASES


def test_only_the_labelled_patients_that_a_study_takes_decide_what_a_site_marks(
    federate: Callable[..., InProcessFederation],
) -> None:
    """Of three patients who mark an organ each, one is trained on."""
    federation = federate(marks={"a": [(1,), (2,), (3,)]}, data={"labelled_patients": 1})
    bench = federation.learner("a", "training").bench
    assert len(bench.training) == len(bench.organs) == 1
    assert bench.training.cases[0].annotated_labels == (1,), "under its own number"
    whole = federate(name="b", marks={"a": [(1,), (2,), (3,)]}).learner("a", "training").bench
    assert (len(whole.training), whole.organs) == (3, (1, 2, 3))


def test_a_sites_volumes_have_its_organs_window_in_every_section(federate: Callable[..., InProcessFederation]) -> None:
    """Bars are the brightest: a window that ends at 200 makes them as bright as squares, one to 1000 does not."""
    windows = {"disc": [100, 200], "square": [0, 1000], "bar": [0, 1000]}
    federation = federate(marks={"a": [(1,)], "b": [(2,)]}, data={"modality": "ct"}, segviz={"windows": windows})
    benches = {site: federation.learner(site, "training").bench for site in ("a", "b")}
    assert [bench.experiment.data.window for bench in benches.values()] == [(100, 200), (0, 1000)]
    for section in ("training", "validation", "test"):
        narrow, wide = (getattr(bench, section).image(0) for bench in benches.values())
        assert narrow.max() == 1.0
        assert 0.2 < wide.max() < 0.4


def test_a_window_changes_what_a_site_sees(study: Callable[..., Experiment]) -> None:
    from fedmedseg.data.preprocessing import normalise

    image = np.array([[[-100.0, 0.0, 180.0]]], dtype=np.float32)
    seen = study(data=CT, segviz={"windows": WINDOWS})
    narrow, _ = normalise(image, own_study(seen, (1,)).data)
    wide, _ = normalise(image, own_study(seen, (2,)).data)
    assert narrow.ravel().tolist() == pytest.approx([0.0, 57 / 221, 1.0])
    assert wide.ravel().tolist() == pytest.approx([0.25, 0.5, 0.95])
