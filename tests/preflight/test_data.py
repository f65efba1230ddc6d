"""A site's lists with planted faults: each is found under its own check, by key and never by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.findings import Finding, Level
from fedmedseg.data.datalist import case_key
from fedmedseg.preflight.data import ListReport, check_list, label_names, shear

SALT = "pepper and salt"


def look(site: Any, sections: Any, study: Callable[..., Any] | None = None, **settings: Any) -> dict[str, Finding]:
    """Findings of the list by the last word of their name."""
    report = whole(site, sections, study, **settings)
    assert all(finding.check.startswith("data cmr: ") for finding in report.findings)
    for finding in report.findings:
        assert "DOE" not in str(finding.plain())
        assert str(site.root) not in str(finding.plain())
    return {finding.check.partition(": ")[2]: finding for finding in report.findings}


def whole(site: Any, sections: Any, study: Callable[..., Any] | None = None, **settings: Any) -> ListReport:
    data = study().data if study is not None else None
    return check_list(site.datalist(sections), role="cmr", data=data, salt=SALT, **settings)


def bad(found: dict[str, Finding]) -> dict[str, Level]:
    return {name: finding.level for name, finding in found.items() if finding.level}


def test_a_healthy_list_passes_every_check(site: Any, study: Callable[..., Any]) -> None:
    found = look(site, site.healthy(), study)
    assert bad(found) == {}
    assert set(found) == {
        "list", "files", "patients", "readable", "spacing and orientation", "alignment", "labels", "size", "duplicates",
        "slice order",
    }  # fmt: skip
    assert found["list"].found == "training 3 of 3 patients, validation 1 of 1 patients, test 1 of 1 patients"
    assert found["spacing and orientation"].found == "1.5..1.5 x 1.5..1.5 x 8..8 mm; RAS 5"


@pytest.mark.parametrize(("min_count", "withheld"), [(0, False), (1, False), (2, True), (5, True)])
def test_too_few_test_patients_for_their_scores_to_be_told_is_a_warning(
    site: Any, min_count: int, withheld: bool
) -> None:
    """The healthy list has one test patient."""
    found = look(site, site.healthy(), min_count=min_count)
    assert ("test scores" in found) is withheld
    if withheld:
        warning = found["test scores"]
        assert warning.level is Level.WARN
        assert "test scores of this site will be withheld: 1 test patient(s), fewer than" in warning.found
        assert f"privacy.min_count ({min_count})" in warning.found


def test_a_list_without_test_patients_has_no_scores_to_withhold(site: Any) -> None:
    assert "test scores" not in look(site, {**site.healthy(), "test": []}, min_count=5)


def cut_off(site: Any, file: str) -> None:
    path = site.root / file
    path.write_bytes(path.read_bytes()[:-400])


def flipped_bit(site: Any, file: str) -> None:
    """In the deflated data: no NIfTI reader notices, gzip's checksum does."""
    path = site.root / file
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    content[-5000] ^= 1
    path.write_bytes(bytes(content))


def no_nifti(site: Any, file: str) -> None:
    (site.root / file).write_text("hello")


def not_finite(site: Any, file: str) -> None:
    site.volume(file, seed=0, voxels=np.full((40, 64, 6), np.nan, np.float32))


def far_spacing(site: Any, file: str) -> None:
    site.volume(file, seed=99, affine=np.diag([1.5, 1.5, 80.0, 1.0]))
    site.label(file.replace(".nii", "_label.nii"), affine=np.diag([1.5, 1.5, 80.0, 1.0]))


def moved(site: Any, file: str) -> None:
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[0, 3] = 30.0
    site.volume(file, seed=99, affine=affine)


def other_shape(site: Any, file: str) -> None:
    site.volume(file, seed=99, shape=(40, 64, 7))


def off_the_map(site: Any, file: str) -> None:
    site.label(file.replace(".nii", "_label.nii"), top=7)


