"""Data lists: what is read, and what is refused."""

import json
from pathlib import Path

import pytest

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.datalist import case_key, read_datalist

SALT = "pepper and salt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.nii.gz").touch()
    return tmp_path


def write(folder: Path, content: object) -> Path:
    path = folder / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entry(image: str, **more: object) -> dict[str, object]:
    return {"image": f"{image}.nii.gz", "label": f"{image}.nii.gz", **more}


def test_decathlon_form_is_read_with_its_extras_and_bare_test_images(folder: Path) -> None:
    content = {
        "name": "Hippocampus",
        "labels": {"0": "background"},
        "numTraining": 1,
        "numTest": 1,
        "modality": {"0": "MRI"},
        "training": [entry("a")],
        "test": ["./b.nii.gz"],
    }
    sections = read_datalist(write(folder, content), salt=SALT)
    assert [case.patient for case in sections["training"]] == ["a"]
    assert sections["test"][0].image == folder / "b.nii.gz"
    assert sections["test"][0].label is None
    assert sections["validation"] == sections["unlabeled"] == []


def test_order_does_not_depend_on_the_list(folder: Path) -> None:
    one = [entry("b", patient="2"), entry("a", patient="2"), entry("c", patient="1")]
    first = read_datalist(write(folder, {"training": one}), salt=SALT)["training"]
    second = read_datalist(write(folder, {"training": one[::-1]}), salt=SALT)["training"]
    assert first == second
    assert [(case.patient, case.image.name) for case in first] == [
        ("1", "c.nii.gz"),
        ("2", "a.nii.gz"),
        ("2", "b.nii.gz"),
    ]


def test_keys_depend_on_the_salt_and_name_nobody(folder: Path) -> None:
    path = write(folder, {"training": [entry("a", patient="JANE_DOE")]})
    one, other = (read_datalist(path, salt=salt)["training"][0].key for salt in (SALT, "another salt"))
    assert one != other
    assert "JANE" not in one
    assert one == case_key(SALT, "a.nii.gz")
    assert len(one) == 12


def test_an_unknown_key_names_the_nearest(folder: Path) -> None:
    path = write(folder, {"training": [{"image": "a.nii.gz", "lable": "a.nii.gz"}]})
    with pytest.raises(DataError, match="write 'label'"):
        read_datalist(path, salt=SALT)


def test_a_patient_number_without_quotes_is_told_to_the_user_and_to_no_log(folder: Path) -> None:
    """Fault row 44: a site logs what came only of settings (ConfigurationError), never of data (DataError)."""
    path = write(folder, {"training": [entry("a", patient=4711)]})
    with pytest.raises(DataError, match=r"training\.0\.patient: got 4711\. Expected a valid string") as caught:
        read_datalist(path, salt=SALT)
    for told in (caught.value.public, caught.value.expected, caught.value.remedy):
        assert "4711" not in told


@pytest.mark.parametrize("name", ["trainning", "unlabelled", "Validation"])
def test_a_misspelt_section_is_not_lost(folder: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown section"):
        read_datalist(write(folder, {name: [entry("a")]}), salt=SALT)


def test_cases_under_a_foreign_section_are_not_lost(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown section 'fold_1'"):
        read_datalist(write(folder, {"fold_1": [entry("a")]}), salt=SALT)


def test_broken_json_names_the_line(folder: Path) -> None:
    with pytest.raises(DataError, match="line 3"):
        read_datalist(write(folder, '{\n"training": [],\n"test" []}'), salt=SALT)


def test_a_missing_list_is_a_matter_of_configuration(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file at"):
        read_datalist(folder / "absent.json", salt=SALT)


def test_absent_files_are_counted_and_named(folder: Path) -> None:
    content = {"training": [entry("a"), entry("x"), entry("y")]}
    with pytest.raises(DataError, match=r"2 of 3 named files absent: .*x\.nii\.gz") as caught:
        read_datalist(write(folder, content), salt=SALT)
    assert "x.nii" not in caught.value.public


@pytest.mark.parametrize("second", ["validation", "test"])
def test_a_patient_in_two_sections_is_a_leak(folder: Path, second: str) -> None:
    content = {"training": [entry("a", patient="p")], second: [entry("b", patient="p")]}
    with pytest.raises(DataError, match="only one of training"):
        read_datalist(write(folder, content), salt=SALT)


def test_an_image_in_two_sections_is_a_leak_under_any_patient(folder: Path) -> None:
    content = {"training": [entry("a", patient="p")], "test": [entry("a", patient="q")]}
    with pytest.raises(DataError, match="only one of training"):
        read_datalist(write(folder, content), salt=SALT)


def test_an_image_listed_twice_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="listed twice"):
        read_datalist(write(folder, {"training": [entry("a"), entry("a")]}), salt=SALT)


@pytest.mark.parametrize("section", ["training", "validation"])
def test_labels_are_required_where_they_are_used(folder: Path, section: str) -> None:
    with pytest.raises(DataError, match="no label"):
        read_datalist(write(folder, {section: [{"image": "a.nii.gz"}]}), salt=SALT)


def test_a_case_without_any_drawn_structure_needs_no_label(folder: Path) -> None:
    (folder / "a.json").touch()
    content = {"training": [{"image": "a.nii.gz", "annotated_labels": [], "landmarks": "a.json"}]}
    (case,) = read_datalist(write(folder, content), salt=SALT)["training"]
    assert case.label is None
    assert case.annotated_labels == ()
    assert case.landmarks == folder / "a.json"


def test_absent_landmarks_are_absent_files(folder: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 named files absent"):
        read_datalist(write(folder, {"training": [entry("a", landmarks="gone.json")]}), salt=SALT)


def test_a_section_that_is_no_list_is_told_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"training": {"image": "a.nii.gz"}}))
    with pytest.raises(DataError, match=r'training: got a mapping.*a list of cases.*write "training": \['):
        read_datalist(tmp_path / "l.json", salt="x")


def test_of_many_absent_files_the_first_ten_are_named(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"unlabeled": [f"{number:02d}.nii.gz" for number in range(12)]}))
    with pytest.raises(DataError, match="12 of 12 named files absent") as raised:
        read_datalist(tmp_path / "l.json", salt="x")
    assert "09.nii.gz and 2 more" in str(raised.value)
    assert "10.nii.gz" not in str(raised.value)


def test_what_is_nested_too_deeply_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        read_datalist(tmp_path / "l.json", salt="x")
