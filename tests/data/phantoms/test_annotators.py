"""Who annotates what: numbers of the published study in proportion, every task somebody's, and a site unseen."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.landmarks import read_landmarks
from fedmedseg.data.phantoms.annotators import PARTS, PUBLISHED, Marks, marks_of, share_of, together
from fedmedseg.data.phantoms.style import LABELS, LANDMARKS
from fedmedseg.data.site import write_phantoms
from fedmedseg.data.tasks import TASKS, tasks_of

COUNTS = {"training": 6, "unlabeled": 12, "validation": 1, "test": 1}


def section(**changes):
    return PhantomSection(family="cardiac_ct", **COUNTS | {"annotation": "published"} | changes)


def tasks(marks):
    found = {*marks.labels, *marks.landmarks}
    return {key for key, (labels, names) in PARTS.items() if {*labels, *names} <= found}


def test_the_table_has_the_published_sums():
    assert [sum(getattr(one, part) for one in PUBLISHED) for part in ("hps", "ms", "calc", "scans")] == [
        256,
        116,
        118,
        8124,
    ]


def test_parts_are_the_tasks_of_the_study():
    for key, (labels, names) in PARTS.items():
        expected = TASKS[key].names
        assert expected == (names or tuple(LABELS["cardiac_ct"][number] for number in labels))
    assert {name for _, names in PARTS.values() for name in names} == set(LANDMARKS)


def test_training_volumes_per_task_are_in_proportion():
    found = {key: [] for key in PARTS}
    for index in range(8):
        marks = share_of(section(), index).marks
        for key, numbers in found.items():
            numbers.append(sum(key in tasks(one) for one in marks))
    assert found == {
        "hps": [6, 3, 3, 4, 0, 2, 3, 2],
        "ms": [6, 0, 2, 0, 0, 0, 2, 0],
        "calc": [6, 2, 0, 0, 0, 2, 0, 0],
        "coronaries": [6, 0, 0, 0, 0, 0, 0, 0],
    }


@pytest.mark.parametrize("annotation", ["published", "shared_out"])
@pytest.mark.parametrize("sites", [2, 3, 5, 8, 11])
def test_every_task_is_somebodys_from_two_sites(annotation, sites):
    shares = [share_of(section(annotation=annotation, sites=sites), index) for index in range(sites)]
    assert {key for share in shares for marks in share.marks for key in tasks(marks)} == set(PARTS)
    assert all(len(share.marks) == share.counts["training"] for share in shares)


def test_two_sites_share_out_two_tasks_each():
    shares = [share_of(section(annotation="shared_out", sites=2), index) for index in range(2)]
    assert [tasks(share.marks[0]) for share in shares] == [{"hps", "calc"}, {"ms", "coronaries"}]


def test_an_unseen_site_has_a_test_section_alone():
    assert share_of(section(unseen=2), 1).counts == {"training": 0, "unlabeled": 0, "validation": 0, "test": 1}
    assert share_of(section(unseen=2), 0).counts["training"] == 6


def test_marks_together_have_each_thing_once():
    assert together([marks_of(["calc"]), marks_of(["calc", "ms"]), Marks()]) == Marks(
        labels=(1,), landmarks=("MS1", "MS2")
    )


@pytest.mark.parametrize("setting", [{"annotation": "published"}, {"heart": True}])
def test_what_belongs_to_cardiac_ct_is_refused_elsewhere(setting):
    with pytest.raises(ValidationError, match="cardiac_ct"):
        PhantomSection(family="abdominal_ct", **setting)


def test_the_written_list_says_of_each_case_what_its_share_does(tmp_path):
    asked = section(training=3, unlabeled=1, size=(32, 32, 24), heart=True)
    path = write_phantoms(asked, seed=1, name="site-2", home=tmp_path)
    found = read_datalist(path, salt="salt and pepper")
    annotated = [set(tasks_of(case, LABELS["cardiac_ct"])) for case in found["training"]]
    assert annotated == [tasks(marks) | {"heart"} for marks in share_of(asked, 1).marks]
    assert annotated == [{"hps", "calc", "heart"}, {"hps", "heart"}]
    assert set(tasks_of(found["test"][0], LABELS["cardiac_ct"])) == set(TASKS)
    assert tasks_of(found["unlabeled"][0], LABELS["cardiac_ct"]) == ("heart",)
    assert len(read_landmarks(found["test"][0].landmarks)) == 7