def too_small(site: Any, file: str) -> None:
    site.volume(file, seed=99, shape=(22, 22, 6))
    nib.Nifti1Image(np.ones((22, 22, 6), np.uint8), np.diag([1.5, 1.5, 8.0, 1.0])).to_filename(
        site.root / file.replace(".nii", "_label.nii")
    )


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (cut_off, "readable"),
        (flipped_bit, "readable"),
        (no_nifti, "readable"),
        (not_finite, "readable"),
        (far_spacing, "spacing and orientation"),
        (moved, "alignment"),
        (other_shape, "alignment"),
        (off_the_map, "labels"),
        (too_small, "size"),
    ],
)
def test_a_planted_fault_is_found_where_it_belongs(
    site: Any, study: Callable[..., Any], fault: Callable[[Any, str], None], check: str
) -> None:
    sections = site.healthy()
    victim = sections["training"][1]["image"]
    fault(site, victim)
    found = look(site, sections, study)
    # two training cases are left: the site goes on without this one
    assert bad(found) == {check: Level.WARN}
    assert found[check].cases == (case_key(SALT, victim),)
    assert found[check].names == (victim,)
    assert found[check].mend


def test_a_section_that_loses_too_many_cases_fails(site: Any, study: Callable[..., Any]) -> None:
    sections = site.healthy()
    cut_off(site, sections["test"][0]["image"])
    found = look(site, sections, study)
    assert bad(found) == {"readable": Level.FAIL}
    assert "0 left in test, at least 1 needed" in found["readable"].found
    cut_off(site, sections["training"][0]["image"])
    assert "2 left in training, at least 3 needed" in look(site, sections, study, min_cases=3)["readable"].found


def test_a_sheared_volume_and_a_spacing_far_from_the_others_are_pointed_out(
    site: Any, study: Callable[..., Any]
) -> None:
    sections = site.healthy()
    victim = sections["training"][0]
    skew = np.diag([1.5, 1.5, 8.0, 1.0])
    skew[1, 2] = 8.0 * np.tan(np.radians(20))
    assert shear(skew) == pytest.approx(20.0)
    assert shear(np.diag([1.0, 2.0, 3.0, 1.0])) == 0.0
    site.volume(victim["image"], seed=50, affine=skew)
    site.label(victim["label"], affine=skew)
    found = look(site, sections, study)
    assert bad(found) == {"spacing and orientation": Level.WARN}
    assert "not at right angles" in found["spacing and orientation"].found
    odd = np.diag([1.5, 1.5, 30.0, 1.0])
    site.volume(victim["image"], seed=50, affine=odd)
    site.label(victim["label"], affine=odd)
    assert "3 times off the list's median" in look(site, sections, study)["spacing and orientation"].found


def test_copies_are_known_by_their_voxels_whatever_their_name_and_type(site: Any, study: Callable[..., Any]) -> None:
    sections = site.healthy()
    original = nib.load(site.root / sections["training"][0]["image"])
    copy = np.rint(np.asarray(original.dataobj))
    for file, dtype in ((sections["training"][0]["image"], np.float32), ("DOE_other.nii", np.int16)):
        nib.Nifti1Image(copy.astype(dtype), original.affine).to_filename(site.root / file)
    again = {"image": "DOE_other.nii", "label": sections["training"][0]["label"], "patient": "DOE_other"}
    within = {**sections, "training": [*sections["training"], again]}
    assert bad(look(site, within, study)) == {"duplicates": Level.WARN}
    unlabeled = {**sections, "unlabeled": [{"image": "DOE_other.nii", "patient": "DOE_other"}]}
    assert bad(look(site, unlabeled, study)) == {"duplicates": Level.WARN}
    across = {**sections, "test": [*sections["test"], again]}
    found = look(site, across, study)
    assert bad(found) == {"duplicates": Level.FAIL}
    assert len(found["duplicates"].cases) == 2


def test_a_patient_in_two_sections_fails_and_is_named_by_key_only(site: Any, study: Callable[..., Any]) -> None:
    sections = site.healthy()
    sections["test"].append({**site.case("DOE_late", 77), "patient": sections["training"][0]["patient"]})
    found = look(site, sections, study)
    assert bad(found) == {"patients": Level.FAIL}
    assert found["patients"].found == "1 patient(s) or image(s) in test and training (1)"
    assert found["patients"].cases == (case_key(SALT, "DOE_training_0"),)
    assert found["patients"].names == ("DOE_training_0",)


def test_absent_files_fail_and_the_others_are_still_read(site: Any, study: Callable[..., Any]) -> None:
    sections = site.healthy()
    (site.root / sections["training"][0]["image"]).unlink()
    found = look(site, sections, study)
    assert bad(found) == {"files": Level.FAIL}
    assert found["files"].found.startswith("1 of 10 named files absent")
    assert found["readable"].found == "4 of 4"


