"""The picture shows the outlines and holds no more than the drawing."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest

from fedmedseg.segmentation.overlay import busiest_slice, overlay_png


def test_the_busiest_slice_has_most_labelled_voxels_or_is_the_middle():
    label = np.zeros((4, 4, 5), dtype=np.uint8)
    assert busiest_slice(label) == 2
    label[0, 0, 1] = 1
    label[:2, 0, 4] = 2
    assert busiest_slice(label) == 4


def test_truth_and_models_are_outlined_in_their_own_colours():
    image = np.zeros((40, 30))
    truth, prediction = np.zeros((40, 30), dtype=np.uint8), np.zeros((40, 30), dtype=np.uint8)
    truth[5:15, 5:15] = 1
    prediction[25:35, 5:15] = 1
    png = overlay_png(image, truth, {"personal": prediction, "scratch": np.zeros_like(truth)}, spacing=(1.0, 1.0))
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    height, width = pixels.shape[:2]
    assert (width, height) == (900, 675)

    def columns(colour):
        return np.flatnonzero((np.abs(pixels - np.array(colour) / 255).max(-1) < 0.1)[:, : int(width * 0.78)].any(0))

    green, red = columns((0x2C, 0xA0, 0x2C)), columns((0xD6, 0x27, 0x28))
    # the first axis runs from left to right: 4.5..14.5 and 24.5..34.5 of 40
    assert 4.5 / 40 * width < np.median(green) < 15.5 / 40 * width
    assert 24.5 / 40 * width < np.median(red) < 35.5 / 40 * width


def test_points_are_marked_in_their_models_colours_and_one_that_is_missing_or_outside_is_not():
    flat = np.zeros((40, 30), dtype=np.uint8)
    places = {"truth": np.array([[10.0, 8.0], [np.nan, np.nan]]), "student": np.array([[30.0, 20.0], [55.0, 20.0]])}
    png = overlay_png(np.zeros((40, 30)), flat, {"student": flat}, spacing=(1.0, 1.0), points=places)
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    height, width = pixels.shape[:2]
    assert (width, height) == (900, 675)
    for colour, (x, y) in (((0x2C, 0xA0, 0x2C), (10, 8)), ((0xD6, 0x27, 0x28), (30, 20))):
        rows, columns = np.nonzero((np.abs(pixels - np.array(colour) / 255).max(-1) < 0.1)[100:])
        # the second axis runs upwards; the legend's own marks lie in the rows above
        assert np.median(columns) == pytest.approx((x + 0.5) / 40 * width, abs=4)
        assert np.median(rows) + 100 == pytest.approx((1 - (y + 0.5) / 30) * height, abs=4)


def test_a_flat_slice_without_structures_can_be_drawn():
    empty = np.zeros((8, 8), dtype=np.uint8)
    assert overlay_png(np.ones((8, 8)), empty, {}, spacing=(1.0, 2.0)).startswith(b"\x89PNG")
