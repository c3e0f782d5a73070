"""Squares and grid views: the right part of the image, fractions of pixels included."""
import numpy as np
import pytest
from PIL import Image

from seglite.data import squares as S
from seglite.data import generator


def ramp(height, width):
    """Red rises with the column, green with the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def test_centre_square():
    image = ramp(60, 100)
    found = S.centre_square(image, 60)
    assert np.array_equal(found, image[:, 20:80])
    assert S.centre_square(image, 30).shape == (30, 30, 3)
    square = ramp(64, 64)
    assert S.centre_square(square, 64) is square


def test_cells_cover_the_square_once_per_grid():
    boxes = S.cells((1, 2, 3, 4))
    assert len(boxes) == 30 and boxes[0] == (0, 0, 1, 1)
    for first, count in ((1, 4), (5, 9), (14, 16)):
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes[first : first + count]]
        assert sum(areas) == pytest.approx(1)
    assert boxes[2] == (0.5, 0, 1, 0.5)  # row by row: the second cell is to the right
    for grids in ((), (0,), (2, 2)):
        with pytest.raises(ValueError, match="different numbers of cells"):
            S.cells(grids)


def test_views_of_whole_pixels_are_plain_crops():
    image = ramp(224, 224)
    views = S.grid_views(image, (1, 2), 112)
    assert views.shape == (5, 112, 112, 3)
    assert np.array_equal(views[4], image[112:, 112:]) and np.array_equal(views[2], image[:112, 112:])


def test_fractional_cells_are_where_they_should_be():
    """224 / 3 is no whole number: the mean colour of a cell of a ramp tells its centre."""
    views = S.grid_views(ramp(224, 224), (3,), 64).astype(float)
    for cell in range(9):
        row, column = divmod(cell, 3)
        middle = lambda i: (i + 0.5) * 224 / 3 - 0.5  # noqa: E731
        assert views[cell, ..., 0].mean() == pytest.approx(middle(column), abs=0.6)
        assert views[cell, ..., 1].mean() == pytest.approx(middle(row), abs=0.6)


def test_resizing_is_pillows_bicubic():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((9, 9), Image.BICUBIC, box=(3.5, 2.25, 30.0, 40.75)))
    assert np.array_equal(S.cut(image, (3.5, 2.25, 30.0, 40.75), 9), expected)


def test_random_squares():
    image = ramp(60, 100)
    transform, widths, flips = S.RandomSquare(30, smallest=0.25), [], 0
    for i in range(60):
        found = transform({"image": image, "index": 3}, generator(0, i))
        assert found["image"].shape == (30, 30, 3) and found["index"] == 3
        red = found["image"][..., 0].astype(int)
        flips += int(red[0, 0] > red[0, -1])
        widths.append(abs(red[0, -1] - red[0, 0]))
    assert 15 < flips < 45
    assert min(widths) >= 26 and max(widths) <= 61  # sides between half and all of the shorter side
    same = [transform({"image": image}, generator(0, 5))["image"] for _ in range(2)]
    assert np.array_equal(*same)
    with pytest.raises(ValueError, match="at most 1"):
        S.RandomSquare(30, smallest=0.0)