@pytest.mark.parametrize("missing", ["training", "validation", "test"])
def test_a_list_that_lacks_a_section_is_a_warning(site: Any, study: Callable[..., Any], missing: str) -> None:
    sections = site.healthy()
    unlabeled = [{"image": site.volume("DOE_u.nii.gz", seed=60), "patient": "DOE_u"}]
    found = look(site, {**sections, missing: [], "unlabeled": unlabeled}, study)
    assert bad(found) == {"list": Level.WARN}
    assert f"no case in {missing}" in found["list"].found


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"training": [{"image": "DOE.nii.gz"}]},
        {"trainig": [{"image": "DOE.nii.gz"}]},
        {"training": [{"image": "DOE.nii.gz", "labell": "DOE"}]},
        {"training": 3},
    ],
)
def test_a_list_that_cannot_be_used_fails_without_quoting_it(site: Any, content: Any) -> None:
    assert look(site, content)["list"].level is Level.FAIL


def test_a_list_that_is_no_json_fails(site: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("{DOE")
    (found,) = check_list(path, role="cmr", data=None, salt=SALT).findings
    assert (found.level, "DOE" in str(found)) == (Level.FAIL, False)
    (found,) = check_list(tmp_path / "absent.json", role="cmr", data=None, salt=SALT).findings
    assert found.level is Level.FAIL


def test_without_a_study_the_lists_own_labels_count_and_what_is_unknown_is_said(site: Any) -> None:
    sections = site.healthy()
    found = look(site, sections)
    assert bad(found) == {"labels": Level.WARN}
    assert "whether in the map is not known" in found["labels"].found
    assert "size" not in found
    named = {**sections, "labels": {"0": "background", "1": "one", "2": "two"}}
    assert bad(look(site, named)) == {}
    one = {**sections, "labels": {"0": "background", "1": "one"}}
    assert bad(look(site, one)) == {"labels": Level.FAIL}


def test_the_cache_estimate_is_what_the_volumes_take(site: Any, study: Callable[..., Any]) -> None:
    """Against the cache that a study really writes."""
    from fedmedseg.data.site import Site
    from fedmedseg.data.volumes import Volumes

    sections = site.healthy()
    sections["unlabeled"] = [{"image": sections["training"][0]["image"]}]
    estimate = whole(site, sections, study).cache_bytes
    opened = Site(
        name="site-1", state_root=site.root / "s", cache=site.root / "c", models=site.root / "m", device="cpu",
        datasets={"cmr": site.root / "datalist.json"}, salt=SALT, simulated=True,
    )  # fmt: skip
    for section in ("unlabeled", "training", "validation", "test"):
        Volumes(site=opened, experiment=study(), section=section)  # type: ignore[arg-type]
    written = sum(file.stat().st_size for file in (site.root / "c").rglob("*.npy"))
    assert 0.95 * written < estimate < 1.15 * written
    assert whole(site, sections).cache_bytes == 0


def test_heart_maps_are_part_of_the_estimate_once_for_each_image(site: Any) -> None:
    """Against the cache that a study of CT really writes: a scan in two sections has one map."""
    from fedmedseg.core.jobs import find_job, read_settings
    from fedmedseg.data.site import Site
    from fedmedseg.data.volumes import Volumes

    affine, shape = np.diag([2.0, 3.0, 3.0, 1.0]), (64, 32, 34)
    settings = {"data": {"role": "cmr", "phantom": None}, "cardiac_ct": {"conditioning": True}}
    experiment = read_settings(find_job("cardiac_ct"), [settings])[1]
    nib.Nifti1Image(np.full(shape, 5, np.uint8), affine).to_filename(site.root / "heart.nii")
    scan = {"image": site.volume("DOE_1.nii.gz", seed=1, shape=shape, affine=affine), "patient": "DOE_1"}
    sections = {"unlabeled": [{**scan, "heart": "heart.nii"}], "training": [{**scan, "heart": "heart.nii"}], "test": []}
    report = check_list(site.datalist(sections), role="cmr", data=experiment.data, salt=SALT)
    voxels = 64 * 32 * 34
    assert report.cache_bytes == 4 * voxels + voxels
    assert report.scan_voxels == voxels
    opened = Site(
        name="site-1", state_root=site.root / "s", cache=site.root / "c", models=site.root / "m", device="cpu",
        datasets={"cmr": site.root / "datalist.json"}, salt=SALT, simulated=True,
    )  # fmt: skip
    Volumes(site=opened, experiment=experiment, section="scans")
    written = sum(file.stat().st_size for file in (site.root / "c").rglob("*.npy"))
    # each file begins with a header of 128 bytes
    assert written == report.cache_bytes + 2 * 128


def test_progress_is_told_case_by_case(site: Any, study: Callable[..., Any]) -> None:
    told: list[tuple[int, int]] = []
    whole(site, site.healthy(), study, tick=lambda done, of: told.append((done, of)))
    assert told == [(number, 5) for number in range(1, 6)]


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (None, []),
        ({"0": "background", "1": "Left_Ventricle"}, []),
        ({"1": "spleen"}, ["1 is 'spleen' in the list, 'left ventricle' in the study"]),
        ({"1": "left ventricle", "9": "scar"}, ["9 is 'scar' in the list, 'nothing' in the study"]),
    ],
)
def test_a_number_that_means_another_structure_in_the_list_is_a_warning(
    tmp_path: Path, named: dict[str, str] | None, told: list[str]
) -> None:
    """A label of 1 is in the map of every study, whatever it marks."""
    file = tmp_path / "list.json"
    file.write_text(json.dumps({"training": []} if named is None else {"labels": named}))
    data = DataSection.model_validate(
        {"role": "cmr", "modality": "mr", "spatial_dims": 3, "labels": {1: "left ventricle"}, "crop": (32, 32, 32)}
    )
    found = label_names(file, role="cmr", data=data)
    assert [one.found for one in found] == told
    assert all(one.level is Level.WARN for one in found)


