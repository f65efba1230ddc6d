"""Patients are dealt out whole, to sites and to sections, and a site is written whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.data.importers import create
from fedmedseg.data.importers.assignment import (
    assign_by_group,
    assign_by_number,
    check_site_name,
    parse_sites,
    parse_split,
    sections_of,
    site_name,
    split_patients,
)
from fedmedseg.data.importers.base import Collection, SourceCase
from fedmedseg.data.importers.sites import require_free, write_sites


@dataclass(frozen=True)
class Fake:
    """Content of a stated size whose files hold its name."""

    size: float = 1.0
    has_label: bool = True

    def write(self, image: Path, label: Path | None, *, link: bool) -> None:
        raise AssertionError("not read here")

    def volume_mm3(self) -> float:
        return self.size


def two_phases(patients: int, group: str | None = None) -> list[SourceCase]:
    return [
        SourceCase(name=f"p{index}_{phase}", patient=f"p{index}", group=group, content=Fake(size=float(index % 5)))
        for index in range(patients)
        for phase in ("ED", "ES")
    ]


@pytest.mark.parametrize(
    ("patients", "split", "expected"),
    [
        (10, "0.6,0.2,0.2", {"training": 6, "validation": 2, "test": 2}),
        (9, "0.6,0.2,0.2", {"training": 5, "validation": 2, "test": 2}),
        (3, "0.8,0.1,0.1", {"training": 1, "validation": 1, "test": 1}),
        (7, "0.5,0,0.5", {"training": 4, "test": 3}),
        (10, "0.3,0.1,0.2,0.4", {"training": 3, "validation": 1, "test": 2, "unlabeled": 4}),
    ],
)
def test_shares_become_whole_patients_by_largest_remainder(patients: int, split: str, expected: dict[str, int]) -> None:
    names = [f"p{index}" for index in range(patients)]
    found = split_patients(names, parse_split(split), seed=1, site="a")
    assert set(found) == set(names)
    assert dict(Counter(found.values())) == expected


def test_the_split_depends_on_seed_and_site_and_not_on_the_order_of_patients() -> None:
    names, shares = [f"p{index}" for index in range(20)], parse_split("0.6,0.2,0.2")
    first = split_patients(names, shares, seed=1, site="a")
    assert split_patients(names[::-1], shares, seed=1, site="a") == first
    assert split_patients(names, shares, seed=2, site="a") != first
    assert split_patients(names, shares, seed=1, site="b") != first


def test_both_phases_of_a_patient_are_in_one_section() -> None:
    sections, _ = sections_of(two_phases(11), parse_split("0.5,0.2,0.3"), seed=3, site="a")
    owner: dict[str, str] = {}
    for section, cases in sections.items():
        for case in cases:
            assert owner.setdefault(case.patient, section) == section
    assert sum(map(len, sections.values())) == 22


def test_an_unlabelled_volume_of_a_test_patient_is_withheld_from_pretraining() -> None:
    labelled = two_phases(3)
    extra = [
        SourceCase(name=f"{case.patient}_extra", patient=case.patient, content=Fake(has_label=False))
        for case in labelled[::2]
    ]
    lonely = SourceCase(name="lonely", patient="lonely", content=Fake(has_label=False))
    sections, withheld = sections_of([*labelled, *extra, lonely], parse_split("0.4,0.3,0.3"), seed=1, site="a")
    seen = {case.patient for case in sections["unlabeled"]}
    assert seen == {"lonely"} | {case.patient for case in sections["training"]}
    assert withheld == 2


def test_too_few_patients_for_the_sections_is_told_before_anything_is_written() -> None:
    with pytest.raises(DataError, match="at least 3"):
        split_patients(["a", "b"], parse_split("0.6,0.2,0.2"), seed=1, site="x")


@pytest.mark.parametrize("text", ["", "1", "0.5,0.5", "0.6,0.2,0.3", "0,0.5,0.5", "-0.2,0.6,0.6", "a,b,c", "nan,0,1"])
def test_a_split_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--split"):
        parse_split(text)


def test_sites_are_a_number_or_groups() -> None:
    assert parse_sites([]) is None
    assert parse_sites(["4"]) == 4
    assert parse_sites(["a=HF-I,HF-NI", "b=N"]) == {"a": ["HF-I", "HF-NI"], "b": ["N"]}


@pytest.mark.parametrize("texts", [["a"], ["a="], ["3", "4"], ["a=N", "a=HYP"], ["a_b=N"], ["sites=N"]])
def test_other_sites_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        parse_sites(texts)


def test_site_names_suit_flare() -> None:
    assert [site_name(text) for text in ("HF-I", "HF NI", "3T_scanner")] == ["hf-i", "hf-ni", "site-3t-scanner"]
    with pytest.raises(ConfigurationError, match="'my-site'"):
        check_site_name("my site")


def test_groups_become_sites_and_may_be_joined() -> None:
    collection = Collection(cases=[*two_phases(2, "HF-I"), *two_phases(3, "N")])
    assert {site: len(cases) for site, cases in assign_by_group(collection, None).items()} == {"hf-i": 4, "n": 6}
    assert {site: len(cases) for site, cases in assign_by_group(collection, {"all": ["N", "HF-I"]}).items()} == {
        "all": 10
    }
    with pytest.raises(ConfigurationError, match="'HF-I'"):
        assign_by_group(collection, {"a": ["HF-1"]})
    with pytest.raises(ConfigurationError, match="twice"):
        assign_by_group(collection, {"a": ["N"], "b": ["N"]})
    with pytest.raises(ConfigurationError, match="a number"):
        assign_by_group(Collection(cases=two_phases(2)), None)


def test_a_number_of_sites_shares_patients_evenly_and_never_splits_one() -> None:
    plan = assign_by_number(Collection(cases=two_phases(11)), 3, by="random", seed=5)
    owners = {site: {case.patient for case in cases} for site, cases in plan.items()}
    assert sorted(map(len, owners.values())) == [3, 4, 4]
    assert len(set.union(*owners.values())) == 11
    assert plan == assign_by_number(Collection(cases=two_phases(11)[::-1]), 3, by="random", seed=5)


def test_by_volume_orders_sites_from_small_to_large() -> None:
    plan = assign_by_number(Collection(cases=two_phases(10)), 5, by="volume", seed=5)
    assert [{case.content.volume_mm3() for case in cases} for cases in plan.values()] == [
        {0.0},
        {1.0},
        {2.0},
        {3.0},
        {4.0},
    ]


def test_more_sites_than_patients_or_an_unknown_order_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="1 to 2"):
        assign_by_number(Collection(cases=two_phases(2)), 3, by="random", seed=1)
    with pytest.raises(ConfigurationError, match="random or volume"):
        assign_by_number(Collection(cases=two_phases(2)), 1, by="age", seed=1)


def write(root: Path, out: Path, *, sites: int = 2, split: str = "0.4,0.3,0.3", **options: bool) -> list:
    collection = create("decathlon").read(root, tick=lambda done, of: None)
    plan = assign_by_number(collection, sites, by="random", seed=1)
    shares = parse_split(split)
    return write_sites(
        plan, out=out, role="hippocampus", name="set", labels=collection.labels, shares=shares, seed=1, **options
    )


def test_a_written_site_holds_what_its_list_names_and_nothing_else(task: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summaries = write(task(labelled=6, unlabelled=2), out)
    assert {summary.site for summary in summaries} == {"site-1", "site-2"}
    for summary in summaries:
        folder = out / summary.site
        listed = json.loads((folder / "datalist.json").read_text())
        entries = [entry for section in ("training", "validation", "test", "unlabeled") for entry in listed[section]]
        files = {entry[key] for entry in entries for key in ("image", "label") if key in entry}
        assert files == {str(path.relative_to(folder)) for path in folder.glob("*/*.nii.gz")}
        assert all("label" not in entry for entry in listed["unlabeled"])
        assert all(entry["patient"] for entry in entries)
        assert summary.volumes == {section: len(listed[section]) for section in summary.volumes}
        assert listed["labels"] == {"0": "background", "1": "anterior", "2": "posterior"}
        content = yaml.safe_load((out / "sites" / f"{summary.site}.yaml").read_text())
        named = out / "sites" / content["datasets"]["hippocampus"]["list"]
        assert named.resolve() == (folder / "datalist.json").resolve()
        assert not Path(content["datasets"]["hippocampus"]["list"]).is_absolute()
    # voxels by hand: case i has i + 1 voxels of label 1 and one of label 2
    assert sum(summary.voxels[1] for summary in summaries) == 1 + 2 + 3 + 4 + 5 + 6
    assert sum(summary.voxels[2] for summary in summaries) == 6


def test_a_fourth_share_leaves_labels_behind(task: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = write(task(labelled=8, unlabelled=0), out, sites=1, split="0.25,0.25,0.25,0.25")[0]
    assert summary.volumes == {"training": 2, "validation": 2, "test": 2, "unlabeled": 2}
    assert len(list((out / "site-1" / "labels").iterdir())) == 6


def test_linked_files_share_their_bytes_and_copied_ones_do_not(task: Callable[..., Path], tmp_path: Path) -> None:
    root = task(labelled=3, unlabelled=0)
    source = (root / "imagesTr" / "hippocampus_000.nii.gz").stat().st_ino
    write(root, tmp_path / "linked", sites=1, link=True)
    write(root, tmp_path / "copied", sites=1)
    name = "site-1/images/hippocampus_000.nii.gz"
    assert (tmp_path / "linked" / name).stat().st_ino == source
    assert (tmp_path / "copied" / name).stat().st_ino != source


def test_links_across_file_systems_are_refused_with_the_remedy(
    task: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across)
    with pytest.raises(ConfigurationError, match="without --link"):
        write(task(labelled=3, unlabelled=0), tmp_path / "out", sites=1, link=True)
    assert not (tmp_path / "out" / "site-1").exists()


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EROFS, "read-only"), (errno.EACCES, "not to be written")],
)
@pytest.mark.parametrize("link", [False, True])
def test_a_disk_that_takes_no_more_is_told_as_the_target_and_the_source_is_left_alone(
    task: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, word: str, link: bool
) -> None:
    def no_more(source: Path, target: Path) -> None:
        # as shutil.copyfile and os.link name both ends
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", no_more)
    monkeypatch.setattr(os, "link", no_more)
    root, out = task(labelled=3, unlabelled=0), tmp_path / "out"
    with pytest.raises(ConfigurationError) as caught:
        write(root, out, sites=1, link=link)
    if link and number == errno.EACCES:
        # whether the source's disk or the target's refuses a second name, nobody can tell
        assert caught.value.field == "--link"
        return
    assert caught.value.reason is Reason.DISK
    assert f"--out: got {out}, which is {word} (" in str(caught.value)
    assert str(root) not in str(caught.value)
    assert "source folder" not in str(caught.value)
    assert not (out / "site-1").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_target_that_this_account_may_not_write_is_told(task: Callable[..., Path], tmp_path: Path) -> None:
    root, closed = task(labelled=3, unlabelled=0), tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match=r"--out: got .*not to be written"):
        write(root, closed / "out", sites=1)


def test_a_source_that_cannot_be_read_is_still_the_sources_error(
    task: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(source))

    monkeypatch.setattr(shutil, "copyfile", broken)
    with pytest.raises(DataError, match="download it again"):
        write(task(labelled=3, unlabelled=0), tmp_path / "out", sites=1)


def test_a_folder_with_files_needs_force_which_replaces_earlier_sites_alone(
    task: Callable[..., Path], tmp_path: Path
) -> None:
    root, out = task(), tmp_path / "out"
    write(root, out, sites=2)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="--force"):
        write(root, out, sites=1)
    write(root, out, sites=1, force=True)
    assert sorted(path.name for path in (out / "sites").iterdir()) == ["site-1.yaml"]
    assert not (out / "site-2").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_a_site_that_fails_leaves_no_half_of_itself(task: Callable[..., Path], tmp_path: Path) -> None:
    root, out = task(labelled=6, unlabelled=0), tmp_path / "out"
    for path in (root / "labelsTr").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="readable"):
        write(root, out)
    assert not (out / "site-1").exists()
    assert not (out / ".site-1.partial").exists()
    assert not (out / "sites").exists()


def test_a_plan_that_cannot_work_touches_nothing(task: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write(task(labelled=4, unlabelled=0), tmp_path / "out", sites=2)
    assert not (tmp_path / "out").exists()


def test_an_unknown_importer_or_option_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'sunnybrook'"):
        create("sunybrook")
    with pytest.raises(ConfigurationError, match="--channel"):
        create("sunnybrook", channel=1)


@pytest.mark.parametrize("below", ["", "a/b"], ids=["itself", "a parent"])
def test_a_file_where_the_folder_should_be_is_told(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match=r"--out: got .*file.*Expected a folder"):
        require_free(tmp_path / "file" / below, force=True)


def test_a_folder_of_files_is_refused_before_anything_is_read_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigurationError, match="holds files"):
        require_free(tmp_path, force=False)
    require_free(tmp_path, force=True)
    require_free(tmp_path / "new" / "folder", force=False)
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]
