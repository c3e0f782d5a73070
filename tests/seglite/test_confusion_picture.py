"""The picture of a confusion matrix: cells where they belong, sizes that stay reasonable."""
import numpy as np

from seglite.evaluate_report import confusion_picture
from seglite.metrics import Confusion


def matrix(names, rows):
    confusion = Confusion(names)
    for true, predicted, pixels in rows:
        confusion.add(np.full(pixels, true), np.full(pixels, predicted))
    return confusion


def colours(picture):
    """Saturated cells of the picture: (mean x, mean y) of the green and of the red ones."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 60)
    red = (pixels[..., 0] > pixels[..., 1] + 60)
    return [tuple(np.argwhere(m).mean(0)[::-1]) if m.any() else None for m in (green, red)]


def test_hits_lie_on_the_diagonal_and_confusions_in_their_column():
    hits, none = colours(confusion_picture(matrix(("sky", "road", "car"), [(0, 0, 10), (1, 1, 10), (2, 2, 10)])))
    assert none is None
    _, miss = colours(confusion_picture(matrix(("sky", "road", "car"), [(0, 2, 10), (1, 1, 10), (2, 2, 10)])))
    assert miss[0] > hits[0] + 30 and miss[1] < hits[1] - 30  # row sky, column car: upper right
    _, miss = colours(confusion_picture(matrix(("sky", "road", "car"), [(0, 0, 10), (1, 1, 10), (2, 0, 10)])))
    assert miss[0] < hits[0] - 30 and miss[1] > hits[1] + 30  # row car, column sky: lower left


def test_classes_that_do_not_occur_take_no_room():
    small = confusion_picture(matrix(("sky", "sea", "car"), [(0, 0, 5), (2, 2, 5)]))
    large = confusion_picture(matrix(("sky", "sky", "car"), [(0, 0, 5), (1, 1, 5), (2, 2, 5)]))
    assert large.width - small.width == large.height - small.height == 44


def test_150_classes_fit_a_page():
    names = [f"class {k}" for k in range(150)]
    picture = confusion_picture(matrix(names, [(k, (k + k % 3) % 150, 3) for k in range(150)]))
    assert 800 < picture.width < 1100 and 800 < picture.height < 1100