@pytest.mark.parametrize(
    ("named", "case", "told"),
    [
        ({"0": "background", "1": "left_ventricle"}, {}, True),
        ({"1": "left ventricle"}, {"annotated_labels": [1]}, False),
        ({"1": "left ventricle"}, {"label": None}, False),
        ({"1": "left ventricle", "2": "Wall"}, {}, False),
        ({"0": "background"}, {}, False),
    ],
)
def test_a_structure_that_the_list_does_not_name_is_a_warning_where_cases_count_as_wholly_annotated(
    tmp_path: Path, named: dict[str, str], case: dict[str, Any], told: bool
) -> None:
    whole = {name: value for name, value in {"image": "a.nii.gz", "label": "b.nii.gz", **case}.items() if value}
    file = tmp_path / "list.json"
    file.write_text(json.dumps({"labels": named, "test": [whole], "unlabeled": ["c.nii.gz"]}))
    labels = {1: "left ventricle", 2: "wall"}
    data = DataSection.model_validate(
        {"role": "cmr", "modality": "mr", "spatial_dims": 3, "labels": labels, "crop": (32, 32, 32)}
    )
    found = label_names(file, role="cmr", data=data)
    assert [one.check for one in found] == (["data cmr: structures"] if told else [])
    if told:
        assert "does not name 'wall', and 1 of its cases count" in found[0].found
        assert "annotated_labels" in found[0].mend


def test_stacks_that_run_both_ways_are_warned_of_in_a_study_of_slices(site: Any) -> None:
    from fedmedseg.data.stacks import Stack
    from fedmedseg.preflight.data import Volume, _stacks

    def volumes(*directions: float) -> list[Volume]:
        stacks = [Stack(slices=9, thickness=8.0, normal=(0.0, 0.0, sign)) for sign in directions]
        case: Any = None
        return [Volume(case=case, section="training", reason=None, stack=stack) for stack in stacks]

    alike = _stacks("cmr", volumes(1.0, 1.0))
    assert (alike.level, alike.found) == (Level.PASS, "9 slices over 70 mm (medians); 100% run one way")
    assert _stacks("cmr", volumes(1.0, 1.0, -1.0)).level is Level.WARN
    assert _stacks("cmr", []).level is Level.PASS


def test_a_study_of_slices_looks_at_their_order(site: Any, study: Callable[..., Any]) -> None:
    data = study().data.model_copy(update={"spatial_dims": 2, "crop": (32, 32)})
    found = check_list(site.datalist(site.healthy()), role="cmr", data=data, salt=SALT)
    told = next(one for one in found.findings if one.check == "data cmr: slice order")
    assert told.level is Level.PASS
    assert "6 slices over 50 mm" in told.found
