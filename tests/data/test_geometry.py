"""Turning, resampling and padding grids, and the way back."""

import nibabel as nib
import numpy as np
import pytest
import torch

from fedmedseg.data import geometry
from fedmedseg.data.geometry import Grid

TILT = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def affine_for(codes: str, spacing: tuple[float, float, float]) -> np.ndarray:
    """Affine of an array whose axes point at ``codes``."""
    orientation = nib.orientations.axcodes2ornt(codes)
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(orientation):
        affine[int(world), axis] = sign * spacing[axis]
    affine[:, 3] = (11.0, -7.0, 3.0, 1.0)
    return affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "IPL"])
def test_three_dimensional_volumes_are_turned_to_ras(codes: str) -> None:
    grid = Grid((4, 5, 6), affine_for(codes, (1.0, 2.0, 3.0)))
    oriented = geometry.oriented_grid(grid, geometry.canonical_orientation(grid.affine, 3))
    assert nib.aff2axcodes(oriented.affine) == ("R", "A", "S")


def test_short_axis_stacks_are_brought_to_one_direction_whichever_part_of_their_axis_is_largest() -> None:
    """Base to apex points left, anterior and inferior; each of the three is the largest once."""
    for axis in ((-0.7, 0.5, -0.5), (-0.5, 0.7, -0.5), (-0.5, 0.5, -0.7)):
        towards_apex = np.array(axis) / np.linalg.norm(axis)
        first = np.cross(towards_apex, [0.0, 0.0, 1.0])
        first /= np.linalg.norm(first)
        columns = np.stack([first, np.cross(towards_apex, first), towards_apex], axis=1)
        for direction, sign in ((1.0, -1), (-1.0, 1)):
            affine = np.eye(4)
            affine[:3, :3] = columns * [1.0, 1.0, 8.0 * direction]
            # the first slice ends up at the apex: a stack stored from base to apex is turned round
            assert geometry.canonical_orientation(affine, 2)[2].tolist() == [2, sign]


def test_orientation_agrees_with_monai() -> None:
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    affine = affine_for("PIR", (1.0, 2.0, 3.0))
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    orientation = geometry.canonical_orientation(affine, 3)
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)
        reference = Orientation(axcodes="RAS")(MetaTensor(torch.from_numpy(array)[None], affine=torch.tensor(affine)))
    assert np.array_equal(geometry.orient(array, orientation), reference[0].numpy())
    grid = geometry.oriented_grid(Grid((4, 5, 6), affine), orientation)
    assert np.allclose(grid.affine, reference.affine.numpy())


@pytest.mark.parametrize(("codes", "through"), [("RAS", 2), ("SRA", 0), ("ASR", 1), ("ARS", 0), ("LPS", 1)])
def test_slices_go_last_and_planes_stay_planes(codes: str, through: int) -> None:
    spacing = [1.2, 1.2, 1.2]
    spacing[through] = 8.0
    grid = Grid((4, 5, 6), affine_for(codes, (spacing[0], spacing[1], spacing[2])))
    oriented = geometry.oriented_grid(grid, geometry.canonical_orientation(grid.affine, 2))
    assert oriented.spacing == pytest.approx((1.2, 1.2, 8.0))
    assert oriented.shape[2] == grid.shape[through]
    # in-plane axes stand in the order right, anterior, superior and point that way
    codes_now = nib.aff2axcodes(oriented.affine)
    assert set(codes_now) == set("RAS")
    assert "RAS".index(codes_now[0]) < "RAS".index(codes_now[1])


def test_an_oblique_stack_keeps_its_slices() -> None:
    # the slice normal lies 53 degrees off the S axis towards R: a short-axis plane
    tilt = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag([1.25, 1.25, 8.0])
    orientation = geometry.canonical_orientation(affine, 2)
    assert orientation[2, 0] == 2


def rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_short_axis_stacks_of_different_patients_end_up_alike() -> None:
    # the left ventricle points left, anterior and inferior; its planes stand across it
    normal = np.array([-0.6, 0.6, -0.53])
    normal /= np.linalg.norm(normal)
    right = np.array([1.0, 0, 0]) - normal[0] * normal
    right /= np.linalg.norm(right)
    frame = np.stack([right, np.cross(normal, right), normal], axis=1)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(50):
        tilt = rotation(rng.normal(size=3), float(rng.uniform(-20, 20)))
        affine = np.eye(4)
        affine[:3, :3] = tilt @ frame @ np.diag([1.25, 1.25, 8.0])
        # another scanner stores the same planes transposed and mirrored
        stored = affine @ np.array([[0, -1, 0, 255], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        for one in (affine, stored):
            grid = geometry.oriented_grid(Grid((256, 256, 9), one), geometry.canonical_orientation(one, 2))
            seen.append(tilt.T @ grid.affine[:3, :2] / 1.25)
    assert np.allclose(seen, seen[0], atol=1e-6)


def test_equal_spacings_mean_the_third_axis() -> None:
    assert geometry.slice_axis((1.0, 1.0, 1.0)) == 2
    assert geometry.slice_axis((8.0, 1.0, 1.0)) == 0
    assert geometry.slice_axis((8.0, 1.0, 7.99)) == 2


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("dims", [2, 3])
def test_turning_back_is_exact(codes: str, dims: int) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    orientation = geometry.canonical_orientation(affine_for(codes, (1.0, 1.0, 4.0)), dims)
    turned = torch.from_numpy(geometry.orient(array, orientation))
    back = geometry.undo_orientation(torch.stack([turned, -turned]), orientation)
    assert torch.equal(back[0], torch.from_numpy(array))
    assert torch.equal(back[1], -torch.from_numpy(array))


def test_resampling_keeps_the_box_and_its_centre() -> None:
    affine = np.eye(4)
    affine[:3, :3] = TILT @ np.diag([1.0, 2.0, 8.0])
    affine[:3, 3] = (5.0, -3.0, 2.0)
    grid = Grid((30, 20, 9), affine)
    new = geometry.resampled_grid(grid, (1.5, 1.0, None))
    assert new.shape == (20, 40, 9)
    assert new.spacing == pytest.approx((1.5, 1.0, 8.0))
    centres = [one.affine @ np.array([*((np.array(one.shape) - 1) / 2), 1.0]) for one in (grid, new)]
    assert np.allclose(*centres)


def test_nearly_equal_spacing_is_left_alone() -> None:
    grid = Grid((30, 20, 9), np.diag([1.002, 1.0, 8.0, 1.0]))
    new = geometry.resampled_grid(grid, (1.0, 1.0, 8.0))
    assert new.shape == grid.shape
    assert np.array_equal(new.affine, grid.affine)


def test_a_ramp_in_space_is_the_same_ramp_after_resampling() -> None:
    affine = np.eye(4)
    affine[:3, :3] = TILT @ np.diag([1.0, 2.0, 4.0])
    grid = Grid((24, 18, 10), affine)
    new = geometry.resampled_grid(grid, (1.7, 1.3, 3.1))

    def ramp(on: Grid) -> torch.Tensor:
        indices = np.stack(np.meshgrid(*[np.arange(n) for n in on.shape], indexing="ij")).reshape(3, -1)
        world = on.affine[:3, :3] @ indices + on.affine[:3, 3:]
        return torch.from_numpy((np.array([1.0, -2.0, 0.5]) @ world).reshape(1, *on.shape)).float()

    seen = geometry.resample(ramp(grid), grid, new, mode="bilinear")
    inner = (slice(None), slice(1, -1), slice(1, -1), slice(1, -1))
    assert torch.allclose(seen[inner], ramp(new)[inner], atol=1e-3)


def test_nothing_is_computed_where_grids_agree() -> None:
    volume = torch.randn(2, 3, 4, 5)
    grid = Grid((3, 4, 5), np.eye(4))
    assert torch.equal(geometry.resample(volume, grid, grid, mode="bilinear"), volume)


def test_padding_is_symmetric_and_at_most_a_quarter() -> None:
    assert geometry.padding((16, 13, 20), (16, 16, 16)) == ((0, 0), (1, 2), (0, 0))
    assert geometry.padding((12, 16, 16), (16, 16, 16)) == ((2, 2), (0, 0), (0, 0))
    assert geometry.padding((11, 16, 16), (16, 16, 16)) is None
    # in 2D the number of slices does not matter
    assert geometry.padding((16, 16, 1), (16, 16)) == ((0, 0), (0, 0), (0, 0))


def test_undoing_the_padding_gives_the_volume() -> None:
    volume = torch.randn(2, 13, 16, 5)
    widths = ((1, 2), (0, 0), (0, 0))
    padded = torch.nn.functional.pad(volume, (0, 0, 0, 0, 1, 2))
    assert torch.equal(geometry.undo_padding(padded, widths), volume)


def test_corner_distance_is_in_millimetres() -> None:
    shifted = np.eye(4)
    shifted[0, 3] = 0.3
    assert geometry.corner_distance(Grid((4, 4, 4), np.eye(4)), Grid((4, 4, 4), shifted)) == pytest.approx(0.3)
    assert not geometry.same_grid(Grid((4, 4, 4), np.eye(4)), Grid((4, 4, 4), shifted))


def test_a_single_slice_is_resampled_in_its_plane() -> None:
    grid = Grid((20, 24, 1), np.diag([1.0, 1.0, 8.0, 1.0]))
    new = geometry.resampled_grid(grid, (2.0, 2.0, None))
    volume = torch.arange(20.0)[None, :, None, None].expand(1, 20, 24, 1).contiguous()
    seen = geometry.resample(volume, grid, new, mode="bilinear")
    assert seen.shape == (1, 10, 12, 1)
    # each new voxel lies halfway between two old ones: 0.5, 2.5, 4.5, ...
    assert torch.allclose(seen[0, :, 5, 0], torch.arange(10.0) * 2 + 0.5, atol=1e-4)


def test_the_longer_in_plane_side_is_scaled_to_so_many_voxels() -> None:
    """100 x 60 voxels of 2 mm at 1 mm are 200 x 120; to 100 they are 2 mm again, whatever the slices."""
    grid = Grid((100, 60, 9), np.diag([2.0, 2.0, 8.0, 1.0]))
    assert geometry.target_grid(grid, (1.0, 1.0, None), None).shape == (200, 120, 9)
    new = geometry.target_grid(grid, (1.0, 1.0, None), 150)
    assert new.shape == (150, 90, 9)
    np.testing.assert_allclose(new.spacing, (200 / 150, 200 / 150, 8.0))
