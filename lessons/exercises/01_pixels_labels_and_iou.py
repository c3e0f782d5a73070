"""Exercises of lesson 01. Replace each `return None`, then run:   python -m lessons.check 01"""
import numpy as np


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Exercise 1. The table of counts: int64 [K, K], row = true class, column = predicted class.

    truth, prediction: uint8 arrays of one shape. Where the truth is 255 the pixel is not counted, whatever was predicted there.
    No loop over pixels.
    """
    return None  # your code here


def mean_iou(counts: np.ndarray) -> float:
    """Exercise 2. The mean IoU over the classes that occur in the truth or in the prediction. counts: int64 [K, K]."""
    return None  # your code here


def dataset_miou(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> float:
    """Exercise 3. The mIoU of a data set: a list of (truth, prediction), images of any sizes. Use exercises 1 and 2."""
    return None  # your code here


def boundary_iou(truth: np.ndarray, prediction: np.ndarray, distance: int) -> float:
    """Exercise 4. IoU of the two bands of `distance` pixels just inside each mask's contour. bool [H, W] each.

    A pixel of the mask is in its band when some pixel at most `distance` rows and columns away is outside the mask; beyond the image
    everything is outside. Nan when both bands are empty.
    """
    return None  # your code here
