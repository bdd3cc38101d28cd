"""One number for each patch, drawn over a picture."""

import numpy as np
import pytest
from PIL import Image

from scope.models.pictures.draw import LOWERS, RAISES, img_tag, overlay, png
from scope.models.pictures.processor import PictureProcessor

GREY = Image.new("RGB", (60, 30), (128, 128, 128))
BOXES = PictureProcessor(size=4).patch_boxes(2, GREY.size)


def centre(image, box, of=GREY):
    factor = image.size[0] / of.size[0]
    return np.array(image.getpixel((round((box[0] + box[2]) / 2 * factor), round((box[1] + box[3]) / 2 * factor))))


def test_the_largest_number_is_the_most_coloured_and_the_sign_is_the_hue():
    drawn = overlay(GREY, BOXES, [2.0, 1.0, -2.0, 0.0])
    strong, weak, below, none = (centre(drawn, box) for box in BOXES)
    assert np.array_equal(none, [128] * 3)
    np.testing.assert_allclose(strong, 0.75 * np.array(RAISES) + 0.25 * 128, atol=2)
    np.testing.assert_allclose(below, 0.75 * np.array(LOWERS) + 0.25 * 128, atol=2)
    assert 0 < np.abs(weak - none).sum() < np.abs(strong - none).sum()


def test_a_largest_from_elsewhere_makes_two_pictures_comparable():
    alone, beside = (centre(overlay(GREY, BOXES, [1.0, 0, 0, 0], largest), BOXES[0]) for largest in (None, 4.0))
    assert np.abs(beside - 128).sum() < np.abs(alone - 128).sum() / 2


def test_numbers_that_are_all_zero_leave_the_picture_without_colour():
    assert (np.asarray(overlay(GREY, BOXES, [0.0] * 4)) == 128).all()


def test_small_pictures_are_enlarged_and_large_ones_made_smaller():
    assert overlay(GREY, BOXES, np.zeros(4)).size == (224, 112)
    large = Image.new("RGB", (1000, 2000))
    assert overlay(large, PictureProcessor(size=4).patch_boxes(2, large.size), np.zeros(4)).size == (224, 448)


def test_other_than_one_number_for_each_patch_is_refused():
    with pytest.raises(ValueError, match="3 numbers for 4 patches"):
        overlay(GREY, BOXES, [0.0] * 3)


def test_a_tag_is_escaped_and_the_file_carries_nothing_but_pixels():
    noted = GREY.copy()
    noted.info["comment"] = "<script>"
    assert b"script" not in png(noted)
    assert "<b>" not in img_tag(GREY, '"<b>')
