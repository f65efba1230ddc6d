"""Files of a simulated hospital: identical when repeated, complete or absent, in true geometry."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as connected

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.phantoms import write_site
from fedmedseg.data.phantoms.annotators import Marks, marks_of
from fedmedseg.data.phantoms.style import LABELS, LANDMARKS, site_style
from fedmedseg.data.phantoms.writer import LEAST_SIZE, affine_of

FAMILIES = ("cine_mr", "late_enhancement_mr", "abdominal_ct", "cardiac_ct")
SMALL = {
    "cine_mr": (48, 48, 4),
    "late_enhancement_mr": (48, 48, 4),
    "abdominal_ct": (32, 36, 24),
    "cardiac_ct": (32, 36, 24),
}
COUNTS = {"unlabeled": 1, "training": 1, "validation": 1, "test": 1}


def write(family, out, *, site=0, seed=3, counts=None, **more):
    settings = {"seed": seed, "counts": counts or COUNTS, "size": SMALL[family]} | more
    path = write_site(family, site_index=site, out=out, **settings)
    return path, json.loads(path.read_text())


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


@pytest.mark.parametrize("family", FAMILIES)
def test_list_names_existing_files_by_relative_paths(family, tmp_path):
    path, content = write(family, tmp_path)
    assert path == tmp_path / "datalist.json"
    entries = [e for section in ("training", "validation", "test", "unlabeled") for e in content[section]]
    assert [e["patient"] for e in entries] == ["phantom-001", "phantom-002", "phantom-003", "phantom-004"]
    named = {e[k] for e in entries for k in ("image", "label", "landmarks") if k in e}
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*") if p != path}
    assert named == written
    assert "label" not in content["unlabeled"][0]
    assert "label" in content["test"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_same_arguments_give_the_same_bytes_and_another_seed_others(family, tmp_path):
    counts = {"training": 1}
    write(family, tmp_path / "a", counts=counts)
    write(family, tmp_path / "b", counts=counts)
    write(family, tmp_path / "c", counts=counts, seed=4)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    image = "images/phantom-001.nii.gz"
    assert digests(tmp_path / "a")[image] != digests(tmp_path / "c")[image]


def test_more_test_patients_do_not_change_training_patients(tmp_path):
    write("cine_mr", tmp_path / "a", counts={"training": 1, "test": 0})
    write("cine_mr", tmp_path / "b", counts={"training": 1, "test": 2})
    image = "images/phantom-001.nii.gz"
    assert digests(tmp_path / "a")[image] == digests(tmp_path / "b")[image]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", [0, 2])
def test_file_geometry_is_the_sites_own_and_shared_by_image_and_label(family, site, tmp_path):
    _, content = write(family, tmp_path, site=site, counts={"test": 1})
    style = site_style(family, site)
    image = nib.load(tmp_path / content["test"][0]["image"])
    label = nib.load(tmp_path / content["test"][0]["label"])
    np.testing.assert_array_equal(image.affine, label.affine)
    assert image.shape == label.shape
    assert "".join(nib.aff2axcodes(image.affine)) == style.axcodes
    canonical = nib.as_closest_canonical(image)
    assert canonical.shape == SMALL[family]
    np.testing.assert_allclose(canonical.header.get_zooms(), style.spacing, rtol=1e-5)
    oblique = np.abs(nib.affines.obliquity(image.affine)).max()
    assert (oblique > 0.05) == family.endswith("_mr")
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_affine_puts_the_grid_centre_at_the_shift():
    style = site_style("cine_mr", 1)
    affine = affine_of(style, (11, 21, 5), (7.0, -3.0, 40.0))
    np.testing.assert_allclose(affine @ [5, 10, 2, 1], [7, -3, 40, 1])
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), style.spacing)
    assert np.linalg.det(affine[:3, :3]) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_familys_and_air_or_background_remains(family, tmp_path):
    _, content = write(family, tmp_path, counts={"test": 3})
    seen = set()
    for entry in content["test"]:
        label = np.asarray(nib.load(tmp_path / entry["label"]).dataobj)
        assert label.dtype == np.uint8
        seen |= set(np.unique(label).tolist())
    assert seen == {0, *LABELS[family]}
    assert content["labels"] == {"0": "background"} | {str(k): v for k, v in LABELS[family].items()}


def test_ct_is_in_hounsfield_units(tmp_path):
    _, content = write("abdominal_ct", tmp_path, counts={"test": 1})
    image = np.asarray(nib.load(tmp_path / content["test"][0]["image"]).dataobj)
    label = np.asarray(nib.load(tmp_path / content["test"][0]["label"]).dataobj)
    assert image.dtype == np.int16
    assert image.min() >= -1024
    assert abs(np.median(image[label == 1]) - site_style("abdominal_ct", 0).tissue["liver"]) < 25


def test_late_enhancement_marks_what_emidec_marks_and_sees_what_cine_would_mark(tmp_path):
    """The same heart with and without the right ventricle, which is drawn and, in late enhancement, not marked."""
    from fedmedseg.core.jobs import find_job, read_settings
    from fedmedseg.data.importers.emidec import LABELS as EMIDEC
    from fedmedseg.data.phantoms.geometry import grid
    from fedmedseg.data.phantoms.heart import RIGHT, SUBSLICES, draw_heart, heart_label, surfaces

    assert LABELS["late_enhancement_mr"] == EMIDEC
    (late,) = read_settings(find_job("fedcrld"), [])[1].data.alternatives
    assert {number: name.replace(" ", "_").replace("-", "_") for number, name in late.labels.items()} == EMIDEC
    style, rng = site_style("late_enhancement_mr", 0), np.random.default_rng(1)
    size = (64, 64, 6)
    heart = draw_heart(rng, style, size[2] * style.spacing[2], late=True)
    s = surfaces(grid(size, style.spacing, subslices=SUBSLICES), heart, rng)
    marked, unmarked = heart_label(s), heart_label(s, right=False)
    assert (marked == RIGHT).sum() > 50
    np.testing.assert_array_equal(unmarked, np.where(marked == RIGHT, 0, marked))


def test_scar_lies_inside_the_wall(tmp_path):
    from scipy.ndimage import binary_fill_holes

    _, content = write("late_enhancement_mr", tmp_path, counts={"test": 4}, size=(64, 64, 6))
    scarred = 0
    for entry in content["test"]:
        label = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / entry["label"])).dataobj)
        ventricle = label > 0
        scarred += bool((label == 3).any())
        for z in range(label.shape[2]):
            filled = binary_fill_holes(ventricle[:, :, z])
            assert filled[np.isin(label[:, :, z], (3, 4))].all()
    assert scarred >= 2


def test_partial_sites_label_only_what_they_annotate_except_in_the_test_section(tmp_path):
    _, content = write("abdominal_ct", tmp_path, site=1)
    training, test = content["training"][0], content["test"][0]
    assert training["annotated_labels"] == [2]
    assert set(np.unique(np.asarray(nib.load(tmp_path / training["label"]).dataobj))) <= {0, 2}
    assert "annotated_labels" not in test
    assert 1 in np.unique(np.asarray(nib.load(tmp_path / test["label"]).dataobj))


def test_full_annotation_labels_every_structure(tmp_path):
    _, content = write("abdominal_ct", tmp_path, site=1, counts={"training": 1}, full_annotation=True)
    assert "annotated_labels" not in content["training"][0]
    assert 1 in np.unique(np.asarray(nib.load(tmp_path / content["training"][0]["label"]).dataobj))


def test_landmarks_are_world_millimetres_on_the_aortic_wall(tmp_path):
    _, content = write("cardiac_ct", tmp_path, counts={"test": 2}, size=(64, 64, 48))
    for entry in content["test"]:
        points = json.loads((tmp_path / entry["landmarks"]).read_text())
        assert set(points) == set(LANDMARKS)
        place = {name: np.array(p) for name, p in points.items()}
        image = nib.load(tmp_path / entry["image"])
        voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), np.array(list(points.values())))
        assert (voxels > 0).all()
        assert (voxels < np.array(image.shape) - 1).all()
        centre = (place["RCC"] + place["LCC"] + place["NCC"]) / 3
        values = np.asarray(image.dataobj)
        at = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), centre)).astype(int)
        assert values[tuple(at)] > 250  # contrast agent inside the annulus
        for name in ("RCC", "LCC", "NCC"):
            assert 8 < np.linalg.norm(place[name] - centre) < 20
        normal = np.cross(place["RCC"] - centre, place["LCC"] - centre)
        normal *= np.sign(normal[2]) / np.linalg.norm(normal)
        assert 5 < (place["LCA"] - centre) @ normal < 25  # ostia lie above the annulus
        assert 5 < (place["RCA"] - centre) @ normal < 25
        assert (place["MS2"] - place["MS1"]) @ normal < -3  # the membranous septum runs below it


def test_a_site_without_calcium_annotation_gives_landmarks_only(tmp_path):
    _, content = write("cardiac_ct", tmp_path, site=3, counts={"training": 1})
    entry = content["training"][0]
    assert entry["annotated_labels"] == []
    assert "label" not in entry
    assert set(json.loads((tmp_path / entry["landmarks"]).read_text())) == {"RCC", "LCC", "NCC", "RCA", "LCA"}


def test_a_landmark_outside_the_volume_is_null(tmp_path):
    _, content = write("cardiac_ct", tmp_path, counts={"test": 4}, size=(32, 32, 24))
    files = [json.loads((tmp_path / entry["landmarks"]).read_text()) for entry in content["test"]]
    assert all(list(points) == list(LANDMARKS) for points in files)
    places = [place for points in files for place in points.values()]
    assert None in places
    assert any(place is not None for place in places)


def test_each_training_volume_has_its_own_marks_and_validation_those_of_all(tmp_path):
    marks = [marks_of(["hps", "calc"]), marks_of(["ms"])]
    counts = {"training": 2, "validation": 1, "test": 1, "unlabeled": 1}
    _, content = write("cardiac_ct", tmp_path, counts=counts, marks=marks)
    first, second = content["training"]
    names = [list(json.loads((tmp_path / entry["landmarks"]).read_text())) for entry in (first, second)]
    assert names == [["RCC", "LCC", "NCC", "RCA", "LCA"], ["MS1", "MS2"]]
    assert (first["annotated_labels"], second["annotated_labels"]) == ([1], [])
    assert "label" not in second
    (validation,) = content["validation"]
    assert validation["annotated_labels"] == [1]
    assert list(json.loads((tmp_path / validation["landmarks"]).read_text())) == list(LANDMARKS)
    assert set(content["unlabeled"][0]) == {"image", "patient"}


def test_marks_for_another_number_of_volumes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 marks for 2"):
        write("cardiac_ct", tmp_path, counts={"training": 2}, marks=[Marks()])


def test_other_marks_are_another_list_and_the_images_the_same(tmp_path):
    for name, tasks in (("a", ["hps"]), ("b", ["ms"])):
        write("cardiac_ct", tmp_path / name, counts={"training": 1}, marks=[marks_of(tasks)])
    one, other = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert one["images/phantom-001.nii.gz"] == other["images/phantom-001.nii.gz"]
    assert one["datalist.json"] != other["datalist.json"]


def test_coronaries_leave_the_aorta_at_their_ostia_and_calcium_is_no_part_of_them(tmp_path):
    _, content = write("cardiac_ct", tmp_path, counts={"test": 1}, size=(64, 64, 48), heart=True)
    (entry,) = content["test"]
    label, heart = (np.asarray(nib.load(tmp_path / entry[kind]).dataobj) for kind in ("label", "heart"))
    affine = nib.load(tmp_path / entry["label"]).affine
    assert set(np.unique(label)) == {0, 1, 2}
    assert not (heart[label == 2] == 6).any()
    # two trees, give or take voxels that a nodule of the valve cut off
    parts, count = connected(label == 2, structure=np.ones((3, 3, 3)))
    sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
    assert sizes[: min(2, count)].sum() > 0.9 * sizes.sum()
    points = json.loads((tmp_path / entry["landmarks"]).read_text())
    places = nib.affines.apply_affine(affine, np.argwhere(label == 2))
    for name in ("RCA", "LCA"):
        assert np.linalg.norm(places - points[name], axis=1).min() < 4


def test_the_hearts_structures_are_in_every_volume_that_asks_for_them(tmp_path):
    _, content = write("cardiac_ct", tmp_path, size=(64, 64, 48), heart=True)
    for entry in (e for section in ("training", "test", "unlabeled") for e in content[section]):
        image, heart = (nib.load(tmp_path / entry[kind]) for kind in ("image", "heart"))
        np.testing.assert_allclose(image.affine, heart.affine)
        values, structures = np.asarray(image.dataobj), np.asarray(heart.dataobj)
        assert set(np.unique(structures)) >= {0, 1, 2, 4, 5, 6, 7}
        # contrast in the left heart: aorta and left atrium are brighter than muscle
        assert np.median(values[structures == 6]) > np.median(values[structures == 1]) + 80
        assert np.median(values[structures == 2]) > np.median(values[structures == 1]) + 80
    with pytest.raises(ValueError, match="no map"):
        write("cine_mr", tmp_path / "mr", heart=True)


def test_interrupted_writing_is_repeated_and_finished_writing_is_not(tmp_path, monkeypatch):
    from fedmedseg.data.phantoms import writer

    counts = {"training": 2}
    save, saved = writer._save_nifti, []

    def broken(array, affine, axcodes, path):
        if len(saved) == 2:
            raise OSError("disk full")
        saved.append(path.name)
        save(array, affine, axcodes, path)

    monkeypatch.setattr(writer, "_save_nifti", broken)
    with pytest.raises(OSError, match="disk full"):
        write("cine_mr", tmp_path, counts=counts)
    assert not (tmp_path / "datalist.json").exists()
    monkeypatch.setattr(writer, "_save_nifti", save)
    path, _ = write("cine_mr", tmp_path, counts=counts)
    first = path.stat().st_mtime_ns
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
    write("cine_mr", tmp_path, counts=counts)
    assert path.stat().st_mtime_ns == first
    write("cine_mr", tmp_path, counts=counts, seed=9)
    assert "seed 9" in json.loads(path.read_text())["description"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"family": "cine_mrr"}, "data.phantom.family"),
        ({"counts": {"training": -1}}, "counts.training"),
        ({"counts": {"training": 1.5}}, "counts.training"),
        ({"counts": {"unlabelled": 1}}, "counts"),
        ({"size": (48, 48, 3)}, "data.phantom.size"),
        ({"site_index": -1}, "site_index"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(changes, field, tmp_path):
    arguments = {"family": "cine_mr", "site_index": 0, "seed": 1, "counts": {"training": 1}} | changes
    out = tmp_path / "site"
    with pytest.raises(ConfigurationError) as caught:
        write_site(arguments.pop("family"), out=out, **arguments)
    assert caught.value.field == field
    assert not out.exists()


def test_unknown_family_error_names_the_nearest():
    with pytest.raises(ConfigurationError, match="write 'abdominal_ct'"):
        write_site("abdominal_CT", site_index=0, out=None, seed=1, counts={})


@pytest.mark.parametrize("family", FAMILIES)
def test_default_sizes_exceed_the_least(family):
    for index in range(6):
        assert all(a >= b for a, b in zip(site_style(family, index).size, LEAST_SIZE[family], strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_patients_differ_within_a_site(family, tmp_path):
    _, content = write(family, tmp_path, counts={"test": 2})
    first, second = (np.asarray(nib.load(tmp_path / e["label"]).dataobj) for e in content["test"])
    assert (first != second).sum() > 20


def test_other_annotations_than_the_styles_change_labels_and_nothing_of_the_images(tmp_path):
    counts = {"training": 1, "test": 1}
    _, style = write("abdominal_ct", tmp_path / "a", counts=counts)
    path, given = write("abdominal_ct", tmp_path / "b", counts=counts, marks=[Marks(labels=(2, 4))])
    assert style["training"][0]["annotated_labels"] == [1]
    assert given["training"][0]["annotated_labels"] == [2, 4]
    assert "annotated_labels" not in given["test"][0]
    label = np.asarray(nib.load(path.parent / given["training"][0]["label"]).dataobj)
    assert set(np.unique(label)) <= {0, 2, 4}
    image = given["training"][0]["image"]
    assert digests(tmp_path / "a")[image] == digests(tmp_path / "b")[image]
    # what was written under other annotations is not taken for this
    assert style["description"] != given["description"]
